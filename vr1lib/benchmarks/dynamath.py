"""DynaMath (DynaMath/DynaMath_Sample): 501 seed questions, each in ten variants with other numbers and pictures.

Scored by DynaMath's own rule: decimals within 0.001, also as multiples of π; one letter; for texts, the gold contained
in the answer. Average accuracy counts every variant, worst-case accuracy a seed whose ten variants are all right.
Folders trial1 … trial10 or the hub's splits sample_variant1 … 10; predictions are named by the seed's number and
`variant`.
Ours where the official code reads a letter out of an answer's first three characters: a letter must stand alone
("FAIL" is no A).
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from vr1lib.benchmarks.extraction import Wanted, answer_block, said_text
from vr1lib.benchmarks.files import At, Published, Row, json_or_file_rows
from vr1lib.records import Problem, RequestError

NAME = "dynamath"
HUB = "DynaMath/DynaMath_Sample"
PATTERNS = ("trial*/dataset.json", "data/sample_variant*.parquet", "sample_variant*.parquet")
TOLERANCE = 0.001
MAX_NUMBER = 200  # characters
_INSTRUCTIONS = {
    "multiple choice": "Provide the corresponding choice option in the 'short answer' key, such as 'A', 'B', 'C', or "
    "'D'.",
    "float": "Format the answer as a three-digit floating-point number and provide it in the 'short answer' key.",
}
_OTHERWISE = "Float numbers in the answer should be formatted as three-digit floating-point numbers."
_GUIDE = """## Question
 {question}
## Answer Instruction Please provide an answer to the question outlined above. Your response should adhere to the \
following JSON format, which includes two keys: 'solution' and 'short answer'. The 'solution' key can contain detailed \
steps needed to solve the question, and the 'short answer' key should provide a concise response. {instruction}

Example of expected JSON response format:

{{
    "solution": "[Detailed step-by-step explanation]",
    "short answer": "[Concise Answer]"
}}"""
_LETTER = re.compile(r"(?<![\w'])([A-Fa-f])(?![\w'])")


def read(row: Row, at: At) -> Problem:
    name = f"{at.file.parent.name} {at.file.name}"
    variant = re.search(r"(?:trial|variant)(\d+)", name)
    if not variant:
        raise RequestError(f"{at.file}: neither in a folder trial1 … trial10 nor named sample_variant…; keep its name")
    seed = at.text(row, "id") if "id" in row else at.name
    number = int(variant[1])
    return Problem(
        id=f"dynamath-{seed}-{number}",
        images=at.picture(row.get("decoded_image") or row.get("image"), f"dynamath-{seed}-{number}"),
        question=at.text(row, "question"),
        answer=at.text(row, "answer" if "answer" in row else "ground_truth"),
        source=NAME,
        split=f"variant{number}",
        meta={
            "id": seed,
            "variant": number,
            "answer_type": at.text(row, "answer_type").strip(),
            "subject": " ".join(at.text(row, "subject").split()),
            "level": " ".join(at.text(row, "level" if "level" in row else "knowledge_level").split()),
            "group": f"dynamath-{seed}",
        },
    )


_PUBLISHED = Published(NAME, HUB, PATTERNS, read, json_or_file_rows)
problems, load = _PUBLISHED.problems, _PUBLISHED.load


def query(problem: Problem) -> str:
    """The official text: the question and the wish for JSON with a solution and a short answer."""
    instruction = _INSTRUCTIONS.get(problem.meta["answer_type"], _OTHERWISE)
    return _GUIDE.format(question=problem.question, instruction=instruction)


def groups(problem: Problem) -> dict[str, list[str]]:
    return {"topic": [problem.meta["subject"]], "level": [problem.meta["level"]]}


def wanted(problem: Problem) -> Wanted:
    kinds = {"float": "float", "multiple choice": "option"}
    return Wanted(kinds.get(problem.meta["answer_type"], "text"), question=problem.question)


def own_form(response: str) -> str | None:
    """The `short answer` of a response in the JSON form that the official prompt asks for, or a number it says."""
    said = said_text(answer_block(response) or response)
    if number(said) is not None:
        return said
    start, end = response.find("{"), response.rfind("}")
    if not 0 <= start < end:
        return None
    for text in (response[start : end + 1], response[start : end + 1].replace("\\", "")):
        try:
            answer = json.loads(text, strict=False)
        except (ValueError, RecursionError):
            continue
        if isinstance(answer, dict) and answer.get("short answer") is not None:
            return str(answer["short answer"])
    return None


def is_right(extraction: Any, problem: Problem) -> bool:
    """Whether an extracted answer is the gold by the answer type's rule."""
    answer, gold, kind = str(extraction).strip(), problem.answer.strip(), problem.meta["answer_type"]
    if extraction is None or not answer:
        return False
    if kind == "float":
        value, right = number(answer), number(gold)
        return value is not None and right is not None and abs(value - right) <= TOLERANCE
    if kind == "multiple choice":
        letters = set(map(str.upper, _LETTER.findall(answer)))
        return answer.upper() == gold.upper() or letters == {gold.upper()}
    return gold.lower() in answer.lower()


def number(text: str) -> float | None:
    """A decimal, the first word of "12 cm", or a multiple of π; None for anything else."""
    if len(text) > MAX_NUMBER:
        return None
    words = re.sub(r"[\s*]*(?:\\?pi\b|π)", "π", text.replace("$", "")).split()
    factor, pi, rest = (words[0] if words else "").partition("π")
    if rest:
        return None
    try:
        value = float(factor) if factor else float(bool(pi))
    except ValueError:
        return None
    return (value * math.pi if pi else value) if factor or pi else None


is_strictly_right = is_right


def report(
    problems: Sequence[Problem], right: Sequence[bool], share: Callable[[Sequence[bool]], Any]
) -> dict[str, Any]:
    """Average and worst-case accuracy, over all and by topic and level."""
    members: dict[str, dict[str, list[int]]] = {"topic": defaultdict(list), "level": defaultdict(list)}
    for place, problem in enumerate(problems):
        for kind, names in groups(problem).items():
            members[kind][names[0]].append(place)

    def both(places: Sequence[int]) -> dict[str, Any]:
        seeds: dict[str, bool] = {}
        for place in places:
            seed = problems[place].meta["id"]
            seeds[seed] = seeds.get(seed, True) and right[place]
        return {"average": share([right[place] for place in places]), "worst_case": share(list(seeds.values()))}

    by = {kind: {name: both(places) for name, places in sorted(named.items())} for kind, named in members.items()}
    return both(range(len(problems))) | by


def headline(scores: dict[str, Any]) -> dict[str, Any]:
    lines = {"average": scores["average"], "worst case": scores["worst_case"]}
    for kind in ("topic", "level"):
        for name, both in scores[kind].items():
            lines |= {f"{name}: average": both["average"], f"{name}: worst case": both["worst_case"]}
    return lines
