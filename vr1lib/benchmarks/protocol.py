"""One protocol for every benchmark: leave out what was trained on, answer once, grade strictly, count everything.

This is the strict reading (our choice): one completion for each problem, a completion that is not well-formed is wrong,
and only the rule-based grader decides. The authors' runner instead asks up to five times until `</answer>` appears and
lets a judge model extract the answer, which flatters. A benchmark is a module with

    NAME                          what it is called in parameters, tables and files
    load(data, data_root, panels) its problems, and every row that could not be used with the reason
    groups(problem)               the groups a problem counts in: {"task": [...], "skill": [...]}

Problems leave here with `meta["benchmark"]` set, so that one run may hold several benchmarks.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vr1lib.benchmarks import mathvision, shapeworld, wemath
from vr1lib.data.sources import Reject
from vr1lib.models.rollout_local import complete
from vr1lib.models.vlm import Vlm
from vr1lib.records import ColdRow, Graded, Problem, RequestError, read_jsonl
from vr1lib.reward import grade_completion

BENCHMARKS = {module.NAME: module for module in (shapeworld, wemath, mathvision)}


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn; temperature 0 is greedy, and then `top_p` and `seed` have no effect."""

    temperature: float
    top_p: float
    max_completion_tokens: int
    seed: int


@dataclass
class Selection:
    """The problems of one benchmark that will be scored, and every other row with the reason."""

    benchmark: str
    problems: list[Problem]
    rejects: list[Reject]

    def leave_out(self, problems: Iterable[Problem], reason: str, detail: str = "") -> None:
        """Move `problems` to the rejects; `reason` is one of few, `detail` a row's own."""
        moved = {problem.id for problem in problems}
        self.rejects += [
            Reject(id=problem.id, reason=reason, detail=detail, source=problem.source, step="benchmark")
            for problem in self.problems
            if problem.id in moved
        ]
        self.problems = [problem for problem in self.problems if problem.id not in moved]


class TrainedOn:
    """What was trained on, known by id, by group (another step of the same problem) and by question with pictures."""

    def __init__(self, files: Iterable[str | Path]):
        self.ids: dict[str, str] = {}
        self.groups: dict[str, str] = {}
        self.contents: dict[str, str] = {}
        for file in files:
            for problem in read_problems(file):
                name = Path(file).name
                self.ids.setdefault(problem.id, name)
                self.contents.setdefault(content_sha256(problem), name)
                if problem.meta.get("group"):
                    self.groups.setdefault(str(problem.meta["group"]), name)

    def reason(self, problem: Problem) -> str | None:
        """Why the problem may not be scored, None if it may."""
        if problem.id in self.ids:
            return f"trained on: in {self.ids[problem.id]}"
        if problem.meta.get("group") and str(problem.meta["group"]) in self.groups:
            return f"trained on: another step of the same problem in {self.groups[str(problem.meta['group'])]}"
        content = content_sha256(problem) if self.contents else None
        if content in self.contents:
            return f"trained on: same question and pictures in {self.contents[content]}"
        return None


def select(
    benchmark: str,
    *,
    data: str | Path | None = None,
    data_root: str | Path | None = None,
    panels: str | Path | None = None,
    trained_on: TrainedOn | None = None,
    limit: int | None = None,
) -> Selection:
    """The problems to score: loaded, without what was trained on, at most `limit` of them evenly spaced over the file.

    Raises RequestError for an unknown benchmark, or when no problem is left.
    """
    if benchmark not in BENCHMARKS:
        raise RequestError(f"benchmarks: {benchmark!r} is unknown; known are {', '.join(BENCHMARKS)}")
    loaded = BENCHMARKS[benchmark].load(data, data_root, panels)
    selection = Selection(benchmark, list(loaded.problems), list(loaded.rejects))
    reasons = defaultdict(list)
    for problem in selection.problems:
        if trained_on and (reason := trained_on.reason(problem)):
            reasons[reason].append(problem)
    for reason, problems in reasons.items():
        selection.leave_out(problems, reason)
    if limit is not None and len(selection.problems) > limit:
        count = len(selection.problems)
        kept = {index * count // limit for index in range(limit)}
        rest = [problem for index, problem in enumerate(selection.problems) if index not in kept]
        selection.leave_out(rest, f"above limit = {limit}")
    if not selection.problems:
        counts = ", ".join(f"{reason}: {count}" for reason, count in reject_counts(selection.rejects).items())
        raise RequestError(f"benchmark {benchmark}: no problem is left ({counts}); give other data or exclude less")
    for problem in selection.problems:
        problem.meta["benchmark"] = benchmark
    return selection


def leave_out_unreadable(selection: Selection, vlm: Vlm) -> None:
    """Move problems whose pictures or markers this model cannot take to the rejects, with what is wrong."""
    for problem in list(selection.problems):
        if detail := vlm.why_not_shown(problem):
            selection.leave_out([problem], "cannot be shown", detail)


def answer_and_grade(
    vlm: Vlm,
    problems: Sequence[Problem],
    sampling: Sampling,
    batch_size: int,
    progress: Callable[[int], None] | None = None,
) -> list[Graded]:
    """One graded completion for each problem, in order. `progress` is told how many have just been finished."""
    completions = complete(
        vlm,
        list(problems),
        max_completion_tokens=sampling.max_completion_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        batch_size=batch_size,
        seed=sampling.seed,
        progress=progress,
    )
    return [grade_completion(completion, problem) for completion, problem in zip(completions, problems, strict=True)]


def score(
    selection: Selection,
    graded: Sequence[Graded],
    interval: Callable[[list[float]], Any],
    *,
    sampling: Sampling,
    image_spec: str,
    prompt_spec: str,
) -> dict[str, Any]:
    """The benchmark's row of scores.json. `interval` gives an object with mean, low and high; specs are their sha256.

    Accuracies are shares 0 to 1 of the problems scored; `left_out` counts every row of the data that was not.
    """
    rows = list(zip(selection.problems, graded, strict=True))
    for problem, row in rows:
        assert row.problem_id == problem.id, f"completion of {row.problem_id} met problem {problem.id}"
    groups: dict[str, dict[str, list[Graded]]] = defaultdict(lambda: defaultdict(list))
    for problem, row in rows:
        for kind, names in BENCHMARKS[selection.benchmark].groups(problem).items():
            for name in names:
                groups[kind][name].append(row)
    by = {
        kind: {name: accuracy(members, interval) for name, members in sorted(named.items())}
        for kind, named in groups.items()
    }
    return {
        "benchmark": selection.benchmark,
        **accuracy(graded, interval),
        "mean_length_tokens": share([row.tokens for row in graded]),
        "well_formed": share([row.format_ok for row in graded]),
        "truncated": share([row.finish == "length" for row in graded]),
        "by": by,
        "left_out": reject_counts(selection.rejects),
        "reward": "hard",
        "sampling": asdict(sampling),
        "image_spec": image_spec,
        "prompt_spec": prompt_spec,
    }


def accuracy(graded: Sequence[Graded], interval: Callable[[list[float]], Any]) -> dict[str, Any]:
    """Number of completions and the share of them with reward 1, with its interval."""
    estimate = interval([row.reward for row in graded])
    return {"n": len(graded), "accuracy": estimate.mean, "low": estimate.low, "high": estimate.high}


def share(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def reject_counts(rejects: Iterable[Reject]) -> dict[str, int]:
    """Rows left out by reason, most frequent first."""
    return dict(Counter(reject.reason for reject in rejects).most_common())


def read_problems(path: str | Path) -> Iterable[Problem]:
    """The rows of a problem file or of a cold-start file, whichever it is."""
    try:
        with Path(path).open(encoding="utf-8") as file:
            first = next((line for line in file if line.strip()), "{}")
    except OSError as error:
        raise RequestError(f"{path}: cannot be read ({error.strerror}); give the path of a JSONL file") from None
    try:
        is_cold = "response" in json.loads(first)
    except ValueError:
        is_cold = False  # read_jsonl names the line
    return read_jsonl(path, ColdRow if is_cold else Problem)


def content_sha256(problem: Problem) -> str:
    """A hash of the question's words and the pictures' bytes, whatever the row is called."""
    digest = hashlib.sha256(" ".join(problem.question.split()).encode())
    for picture in problem.images:
        try:
            digest.update(hashlib.sha256(Path(picture).read_bytes()).digest())
        except OSError:
            digest.update(picture.encode())  # a picture that is gone equals only itself
    return digest.hexdigest()
