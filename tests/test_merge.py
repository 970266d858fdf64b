"""A merged model is the policy as it was trained, plain to any program, and its card tells where it is from."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoTokenizer

from vr1lib.models import merge as merging
from vr1lib.models.merge import merge, model_folder, own_number_type
from vr1lib.models.rollout_local import complete
from vr1lib.models.tiny import build_tiny_vlm
from vr1lib.models.vlm import collate_prompts, load_vlm, save_vlm
from vr1lib.prompts import PromptSpec
from vr1lib.records import Problem, RequestError
from vr1lib.workbench import tracking
from vr1lib.workbench.params import load_parameters
from vr1lib.workbench.run_folder import read_manifest
from vr1lib.workbench.tracking import start_run

SMALL = dict(hidden_size=64, layers=2, intermediate_size=128, vision_hidden_size=32, vision_depth=1)
SMALL |= dict(tie_word_embeddings=False)  # tied and untrained, a model repeats its last token for ever
TEXTS = ["How many red shapes are there? <think> red, blue. </think><answer> Final Answer:2 </answer>"] * 20
FAMILIES = ("qwen2_5_vl", "qwen2_vl", "qwen3_vl", "mllama")


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> Path:
    """A tiny model of each family, and a picture."""
    folder = tmp_path_factory.mktemp("bases")
    for family in FAMILIES:
        build_tiny_vlm(folder / family, 0, TEXTS, family=family, **SMALL)
    Image.effect_noise((70, 60), 80).convert("RGB").save(folder / "picture.png")
    return folder


def problems(folder: Path) -> list[Problem]:
    picture = [str(folder / "picture.png")]
    return [
        Problem(id=f"p{number}", images=picture, question=question, answer="2", source="test", split="test")
        for number, question in enumerate(["How many red shapes?", "Are there blue, red shapes?", "shapes"])
    ]


def trained(base: Path, folder: Path, method: str, **options):
    """An adapter that says something, as a run would save it; the model it was saved from."""
    vlm = load_vlm(base, method=method, lora_rank=4, lora_alpha=8, device="cpu", **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in vlm.model.named_parameters():
            if "lora_" in name:
                value.normal_(std=0.1, generator=generator)
    save_vlm(vlm, folder)
    return vlm


def logits(model, vlm, folder: Path) -> torch.Tensor:
    batch = collate_prompts([vlm.encode_prompt(each) for each in problems(folder)], vlm.pad_token_id)
    with torch.no_grad():
        return model.eval()(**batch).logits


def answers(vlm, folder: Path) -> list[str]:
    return [row.text for row in complete(vlm, problems(folder), max_completion_tokens=16)]


# The weights.


def test_an_adapter_is_added_to_its_weights_and_to_nothing_else(bases, tmp_path):
    vlm = trained(bases / "qwen2_5_vl", tmp_path / "model", "lora", lora_targets="language+vision")
    before = {name: value.clone() for name, value in vlm.model.get_base_model().state_dict().items()}
    out = merge(tmp_path, tmp_path / "out")
    plain = AutoModelForImageTextToText.from_pretrained(out)
    adapter = load_file(tmp_path / "model" / "adapter_model.safetensors")
    scale, changed = 8 / 4, 0
    for name, value in plain.state_dict().items():
        layer = name.removesuffix(".weight")
        old = before.get(f"{layer}.base_layer.weight", before.get(f"{layer}.base_layer.bias", before.get(name)))
        if name.endswith(".bias") and f"{name.removesuffix('.bias')}.base_layer.bias" in before:
            old = before[f"{name.removesuffix('.bias')}.base_layer.bias"]
        down = adapter.get(f"base_model.model.{layer}.lora_A.weight")
        if down is None:
            assert torch.equal(value, old), name
        else:
            up = adapter[f"base_model.model.{layer}.lora_B.weight"]
            torch.testing.assert_close(value, old + scale * up @ down, rtol=0, atol=1e-6)
            assert not torch.equal(value, old)
            changed += 1
    assert changed == len(adapter) // 2 == 2 * 7 + 1 * 5 + 2  # two language layers, one vision block, the projector
    torch.testing.assert_close(logits(plain, vlm, bases), logits(vlm.model, vlm, bases), rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_a_merged_model_answers_as_the_training_process_did(bases, tmp_path, family, method):
    vlm = trained(bases / family, tmp_path / "model", method)
    out = merge(tmp_path / "model", tmp_path / "out")
    again = load_vlm(out)
    assert (again.method, again.base) == ("full", None)
    assert (again.image_spec, again.prompt_spec) == (vlm.image_spec, vlm.prompt_spec)
    target = logits(vlm.model, vlm, bases)
    torch.testing.assert_close(logits(again.model, vlm, bases), target, rtol=0, atol=2e-4)
    assert (logits(load_vlm(bases / family).model, vlm, bases) - target).abs().max() > 0.02
    assert answers(again, bases) == answers(vlm, bases)
    assert "quantization" not in (out / "config.json").read_text()


def test_qlora_on_the_base_as_published_would_be_another_policy(bases, tmp_path):
    vlm = trained(bases / "qwen2_5_vl", tmp_path / "model", "qlora")
    out = merge(tmp_path, tmp_path / "out")
    plain = AutoModelForImageTextToText.from_pretrained(bases / "qwen2_5_vl")
    published = PeftModel.from_pretrained(plain, tmp_path / "model").merge_and_unload()
    target = logits(vlm.model, vlm, bases)
    ours = (logits(AutoModelForImageTextToText.from_pretrained(out), vlm, bases) - target).abs().max()
    assert ours < 2e-4 < 0.02 < (logits(published, vlm, bases) - target).abs().max()
    card = (out / "README.md").read_text()
    assert "QLoRA" in card and "4-bit weights unpacked" in card


def test_a_bfloat16_base_stays_so_and_each_sum_is_rounded_once(bases, tmp_path):
    half = load_vlm(bases / "qwen2_5_vl", dtype="bfloat16")
    save_vlm(half, tmp_path / "half")
    assert (own_number_type(tmp_path / "half"), own_number_type(bases / "qwen2_5_vl")) == ("bfloat16", "float32")
    trained(tmp_path / "half", tmp_path / "model", "lora", dtype="bfloat16")
    assert own_number_type(tmp_path / "model") == "bfloat16"
    out = merge(tmp_path, tmp_path / "out")
    plain = AutoModelForImageTextToText.from_pretrained(out)
    assert plain.config.dtype is torch.bfloat16 and own_number_type(out) == "bfloat16"
    adapter = load_file(tmp_path / "model" / "adapter_model.safetensors")
    layer = "model.language_model.layers.1.mlp.up_proj"
    delta = (
        2.0 * adapter[f"base_model.model.{layer}.lora_B.weight"] @ adapter[f"base_model.model.{layer}.lora_A.weight"]
    )
    old = half.model.get_parameter(f"{layer}.weight")
    merged = plain.get_parameter(f"{layer}.weight")
    assert merged.dtype is torch.bfloat16
    assert torch.equal(merged, (old.float() + delta).bfloat16())
    assert not torch.equal(merged, old + delta.bfloat16())  # rounding the product first would be another matrix


def test_a_model_trained_in_full_is_copied_byte_for_byte(bases, tmp_path):
    out = merge(bases / "mllama", tmp_path / "out")
    own = {"README.md", "generation_config.json"}
    assert {file.name for file in out.iterdir()} == {file.name for file in (bases / "mllama").iterdir()} | own
    for file in (bases / "mllama").iterdir():
        assert file.name in own or (out / file.name).read_bytes() == file.read_bytes(), file.name


def test_a_second_training_over_an_adapter_merges_the_adapter_as_it_is_now(bases, tmp_path):
    trained(bases / "qwen2_5_vl", tmp_path / "first", "lora")
    second = load_vlm(tmp_path / "first")
    with torch.no_grad():
        for name, value in second.model.named_parameters():
            if "lora_B.default" in name:
                value.mul_(-2)
    save_vlm(second, tmp_path / "second")
    merged = load_vlm(merge(tmp_path / "second", tmp_path / "out"))
    torch.testing.assert_close(
        logits(merged.model, merged, bases), logits(second.model, second, bases), rtol=0, atol=1e-4
    )


# The folder.


def test_the_folder_is_plain_and_complete(bases, tmp_path):
    vlm = trained(bases / "qwen2_5_vl", tmp_path / "model", "lora")
    out = merge(tmp_path, tmp_path / "out")
    assert {file.name for file in out.iterdir()} == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "preprocessor_config.json",
        "vr1_spec.json",
    }
    spec = json.loads((out / "vr1_spec.json").read_text())
    assert (spec["method"], spec["base"]) == ("full", None)
    turns = [{"role": "user", "content": [{"type": "text", "text": "shapes"}]}]
    tokenizer = AutoTokenizer.from_pretrained(out)
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    without_picture = problems(bases)[2].model_copy(update={"images": []})
    assert ids == vlm.encode_prompt(without_picture).input_ids.tolist()


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_server_gets_the_tokens_that_end_an_answer_and_no_habits_of_the_base(bases, tmp_path, method):
    base, source = tmp_path / "base", tmp_path / "base"
    shutil.copytree(bases / "qwen2_5_vl", base)
    end_of_text = load_vlm(base).pad_token_id
    habits = {"do_sample": True, "repetition_penalty": 1.05, "temperature": 0.1, "top_k": 1, "top_p": 0.001}
    (base / "generation_config.json").write_text(json.dumps(habits | {"eos_token_id": end_of_text}))
    if method == "lora":
        source = tmp_path / "adapter"
        trained(base, source, "lora")
    written = json.loads((merge(source, tmp_path / "out") / "generation_config.json").read_text())
    vlm = load_vlm(tmp_path / "out")
    assert sorted(written["eos_token_id"]) == sorted({vlm.end_of_turn_id, end_of_text})
    assert written["suppress_tokens"] == list(vlm.vision_token_ids)
    assert not habits.keys() & written.keys()


def test_what_lies_at_out_is_never_touched(bases, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("mine")
    for place in ("file", "folder"):
        with pytest.raises(RequestError, match=f"{place}: already there and not an empty folder"):
            merge(bases / "qwen2_5_vl", tmp_path / place)
    with pytest.raises(RequestError, match="file/out.writing: cannot be made"):
        merge(bases / "qwen2_5_vl", tmp_path / "file" / "out")
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert merge(bases / "qwen2_5_vl", tmp_path / "empty") == (tmp_path / "empty").resolve()
    assert load_vlm(merge(bases / "qwen2_5_vl", tmp_path / "new" / "er")).method == "full"


@pytest.mark.parametrize("mishap", [KeyboardInterrupt, ValueError])
def test_a_merge_that_breaks_off_leaves_nothing(bases, tmp_path, monkeypatch, mishap):
    def breaks(*arguments):
        assert (tmp_path / "out.writing" / "model.safetensors").is_file() and not (tmp_path / "out").exists()
        raise mishap

    monkeypatch.setattr(merging, "model_card", breaks)
    with pytest.raises(mishap):
        merge(bases / "qwen2_5_vl", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    (tmp_path / "out.writing").mkdir()  # what `kill -9` left
    (tmp_path / "out.writing" / "half").write_text("")
    out = merge(bases / "qwen2_5_vl", tmp_path / "out")
    assert not (out / "half").exists() and list(tmp_path.iterdir()) == [out]


def test_a_source_without_a_model_of_ours_is_refused_in_one_line(bases, tmp_path):
    with pytest.raises(RequestError, match="nowhere: no vr1_spec.json here or in model/"):
        merge(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RequestError, match="no vr1_spec.json here"):
        merge(tmp_path, tmp_path / "out")
    trained(bases / "qwen2_5_vl", tmp_path / "adapter", "lora")
    spec = json.loads((tmp_path / "adapter" / "vr1_spec.json").read_text())
    (tmp_path / "adapter" / "vr1_spec.json").write_text(json.dumps(spec | {"base": "/gone/model"}))
    with pytest.raises(RequestError, match="vr1_spec.json, key 'base': /gone/model: no model here") as error:
        merge(tmp_path / "adapter", tmp_path / "out")
    assert "\n" not in str(error.value) and not (tmp_path / "out.writing").exists()
    assert model_folder(tmp_path / "adapter") == (tmp_path / "adapter").resolve() and model_folder("Qwen/NAME") is None


# The card.


@pytest.fixture
def begin(home, monkeypatch):
    """start_run without W&B."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(tracking, "active", None)

    def begin(stem, **overrides):
        return start_run(stem, load_parameters(stem, [], [(key, str(value)) for key, value in overrides.items()]))

    return begin


def finished(run, save, name="m"):
    save(run.folder / "model")
    run.add_output(run.folder / "model", "model", name)
    run.finish(f"done: {run.stem}")
    return run.folder


def front_and_text(out: Path) -> tuple[dict, str]:
    _, front, text = (out / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), text


def test_the_card_tells_every_run_behind_the_model(bases, begin, home):
    data_run = begin("10_data_building")
    for name in ("cold", "rl"):
        (data_run.folder / f"{name}.jsonl").write_text(f"{name}\n")
        data_run.add_output(data_run.folder / f"{name}.jsonl", "dataset", name)
    data_run.finish("done: 10_data_building")
    base_run = begin("00_base_model", seed=3)
    base = finished(base_run, lambda folder: build_tiny_vlm(folder, 0, TEXTS, **SMALL))
    cold_run = begin("20_cold_sft", run="cold", model="outputs/00_base_model/default/model", method="lora")
    cold_run.add_input(base / "model", "model")
    cold_run.add_input(data_run.folder / "cold.jsonl", "dataset")
    cold = finished(cold_run, lambda folder: trained(base / "model", folder, "lora"))
    rl_run = begin(
        "30_ptst_grpo", run="rl", seed=11, model="outputs/20_cold_sft/cold/model", method="lora", wandb_group="g"
    )
    rl_run.add_input(cold / "model", "model")
    rl_run.add_input(data_run.folder / "rl.jsonl", "dataset")
    rl = finished(rl_run, lambda folder: save_vlm(load_vlm(cold / "model"), folder))
    front, text = front_and_text(merge(rl, home / "out"))
    assert front["pipeline_tag"] == "image-text-to-text" and "base_model" not in front
    headings = [line[4:] for line in text.splitlines() if line.startswith("### ")]
    assert headings == [
        "30_ptst_grpo / rl",
        "20_cold_sft / cold",
        "10_data_building / default",
        "00_base_model / default",
    ]
    sections = text.split("### ")[1:]
    for folder, section, seed in zip((rl, cold, data_run.folder, base), sections, (11, 0, 0, 3)):
        manifest = read_manifest(folder)
        assert f"commit `{manifest['git']['commit']}`" in section and f"seed {seed}" in section
        assert f"done: {manifest['stem']}" in section
        for entry in manifest["inputs"] + manifest["outputs"]:
            assert f"`{entry['path']}`, sha256 `{entry['sha256']}`" in section
    assert "made by 20_cold_sft / cold" in sections[0] and "made by 00_base_model / default" in sections[1]
    assert "this model: `model`" in sections[0] and "this model" not in sections[1]
    assert "seed: 11\n" in sections[0] and "lora_rank: 64\n" in sections[0] and "wandb" not in text
    assert "Trained by LoRA over `outputs/00_base_model/default/model`" in text and str(home) not in text
    spec = json.loads((rl / "model" / "vr1_spec.json").read_text())
    assert spec["image_spec_sha256"] in text and spec["prompt_spec_sha256"] in text


def test_a_parent_that_was_moved_aside_is_known_by_its_content(bases, begin, home):
    def save(folder):
        save_vlm(load_vlm(bases / "qwen2_5_vl"), folder)

    def save_another(folder):
        build_tiny_vlm(folder, 9, TEXTS, **SMALL)

    parent = finished(begin("00_base_model", seed=1), save)
    child = begin("20_cold_sft", model="outputs/00_base_model/default/model")
    child.add_input(parent / "model", "model")
    child = finished(child, save)
    finished(begin("00_base_model", seed=2), save_another)  # the first one is now default~1
    text = front_and_text(merge(child, home / "out"))[1]
    assert "made by 00_base_model / default" in text
    assert "seed 1\n" in text and "seed 2\n" not in text
    (home / "outputs" / "00_base_model" / "default~1").rename(home / "gone")
    text = front_and_text(merge(child, home / "out2"))[1]
    assert "made by" not in text and "00_base_model / " not in text


def test_a_checkpoint_belongs_to_its_run_and_is_a_parent_by_its_place(bases, begin, home):
    def save(folder):
        save_vlm(load_vlm(bases / "qwen2_5_vl"), folder)

    parent = begin("20_cold_sft", run="early")
    checkpoint = parent.folder / "checkpoints" / "step-000100"
    save(checkpoint / "model")
    front, text = front_and_text(merge(checkpoint, home / "out"))  # the run goes on meanwhile
    assert "base_model" not in front  # `model: tiny` is no name on the hub
    assert "this model: `checkpoints/step-000100/model`" in text and "- running, " in text
    manifest = {**parent.manifest, "started_at": "2020-01-01T00:00:00+00:00"}
    parent.update(**manifest)
    parent.finish()
    child = begin("30_ptst_grpo", model=str(checkpoint / "model"))
    child.add_input(checkpoint / "model", "model")
    child = finished(child, save)
    assert "made by 20_cold_sft / early" in front_and_text(merge(child, home / "out2"))[1]
    parent.update(started_at="2999-01-01T00:00:00+00:00")  # a later run of that name cannot have been read
    assert "made by" not in front_and_text(merge(child, home / "out3"))[1]


def test_the_card_names_the_hub_model_it_started_from_and_its_scores(bases, begin, home):
    run = begin("20_cold_sft", model="Qwen/Qwen2.5-VL-7B-Instruct", data="outputs/data")
    spec = PromptSpec(system="Think: first.", instruction="Answer.")

    def save(folder):
        save_vlm(load_vlm(bases / "qwen2_5_vl", prompt_spec=spec, accept_other_spec=True), folder)

    folder = finished(run, save)
    for name, model in (("mine", folder / "model"), ("other", bases / "qwen2_5_vl")):
        benchmark = begin("40_benchmark", run=name, model=str(model))
        benchmark.add_input(model, "model")
        row = {
            "benchmark": name,
            "accuracy": 0.8075,
            "low": 0.777,
            "high": 0.8400,
            "n": 600,
            "mean_length_tokens": 50.06,
        }
        row["sampling"] = {"temperature": 0.6}
        (benchmark.folder / "scores.json").write_text(json.dumps({"benchmarks": [row]}))
        benchmark.finish()
    front, text = front_and_text(merge(folder, home / "out"))
    assert front["base_model"] == "Qwen/Qwen2.5-VL-7B-Instruct"
    assert "| 40_benchmark / mine | mine | 80.8 % (77.7 to 84.0) | 600 | 50.1 | 0.6 |" in text and "other" not in text
    assert "> Think: first." in text and "> Answer." in text


def test_a_model_of_no_run_says_so(bases, tmp_path):
    front, text = front_and_text(merge(bases / "qwen2_5_vl", tmp_path / "out"))
    assert "lay in no run folder" in text and text.startswith("\n# qwen2_5_vl\n")
    assert front["library_name"] == "transformers"
