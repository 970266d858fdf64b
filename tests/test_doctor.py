"""`vr1 doctor`: what a parameter file needs on a GPU, told without one, and which cards have room."""

import json
import re
import shutil
from pathlib import Path

import pytest

from vr1lib.models.tiny import build_tiny_vlm
from vr1lib.workbench import doctor
from vr1lib.workbench.doctor import examine, examine_file, file_in_words, in_words, parameter_files, published_name

ANSWERS = Path(__file__).parent.parent / "params" / "40_benchmark"
SEVEN = "model: Qwen/Qwen2.5-VL-7B-Instruct\nmax_pixels: 589824\ngradient_checkpointing: true\ndtype: bfloat16\n"


def write(home, stem, name, text):
    (home / "params" / stem).mkdir(exist_ok=True)
    path = home / "params" / stem / f"{name}.yaml"
    path.write_text(text)
    return path


def rows_of(home, vram_gib=0.0, gpus=0):
    return {row["file"].split("/")[-1].removesuffix(".yaml"): row for row in parameter_files(home, vram_gib, gpus)}


def test_what_fits_is_told_without_a_gpu(home):
    write(home, "20_cold_sft", "demo", "model: tiny\n")
    write(home, "10_data_building", "data", "limit: 3\n")
    write(home, "20_cold_sft", "qlora", SEVEN + "method: qlora\nmicro_batch_size: 1\nmax_tokens: 4096\n")
    write(home, "20_cold_sft", "full", SEVEN + "micro_batch_size: 1\nmax_tokens: 2048\n")
    write(home, "40_benchmark", "wrong", "modle: tiny\n")
    findings = examine()
    rows = {row["file"].split("/")[-1]: row for row in findings["parameter_files"]}
    assert json.loads(json.dumps(findings)) == findings
    for name in ("demo.yaml", "data.yaml"):
        assert rows[name]["fits"] and rows[name]["needs_vram_gib"] == 0
    assert 10 < rows["qlora.yaml"]["needs_vram_gib"] < 24 and rows["qlora.yaml"]["cards"][0] == 24
    assert 110 < rows["full.yaml"]["needs_vram_gib"] < 139 and rows["full.yaml"]["cards"] == [141]
    assert not rows["full.yaml"]["fits"]
    assert "modle" in rows["wrong.yaml"]["error"] and not rows["wrong.yaml"]["fits"]
    page = in_words(findings)
    assert "fits (CPU)" in page and "takes 141 GB" in page and "modle" in page


def test_a_sharded_file_needs_as_many_gpus_as_it_has_processes(home):
    write(home, "20_cold_sft", "eight", SEVEN + "processes: 8\nsharding: fsdp2\nmicro_batch_size: 1\n")
    alone, few, many = (rows_of(home, 79.2, gpus)["eight"] for gpus in (0, 4, 8))
    assert alone["processes"] == 8 and not few["fits"] and many["fits"]
    assert "8 GPUs × " in doctor.need_in_words(alone)


def test_a_model_still_to_be_made_is_known_by_the_file_that_will_make_it(home):
    stages = "method: qlora\nstages: [[1024, 8, 1]]\nrollout_rows: 8\nmicro_batch_tokens: 2048\n"
    grpo = "model: outputs/20_cold_sft/mine/model\ngradient_checkpointing: true\ndtype: bfloat16\n" + stages
    write(home, "30_ptst_grpo", "grpo", grpo)
    assert rows_of(home)["grpo"]["needs_vram_gib"] == 0  # nothing says that this run's model is a large one
    write(home, "20_cold_sft", "mine", SEVEN.replace("589824", "200704"))
    small = rows_of(home)["grpo"]["needs_vram_gib"]
    write(home, "20_cold_sft", "mine", SEVEN)
    large = rows_of(home)["grpo"]["needs_vram_gib"]
    assert 7 < small < large  # its pictures, too, are those that the model was trained on


def test_a_folder_on_this_machine_is_counted_itself(home, monkeypatch):
    build_tiny_vlm(home / "outputs/00_base_model/mine/model", 0, ["How many?"], vocabulary_size=300, layers=1)
    write(home, "40_benchmark", "mine", "model: outputs/00_base_model/mine/model\n")
    assert rows_of(home)["mine"]["needs_vram_gib"] == 0
    monkeypatch.setattr(doctor, "CPU_PARAMETERS", 1)
    needs = rows_of(home)["mine"]["needs_vram_gib"]
    assert 1 < needs < 4  # the CUDA context and the caches of 64 answers
    shutil.rmtree(home / "outputs")


@pytest.mark.parametrize(
    ("names", "published"),
    [
        ("Qwen/Qwen2.5-VL-7B-Instruct", "Qwen2.5-VL-7B"),
        ("Qwen/Qwen2-VL-7B-Instruct", "Qwen2-VL-7B"),
        ("meta-llama/Llama-3.2-11B-Vision-Instruct", "Llama-3.2-11B-Vision"),
        ("mine/finetuned-32b", "Qwen2.5-VL-32B"),
        ("mine/model-14B", "Qwen2.5-VL-32B"),
        ("mine/model", "Qwen2.5-VL-7B"),
        ("mine/model-235B", "Qwen2.5-VL-72B"),
    ],
)
def test_a_model_elsewhere_is_known_by_its_names(names, published):
    assert published_name(names) == published


def test_one_file_is_shown_part_by_part_with_what_smaller_cards_would_take(home):
    path = write(
        home, "30_ptst_grpo", "mine",
        SEVEN + "method: qlora\nstages: [[8192, 8, 100]]\nprompts_per_step: 64\nrollout_rows: 256\n",
    )  # fmt: skip
    findings = examine_file(path)
    assert findings["parameters"] == 8_292_166_656 and findings["trained"] == 161_480_704
    assert {"weights", "adapter", "optimizer", "KV cache", "activations", "logits"} <= {
        part["name"] for part in findings["parts"]
    }
    page = file_in_words(findings)
    assert "KV cache" in page and "one GPU" in page and "not measured" in page
    assert "lower rollout_rows from 256 to" in findings["for_less"][40]
    fewer = examine_file(path, [("rollout_rows", "8")])
    assert fewer["peak_gib"] < findings["peak_gib"]
    assert json.loads(json.dumps(fewer))["model"] == "Qwen2.5-VL-7B"


def test_a_file_for_the_cpu_says_so(home):
    path = write(home, "30_ptst_grpo", "tiny", "model: tiny\n")
    assert file_in_words(examine_file(path)).endswith("tiny.yaml: runs on a CPU")


def test_every_parameter_file_of_the_project_is_understood():
    rows = parameter_files(doctor.project_root(), 0.0, 0)
    assert len(rows) > 15
    assert [row for row in rows if row["error"]] == []


def test_the_table_in_the_guide_is_what_doctor_says():
    root = doctor.project_root()
    rows = re.findall(
        r"^\| (\d\d_\w+/\w+) \|.*\| ([\d.]+) \| (\d+) × (\d+) GB \|$", (root / "docs/gpu.md").read_text(), re.M
    )
    assert len(rows) == 12
    for name, peak, gpus, card in rows:
        found = examine_file(root / "params" / f"{name}.yaml")
        assert float(peak) == pytest.approx(found["peak_gib"], rel=0.02), name
        assert (int(gpus), int(card)) == (found["gpus"], found["cards"][0]), name


def test_an_answering_model_is_held_as_it_is_loaded_and_a_served_one_not_here():
    whole = [("model", "Qwen/Qwen2.5-VL-7B-Instruct")]
    four_bit, full = (examine_file(ANSWERS / "qlora_7b_1gpu.yaml", given) for given in ([], whole))
    weights = [
        next(part["bytes"] for part in found["parts"] if part["name"] == "weights") for found in (four_bit, full)
    ]
    assert weights[1] == 2 * full["parameters"] and weights[0] < 0.45 * weights[1]
    assert 24 in four_bit["cards"] and 24 not in full["cards"]
    assert examine_file(ANSWERS / "vllm.yaml")["model"] is None
