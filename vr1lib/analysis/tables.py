"""Runs as rows of numbers, and the paper's tables with ours beside theirs.

The paper's values lie in `paper/*.csv`, copied from its Tables 1 to 4 and read off Figure 1 (column `kind` says which
are printed and which are read from the plot, within ±10 tokens, ±0.1 points, ±0.003 reward). They belong to a model of
7 billion parameters on MathVista, MathVerse and MM-Math; beside another model on another benchmark they show a shape
to compare, not a level.
Accuracies are shares 0 to 1 in `summary.json`, percent in the tables, as the paper prints them.
"""

import csv
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from vr1lib.analysis.statistics import (
    Interval,
    mean_accuracy,
)
from vr1lib.records import Graded, Problem, RequestError, read_jsonl

PAPER = Path(__file__).parent / "paper"
PAPER_METHODS = {
    "base": "Qwen2.5-VL-7B",
    "Zero": "Vision-R1-Zero",
    "CI": "Vision-R1-CI",
    "Long": "Vision-R1-Long",
    "Vision-R1": "Vision-R1 (Ours)",
}


# ------------------------------------------------------------------------------------------------------- reading runs


@dataclass
class ScoredModel:
    """A run of 40_benchmark: what it was asked, what it said, and how that was graded."""

    label: str
    folder: Path
    scores: dict[str, Any]
    problems: dict[str, Problem]
    graded: list[Graded]

    @cached_property
    def by_benchmark(self) -> dict[str, list[Graded]]:
        """The graded completions of each benchmark, in scores.json's order."""
        rows: dict[str, list[Graded]] = {row["benchmark"]: [] for row in self.scores["benchmarks"]}
        for graded in self.graded:
            rows[self.problems[graded.problem_id].meta["benchmark"]].append(graded)
        return rows

    def kind(self, problem_id: str) -> tuple[Any, ...]:
        """What makes problems alike before anybody answers: benchmark, family, task, level, size of the scene."""
        meta = self.problems[problem_id].meta
        scene = meta.get("scene") or {}
        return (*(meta.get(key) for key in ("benchmark", "family", "task", "level")), len(scene.get("grid", ())))

    @property
    def max_completion_tokens(self) -> int:
        return max(row["sampling"]["max_completion_tokens"] for row in self.scores["benchmarks"])

    @cached_property
    def accuracy(self) -> Interval:
        """The plain mean over benchmarks, as the paper averages (Table 4)."""
        return mean_accuracy([row.reward for row in rows] for rows in self.by_benchmark.values())

    @property
    def mean_length(self) -> float:
        """Tokens per completion, the plain mean over benchmarks."""
        means = [sum(row.tokens for row in rows) / len(rows) for rows in self.by_benchmark.values()]
        return sum(means) / len(means)


@dataclass
class TrainingRun:
    """A run of 30_ptst_grpo: one dictionary of metrics a step, and its stages if its parameters name them."""

    label: str
    folder: Path
    metrics: list[dict[str, Any]]
    stages: list[Any]

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Steps and values of one metric, steps without it left out."""
        rows = [(row["step"], row[key]) for row in self.metrics if is_number(row.get(key))]
        return [step for step, _ in rows], [value for _, value in rows]

    @property
    def spans(self) -> list[tuple[int, int, int]]:
        """(stage, first step, last step) of each stage, counted from stage 0; step 0 is before training."""
        spans: dict[int, tuple[int, int]] = {}
        for row in self.metrics:
            if row["step"] >= 1 and "stage" in row:
                first, last = spans.get(row["stage"], (row["step"], row["step"]))
                spans[row["stage"]] = (min(first, row["step"]), max(last, row["step"]))
        return [(stage, first, last) for stage, (first, last) in sorted(spans.items())]

    def stage_name(self, stage: int) -> str:
        """`stage 1: 64 tokens × 16` where the parameters are known."""
        if stage < len(self.stages):
            limit, group_size, *_ = self.stages[stage]
            return f"stage {stage + 1}: {limit} tokens × {group_size}"
        return f"stage {stage + 1}"


def load_scored_model(label: str, folder: str | Path) -> ScoredModel:
    """Raises RequestError if the folder is not a finished run of 40_benchmark."""
    folder = Path(folder)
    scores = read_json(folder / "scores.json", "give the folder of a finished 40_benchmark run")
    problems = {problem.id: problem for problem in read_jsonl(folder / "problems.jsonl", Problem)}
    graded = list(read_jsonl(folder / "completions.jsonl", Graded))
    for number, row in enumerate(graded, start=1):
        if row.problem_id not in problems:
            where = f"{folder / 'completions.jsonl'}, line {number}"
            raise RequestError(
                f"{where}: problem_id {row.problem_id!r} is not in problems.jsonl; run 40_benchmark again"
            )
    return ScoredModel(label, folder, scores, problems, graded)


def load_training_run(label: str, folder: str | Path) -> TrainingRun:
    """Raises RequestError if the folder holds no metrics."""
    folder = Path(folder)
    metrics = read_metrics(folder / "metrics.jsonl")
    parameters = folder / "params.yaml"
    stages = []
    if parameters.is_file():
        stages = (yaml.safe_load(parameters.read_text(encoding="utf-8")) or {}).get("stages") or []
    return TrainingRun(label, folder, metrics, stages)


def finished_runs(folder: str | Path) -> dict[str, str]:
    """Label → folder of every finished run below outputs/STEM, oldest first; of one label, by their folders' names.

    Earlier runs that were moved aside (RUN~1, RUN~2, …) are not among them.
    """
    found = []
    for manifest_path in (path for path in Path(folder).glob("*/manifest.json") if "~" not in path.parent.name):
        manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
        if manifest.get("status") == "finished":
            scores_path = manifest_path.parent / "scores.json"
            scores = json.loads(scores_path.read_text(encoding="utf-8")) if scores_path.is_file() else {}
            label = scores.get("label", manifest_path.parent.name)
            found.append((manifest.get("started_at") or "", label, manifest_path.parent))
    labels = [label for _, label, _ in found]
    return {
        label if labels.count(label) == 1 else run_folder.name: str(run_folder)
        for _, label, run_folder in sorted(found, key=lambda item: item[0])
    }


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """metrics.jsonl by step; of a step written twice (a resumed run) keys of the later row win."""
    rows: dict[int, dict[str, Any]] = {}
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                    rows.setdefault(row["step"], {}).update(row)
                except (ValueError, KeyError, TypeError):
                    raise RequestError(f"{path}, line {number}: not an object with 'step'; remove the line") from None
    except OSError as error:
        raise RequestError(f"{path}: cannot be read ({error.strerror}); give the folder of a training run") from None
    return [rows[step] for step in sorted(rows)]


def read_json(path: Path, mend: str) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"{path}: cannot be read ({error.strerror}); {mend}") from None
    except ValueError as error:
        raise RequestError(f"{path}: not JSON ({error}); {mend}") from None


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# ---------------------------------------------------------------------------------------------------------- the paper


def paper_rows(name: str) -> list[dict[str, str]]:
    """The rows of `paper/NAME.csv` as text, as printed; "-" is a blank in print."""
    with (PAPER / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def paper_series(panel: str) -> dict[str, list[tuple[str, float]]]:
    """Figure 1's panel as {series: [(x, y), …]}, x as printed."""
    series: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for row in paper_rows("fig1_readings"):
        if row["panel"] == panel:
            series[row["series"]].append((row["x"], float(row["y"])))
    return dict(series)


def paper_role(label: str) -> str | None:
    """Which of the paper's models a label means: base, Zero, CI, Long, Vision-R1, or None for none of them."""
    plain = label.strip().lower()
    roles = {role.lower(): role for role in PAPER_METHODS}
    return roles.get(plain) or roles.get(plain.removeprefix("vision-r1-"))


def paper_value(label: str) -> tuple[int | None, float | None]:
    """Average length in tokens and average accuracy in percent that the paper prints for the model a label means."""
    method = PAPER_METHODS.get(paper_role(label) or "")
    for row in paper_rows("paper_table4"):
        if row["method"] == method:
            return int(row["avg_len"]), float(row["avg_acc"])
    for row in paper_rows("paper_table1"):
        if row["model"] == method:
            return None, float(row["avg"])
    return None, None


# ------------------------------------------------------------------------------------------------------- our tables


def summary(models: Iterable[ScoredModel]) -> list[dict[str, Any]]:
    """One row a model, in the given order: accuracy as a share with its 95 % interval, mean length in tokens."""
    rows = []
    for model in models:
        accuracy = model.accuracy
        rows.append(
            {
                "model": model.label,
                "accuracy": accuracy.mean,
                "low": accuracy.low,
                "high": accuracy.high,
                "mean_length": model.mean_length,
                "n": len(model.graded),
            }
        )
    return rows


def summary_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The summary as a small table of plain text."""
    width = max([len("model"), *(len(row["model"]) for row in rows)])
    lines = [f"{'model':<{width}}  accuracy  95 % interval   mean length     n"]
    for row in rows:
        interval = f"{100 * row['low']:5.1f} – {100 * row['high']:5.1f}"
        cells = [f"{row['model']:<{width}}", f"{100 * row['accuracy']:6.1f} %", f"{interval:<14}"]
        lines.append("  ".join([*cells, f"{row['mean_length']:11.1f}", f"{row['n']:4d}"]))
    return "\n".join(lines)


def table_4(models: Sequence[ScoredModel]) -> list[dict[str, Any]]:
    """The paper's Table 4 with our length and accuracy beside each method; the base's accuracy is from Table 1."""
    by_role = {paper_role(model.label): model for model in models if paper_role(model.label)}
    parts = {row["method"]: row for row in paper_rows("paper_table4")}
    rows = []
    for role, method in PAPER_METHODS.items():
        ticks = parts.get(method, {"cold_start": "0", "grpo": "0", "ptst": "0"})
        length, accuracy = paper_value(role)
        rows.append(
            {
                "method": method,
                **{part: "✓" if ticks[part] == "1" else "–" for part in ("cold_start", "grpo", "ptst")},
                "paper_length_tokens": length,
                "paper_accuracy_percent": accuracy,
                **_ours(by_role.get(role)),
            }
        )
    for model in models:
        if model not in by_role.values():
            blank = dict.fromkeys(("cold_start", "grpo", "ptst"), "") | dict.fromkeys(
                ("paper_length_tokens", "paper_accuracy_percent")
            )
            rows.append({"method": "–", **blank, **_ours(model)})
    return rows


def _ours(model: ScoredModel | None) -> dict[str, Any]:
    keys = ("our_run", "our_length_tokens", "our_accuracy_percent", "our_low_percent", "our_high_percent", "n")
    if model is None:
        return dict.fromkeys(keys)
    accuracy = model.accuracy
    percents = [round(100 * value, 2) for value in (accuracy.mean, accuracy.low, accuracy.high)]
    return dict(zip(keys, [model.label, round(model.mean_length, 1), *percents, len(model.graded)]))


def group_scores(models: Iterable[ScoredModel]) -> list[dict[str, Any]]:
    """Every score of every run: one row a model, benchmark and group, the whole benchmark as group "all"."""
    rows = []
    for model in models:
        for benchmark in model.scores["benchmarks"]:
            groups = [("all", "all", benchmark)]
            groups += [(kind, name, cell) for kind, named in benchmark["by"].items() for name, cell in named.items()]
            for kind, name, cell in groups:
                where = {"model": model.label, "benchmark": benchmark["benchmark"], "by": kind, "group": name}
                percents = {f"{key}_percent": round(100 * cell[key], 2) for key in ("accuracy", "low", "high")}
                rows.append({**where, "n": cell["n"], **percents})
    return rows


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Rows under the first row's keys; None is an empty cell."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)
    return path
