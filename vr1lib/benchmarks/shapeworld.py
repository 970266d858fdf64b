"""ShapeWorld's held-out problems: the test.jsonl that 10_data_building wrote, or any file of Problems.

Not in the paper: the embedded default, its families lined up with MathVista's tasks and skills. An answer is right if
our grader says so. Predictions are named by the problems' ids.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vr1lib.answers import grade_answer
from vr1lib.benchmarks.extraction import Wanted
from vr1lib.benchmarks.reports import overall_and_groups
from vr1lib.data import sources
from vr1lib.data.shapeworld import FAMILIES, make_problems
from vr1lib.prompts import question_text
from vr1lib.records import Problem, RequestError, read_jsonl, write_jsonl

NAME = "shapeworld"


def problems(data: str | Path) -> list[Problem]:
    """Every problem of the JSONL file `data`, its pictures not looked at. Raises RequestError if ids repeat."""
    rows = list(read_jsonl(_file(data), Problem))
    if len({problem.id for problem in rows}) < len(rows):
        raise RequestError(f"data = {str(data)!r}: an id occurs twice; give one file of problems as it was written")
    return rows


def load(
    data: str | Path | None = None, data_root: str | Path | None = None, panels: str | Path | None = None
) -> sources.Loaded:
    """The problems of the JSONL file `data`."""
    return sources.load(_file(data))


def _file(data: str | Path | None) -> str | Path:
    if data is None:
        raise RequestError("benchmark shapeworld needs 'data', the path of a problems .jsonl file; give it")
    if Path(data).suffix != ".jsonl":
        raise RequestError(f"data = {str(data)!r}: benchmark shapeworld reads a file that ends in .jsonl; give one")
    return data


def draw(folder: str | Path, count: int, seed: int, families: Sequence[str] = tuple(FAMILIES)) -> Path:
    """Draw `count` problems of the test split, which no training split shares, into `folder`; returns their file."""
    path = Path(folder) / "drawn.jsonl"
    write_jsonl(path, make_problems(folder, "test", count, seed, families))
    return path


def groups(problem: Problem) -> dict[str, list[str]]:
    """By family, task and skill, as far as the row says."""
    meta = problem.meta
    named = {"family": [meta.get("family")], "task": [meta.get("task")], "skill": meta.get("skills", [])}
    if scene := meta.get("scene"):
        named["grid"] = [f"{len(scene['grid'])}×{len(scene['grid'][0])}"]
    return {kind: [str(name) for name in names if name] for kind, names in named.items()}


def query(problem: Problem) -> str:
    """The question with its options: nobody else's text is the official one."""
    return question_text(problem)


def wanted(problem: Problem) -> Wanted:
    return Wanted("option", tuple(problem.choices), problem.question) if problem.choices else Wanted("text")


def is_right(extraction: Any, problem: Problem) -> bool:
    return extraction is not None and grade_answer(str(extraction), problem.answer, problem.choices).ok


def report(
    problems: Sequence[Problem], right: Sequence[bool], share: Callable[[Sequence[bool]], Any]
) -> dict[str, Any]:
    """Overall, and by family, task, skill and grid."""
    return overall_and_groups(problems, right, groups, share)


def headline(scores: dict[str, Any]) -> dict[str, Any]:
    return {"overall": scores["overall"], **scores.get("family", {})}
