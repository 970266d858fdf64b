"""MathVista testmini (AI4Math/MathVista): 1,000 questions on pictures; golds are choices, integers, decimals, lists.

The paper's main table: ALL, and GEO, ARI, GPS, MWP. Its "ARI" is captioned "algebraic reasoning" while MathVista's ARI
is arithmetic; the printed numbers fit ALG, so both readings are given. Scored by MathVista's own rule: an extracted
answer is normalised (a letter in brackets, else the choice of smallest edit distance; whole and rounded numbers), and
is right if it is then the gold's very text. It is the published code's last version: some published score files are of
an earlier one, for which "4.0" is no whole number, or of earlier skill labels. Predictions are named by `pid`.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from vr1lib.benchmarks.extraction import Wanted
from vr1lib.benchmarks.files import At, Published, Row, json_or_file_rows
from vr1lib.prompts import OPTION_LETTERS
from vr1lib.records import Problem, RequestError

NAME = "mathvista"
HUB = "AI4Math/MathVista"
PATTERNS = (
    "testmini.json",
    "annot_testmini.json",
    "data/testmini.json",
    "testmini*.parquet",
    "data/testmini-*.parquet",
)
TASKS = {
    "FQA": "figure question answering",
    "GPS": "geometry problem solving",
    "MWP": "math word problem",
    "TQA": "textbook question answering",
    "VQA": "visual question answering",
}
SKILLS = {
    "ALG": "algebraic reasoning",
    "ARI": "arithmetic reasoning",
    "GEO": "geometry reasoning",
    "LOG": "logical reasoning",
    "NUM": "numeric commonsense",
    "SCI": "scientific reasoning",
    "STA": "statistical reasoning",
}
SCORED_BY = ("question_type", "answer_type", "language", "source", "category", "task", "context", "grade", "skills")
_HINTS = {
    "option": "provide the correct option letter, e.g., A, B, C, D, at the end.",
    "integer": "requiring an integer answer and provide the final value, e.g., 1, 2, 3, at the end.",
    "float 1": "requiring a floating-point number with one decimal place and provide the final value, e.g., 1.2, 1.3, "
    "1.4, at the end.",
    "float 2": "requiring a floating-point number with two decimal places and provide the final value, e.g., 1.23, "
    "1.34, 1.45, at the end.",
    "list": "requiring a Python list as an answer and provide the final list, e.g., [1, 2, 3], [1.2, 1.3, 1.4], at the "
    "end.",
}


def read(row: Row, at: At) -> Problem:
    pid = at.text(row, "pid")
    details = row.get("metadata")
    if not isinstance(details, dict):
        raise RequestError(
            f"{at.file}, {at.name}: field 'metadata' = {details!r:.60}: no object; give the published file"
        )
    return Problem(
        id=f"mathvista-{pid}",
        images=at.picture(row.get("decoded_image") or row.get("image"), f"mathvista-{pid}"),
        question=at.text(row, "question"),
        answer=at.text(row, "answer"),
        choices=row.get("choices") or None,
        source=NAME,
        split=str(details.get("split", "testmini")),
        meta={
            "id": pid,
            "unit": row.get("unit"),
            "precision": row.get("precision"),
            "question_type": at.text(row, "question_type"),
            "answer_type": at.text(row, "answer_type"),
            **{key: details.get(key) for key in SCORED_BY[2:]},
        },
    )


_PUBLISHED = Published(NAME, HUB, PATTERNS, read, json_or_file_rows)
problems, load = _PUBLISHED.problems, _PUBLISHED.load


def query(problem: Problem) -> str:
    """The official question text: a hint at the answer's form, the question, and the choices as "(A) …" lines."""
    kind = problem.meta["answer_type"]
    if problem.meta["question_type"] == "multi_choice":
        hint = f"Hint: Please answer the question and {_HINTS['option']}"
    else:
        key = f"float {int(problem.meta['precision'])}" if kind == "float" else kind
        hint = f"Hint: Please answer the question {_HINTS[key]}"
    unit = f" (Unit: {problem.meta['unit']})" if problem.meta["unit"] else ""
    lines = [f"({letter}) {choice}" for letter, choice in zip(OPTION_LETTERS, problem.choices or [])]
    return "\n".join([hint, f"Question: {problem.question}{unit}", *(["Choices:", *lines] if lines else [])])


def groups(problem: Problem) -> dict[str, list[str]]:
    """Everything the published score files count by."""
    named = {key: problem.meta[key] for key in SCORED_BY}
    return {key: [str(v) for v in (value if key == "skills" else [value])] for key, value in named.items() if value}


# ------------------------------------------------------------------------------------------------------- official rule


def normalise(extraction: Any, problem: Problem) -> str | None:
    """An extracted answer, whatever it is, in the gold's spelling; None for what is no answer of that type."""
    if problem.meta["question_type"] == "multi_choice":
        return _choice(extraction.strip() if isinstance(extraction, str) else str(extraction), problem.choices or [])
    kind = problem.meta["answer_type"]
    try:
        if kind == "integer":
            return str(int(float(extraction)))
        if kind == "float":
            return str(round(float(extraction), int(problem.meta["precision"])))
    except (TypeError, ValueError, OverflowError):
        return None
    return str(extraction)


def _choice(text: str, choices: Sequence[str]) -> str | None:
    if letters := re.findall(r"\(([a-zA-Z])\)", text):
        text = letters[0].upper()
    options = [chr(ord("A") + place) for place in range(len(choices))]
    if text in options:
        return choices[options.index(text)]
    return min(choices, key=lambda choice: edit_distance(text, choice), default=None)  # the first of equally near ones


def edit_distance(text: str, other: str) -> int:
    """Levenshtein distance, all columns of `other` at once in the bits of whole numbers (Myers 1999)."""
    if not other:
        return len(text)
    places: dict[str, int] = defaultdict(int)
    for place, character in enumerate(other):
        places[character] |= 1 << place
    everything, last = (1 << len(other)) - 1, 1 << (len(other) - 1)
    rising, falling, distance = everything, 0, len(other)
    for character in text:
        equal = places.get(character, 0)
        diagonal = (((equal & rising) + rising) ^ rising) | equal | falling
        up, down = falling | (everything & ~(diagonal | rising)), rising & diagonal
        distance += bool(up & last) - bool(down & last)
        up, down = (up << 1 | 1) & everything, (down << 1) & everything
        rising, falling = down | (everything & ~(diagonal | up)), up & diagonal
    return distance


def is_right(extraction: Any, problem: Problem) -> bool:
    return normalise(extraction, problem) == problem.answer


def wanted(problem: Problem) -> Wanted:
    if problem.meta["question_type"] == "multi_choice":
        return Wanted("option", tuple(problem.choices or ()), problem.question)
    kind = problem.meta["answer_type"]
    return Wanted(kind if kind in ("integer", "float", "list") else "text", question=problem.question)


# -------------------------------------------------------------------------------------------------------------- scores


def report(problems: Sequence[Problem], right: Sequence[bool], share: Any) -> dict[str, Any]:
    """The published score files' structure (accuracies: text, percent), and the paper's labels under `sub_scores`."""
    verdicts: dict[str, dict[str, list[bool]]] = {key: defaultdict(list) for key in SCORED_BY}
    for problem, verdict in zip(problems, right, strict=True):
        for key, names in groups(problem).items():
            for name in dict.fromkeys(names):
                verdicts[key][name].append(verdict)
    scores: dict[str, Any] = {"average": _counts(right, str(round(sum(right) / len(right) * 100, 2)))}
    for key, named in verdicts.items():
        counts = {name: _counts(members) for name, members in named.items()}
        scores[key] = dict(sorted(counts.items(), key=lambda item: -float(item[1]["accuracy"])))
    labels = {"ALL": list(right)}
    labels |= {label: verdicts["task"].get(name, []) for label, name in TASKS.items()}
    labels |= {label: verdicts["skills"].get(name, []) for label, name in SKILLS.items()}
    labels["ARI (arithmetic, MathVista's)"] = labels["ARI"]
    labels["ARI (algebraic, the paper's caption)"] = labels["ALG"]
    return scores | {"sub_scores": {label: share(members) for label, members in labels.items() if members}}


def _counts(verdicts: Sequence[bool], accuracy: str | None = None) -> dict[str, Any]:
    correct, total = sum(verdicts), len(verdicts)
    return {"accuracy": accuracy or f"{correct / total * 100:.2f}", "correct": correct, "total": total}


def headline(scores: dict[str, Any]) -> dict[str, Any]:
    return scores["sub_scores"]
