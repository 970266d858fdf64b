"""How a sweep goes, told while it runs."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vr1lib.workbench.params import project_root
from vr1lib.workbench.sweep_folder import State


class Watch:
    """How a sweep goes: on a terminal a live table of its points, else a line whenever one starts or ends."""

    def __init__(self, state: State, metric: str | None) -> None:
        from rich.console import Console
        from rich.live import Live

        self.state, self.metric = state, metric
        console = Console()
        self.live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self.began: dict[str, float] = {}

    def __enter__(self) -> "Watch":
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.live:
            self.look()
            self.live.stop()

    def say(self, line: str) -> None:
        if not self.live:
            done = sum(row.status not in ("waiting", "running") for row in self.state.rows)
            print(f"[{done}/{len(self.state.rows)}] {line}", flush=True)

    def look(self) -> None:
        if not self.live:
            return
        from rich.table import Table

        table = Table("point", "status", "time", "step", self.metric or "", title=self.state.folder.name)
        for row in self.state.rows:
            if row.status == "running":
                self.began.setdefault(row.name, time.monotonic())
            seconds = time.monotonic() - self.began[row.name] if row.status == "running" else row.seconds
            last = last_metrics(project_root() / row.run, self.metric) if row.status != "waiting" else {}
            time_told = "" if seconds is None else f"{seconds:.0f} s"
            table.add_row(row.name, row.status, time_told, last.get("step", ""), last.get("metric", ""))
        self.live.update(table, refresh=True)


def last_metrics(folder: Path, metric: str | None) -> Mapping[str, str]:
    """The last step that a run has logged and the metric's last value, as text."""
    path = folder / "metrics.jsonl"
    told: dict[str, str] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            if not line.endswith("}"):
                continue  # being written
            row = json.loads(line)
            told["step"] = str(row["step"])
            if isinstance(row.get(metric), int | float):
                told["metric"] = f"{row[metric]:.4g}"
    return told
