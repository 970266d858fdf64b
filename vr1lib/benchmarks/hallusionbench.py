"""HallusionBench: yes-or-no questions asked of a picture and of doctored ones, some without any picture.

A general benchmark of the paper's Table 3 ("HallBench", most likely the mean of the three). aAcc is the share of
questions right, fAcc of figures with all their questions right, qAcc of questions right on all their figures; figures
and questions are told apart within category and subcategory, without the category VD and VS would collide.
`with_picture` leaves out the questions without a picture, as VLMEvalKit's tables do. Offline a verdict is yes or no
by rule, where the official one is a language model's, which also forgives a model that does not know. Predictions are
named "VD_illusion_0_1_0": category, subcategory, set, figure, question.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from vr1lib.benchmarks.extraction import Wanted, yes_or_no
from vr1lib.benchmarks.files import At, Published, Row, json_or_file_rows
from vr1lib.records import Problem, RequestError

NAME = "hallusionbench"
HUB = "lmms-lab/HallusionBench"
PATTERNS = ("HallusionBench.json", "data/*image-*.parquet", "*image-*.parquet")
_KEYS = ("category", "subcategory", "set_id", "figure_id", "question_id")


def read(row: Row, at: At) -> Problem:
    keys = {key: at.text(row, key).strip() for key in _KEYS}
    name = "_".join(keys.values())
    gold = {"0": "No", "1": "Yes"}.get(at.text(row, "gt_answer").strip())
    if gold is None:
        raise RequestError(
            f"{at.file}, {at.name}: field 'gt_answer' = {row['gt_answer']!r:.40}: neither 0 nor 1; correct it"
        )
    return Problem(
        id=f"hallusionbench-{name}",
        images=at.picture(row.get("image") or row.get("filename"), f"hallusionbench-{name}"),
        question=at.text(row, "question"),
        answer=gold,
        source=NAME,
        split="test",
        meta={"id": name, "picture": at.text(row, "visual_input").strip() != "0", **keys},
    )


_PUBLISHED = Published(NAME, HUB, PATTERNS, read, json_or_file_rows)
problems, load = _PUBLISHED.problems, _PUBLISHED.load


def query(problem: Problem) -> str:
    return problem.question


def groups(problem: Problem) -> dict[str, list[str]]:
    return {key: [problem.meta[key]] for key in ("category", "subcategory")}


def wanted(problem: Problem) -> Wanted:
    return Wanted("yes or no")


def is_right(extraction: Any, problem: Problem) -> bool:
    return yes_or_no("" if extraction is None else str(extraction)) == problem.answer


def report(
    problems: Sequence[Problem], right: Sequence[bool], share: Callable[[Sequence[bool]], Any]
) -> dict[str, Any]:
    """aAcc, fAcc, qAcc and their mean over all questions, over those with a picture, and by category, subcategory."""
    rows = list(zip(problems, right, strict=True))

    def three(members: Sequence[tuple[Problem, bool]]) -> dict[str, Any]:
        figures: dict[tuple[str, ...], list[bool]] = defaultdict(list)
        questions: dict[tuple[str, ...], list[bool]] = defaultdict(list)
        for problem, verdict in members:
            category, subcategory, group, figure, question = (problem.meta[key] for key in _KEYS)
            figures[category, subcategory, group, figure].append(verdict)
            questions[category, subcategory, group, question].append(verdict)
        accuracies = {
            "aAcc": share([verdict for _, verdict in members]),
            "fAcc": share([all(verdicts) for verdicts in figures.values()]),
            "qAcc": share([all(verdicts) for verdicts in questions.values()]),
        }
        known = [row["accuracy"] for row in accuracies.values() if row["accuracy"] is not None]
        return accuracies | {"mean": sum(known) / len(known) if known else None}

    by = {
        key: {name: three([row for row in rows if row[0].meta[key] == name]) for name in _names(problems, key)}
        for key in ("category", "subcategory")
    }
    return three(rows) | {"with_picture": three([row for row in rows if row[0].meta["picture"]])} | by


def _names(problems: Sequence[Problem], key: str) -> list[str]:
    return sorted({problem.meta[key] for problem in problems})


def headline(scores: dict[str, Any]) -> dict[str, Any]:
    names = ("aAcc", "fAcc", "qAcc")
    with_picture = {f"{name}, with picture": scores["with_picture"][name] for name in names}
    return {name: scores[name] for name in names} | with_picture
