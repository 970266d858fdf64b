"""Finished runs read from their folders: what a model was asked and said, and what a training logged.

A completion's numbers are held in memory, its text stays in the file and is read when asked for: 200,000 texts of 2,000
tokens are more than a gigabyte, and most of an analysis never looks at them.
"""

import json
import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import yaml
from pydantic import ValidationError

from vr1lib.analysis.statistics import REFLECTION_WORDS, Interval, mean_accuracy
from vr1lib.data.audits import count_word
from vr1lib.records import Graded, Problem, RequestError, first_error, read_jsonl


@dataclass(slots=True)
class SavedCompletion:
    """A Graded row without its text, which is read from the file: its line begins `offset` bytes into it."""

    problem_id: str
    sample: int
    step: int
    stage: int
    tokens: int
    finish: str
    logprob: float
    version: int | None
    reward: float
    format_ok: bool
    answer_ok: bool
    extracted: str | None
    reason: str
    file: Path
    offset: int

    @property
    def text(self) -> str:
        return next(texts([self]))


AnyGraded = Graded | SavedCompletion


def texts(rows: Iterable[AnyGraded]) -> Iterator[str]:
    """The texts of many completions, each file opened once."""
    with ExitStack() as files:
        opened: dict[Path, BinaryIO] = {}
        for row in rows:
            if isinstance(row, Graded):
                yield row.text
                continue
            if row.file not in opened:
                opened[row.file] = files.enter_context(open(row.file, "rb"))
            opened[row.file].seek(row.offset)
            yield json.loads(opened[row.file].readline())["text"]


@dataclass
class ScoredModel:
    """A run of 40_benchmark: what it was asked, what it said (once or several times a problem), how that was graded."""

    label: str
    folder: Path
    scores: dict[str, Any]
    problems: dict[str, Problem]
    graded: Sequence[AnyGraded]

    @cached_property
    def by_benchmark(self) -> dict[str, list[AnyGraded]]:
        """The graded completions of each benchmark, in scores.json's order."""
        rows: dict[str, list[AnyGraded]] = {row["benchmark"]: [] for row in self.scores["benchmarks"]}
        for graded in self.graded:
            rows[self.problems[graded.problem_id].meta["benchmark"]].append(graded)
        return rows

    @cached_property
    def by_problem(self) -> dict[str, dict[str, list[AnyGraded]]]:
        """Benchmark → problem id → its completions, sample 0 first."""
        return {benchmark: _by_problem(rows) for benchmark, rows in self.by_benchmark.items()}

    @cached_property
    def row_of(self) -> dict[str, dict[str, Any]]:
        """Benchmark → its row of scores.json."""
        return {row["benchmark"]: row for row in self.scores["benchmarks"]}

    @property
    def samples(self) -> int:
        """The most completions that one problem has."""
        return max(len(rows) for problems in self.by_problem.values() for rows in problems.values())

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
        """The plain mean over benchmarks, as the paper averages (Table 4); of one, the mean over its problems of the
        share of a problem's completions that are right. Problems are resampled; `n` counts them."""
        strata = self.by_problem.values()
        return mean_accuracy([mean_reward(rows) for rows in problems.values()] for problems in strata)

    @property
    def mean_length(self) -> float:
        """Tokens per completion, the plain mean over benchmarks."""
        means = [sum(row.tokens for row in rows) / len(rows) for rows in self.by_benchmark.values()]
        return sum(means) / len(means)

    @cached_property
    def word_counts(self) -> np.ndarray:
        """How often each reflection word stands in each completion, as a whole word in any case: [completions, words],
        rows as in `graded`, columns as in REFLECTION_WORDS. Reads every text once."""
        words = [word.lower() for word in REFLECTION_WORDS]
        counts = np.zeros((len(self.graded), len(words)), dtype=np.int32)
        for place, text in enumerate(texts(self.graded)):
            text = text.lower()
            counts[place] = [count_word(word, text)[0] for word in words]
        return counts


def _by_problem(rows: Sequence[AnyGraded]) -> dict[str, list[AnyGraded]]:
    problems: dict[str, list[AnyGraded]] = defaultdict(list)
    for row in rows:
        problems[row.problem_id].append(row)
    for completions in problems.values():
        completions.sort(key=lambda row: row.sample)
    return dict(problems)


def mean_reward(rows: Sequence[AnyGraded]) -> float:
    return sum(row.reward for row in rows) / len(rows)


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
    graded = read_completions(folder / "completions.jsonl")
    for number, row in enumerate(graded, start=1):
        if row.problem_id not in problems:
            where = f"{folder / 'completions.jsonl'}, completion {number}"
            raise RequestError(
                f"{where}: problem_id {row.problem_id!r} is not in problems.jsonl; run 40_benchmark again"
            )
    return ScoredModel(label, folder, scores, problems, graded)


def read_completions(path: str | Path) -> list[SavedCompletion]:
    """Every Graded row of a JSONL file, texts left in it. Raises RequestError naming file, line and field."""
    path, offset, rows = Path(path), 0, []
    names = [name for name in SavedCompletion.__dataclass_fields__ if name not in ("file", "offset")]
    try:
        file = path.open("rb")
    except OSError as error:
        raise RequestError(f"{path}: cannot be read ({error.strerror}); give the path of a JSONL file") from None
    with file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    graded = Graded.model_validate_json(line)
                except ValidationError as error:
                    raise RequestError(f"{path}, line {number}: {first_error(error)}") from None
                graded.problem_id, graded.reason = sys.intern(graded.problem_id), sys.intern(graded.reason)
                rows.append(SavedCompletion(*(getattr(graded, name) for name in names), path, offset))
            offset += len(line)
    return rows


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

    Earlier runs that were moved aside (RUN~1, RUN~2, …) are not among them, nor are a sweep's points: those stand on
    the sweep's own board.
    """
    found, folder = [], Path(folder)
    swept = {
        json.loads(line)["run"]
        for points in folder.parent.glob("sweeps/*/points.jsonl")
        for line in points.read_text(encoding="utf-8").splitlines()
    }
    for manifest_path in folder.glob("*/manifest.json"):
        name = manifest_path.parent.name
        if "~" in name or f"outputs/{folder.name}/{name}" in swept:
            continue
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
