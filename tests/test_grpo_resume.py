"""A killed run goes on bit for bit: same metrics, same completions, same weights as one that was never stopped."""

import shutil

import pytest
import torch
from grpo_case import make_case, read_lines, run_in_processes, train, without_times
from safetensors.torch import load_file

from vr1lib.models.vlm import load_vlm, save_vlm
from vr1lib.training.checkpoint import newest_checkpoint, read_state

STAGES = ((6, 4, 2), (8, 2, 2))
KILLED = -9
TEXTS = ("completions.jsonl", "evaluation.jsonl")
METHODS = {
    "full": {"updates_per_step": 2, "dynamic_sampling_refills": 1},
    "lora": {"method": "lora", "dropout": 0.3},
    "lora that goes on from a LoRA cold start": {"model": "adapter"},
    "qlora": {"method": "qlora"},
}


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    case = make_case(tmp_path_factory.mktemp("case"))
    torch.manual_seed(3)
    vlm = load_vlm(case / "model", method="lora", lora_rank=4)
    for name, weight in vlm.model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.1)
    save_vlm(vlm, case / "adapter")
    return case


def record_of(out):
    weights = load_file(next((out / "model").glob("*model.safetensors")))
    rows = [without_times(row) for row in read_lines(out / "metrics.jsonl")]
    texts = [(out / name).read_text() for name in TEXTS if (out / name).exists()]
    return weights, {row["step"]: row for row in rows}, texts


def assert_goes_on_like(straight, out, case, processes=1, **options):
    """Resume `out` from its newest checkpoint and hold it beside the straight run."""
    start = newest_checkpoint(out / "checkpoints", lambda line: None)
    done = read_state(start)["step"] if start else 0
    for path in [out / name for name in TEXTS if (out / name).exists()]:
        kept = sum(1 for line in read_lines(path) if line["step"] <= done)
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:kept]))
    before = [row for row in read_lines(out / "metrics.jsonl") if row["step"] <= done]
    (out / "metrics.jsonl").write_text("")
    assert run_in_processes(train, case, out, processes=processes, resume_from=start, **options) == [0] * processes
    resumed = [row["step"] for row in read_lines(out / "metrics.jsonl")]
    assert resumed == list(range(done + 1, 5))  # and no step 0
    weights, metrics, texts = record_of(out)
    assert repr({row["step"]: without_times(row) for row in before} | metrics) == repr(straight[1])
    assert texts == straight[2]
    assert weights.keys() == straight[0].keys()
    assert all(torch.equal(value, straight[0][name]) for name, value in weights.items())
    seconds = [row["seconds"] for row in [*before, *read_lines(out / "metrics.jsonl")]]
    assert seconds == sorted(seconds)


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_goes_on_bit_for_bit(case, tmp_path, method):
    options = {"stages": STAGES, "checkpoint_every": 1, "evaluate_every": 2, "warmup_steps": 3, **METHODS[method]}
    assert run_in_processes(train, case, tmp_path / "straight", **options) == [0]
    straight = record_of(tmp_path / "straight")
    assert all(straight[1][step]["grad_norm"] > 0 for step in range(1, 5)) and len(straight[2]) == len(TEXTS)

    # killed at the stage change: step 3 is logged and not saved, the checkpoint of step 2 is the last of stage 0
    out = tmp_path / "killed"
    assert run_in_processes(train, case, out, killed_after=3, **options) == [KILLED]
    assert_goes_on_like(straight, out, case, **options)


def test_a_kill_inside_a_checkpoint_write_costs_that_checkpoint_only(case, tmp_path):
    options = {"stages": STAGES, "checkpoint_every": 1}
    assert run_in_processes(train, case, tmp_path / "straight", **options) == [0]
    straight, out = record_of(tmp_path / "straight"), tmp_path / "killed"
    assert run_in_processes(train, case, out, killed_writing=(3, 1), **options) == [KILLED]
    assert (out / "checkpoints/step-000003.writing").is_dir()
    assert newest_checkpoint(out / "checkpoints", print).name == "step-000002"
    assert_goes_on_like(straight, out, case, **options)


def test_bad_steps_are_remembered_and_the_best_checkpoint_is_kept(case, tmp_path):
    options = {"stages": STAGES, "checkpoint_every": 1, "evaluate_every": 2}
    assert run_in_processes(train, case, tmp_path, **options) == [0]
    rows = {row["step"]: row for row in read_lines(tmp_path / "metrics.jsonl")}
    last = read_state(tmp_path / "checkpoints/step-000004")
    assert last["score"] == rows[4]["eval/accuracy"]
    assert last["state"]["stage"] == 1 and last["state"]["drawn"] == 16 and last["state"]["bad_steps"] == 0
    third = read_state(tmp_path / "checkpoints/step-000003")
    assert third["score"] == pytest.approx(sum(rows[step]["reward/mean"] for step in (1, 2, 3)) / 3)


@pytest.mark.parametrize("spread", [{}, {"sharding": "fsdp2"}], ids=["ddp", "fsdp2"])
def test_two_processes_go_on_bit_for_bit_too(case, tmp_path, spread):
    options = {"stages": STAGES, "checkpoint_every": 1, **spread}
    assert run_in_processes(train, case, tmp_path / "straight", processes=2, **options) == [0, 0]
    straight, out = record_of(tmp_path / "straight"), tmp_path / "out"
    shutil.copytree(tmp_path / "straight", out)
    shutil.rmtree(out / "checkpoints/step-000004")
    assert_goes_on_like(straight, out, case, processes=2, **options)
