"""The growing files of a run folder, one JSON object a line: metrics, completions, evaluations."""

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vr1lib.records import Graded, Problem, write_jsonl


class Record:
    """The growing files of a run folder: on disk when the call returns, whoever writes them.

    metrics.jsonl, completions.jsonl and, of GRPO's answers to held-out problems, evaluation.jsonl.
    """

    def __init__(self, folder: Path) -> None:
        self.metrics, self.completions = folder / "metrics.jsonl", folder / "completions.jsonl"
        self.evaluation = folder / "evaluation.jsonl"
        self.started = time.monotonic()

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl. `step` is required; numbers that are not finite become null; `seconds`
        since the start is added where it is not given."""
        if "step" not in metrics:
            raise ValueError("log: metrics hold no 'step'")
        row = {"step": metrics["step"], "seconds": round(time.monotonic() - self.started, 3), **metrics}
        line = json.dumps({key: plain(value) for key, value in row.items()}, ensure_ascii=False, allow_nan=False)
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def log_completions(self, graded: Sequence[Graded], problems: Mapping[str, Problem]) -> None:
        """Append graded completions to completions.jsonl."""
        write_jsonl(self.completions, graded, append=True)

    def log_evaluation(self, graded: Sequence[Graded]) -> None:
        """Append the graded answers of one evaluation to evaluation.jsonl."""
        write_jsonl(self.evaluation, graded, append=True)

    def files(self) -> list[Path]:
        return [path for path in (self.metrics, self.completions, self.evaluation) if path.exists()]

    def sizes(self) -> dict[str, int]:
        """Bytes of each file now; a checkpoint remembers them."""
        return {path.name: path.stat().st_size for path in self.files()}

    def rewind(self, sizes: Mapping[str, int]) -> None:
        """Cut the files back to the sizes that a checkpoint remembers; a line half written goes with the rest."""
        for path in self.files():
            os.truncate(path, min(sizes.get(path.name, 0), path.stat().st_size))


def plain(value: Any) -> Any:
    """A value as JSON knows it: scalars of torch and numpy unpacked, numbers that are not finite as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
