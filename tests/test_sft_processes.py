"""SFT in processes that die, and in several at once: nothing it logs and no weight may tell."""

import json
import math
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sft_process import do

from vr1lib.data import shapeworld
from vr1lib.models.tiny import build_tiny_vlm
from vr1lib.models.vlm import load_vlm
from vr1lib.training.checkpoint import newest_checkpoint

SMALL = {"hidden_size": 32, "layers": 2, "heads": 2, "key_value_heads": 1, "intermediate_size": 64, "vision_depth": 1}
LOADS = {
    "vision": {"train_vision": True},
    "lora": {"method": "lora", "lora_rank": 2, "gradient_checkpointing": True},
    "packed": {"train_vision": True, "gradient_checkpointing": True},
}
# 7 rows: a step of 6, and one of a single row that cannot go round two processes
SETTINGS = {"epochs": 2, "batch_size": 6, "micro_batch_size": 1, "learning_rate": 1e-2, "warmup_ratio": 0.0}
ASIDE = ("seconds", "time/data", "time/update", "tokens_per_second", "memory/rss_gib", "memory/vram_gib")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """An untrained tiny model's folder and seven rows, of which two have no picture."""
    folder = tmp_path_factory.mktemp("sft")
    rng = random.Random(0)
    problems = shapeworld.make_problems(folder, "cold", 7, seed=0)
    problems = [problem.model_copy(update={"images": []} if n in (3, 5) else {}) for n, problem in enumerate(problems)]
    rows = [(problem, shapeworld.assemble(shapeworld.write_reasoning(problem, rng), "2")) for problem in problems]
    build_tiny_vlm(folder / "tiny", 0, [response for _, response in rows], **SMALL)
    return folder / "tiny", rows


def job(folder, name, **more):
    return {"settings": SETTINGS, "folder": str(folder / name), **more}


def ended(folder, name):
    """What the job left: (its logged metrics, times aside; its trained weights; the rest)."""
    left = json.loads((folder / name / "ended.json").read_text())
    logged = [{key: value for key, value in metrics.items() if key not in ASIDE} for metrics in left.pop("logged")]
    vlm = load_vlm(folder / name / "model")
    return logged, {key: value for key, value in vlm.model.named_parameters() if value.requires_grad}, left


def same_weights(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# -------------------------------------------------------------------------------------------------------------- killed


@pytest.mark.parametrize(
    "method, death, last_step",
    [
        ({}, {"kill_after": 3}, 2),  # logged and not saved
        ({}, {"kill_saving": (2, "save_file")}, 1),  # the model is written, the optimizer is not
        ({"method": "lora", "lora_rank": 2, "lora_dropout": 0.3}, {"kill_saving": (3, "seal")}, 2),
        ({"method": "qlora", "lora_rank": 2, "lora_dropout": 0.3}, {"kill_saving": (3, "flush")}, 2),
    ],
)
def test_a_killed_run_resumes_bit_for_bit(world, tmp_path, method, death, last_step):
    do(job(tmp_path, "straight", load=method, every=1), *world)
    child = multiprocessing.get_context("fork").Process(
        target=do, args=(job(tmp_path, "killed", load=method, every=1, **death), *world)
    )
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    newest = newest_checkpoint(tmp_path / "killed" / "checkpoints", lambda line: None)
    assert newest.name == f"step-{last_step:06d}"
    do(job(tmp_path, "killed", load=method, every=1, resume_from=str(newest)), *world)

    (logged, weights, left), (logged_after, weights_after, left_after) = (
        ended(tmp_path, name) for name in ("straight", "killed")
    )
    assert [metrics["step"] for metrics in logged] == [1, 2, 3, 4]
    assert logged_after == logged[last_step:]
    assert same_weights(weights, weights_after)
    assert left_after["result"]["losses"] == left["result"]["losses"] == [metrics["loss"] for metrics in logged]
    assert (left_after["result"]["steps"], left_after["result"]["epochs"]) == (4, 2.0)
    saved = [tmp_path / name / "checkpoints" / "step-000004" for name in ("straight", "killed")]
    for file in ("optimizer.safetensors", "random-0.safetensors", "model/model.safetensors"):
        if not method or file != "model/model.safetensors":
            assert saved[0].joinpath(file).read_bytes() == saved[1].joinpath(file).read_bytes()


# ---------------------------------------------------------------------------------------------------- several at once


@pytest.fixture(scope="module")
def alone(world, tmp_path_factory):
    """The jobs' folder after one process has done them."""
    folder = tmp_path_factory.mktemp("alone")
    for name, load in LOADS.items():
        do(job(folder, name, load=load), *world)
    return folder


@pytest.fixture(scope="module")
def together(world, tmp_path_factory):
    """The jobs' folder after two processes have done them, and some more, under torchrun."""
    model, rows = world
    folder = tmp_path_factory.mktemp("together")
    jobs = []
    for sharding in ("none", "fsdp2"):
        more = {"settings": {**SETTINGS, "sharding": sharding}, "load": LOADS["vision"]}
        saved = folder / f"{sharding}-vision" / "checkpoints" / "step-000002"
        jobs += [
            job(folder, f"{sharding}-vision", every=2, **more),
            job(folder, f"{sharding}-resumed", every=2, resume_from=str(saved), **more),
            job(folder, f"{sharding}-poisoned", poison=([2], 1), **more),
            job(folder, f"{sharding}-lora", **{**more, "load": LOADS["lora"]}),
            job(folder, f"{sharding}-packed", settings={**more["settings"], "packing": True}, load=LOADS["packed"]),
        ]
    rows = [(problem.model_dump(), response) for problem, response in rows]
    (folder / "task.json").write_text(json.dumps({"model": str(model), "rows": rows, "jobs": jobs}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [*launcher, Path(__file__).with_name("sft_process.py"), folder / "task.json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.mark.parametrize("method", LOADS)
@pytest.mark.parametrize("sharding", ["none", "fsdp2"])
def test_two_processes_have_the_losses_of_one(alone, together, sharding, method):
    (one, weights, _), (two, weights_of_two, left) = ended(alone, method), ended(together, f"{sharding}-{method}")
    assert (left["shards"] > 0) == (sharding == "fsdp2")
    for key in ("loss", "grad_norm", "learning_rate"):
        assert [metrics[key] for metrics in two] == pytest.approx([metrics[key] for metrics in one], abs=1e-5)
    for key in ("step", "epoch", "length/mean", "bad_steps"):
        assert [metrics[key] for metrics in two] == [metrics[key] for metrics in one]
    assert left["result"]["rows"] == 7
    for name, value in weights.items():
        torch.testing.assert_close(weights_of_two[name], value, rtol=0, atol=1e-4)


@pytest.mark.parametrize("sharding", ["none", "fsdp2"])
def test_two_processes_resume_bit_for_bit(together, sharding):
    (logged, weights, left), (resumed, weights_after, left_after) = (
        ended(together, f"{sharding}-{name}") for name in ("vision", "resumed")
    )
    assert resumed == logged[2:]
    assert same_weights(weights, weights_after)
    assert left_after["result"]["losses"] == left["result"]["losses"]


@pytest.mark.parametrize("sharding", ["none", "fsdp2"])
def test_a_bad_step_of_one_process_is_skipped_by_both(together, sharding):
    logged, weights, left = ended(together, f"{sharding}-poisoned")
    assert [metrics["bad_steps"] for metrics in logged] == [0, 1, 1, 1]
    assert [math.isfinite(metrics["loss"]) for metrics in logged] == [True, False, True, True]
    assert all(value.isfinite().all() for value in weights.values())
    dumped = together / f"{sharding}-poisoned" / "bad_steps" / "step-000002"
    files = sorted(path.name for path in dumped.iterdir())
    assert files == ["rows-0.json", "rows-0.safetensors", "rows-1.json", "rows-1.safetensors", "step.json"]
