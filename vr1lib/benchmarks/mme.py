"""MME: two yes-or-no questions about each picture, in ten subtasks of perception and four of cognition.

A general benchmark of the paper's Table 3 ("MME_sum", at most 2,800). A subtask's score is the percentage of questions
right (acc) plus that of pictures with both right (acc+); perception and cognition are sums of their subtasks' scores.
Read from the hub's parquet (lmms-lab/MME) or from the original folders of text files, a question and its answer a line.
Predictions are named "code_reasoning/0020.png-1" and "-2": subtask and picture, then the question's place.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vr1lib.benchmarks.extraction import Wanted, yes_or_no
from vr1lib.benchmarks.files import At, Published, Row, json_or_file_rows
from vr1lib.records import Problem, RequestError

NAME = "mme"
HUB = "lmms-lab/MME"
PATTERNS = ("data/test-*.parquet", "test-*.parquet", "**/*.txt")
PERCEPTION = "existence count position color posters celebrity scene landmark artwork OCR".split()
COGNITION = "commonsense_reasoning numerical_calculation text_translation code_reasoning".split()
_PICTURES = (".png", ".jpg", ".jpeg")


def rows(path: Path) -> Iterator[tuple[str, Row]]:
    """A parquet's rows numbered within each picture, or the lines of one picture's text file."""
    if path.suffix != ".txt":
        counts: dict[str, int] = defaultdict(int)
        for name, row in json_or_file_rows(path):
            picture = str(row.get("question_id")) if isinstance(row, dict) else ""
            counts[picture] += 1
            yield name, row | {"place": counts[picture]} if isinstance(row, dict) else row
        return
    folder = path.parent.parent if path.parent.name == "questions_answers_YN" else path.parent
    if folder.name not in (*PERCEPTION, *COGNITION):  # a text file of no subtask
        return
    pictures = [base / f"{path.stem}{ending}" for base in (folder / "images", folder) for ending in _PICTURES]
    picture = next((file for file in pictures if file.is_file()), pictures[0])
    lines = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    for place, line in enumerate(lines, start=1):
        question, _, answer = line.rpartition("\t")
        row = {"category": folder.name, "question": question, "answer": answer.strip(), "place": place}
        yield f"line {place}", row | {"question_id": f"{folder.name}/{picture.name}", "file": str(picture)}


def read(row: Row, at: At) -> Problem:
    picture, category = at.text(row, "question_id"), at.text(row, "category")
    gold = yes_or_no(at.text(row, "answer"))
    if gold == "Unknown" or category not in (*PERCEPTION, *COGNITION):
        shown = f"category {category!r}, answer {row['answer']!r:.40}"
        raise RequestError(
            f"{at.file}, {at.name}: {shown}: no subtask of MME or neither Yes nor No; give the published file"
        )
    name = f"{picture}-{row['place']}"
    return Problem(
        id=f"mme-{name}",
        images=[row["file"]] if "file" in row and at.looked_at else at.picture(row.get("image"), f"mme-{name}"),
        question=at.text(row, "question"),
        answer=gold,
        source=NAME,
        split="test",
        meta={"id": name, "category": category, "picture": picture},
    )


_PUBLISHED = Published(NAME, HUB, PATTERNS, read, rows)
problems, load = _PUBLISHED.problems, _PUBLISHED.load


def query(problem: Problem) -> str:
    """The question as it is; its text asks for yes or no."""
    return problem.question


def groups(problem: Problem) -> dict[str, list[str]]:
    return {"category": [problem.meta["category"]]}


def wanted(problem: Problem) -> Wanted:
    return Wanted("yes or no")


def is_right(extraction: Any, problem: Problem) -> bool:
    return yes_or_no("" if extraction is None else str(extraction)) == problem.answer


def report(
    problems: Sequence[Problem], right: Sequence[bool], share: Callable[[Sequence[bool]], Any]
) -> dict[str, Any]:
    """The sum, its two halves, and every subtask's score with what it is made of. Scores are points, not shares."""
    pictures: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for problem, verdict in zip(problems, right, strict=True):
        pictures[problem.meta["category"]][problem.meta["picture"]].append(verdict)
    subtasks = {}
    for name in (*PERCEPTION, *COGNITION):
        if name in pictures:
            acc = share([verdict for verdicts in pictures[name].values() for verdict in verdicts])
            acc_plus = share([all(verdicts) for verdicts in pictures[name].values()])
            points = 100 * (acc["accuracy"] + acc_plus["accuracy"])
            subtasks[name] = {"score": points, "acc": acc, "acc_plus": acc_plus}
    halves = {
        half: sum(subtasks[name]["score"] for name in names if name in subtasks)
        for half, names in (("perception", PERCEPTION), ("cognition", COGNITION))
    }
    absent = [name for name in (*PERCEPTION, *COGNITION) if name not in subtasks]
    return {"sum": sum(halves.values()), **halves, "category": subtasks, "subtasks_not_in_the_data": absent}


def headline(scores: dict[str, Any]) -> dict[str, Any]:
    points = {name: scores[name] for name in ("sum", "perception", "cognition")}
    return points | {name: row["score"] for name, row in scores["category"].items()}
