"""The RL set (Section 4.1): We-Math, MathVision, PolyMATH, SceMQA and Geometry3K in one parquet.

The columns are geometry3k's. The paper names the five and "10K", not how many of each, nor what was left out. Our
choices: every row whose gold the grader accepts from itself; of problems that are the same (`near_duplicates`) the
first; and, where a model's graded completions are given, those that it solves neither always nor never, because a
group of equal rewards teaches nothing. What is left out is a Reject with its reason. The authors trained on benchmark
rows on purpose; whoever scores a model on We-Math or MathVision must keep those rows out (`vr1 audit` says which).
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vr1lib.answers import grade_answer
from vr1lib.data import sources
from vr1lib.data.near_duplicates import SAME_QUESTION, Index, fingerprints
from vr1lib.data.sources import Reject
from vr1lib.prompts import IMAGE_MARKER, question_text
from vr1lib.records import Graded, Problem, read_jsonl

FIVE_SOURCES = ("wemath", "mathvision", "polymath", "scemqa", "geometry3k")
ROWS_AT_ONCE = 64  # written to the parquet together: some megabytes of pictures


@dataclass
class RlSet:
    """The problems that stay and the rejects, together every row of every source."""

    problems: list[Problem] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """By source: how many stay, and how many are left out for which reason."""
        table: dict[str, Counter[str]] = defaultdict(Counter)
        for problem in self.problems:
            table[problem.source]["kept"] += 1
        for reject in self.rejects:
            table[reject.source][reject.reason] += 1
        return {source: dict(counts) for source, counts in table.items()}


def build(
    names: Sequence[str | Path] = FIVE_SOURCES,
    data_root: str | Path | None = None,
    *,
    limit: int | None = None,
    panels: str | Path | None = None,
    graded: str | Path | Iterable[Graded] | None = None,
    lowest: float = 0.0,
    highest: float = 1.0,
) -> RlSet:
    """The mix of these sources, each up to `limit` problems, golds audited, same problems once.

    With `graded` (completions of a model, or their .jsonl) only problems with a pass rate strictly between `lowest`
    and `highest` stay. Raises RequestError for a source that is not there.
    """
    loaded = sources.load_all(names, data_root, limit, panels)
    kept, refused = audit_golds(loaded.problems)
    kept, same = deduplicate(kept)
    rejects = [*loaded.rejects, *refused, *same]
    if graded is not None:
        kept, extreme = by_difficulty(kept, pass_rates(graded), lowest, highest)
        rejects += extreme
    return RlSet(kept, rejects, loaded.files)


def audit_golds(problems: Iterable[Problem]) -> tuple[list[Problem], list[Reject]]:
    """The problems whose gold our grader accepts from itself, and the others: no completion could be rewarded."""
    kept, rejects = [], []
    for problem in problems:
        verdict = grade_answer(problem.answer, problem.answer, problem.choices)
        if verdict.ok:
            kept.append(problem)
        else:
            rejects.append(_reject(problem, "gold not accepted from itself", f"{problem.answer!r}: {verdict.reason}"))
    return kept, rejects


def deduplicate(problems: Iterable[Problem]) -> tuple[list[Problem], list[Reject]]:
    """The first of every set of same problems, and the others.

    Same means here: the same question and gold, and pictures alike. Several questions about one picture, as in the
    steps of We-Math, are several problems.
    """
    index, kept, rejects = Index(), {}, []
    for problem in problems:
        pictures = fingerprints(problem)
        same = next(
            (
                match
                for match in index.matches(problem, pictures)
                if match.question >= SAME_QUESTION
                and (match.by == "picture and question" or not problem.images)
                and _same_gold(problem, kept[match.id])
            ),
            None,
        )
        if same is None:
            index.add(problem, pictures)
            kept[problem.id] = problem
        else:
            detail = f"{same.id}: picture {same.picture}, question {same.question}"
            rejects.append(_reject(problem, "same as another", detail))
    return list(kept.values()), rejects


def pass_rates(graded: str | Path | Iterable[Graded]) -> dict[str, float]:
    """The share of right completions by problem id, format and answer both right."""
    rows = read_jsonl(graded, Graded) if isinstance(graded, str | Path) else graded
    right: dict[str, list[bool]] = defaultdict(list)
    for row in rows:
        right[row.problem_id].append(row.format_ok and row.answer_ok)
    return {problem: sum(found) / len(found) for problem, found in right.items()}


def by_difficulty(
    problems: Iterable[Problem], rates: Mapping[str, float], lowest: float = 0.0, highest: float = 1.0
) -> tuple[list[Problem], list[Reject]]:
    """The problems solved more often than `lowest` and less often than `highest`, their rate in meta["pass_rate"]."""
    kept, rejects = [], []
    for problem in problems:
        rate = rates.get(problem.id)
        if rate is None:
            rejects.append(_reject(problem, "difficulty not measured", ""))
        elif rate <= lowest:
            rejects.append(_reject(problem, "too hard", f"solved in {rate:.0%} of the tries"))
        elif rate >= highest:
            rejects.append(_reject(problem, "too easy", f"solved in {rate:.0%} of the tries"))
        else:
            kept.append(problem.model_copy(update={"meta": {**problem.meta, "pass_rate": rate}}))
    return kept, rejects


def write_parquet(problems: Iterable[Problem], path: str | Path) -> int:
    """Write the problems in geometry3k's columns, pictures unchanged; returns how many rows.

    `images` list of {bytes, path}, `problem` with an `<image>` for each and the options under it, `answer`. Read back
    by `datasets` as pictures, by EasyR1, and by our own reader of these columns.
    """
    return write_rows(({"images": p.images, "problem": marked_question(p), "answer": p.answer} for p in problems), path)


def marked_question(problem: Problem) -> str:
    """The question as shown to the model, with as many `<image>` as it has pictures."""
    text = question_text(problem)
    return text if IMAGE_MARKER in text else IMAGE_MARKER * len(problem.images) + text


def write_rows(rows: Iterable[dict[str, Any]], path: str | Path, columns: Mapping[str, Any] | None = None) -> int:
    """Write rows as parquet with the features `datasets` reads; `images` are paths, stored as {bytes, path}."""
    from datasets import Features, List, Value
    from datasets import Image as ImageFeature
    from pyarrow import Table, parquet

    features = Features(
        {"images": List(ImageFeature()), **(columns or {"problem": Value("string"), "answer": Value("string")})}
    )
    schema = features.arrow_schema
    count, waiting = 0, []
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with parquet.ParquetWriter(path, schema) as writer:

        def write() -> None:
            writer.write_table(Table.from_pylist(waiting, schema=schema))
            waiting.clear()

        for row in rows:
            pictures = [{"bytes": Path(at).read_bytes(), "path": Path(at).name} for at in row["images"]]
            waiting.append({**row, "images": pictures})
            count += 1
            if len(waiting) == ROWS_AT_ONCE:
                write()
        if waiting or not count:
            write()
    return count


def _same_gold(one: Problem, other: Problem) -> bool:
    return grade_answer(one.answer, other.answer, other.choices).ok


def _reject(problem: Problem, reason: str, detail: str) -> Reject:
    return Reject(id=problem.id, reason=reason, detail=detail, source=problem.source, step="rl_set")
