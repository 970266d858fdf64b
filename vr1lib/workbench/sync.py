"""`vr1 sync`: what runs have recorded offline goes to W&B through its own `wandb sync`, and each run is told of.

A resumed run has one record for each time it ran, its legs; they go up in the order of time, into one W&B run.
"""

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vr1lib.records import RequestError
from vr1lib.workbench.params import project_root
from vr1lib.workbench.run_folder import refuse_if_running, shown
from vr1lib.workbench.wandb_server import wandb_for_upload

RETRIES = "4"  # of a request to a server that does not answer, about half a minute; W&B's own default is hours
TERMINAL_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Outcome:
    """What became of a run folder: `why` says what was uploaded, or why nothing was."""

    folder: Path
    state: Literal["synced", "already", "nothing", "running", "failed"]
    why: str


def sync_command(folders: Sequence[Path]) -> int:
    """Upload the given run folders, or all below outputs/; prints a line for each. 1 if one of them failed.

    Raises RequestError if W&B is not logged in or set to be offline: one line, and nothing is tried.
    """
    chosen = list(folders) or runs_with_records()
    if not chosen:
        raise RequestError(f"{shown(project_root() / 'outputs')}: no run has a W&B record; nothing to upload")
    if any(pending(folder) for folder in chosen):
        wandb_for_upload("vr1 sync")
    counts: Counter[str] = Counter()
    for folder in chosen:
        outcome = sync(folder)
        counts[outcome.state] += 1
        print(f"{outcome.state:<8} {shown(folder)}: {outcome.why}", flush=True)
    print(", ".join(f"{number} {state}" for state, number in counts.items()))
    return 1 if counts["failed"] else 0


def runs_with_records() -> list[Path]:
    """Run folders below outputs/ that hold an offline record, oldest first: what made a data set before who used it."""
    records = (project_root() / "outputs").glob("*/*/wandb/offline-run-*/run-*.wandb")
    first = {}
    for record in sorted(records, key=lambda path: path.parent.name):
        first.setdefault(record.parents[2], record)
    return list(first)


def legs(folder: Path) -> list[Path]:
    """The offline records of a run folder, in the order of time."""
    return sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"), key=lambda path: path.parent.name)


def pending(folder: Path) -> list[Path]:
    return [leg for leg in legs(folder) if not marker(leg).exists()]


def marker(leg: Path) -> Path:
    """What `wandb sync` leaves beside a record that it has uploaded."""
    return leg.with_name(leg.name + ".synced")


def sync(folder: Path) -> Outcome:
    """Upload one run folder's pending legs."""
    found, waiting = legs(folder), pending(folder)
    if not found:
        online = any((folder / "wandb").glob("run-*/run-*.wandb"))
        return Outcome(folder, "nothing", "was online from the start" if online else "no W&B record (wandb_mode)")
    if not waiting:
        return Outcome(folder, "already", f"{len(found)} of {len(found)} records are in W&B")
    try:
        refuse_if_running(folder)
    except RequestError:
        return Outcome(folder, "running", "is running now; sync it when it has ended")
    return upload(folder, waiting)


def upload(folder: Path, waiting: Sequence[Path]) -> Outcome:
    """`wandb sync` on some legs. It ends with 0 whatever happened: its words and its markers tell what did."""
    settings = {"WANDB_X_GRAPHQL_RETRY_MAX": RETRIES, "WANDB_DIR": str(folder), **os.environ}
    environment = {name: value for name, value in settings.items() if name not in ("WANDB_SILENT", "WANDB_QUIET")}
    command = [sys.executable, "-m", "wandb", "sync", *(str(leg.parent) for leg in waiting)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL)
    words = TERMINAL_COLOURS.sub("", done.stdout + done.stderr).splitlines()
    errors = [line.partition("ERROR ")[2] for line in words if "ERROR " in line]
    left = [leg for leg in waiting if not marker(leg).exists()]
    if errors or left or done.returncode:
        for leg in waiting:  # a record with an error is marked, too: it is to be tried again
            marker(leg).unlink(missing_ok=True)
        reason = errors[0] if errors else (words or ["wandb sync said nothing"])[-1]
        return Outcome(folder, "failed", " ".join(reason.split()))
    urls = [match[0] for match in map(re.compile(r"https?://\S+/runs/\S+").search, words) if match]
    return Outcome(folder, "synced", f"{len(waiting)} records{f', {urls[-1]}' if urls else ''}")
