"""A small GRPO run for tests: a tiny model whose samples differ, a reward that tells them apart, runs in processes."""

import json
import multiprocessing
import os
import re
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tqdm import tqdm

from vr1lib.data.shapeworld import make_problems, write_base_cot
from vr1lib.models.tiny import build_tiny_vlm
from vr1lib.models.vlm import load_vlm, save_vlm
from vr1lib.records import Graded, Problem, RequestError, read_jsonl, write_jsonl
from vr1lib.schedule import Schedule
from vr1lib.training import checkpoint, rollouts
from vr1lib.training.checkpoint import Checkpoints, save_trained
from vr1lib.training.grpo import GrpoSettings, prepare, train_grpo

tqdm.monitor_interval = 0  # no thread of its own: tests fork
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["grpo_case", "vr1lib.models.adapters", "torch._dynamo"])  # imported once for all
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(":")])

SETTINGS = GrpoSettings(prompts_per_step=4, learning_rate=1e-3, kl_coefficient=0.1, weight_decay=0.0, rollout_rows=8)


def make_case(folder: Path, tie_word_embeddings: bool = False) -> Path:
    """Six problems in problems.jsonl, and a model whose samples differ in model/.

    Three have long questions and no picture: they come last in an update, and leave the vision tower out.
    """
    problems = make_problems(folder, "rl", 6, grid_sizes=(2, 3))
    for problem in problems[1::2]:
        problem.images, problem.question = [], " ".join([problem.question] * 8)
    write_jsonl(folder / "problems.jsonl", problems)
    build_tiny_vlm(
        folder / "untrained", 0, [f"{p.question}\n{write_base_cot(p)}" for p in problems], vocabulary_size=320,
        hidden_size=32, layers=2, heads=2, key_value_heads=1, intermediate_size=32, vision_hidden_size=32,
        tie_word_embeddings=tie_word_embeddings,
    )  # fmt: skip
    vlm = load_vlm(folder / "untrained")
    head = vlm.model.get_output_embeddings().weight
    head.data = torch.randn(head.shape, generator=torch.Generator().manual_seed(0)) * 0.3
    save_vlm(vlm, folder / "model")
    return folder


def problems_of(folder: Path) -> list[Problem]:
    return list(read_jsonl(folder / "problems.jsonl", Problem))


def graded_by(is_right):
    """A grader whose verdict is is_right(text, problem)."""

    def grade(completion, problem, kind="hard"):
        ok = is_right(completion.text, problem)
        verdict = {"reward": float(ok), "format_ok": ok, "answer_ok": ok, "extracted": None, "reason": ""}
        return Graded(**completion.model_dump(), **verdict)

    return grade


def odd_bytes(text: str, problem: Problem) -> bool:
    return sum(text.encode()) % 2 == 1


def without_times(metrics: dict) -> dict:
    timed = ("time/", "memory/", "seconds", "tokens_per_second")
    return {key: value for key, value in metrics.items() if not key.startswith(timed)}


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def train(
    case: Path,
    out: Path,
    *,
    model: str = "model",
    method: str | None = None,
    train_vision: bool = False,
    dropout: float = 0.0,
    stages=((6, 4, 2),),
    checkpoint_every: int = 0,
    resume_from: Path | None = None,
    killed_after: int | None = None,
    killed_writing: tuple[int, int] | None = None,
    nan_in_process: int | None = None,
    **changes,
) -> None:
    """Train in this process or its group; process 0 leaves metrics.jsonl, completions.jsonl and model/ in `out`.

    killed_after: kill -9 once that step is logged. killed_writing: (step, files): once so many files of it are written.
    """
    torch.manual_seed(7)
    rollouts.grade_completion = graded_by(odd_bytes)
    vlm = load_vlm(
        case / model, method=method, train_vision=train_vision, lora_rank=4, lora_alpha=8, lora_dropout=dropout
    )
    out.mkdir(parents=True, exist_ok=True)

    def log(metrics):
        with (out / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(metrics) + "\n")
        if metrics["step"] == killed_after:
            os.kill(os.getpid(), signal.SIGKILL)

    if killed_writing:
        kill_while_writing(*killed_writing)
    if nan_in_process == int(os.environ.get("RANK", 0)):
        vlm.model.model.language_model.norm.register_forward_hook(lambda norm, _, hidden: poisoned(hidden))
    session = prepare(vlm, replace(SETTINGS, **changes))
    problems = problems_of(case)
    train_grpo(
        session,
        problems,
        Schedule(stages),
        log=log,
        log_completions=lambda graded, by_id: write_jsonl(out / "completions.jsonl", graded, append=True),
        log_evaluation=lambda graded: write_jsonl(out / "evaluation.jsonl", graded, append=True),
        evaluation_problems=problems[:3],
        checkpoints=Checkpoints(out / "checkpoints", every=checkpoint_every) if checkpoint_every else None,
        resume_from=resume_from,
        dump_folder=out / "bad_steps",
    )
    save_trained(session.vlm, out / "model")


def poisoned(hidden: torch.Tensor) -> torch.Tensor:
    """Unchanged on the way forward, NaN on the way back."""
    if hidden.requires_grad:
        hidden.register_hook(lambda gradient: gradient * float("nan"))
    return hidden


def is_refused(case: Path, fault: str, method: str = "full", **changes) -> None:
    """These settings are refused with these words."""
    with pytest.raises(RequestError, match=re.escape(fault)):
        prepare(load_vlm(case / "model", method=method), replace(SETTINGS, **changes))


def kill_while_writing(step: int, files: int) -> None:
    """From now on this process kills itself while it saves `step`, in place of file number `files`."""
    written = []
    save_file = checkpoint.save_file

    def save_or_die(tensors, path):
        if f"step-{step:06d}" in str(path):
            if len(written) == files:
                os.kill(os.getpid(), signal.SIGKILL)
            written.append(path)
        save_file(tensors, path)

    checkpoint.save_file = save_or_die


def in_group(function, rank: int, processes: int, port: int, arguments: tuple, options: dict) -> None:
    if processes > 1:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
    torch.set_num_threads(1)
    function(*arguments, **options)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def run_in_processes(function, *arguments, processes: int = 1, **options) -> list[int]:
    """Run a function of a module in fresh processes, as one group if there are several; returns their exit codes.

    Processes that wait for each other for ever are ended after two minutes.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = [
        PROCESSES.Process(target=in_group, args=(function, rank, processes, port, arguments, options))
        for rank in range(processes)
    ]
    for process in group:
        process.start()
    until = time.monotonic() + 120
    for process in group:
        process.join(max(0.0, until - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in group]
