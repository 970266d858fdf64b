"""The growing files of a run folder, one JSON object a line: metrics, completions, evaluations, alerts."""

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vr1lib.records import Graded, Problem, write_jsonl
from vr1lib.workbench.alerts import Alert


class Record:
    """The growing files of a run folder: on disk when the call returns, whoever writes them.

    metrics.jsonl, completions.jsonl, alerts.jsonl and, of GRPO's answers to held-out problems, evaluation.jsonl.
    """

    def __init__(self, folder: Path) -> None:
        self.metrics, self.completions = folder / "metrics.jsonl", folder / "completions.jsonl"
        self.evaluation, self.alerts = folder / "evaluation.jsonl", folder / "alerts.jsonl"
        self.started = time.monotonic()

    def log(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Append one line to metrics.jsonl, and return it as it stands there.

        `step` is required; numbers that are not finite become null; `seconds` since the start is added where it is not
        given.
        """
        if "step" not in metrics:
            raise ValueError("log: metrics hold no 'step'")
        given = {"step": metrics["step"], "seconds": round(time.monotonic() - self.started, 3), **metrics}
        row = {key: plain(value) for key, value in given.items()}
        append_line(self.metrics, row)
        return row

    def log_completions(self, graded: Sequence[Graded], problems: Mapping[str, Problem]) -> None:
        """Append graded completions to completions.jsonl."""
        write_jsonl(self.completions, graded, append=True)

    def log_evaluation(self, graded: Sequence[Graded]) -> None:
        """Append the graded answers of one evaluation to evaluation.jsonl."""
        write_jsonl(self.evaluation, graded, append=True)

    def log_alert(self, alert: Alert) -> None:
        """Append an alert to alerts.jsonl."""
        append_line(self.alerts, asdict(alert))

    def rows(self) -> list[dict[str, Any]]:
        """The whole lines of metrics.jsonl."""
        if not self.metrics.exists():
            return []
        text = self.metrics.read_text(encoding="utf-8")
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def files(self) -> list[Path]:
        return [path for path in (self.metrics, self.completions, self.evaluation, self.alerts) if path.exists()]

    def sizes(self) -> dict[str, int]:
        """Bytes of each file now; a checkpoint remembers them."""
        return {path.name: path.stat().st_size for path in self.files()}

    def rewind(self, sizes: Mapping[str, int]) -> None:
        """Cut the files back to the sizes that a checkpoint remembers; a line half written goes with the rest."""
        for path in self.files():
            os.truncate(path, min(sizes.get(path.name, 0), path.stat().st_size))


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """A value as JSON knows it: scalars of torch and numpy unpacked, numbers that are not finite as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
