"""Trainings for a process that may be killed, or be one of several: as a script, the jobs of a JSON file one by one.

What a job logged, what it ended with and its model are left in the job's folder.
"""

import json
import math
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from vr1lib.models.vlm import load_vlm
from vr1lib.records import Problem
from vr1lib.training import checkpoint
from vr1lib.training.checkpoint import Checkpoints, save_trained
from vr1lib.training.processes import TrainingStopped
from vr1lib.training.sft import train_sft


def killed(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)


def poison(steps, process):
    """For on_ready: the loss of these steps becomes NaN in this process alone."""

    def on_ready(trainer):
        plain = trainer.compute_loss_func

        def poisoned(output, labels, num_items_in_batch):
            bad = trainer.state.global_step + 1 in steps and trainer.args.process_index == process
            return plain(output, labels, num_items_in_batch) * (math.nan if bad else 1.0)

        trainer.compute_loss_func = poisoned

    return on_ready


def do(job, model, rows):
    """Train. `kill_after` this step is logged, or `kill_saving`: (step, function of checkpoint.py that kills)."""
    folder = Path(job["folder"])
    folder.mkdir(exist_ok=True)
    logged = []

    def log(metrics):
        logged.append(metrics)
        if metrics["step"] == job.get("kill_after"):
            killed()

    fatal_step, fatal_function = job.get("kill_saving", (None, None))
    checkpoints = Checkpoints(folder / "checkpoints", every=job.get("every", 0))
    save = checkpoints.save

    def save_or_die(at, *arguments):
        if at == fatal_step:
            setattr(checkpoint, fatal_function, killed)
        return save(at, *arguments)

    checkpoints.save = save_or_die
    torch.manual_seed(0)  # a fresh adapter's first weights
    vlm = load_vlm(model, **job.get("load", {}))
    try:
        result = train_sft(
            vlm,
            rows,
            log=log,
            output_dir=folder / "trainer",
            checkpoints=checkpoints if "every" in job else None,
            resume_from=Path(job["resume_from"]) if "resume_from" in job else None,
            dump_folder=folder / "bad_steps",
            on_ready=poison(*job["poison"]) if "poison" in job else None,
            **job["settings"],
        )
        ended = {"result": asdict(result)}
    except TrainingStopped as error:
        ended = {"stopped": str(error)}
    ended["shards"] = sum(isinstance(value, DTensor) for value in vlm.model.parameters())
    save_trained(vlm, folder / "model")
    if int(os.environ.get("RANK", 0)) == 0:
        (folder / "ended.json").write_text(json.dumps({**ended, "logged": logged}))


if __name__ == "__main__":
    task = json.loads(Path(sys.argv[1]).read_text())
    given = [(Problem(**problem), response) for problem, response in task["rows"]]
    for one in task["jobs"]:
        do(one, task["model"], given)
