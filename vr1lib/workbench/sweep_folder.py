"""A sweep's folder, outputs/sweeps/NAME: its file, how each point stands, and what went wrong."""

import json
import os
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vr1lib.records import RequestError
from vr1lib.workbench.params import project_root
from vr1lib.workbench.run_folder import lock_folder, read_manifest, refuse_if_running, say, shown
from vr1lib.workbench.sweep_file import Sweep

STATUSES = ("waiting", "running", "finished", "failed", "killed", "interrupted")


@dataclass
class Progress:
    """A line of points.jsonl. `run` is the run folder; `cell` and `traceback` tell where a notebook failed.

    `nodes`: over Ray the node of each try; more than one if a node was lost.
    """

    name: str
    values: dict[str, Any]
    run: str
    status: str = "waiting"
    seconds: float | None = None
    error: str | None = None
    cell: str | None = None
    traceback: list[str] = field(default_factory=list)
    nodes: list[str] = field(default_factory=list)


class State:
    """outputs/sweeps/NAME: points.jsonl always tells how things stand."""

    def __init__(self, folder: Path, rows: Sequence[Progress], lock: Any = None) -> None:
        self.folder, self.rows, self.lock = folder, list(rows), lock
        self.writing = threading.Lock()

    def update(self, row: Progress, **entries: Any) -> None:
        for name, value in entries.items():
            setattr(row, name, value)
        self.write()

    def write(self) -> None:
        with self.writing:
            new = self.folder / "points.jsonl.new"
            lines = [json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in self.rows]
            new.write_text("".join(lines), encoding="utf-8")
            os.replace(new, self.folder / "points.jsonl")

    def counts(self) -> dict[str, int]:
        statuses = [row.status for row in self.rows]
        return {status: statuses.count(status) for status in STATUSES if status in statuses}

    def unfinished(self) -> list[Progress]:
        return [row for row in self.rows if row.status != "finished"]


def claim(sweep: Sweep, stem: str, resume: bool) -> State:
    """The sweep's folder, with its file and points. With `resume` an earlier sweep goes on, else it moves to NAME~1, ….

    Raises RequestError if another process runs there, or if what is to be resumed is not there or another sweep.
    """
    folder = project_root() / "outputs" / "sweeps" / sweep.name
    exists = (folder / "points.jsonl").exists()
    if exists:
        refuse_if_running(folder)
    if resume:
        return reclaim(sweep, folder, exists)
    if exists:
        number = 1
        while (aside := folder.with_name(f"{folder.name}~{number}")).exists():
            number += 1
        folder.rename(aside)
        say(f"{shown(folder)} held an earlier sweep; it is now {shown(aside)}")
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    (folder / "sweep.yaml").write_text(sweep.text, encoding="utf-8")
    rows = [Progress(point.name, point.values, f"outputs/{stem}/{point.name}") for point in sweep.points]
    state = State(folder, rows, lock_folder(folder))
    state.write()
    return state


def reclaim(sweep: Sweep, folder: Path, exists: bool) -> State:
    if not exists:
        raise RequestError(f"{shown(folder)}: no sweep to resume; start it without --resume")
    if (folder / "sweep.yaml").read_text(encoding="utf-8") != sweep.text:
        raise RequestError(
            f"{sweep.path}: is not as it was when {shown(folder)} was started; start it without --resume, or give it "
            "another name"
        )
    lines = (folder / "points.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [Progress(**json.loads(line)) for line in lines]
    for row in rows:
        finished = read_manifest(project_root() / row.run).get("status") == "finished"
        if row.status == "finished" and not finished:  # its folder is gone
            row.status = "waiting"
        elif row.status == "running" and finished:  # it went on when the sweep itself was killed
            row.status, row.error = "finished", None
    return State(folder, rows, lock_folder(folder))


def write_failures(state: State) -> None:
    """failures.md: each point that did not finish, with reason, cell, traceback and its log; gone if there is none."""
    path = state.folder / "failures.md"
    failed = [row for row in state.unfinished() if row.status != "waiting"]
    if not failed:
        path.unlink(missing_ok=True)
        return
    pages = []
    for row in failed:
        trace = ["```", *(filter(None, [row.cell])), *row.traceback, "```"] if row.cell else []
        told = "\n".join(f"- {key}: {json.dumps(value, ensure_ascii=False)}" for key, value in row.values.items())
        log = f"{shown(state.folder)}/logs/{row.name}.log"
        pages.append(
            "\n\n".join([f"## {row.name}", f"{row.status}: {row.error}", told, "\n".join(trace), f"Log: {log}"])
        )
    path.write_text("\n\n".join(pages) + "\n", encoding="utf-8")
