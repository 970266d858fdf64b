"""MMStar (Lin-Chen/MMStar): 1,500 questions, A to D, that need their picture; six capabilities, eighteen axes.

A general benchmark of the paper's Table 3. Official rule: the answer, lower-cased, begins with the gold letter, or with
it behind "(", "option " or "the answer is ". Nothing else of a response is looked at, so a long one must keep its
answer in our answer block. Predictions are named by `index`.
"""

from collections.abc import Callable, Sequence
from typing import Any

from vr1lib.benchmarks.extraction import Wanted, answer_block
from vr1lib.benchmarks.files import At, Published, Row, json_or_file_rows
from vr1lib.benchmarks.reports import overall_and_groups
from vr1lib.records import Problem

NAME = "mmstar"
HUB = "Lin-Chen/MMStar"
PATTERNS = ("mmstar.parquet", "*.parquet", "data/val-*.parquet", "mmstar.json", "mmstar.jsonl")
_BEGINNINGS = ("", "(", "option ", "the answer is ")


def read(row: Row, at: At) -> Problem:
    name = at.text(row, "index")
    return Problem(
        id=f"mmstar-{name}",
        images=at.picture(row.get("image"), f"mmstar-{name}"),
        question=at.text(row, "question"),
        answer=at.text(row, "answer").strip().upper(),
        source=NAME,
        split="val",
        meta={"id": name, "category": at.text(row, "category"), "axis": at.text(row, "l2_category")},
    )


_PUBLISHED = Published(NAME, HUB, PATTERNS, read, json_or_file_rows)
problems, load = _PUBLISHED.problems, _PUBLISHED.load


def query(problem: Problem) -> str:
    """The question, whose text holds its options, as it is."""
    return problem.question


def groups(problem: Problem) -> dict[str, list[str]]:
    return {"category": [problem.meta["category"]], "axis": [f"{problem.meta['category']} ({problem.meta['axis']})"]}


def wanted(problem: Problem) -> Wanted:
    return Wanted("option")


def own_form(response: str) -> str:
    """The response itself, or its answer block: the official rule reads its beginning."""
    return answer_block(response) or response


def is_right(extraction: Any, problem: Problem) -> bool:
    answer = "" if extraction is None else str(extraction).lower().strip().replace("\n", " ")
    return any(answer.startswith(beginning + problem.answer.lower()) for beginning in _BEGINNINGS)


def report(
    problems: Sequence[Problem], right: Sequence[bool], share: Callable[[Sequence[bool]], Any]
) -> dict[str, Any]:
    """Overall, by capability and by axis."""
    return overall_and_groups(problems, right, groups, share)


def headline(scores: dict[str, Any]) -> dict[str, Any]:
    return {"overall": scores["overall"], **scores["category"]}
