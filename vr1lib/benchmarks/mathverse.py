r"""MathVerse testmini (AI4Math/MathVerse): 788 problems in five versions that move their words into the picture.

The paper's main table. The official score asks a language model whether two answers are consistent; offline this is
our grader, which knows an option by its letter or its own text and equal values with units (0.5 m = 50 cm), as the
official prompt's examples do. The mean of the five versions is the table's number; Vision Only, the README's
column, is also given apart. Predictions are named by `sample_index`.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from vr1lib.answers import grade_answer
from vr1lib.benchmarks.extraction import Wanted
from vr1lib.benchmarks.files import At, Published, Row, json_or_file_rows
from vr1lib.prompts import OPTION_LETTERS
from vr1lib.records import Problem

NAME = "mathverse"
HUB = "AI4Math/MathVerse"
PATTERNS = ("testmini.json", "data/testmini.json", "testmini.parquet", "testmini-*.parquet", "data/testmini-*.parquet")
VERSIONS = ("Text Dominant", "Text Lite", "Vision Intensive", "Vision Dominant", "Vision Only")
_CHOICE = re.compile(r"^\s*([A-H])\s*[:：.]\s*(.*?)\s*$", re.MULTILINE)


def read(row: Row, at: At) -> Problem:
    name = at.text(row, "sample_index")
    details = row.get("metadata") or {}
    multiple = at.text(row, "question_type") == "multi-choice"
    shown = _first_text(row, "question")  # Vision Only has question and choices drawn in the picture, and nothing here
    choices = options(_first_text(row, "question_for_eval", "question")) if multiple else None
    question = without_options(shown) if choices and options(shown) == choices else shown
    gold = at.text(row, "answer").replace("掳", "°").strip()  # the degree sign in a wrong encoding
    return Problem(
        id=f"mathverse-{name}",
        images=at.picture(row.get("image"), f"mathverse-{name}"),
        question=question or _first_text(row, "query_wo") or at.text(row, "question"),
        answer=gold.strip("()") if multiple and re.fullmatch(r"\([A-H]\)", gold) else gold,
        choices=choices if question != shown else None,  # as a prompt shows them
        source=NAME,
        split="testmini",
        meta={
            "id": name,
            "group": f"mathverse-{row.get('problem_index', name)}",
            "version": at.text(row, "problem_version"),
            "question_type": row["question_type"],
            "choices": choices,
            "query": _first_text(row, "query_wo", "question"),
            "query_cot": _first_text(row, "query_cot", "query_wo", "question"),
            **{key: details.get(key) for key in ("source", "subject", "subfield")},
        },
    )


def _first_text(row: Row, *keys: str) -> str:
    return next((str(row[key]) for key in keys if row.get(key) and str(row[key]).strip()), "")


def options(question: str) -> list[str] | None:
    """The choices that stand in a question as lines "A:40°", None unless they are A, B, … in order."""
    found = _CHOICE.findall(question.partition("Choices:")[2] or question)
    letters = "".join(letter for letter, _ in found)
    return [text for _, text in found] if len(found) > 1 and "ABCDEFGH".startswith(letters) else None


def without_options(question: str) -> str:
    """The question without its lines of choices; as it is if nothing else would be left."""
    start = question.find("Choices:")
    place = start if start >= 0 else _CHOICE.search(question).start()
    return question[:place].rstrip() or question


_PUBLISHED = Published(NAME, HUB, PATTERNS, read, json_or_file_rows)
problems, load = _PUBLISHED.problems, _PUBLISHED.load


def query(problem: Problem) -> str:
    """The official text that asks for the final answer alone, "w/o" in the official tables; choices as they stand."""
    text, choices = problem.meta["query"], problem.choices
    if not choices or choices == problem.meta["choices"]:
        return text
    return "\n".join([without_options(text), "Choices:", *map(":".join, zip(OPTION_LETTERS, choices))])


def groups(problem: Problem) -> dict[str, list[str]]:
    named = {key: problem.meta[key] for key in ("version", "subject", "subfield", "source", "question_type")}
    return {key: [str(value)] for key, value in named.items() if value}


def wanted(problem: Problem) -> Wanted:
    if problem.meta["question_type"] == "multi-choice":
        return Wanted("option", tuple(problem.choices or problem.meta["choices"] or ()), problem.question)
    return Wanted("text")


def is_right(extraction: Any, problem: Problem) -> bool:
    answer = "" if extraction is None else str(extraction).strip()
    choices = problem.choices or problem.meta["choices"]
    return bool(answer) and (answer == problem.answer or grade_answer(answer, problem.answer, choices).ok)


is_strictly_right = is_right


def report(
    problems: Sequence[Problem], right: Sequence[bool], share: Callable[[Sequence[bool]], Any]
) -> dict[str, Any]:
    """Each version's share, their mean, all five pooled, and the pooled five by subject, subfield, source and form."""
    by: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    pooled = []
    for problem, verdict in zip(problems, right, strict=True):
        in_versions = problem.meta["version"] in VERSIONS
        if in_versions:
            pooled.append(verdict)
        for kind, names in groups(problem).items():
            if in_versions or kind == "version":  # Text Only counts in no total, as officially
                by[kind][names[0]].append(verdict)
    versions = {name: share(by["version"][name]) for name in (*VERSIONS, "Text Only") if name in by["version"]}
    accuracies = [row["accuracy"] for name, row in versions.items() if name in VERSIONS]
    return {
        "mean_of_versions": sum(accuracies) / len(accuracies) if accuracies else None,
        "overall": share(pooled),
        "vision_only": versions.get("Vision Only"),
        "version": versions,
        **{
            kind: {name: share(named[name]) for name in sorted(named)}
            for kind, named in by.items()
            if kind != "version"
        },
    }


def headline(scores: dict[str, Any]) -> dict[str, Any]:
    return {"five versions, pooled": scores["overall"], **scores["version"], **scores["subject"]}
