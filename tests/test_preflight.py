"""The rehearsal before step 1: it leaves no trace, measures what it tells, and says in one line what would fit."""

import json
import os
import random
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch

from vr1lib.data.shapeworld import make_problems, write_base_cot
from vr1lib.models.decoding import SharedReading
from vr1lib.models.tiny import build_tiny_vlm
from vr1lib.models.vlm import load_vlm
from vr1lib.records import RequestError, write_jsonl
from vr1lib.schedule import Schedule
from vr1lib.training import preflight
from vr1lib.training.grpo import GrpoSettings, prepare, train_grpo
from vr1lib.training.memory import GIB
from vr1lib.training.preflight import control_group_rooms, duration, preflight_grpo, preflight_sft
from vr1lib.training.sft import train_sft

STAGES = [(6, 4, 1), (12, 2, 1)]
SETTINGS = GrpoSettings(prompts_per_step=2, learning_rate=1e-3, weight_decay=0.0)


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    return make_problems(tmp_path_factory.mktemp("world"), "rl", 6, grid_sizes=(2, 3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, problems):
    folder = tmp_path_factory.mktemp("tiny")
    texts = [f"{problem.question}\n{write_base_cot(problem)}" for problem in problems]
    build_tiny_vlm(folder, 0, texts, vocabulary_size=400, hidden_size=32, layers=1, heads=2, key_value_heads=1)
    return folder


@pytest.fixture(scope="module")
def rows(problems):
    return [(problem, write_base_cot(problem)) for problem in problems]


def load(folder, method="full", **options):
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)  # a fresh adapter is drawn
    return load_vlm(folder, method=method, lora_rank=4, **options)


def weights(vlm):
    return {name: parameter.detach().clone() for name, parameter in vlm.model.named_parameters()}


def without_times(metrics):
    clocks = ("seconds", "time/", "tokens_per_second", "memory/")
    return [{key: repr(value) for key, value in row.items() if not key.startswith(clocks)} for row in metrics]


def same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def draws():
    return random.random(), numpy.random.random(), torch.rand(3).tolist()


# No trace.


@pytest.mark.parametrize(("method", "dropout"), [("full", 0.0), ("lora", 0.1), ("qlora", 0.0)])
def test_grpo_is_bit_for_bit_the_same_after_a_rehearsal(folder, problems, method, dropout):
    runs = []
    for rehearsed in (False, True):
        vlm, metrics = load(folder, method, lora_dropout=dropout), []
        session = prepare(vlm, SETTINGS)
        if rehearsed:
            preflight_grpo(session, problems, Schedule(STAGES))
        train_grpo(session, problems, Schedule(STAGES), log=metrics.append)
        runs.append((without_times(metrics), weights(vlm), draws()))
    assert runs[0][0] == runs[1][0] and runs[0][2] == runs[1][2]
    same(runs[0][1], runs[1][1])


@pytest.mark.parametrize(("method", "dropout", "packing"), [("full", 0.0, True), ("lora", 0.1, False)])
def test_sft_is_bit_for_bit_the_same_after_a_rehearsal(folder, rows, tmp_path, method, dropout, packing):
    runs = []
    for on_ready in (None, preflight_sft):
        vlm, metrics = load(folder, method, lora_dropout=dropout), []
        train_sft(
            vlm, rows, log=metrics.append, output_dir=tmp_path, batch_size=4, steps=3, packing=packing,
            on_ready=on_ready,
        )  # fmt: skip
        runs.append((without_times(metrics), weights(vlm), draws()))
    assert runs[0][0] == runs[1][0] and runs[0][2] == runs[1][2]
    same(runs[0][1], runs[1][1])


def test_gradients_modes_and_optimizer_are_as_before(folder, problems):
    session = prepare(load(folder), SETTINGS)
    session.vlm.model.train()
    session.vlm.model.model.visual.eval()
    modes = [module.training for module in session.vlm.model.modules()]
    preflight_grpo(session, problems, Schedule(STAGES))
    assert [module.training for module in session.vlm.model.modules()] == modes
    assert all(parameter.grad is None for parameter in session.vlm.model.parameters())
    assert not session.optimizer.state


# What it tells.


def test_measured_parts_are_the_estimated_ones_to_the_byte(folder, problems):
    found = preflight_grpo(prepare(load(folder, "lora"), SETTINGS), problems, Schedule(STAGES))
    told = {part.name: part for part in found.parts}
    for name in ("weights", "adapter", "gradients", "KV cache"):
        assert told[name].measured_gib == told[name].estimated_gib > 0
    assert found.measured_gib > sum(told[name].measured_gib for name in ("weights", "adapter"))
    vlm = load(folder, "lora")
    assert found.parameters == sum(each.numel() for name, each in vlm.model.named_parameters() if "lora_" not in name)
    assert found.trained == sum(each.numel() for each in vlm.model.parameters() if each.requires_grad)


def test_the_cache_reaches_full_length_without_its_decode_steps(folder, problems, monkeypatch):
    read, forwards = [], []
    plain = SharedReading.read
    monkeypatch.setattr(SharedReading, "read", lambda *given: read.append(given) or plain(*given))
    session = prepare(load(folder), SETTINGS)
    session.vlm.model.register_forward_pre_hook(lambda *_: forwards.append(1))
    found = preflight_grpo(session, problems, Schedule([(300, 2, 5)]))
    longest = found.longest_prompt["tokens"]
    assert longest == max(session.vlm.count_prompt_tokens(problem) for problem in problems)
    cache = next(part for part in found.parts if part.name == "KV cache")
    assert cache.measured_gib * GIB == 2 * (longest + 2 * 320) * 16 * 2 * 4  # prompt, group, columns, width, k v
    assert len(read) == 6 and len(forwards) == 2  # two times three tokens and no step of 300; prompts, one micro-batch


def test_times_are_those_of_the_whole_schedule(folder, problems, monkeypatch):
    monkeypatch.setattr(preflight, "rehearse_sampling", lambda *_: (1.0, 0.1, 0))
    monkeypatch.setattr(preflight, "rehearse_update", lambda *_: (0.01, 0.5))
    session = prepare(load(folder), replace(SETTINGS, prompts_per_step=4, rollout_rows=8))
    found = preflight_grpo(session, problems, Schedule([(10, 4, 3), (20, 16, 2)]))
    first = 2 * (1 + 10 * 0.1) + 16 * 0.51  # 4 groups of 4, two at once
    second = 4 * 2 * (1 + 20 * 0.1) + 64 * 0.51  # each group of 16 in two pieces of 8
    assert sum(found.seconds.values()) == pytest.approx(second)
    assert found.eta_seconds == pytest.approx(3 * first + 2 * second) and found.steps == 5


def test_the_page_shows_prompts_golds_and_parts(folder, problems):
    odd = problems[0].model_copy(update={"id": "odd", "answer": ""})
    found = preflight_grpo(prepare(load(folder), SETTINGS), [*problems, odd], Schedule(STAGES))
    assert found.golds == {"right": 6, "all": 7}
    assert [prompt["id"] for prompt in found.prompts] == [problem.id for problem in problems[:3]]
    first = found.prompts[0]
    assert problems[0].question in first["text"] and "<|image_pad|>×" in first["text"]
    assert first["images"] == [os.path.relpath(image) for image in problems[0].images]
    assert json.loads(json.dumps(found.to_dict()))["parts"][0]["name"] == "weights"
    page = "\n".join(found.lines())
    assert "KV cache" in page and "at most" in page and "6 of 7" in page and problems[0].question in page


def test_sft_rehearses_its_longest_rows(folder, rows, tmp_path):
    seen, found = [], []

    def on_ready(trainer):
        step = trainer.training_step
        trainer.training_step = lambda model, batches, n: seen.append(batches) or step(model, batches, n)
        found.append(preflight_sft(trainer))
        trainer.training_step = step

    longer = [(problem, text * (1 + number)) for number, (problem, text) in enumerate(rows)]
    train_sft(
        load(folder), longer, log=lambda _: None, output_dir=tmp_path, batch_size=4, micro_batch_size=2, steps=1,
        on_ready=on_ready,
    )  # fmt: skip
    assert [batch.problem_ids for batch in seen[0]] == [[rows[4][0].id, rows[5][0].id]]
    assert found[0].longest_prompt["id"] == rows[5][0].id and found[0].steps == 1
    assert set(found[0].seconds) == {"update"}


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.251, "0.25 s"), (9.6, "9.6 s"), (45.4, "45 s"), (200, "3 min 20 s"), (25500, "7 h 05 min")],
)
def test_durations_in_words(seconds, words):
    assert duration(seconds) == words


# Out of memory, foreseen and met.


def refusal(call, *args):
    with pytest.raises(RequestError) as error:
        call(*args)
    line = str(error.value)
    assert line.startswith("preflight: ") and "\n" not in line
    return line


def advised(line, name):
    """The value that the line gives for a parameter."""
    return int(line.split(f"{name} from ")[1].split(" to ")[1].split(",")[0])


def test_an_estimate_above_what_there_is_is_refused_before_anything_runs(folder, problems, monkeypatch):
    settings = replace(SETTINGS, prompts_per_step=64, rollout_rows=256, micro_batch_tokens=2048)
    schedule = Schedule([(2000, 4, 1)])
    session = prepare(load(folder), settings)
    monkeypatch.setattr(preflight, "room_on_cpu", lambda: GIB // 16)
    monkeypatch.setattr(preflight, "rehearse_sampling", lambda *_: pytest.fail("it ran"))
    line = refusal(preflight_grpo, session, problems, schedule)
    assert line.startswith("preflight: KV cache needs 0.06") and "lower rollout_rows from 256 to" in line
    monkeypatch.setattr(preflight, "rehearse_sampling", lambda *_: (0.0, 0.0, 0))
    changes = {"rollout_rows": advised(line, "rollout_rows")}
    if "micro_batch_tokens" in line:
        changes["micro_batch_tokens"] = advised(line, "micro_batch_tokens")
    monkeypatch.setattr(preflight, "rehearse_update", lambda *_: (0.0, 0.0))
    preflight_grpo(prepare(load(folder), replace(settings, **changes)), problems, schedule)  # what was advised fits


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_out_of_memory_in_the_rehearsal_names_the_part_and_values(folder, problems, monkeypatch, error):
    def fail(*_):
        raise error

    schedule = Schedule([(64, 4, 1)])
    with monkeypatch.context() as patch:
        patch.setattr(SharedReading, "read", fail)
        line = refusal(
            preflight_grpo, prepare(load(folder), replace(SETTINGS, prompts_per_step=16)), problems, schedule
        )
    assert "out of memory in the rollout" in line and "lower rollout_rows from 64 to" in line
    assert "micro_batch_tokens" not in line and advised(line, "rollout_rows") < 64
    monkeypatch.setattr(preflight, "accumulate_gradients", fail)
    line = refusal(preflight_grpo, prepare(load(folder), replace(SETTINGS, prompts_per_step=16)), problems, schedule)
    assert "out of memory in the update" in line and "logits" in line and "rollout_rows" not in line
    assert advised(line, "micro_batch_tokens") < 16384


def test_out_of_memory_in_sft_names_its_own_parameters(folder, rows, tmp_path, monkeypatch):
    def on_ready(trainer):
        def fail(*_):
            raise torch.OutOfMemoryError("CUDA out of memory")

        trainer.training_step = fail
        preflight_sft(trainer)

    line = refusal(
        lambda: train_sft(
            load(folder), rows, log=lambda _: None, output_dir=tmp_path, batch_size=4, steps=1, on_ready=on_ready
        )
    )
    assert "out of memory in the update" in line and "lower micro_batch_size from 4 to" in line


def test_other_failures_stay_what_they_are(folder, problems, monkeypatch):
    def fail(*_):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(preflight, "accumulate_gradients", fail)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        preflight_grpo(prepare(load(folder), SETTINGS), problems, Schedule(STAGES))


def test_a_limit_on_the_address_space_is_kept(monkeypatch):
    used = preflight.psutil.Process().memory_info().vms
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + GIB, before[1]))
    try:
        assert 0.9 * GIB < preflight.room_on_cpu() <= GIB
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_limits_of_control_groups_count_without_files_in_memory(tmp_path):
    own = tmp_path / "cgroup"
    own.write_text("0::/job/7\n")
    group = tmp_path / "groups" / "job" / "7"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("1000\n")
    (group / "memory.current").write_text("700\n")
    (group / "memory.stat").write_text("anon 500\ninactive_file 200\n")
    assert list(control_group_rooms(tmp_path / "groups", own)) == [500]
    (group / "memory.max").write_text("max\n")
    assert list(control_group_rooms(tmp_path / "groups", own)) == []


# Many processes.

WORKER = """
import json, os, sys
from pathlib import Path
from vr1lib.models.vlm import load_vlm
from vr1lib.records import Problem, read_jsonl
from vr1lib.schedule import Schedule
from vr1lib.training.grpo import GrpoSettings, prepare, train_grpo
from vr1lib.training.preflight import preflight_grpo
from vr1lib.models.inference_copy import whole

folder, problems, out = sys.argv[1:]
problems, schedule, told = list(read_jsonl(problems, Problem)), Schedule([(6, 2, 2)]), []
for sharding, rehearsed in (("none", False), ("none", True), ("fsdp2", False), ("fsdp2", True)):
    session = prepare(load_vlm(folder), GrpoSettings(prompts_per_step=2, learning_rate=1e-3, sharding=sharding))
    found, metrics = preflight_grpo(session, problems, schedule).to_dict() if rehearsed else None, []
    train_grpo(session, problems, schedule, log=metrics.append)
    losses = [(row["loss"], row["grad_norm"]) for row in metrics if "loss" in row]
    total = sum(float(whole(parameter).double().sum()) for parameter in session.vlm.model.parameters())
    told.append({"losses": losses, "weights": total, "found": found})
if os.environ["RANK"] == "0":
    Path(out).write_text(json.dumps(told))
"""


def test_every_process_takes_part_and_training_stays_the_same(folder, problems, tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    file = Path(problems[0].images[0]).parent.parent / "problems.jsonl"
    write_jsonl(file, problems)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = [tmp_path / "worker.py", folder, file, tmp_path / "told.json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(preflight.__file__).parents[2])}
    done = subprocess.run([*command, *map(str, script)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    plain, rehearsed, sharded, sharded_rehearsed = json.loads((tmp_path / "told.json").read_text())
    for without, after in ((plain, rehearsed), (sharded, sharded_rehearsed)):
        assert without["losses"] == after["losses"] and without["weights"] == after["weights"]
    for found, processes in ((rehearsed["found"], 1), (sharded_rehearsed["found"], 2)):
        weights_here = next(part for part in found["parts"] if part["name"] == "weights")["measured_gib"] * GIB
        assert weights_here == pytest.approx(4 * found["parameters"] / processes, rel=0.02)
        assert found["processes"] == 2
