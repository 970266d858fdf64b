"""Which problems are scored, and how their answers become rows of scores.json under the two protocols.

strict    the first answer counts (or each of k samples), one that is not well-formed is wrong, and only rules decide:
          our grader, or the benchmark's own rule where it has a tolerance. Our choice, and what the reward trains
authors   as the paper's runner: up to five tries until `</answer>` appears, their extraction, and a judge model if one
          is given. It flatters, so it is shown beside the strict score and never in its place

Both come from one generation. What was trained on is left out, a shard takes every n-th problem, and every row of the
data that is not scored is counted with its reason. Problems leave here with `meta["benchmark"]` set, so that one run
may hold several benchmarks.
"""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from vr1lib.answers import grade_answer
from vr1lib.benchmarks.catalogue import module_of
from vr1lib.benchmarks.controls import clean_subset
from vr1lib.benchmarks.extraction import final_answer
from vr1lib.benchmarks.samples import majority_at_k, pass_at_k
from vr1lib.benchmarks.scoring import share_with
from vr1lib.data.sources import Reject
from vr1lib.records import ColdRow, Completion, Graded, Problem, RequestError, read_jsonl
from vr1lib.reward import grade_completion, parse_completion

Protocol = Literal["strict", "authors"]
Interval = Callable[[list[float]], Any]  # an object with mean, low and high


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
            if not Path(file).is_file():
                raise RequestError(f"exclude: {file}: no such file; give the JSONL files that were trained on, or []")
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
    loaded = module_of(benchmark).load(data, data_root, panels)
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


def keep_shard(selection: Selection, shard: str) -> None:
    """Keep part i of n, "i/n": every n-th problem from the i-th on. Raises RequestError for no such part."""
    found = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", shard)
    number, shards = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= number <= min(shards, len(selection.problems)):
        raise RequestError(
            f"shard = {shard!r}: no part of {selection.benchmark}'s {len(selection.problems)} problems; "
            "give i/n with i from 1 to n, such as 1/4"
        )
    others = [problem for index, problem in enumerate(selection.problems) if index % shards != number - 1]
    selection.leave_out(others, f"not in shard {shard}")


def clean_part(selection: Selection, training_files: Sequence[str | Path]) -> Selection:
    """The problems that none of the training files comes near (`controls.clean_subset`); the others are rejects."""
    found = clean_subset(selection.problems, training_files)
    part = Selection(selection.benchmark, list(selection.problems), list(selection.rejects))
    for problem in selection.problems:
        if problem.id in found.contaminated:
            part.leave_out([problem], "near a training row", found.contaminated[problem.id])
    return part


def grade_strictly(completion: Completion, problem: Problem) -> Graded:
    """Graded by the hard reward; where the benchmark's rule has a tolerance, the answer block goes to that rule."""
    graded = grade_completion(completion, problem)
    module = module_of(problem.meta["benchmark"])
    parsed = parse_completion(completion.text)
    if parsed is None or not hasattr(module, "is_strictly_right"):
        return graded
    right = is_right(parsed.answer, problem)
    reason = f"{module.NAME}'s rule: {'equal' if right else 'not equal'}"
    return graded.model_copy(update={"answer_ok": right, "reward": float(right), "reason": reason})


def is_right(answer: str, problem: Problem) -> bool:
    """The verdict of `grade_strictly` on an answer alone."""
    module = module_of(problem.meta["benchmark"])
    if hasattr(module, "is_strictly_right"):
        return module.is_strictly_right(final_answer(answer), problem)
    return grade_answer(answer, problem.answer, problem.choices).ok


def score(
    selection: Selection,
    graded: Sequence[Graded],
    interval: Interval,
    *,
    sampling: Sampling,
    image_spec: str,
    prompt_spec: str,
    control: str = "none",
    prompt: str = "ours",
    generated_by: str = "local",
    shard: str = "1/1",
    protocol: Protocol = "strict",
    verdicts: Sequence[bool] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """The benchmark's row of scores.json. `graded`: the problems' completions, samples of a problem together; specs
    are their sha256; `more` goes into the row as it is (tries, judge).

    A completion is right if its reward is 1, or as `verdicts` say. Accuracies are shares 0 to 1: of each problem's
    samples, and over the problems scored, whose bootstrap gives low and high. `report`, the benchmark's own table,
    counts first samples. `left_out` counts every row of the data that was not scored.
    """
    samples, rest = divmod(len(graded), len(selection.problems))
    assert rest == 0, f"{len(graded)} completions of {len(selection.problems)} problems"
    by_problem = [list(graded[start : start + samples]) for start in range(0, len(graded), samples)]
    for problem, rows in zip(selection.problems, by_problem, strict=True):
        for row in rows:
            assert row.problem_id == problem.id, f"completion of {row.problem_id} met problem {problem.id}"
    flat = [row.reward == 1 for row in graded] if verdicts is None else list(verdicts)
    right = [flat[start : start + samples] for start in range(0, len(flat), samples)]
    module = module_of(selection.benchmark)
    groups: dict[str, dict[str, list[list[bool]]]] = defaultdict(lambda: defaultdict(list))
    for problem, verdict in zip(selection.problems, right, strict=True):
        for kind, names in module.groups(problem).items():
            for name in dict.fromkeys(names):
                groups[kind][name].append(verdict)
    by = {
        kind: {name: accuracy(members, interval) for name, members in sorted(named.items())}
        for kind, named in groups.items()
    }
    return {
        "benchmark": selection.benchmark,
        "protocol": protocol,
        "control": control,
        **({} if control == "none" else {"control_not_applied": not_applied(selection.problems)}),
        "samples": samples,
        **accuracy(right, interval),
        **(of_several(selection.problems, by_problem, right) if samples > 1 else {}),
        "mean_length_tokens": share([row.tokens for row in graded]),
        "well_formed": share([row.format_ok for row in graded]),
        "truncated": share([row.finish == "length" for row in graded]),
        "by": by,
        "report": module.report(selection.problems, [verdict[0] for verdict in right], share_with(interval)),
        "left_out": reject_counts(selection.rejects),
        "reward": "hard",
        "sampling": asdict(sampling),
        "tries": 1,
        "judge": None,
        **more,
        "prompt": prompt,
        "generated_by": generated_by,
        "shard": shard,
        "image_spec": image_spec,
        "prompt_spec": prompt_spec,
    }


def not_applied(problems: Iterable[Problem]) -> dict[str, int]:
    """How many problems a control could not be wholly applied to, by reason; they are scored as they are."""
    reasons = (problem.meta.get("control", {}).get("not_applied") for problem in problems)
    return dict(Counter(filter(None, reasons)).most_common())


def of_several(
    problems: Sequence[Problem], graded: Sequence[Sequence[Graded]], right: Sequence[Sequence[bool]]
) -> dict[str, Any]:
    """pass@k and majority@k for 1, 2, 4, … and all samples: shares 0 to 1 by k, as text."""
    samples = len(right[0])
    ks = sorted({2**power for power in range(samples.bit_length())} | {samples})
    answers = [[row.extracted for row in rows] for rows in graded]
    return {
        "pass_at_k": {str(k): share(pass_at_k(right, k)) for k in ks},
        "majority_at_k": {str(k): share(majority_at_k(answers, problems, k, is_right)) for k in ks},
    }


def accuracy(right: Sequence[Sequence[bool]], interval: Interval) -> dict[str, Any]:
    """Number of problems and the mean over them of the share of right samples, with its interval."""
    estimate = interval([share(verdict) for verdict in right])
    return {"n": len(right), "accuracy": estimate.mean, "low": estimate.low, "high": estimate.high}


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
