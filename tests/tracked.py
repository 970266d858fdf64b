"""Completions, problems and checkpoints for the tests of tracking."""

import json
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest

from vr1lib.records import Graded, Problem
from vr1lib.training.checkpoint import seal


def lines(run):
    return [json.loads(line, parse_constant=pytest.fail) for line in (run.folder / "metrics.jsonl").open()]


def graded(problem_id, step=1, **changes):
    row = dict(
        problem_id=problem_id, sample=0, step=step, stage=0, text="<think>", tokens=3, finish="stop", logprob=-1.0
    )
    row |= dict(reward=1.0, format_ok=True, answer_ok=True, extracted="3", reason="equal")
    return Graded(**row | changes)


def problem(problem_id, *images):
    pictures = [str(image) for image in images]
    return Problem(id=problem_id, images=pictures, question="How many?", answer="3", source="s", split="t")


def checkpoint(folder, step, recorded, **record):
    """A checkpoint folder as the training code seals it, empty of tensors."""
    path = folder / "checkpoints" / f"step-{step:06d}"
    path.mkdir(parents=True)
    seal(path, {"step": step, "recorded": recorded, **record})
    return path


def wandb_records(run):
    """What W&B's own reader (`wandb leet inspect`) finds in a closed run's record: kind → entries, leg after leg."""
    found = defaultdict(list)
    for file in sorted((run.folder / "wandb").glob("offline-run-*/run-*.wandb")):
        until = time.monotonic() + 20  # another process writes it, and once in a while it was seen to come late
        while '"type":"exit"' not in (text := inspect(file)) and time.monotonic() < until:
            time.sleep(0.1)
        for line in text.splitlines():
            entry = json.loads(line)
            found[entry["type"]].append(entry[entry["type"]])
    return found


def inspect(file: Path) -> str:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    return subprocess.run(command, capture_output=True, text=True).stdout
