r"""MM-Math (THU-KEG/MM_Math): 5,929 open questions of Chinese middle school geometry and functions, in English.

The paper's main table. Scored by the rule that OlympiadBench brought: both sides cleaned of units and dress, lists
compared item by item in any order, numbers within 0.01 (also as percent), expressions, intervals and equations as our
grader compares them, where the official code asks a computer algebra system. Official and harsh: all boxes of a
response together are its answer, so a right answer boxed twice is wrong. Predictions are named by `file_name` without
its ending, or by `index` where the rows have one.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from vr1lib.answers import grade_answer
from vr1lib.benchmarks.extraction import Wanted, answer_block
from vr1lib.benchmarks.files import At, Published, Row, json_or_file_rows
from vr1lib.benchmarks.reports import overall_and_groups
from vr1lib.records import Problem, RequestError
from vr1lib.values import MAX_TEXT

NAME = "mmmath"
HUB = "THU-KEG/MM_Math"
PATTERNS = ("MM_Math.jsonl", "MM_Math/MM_Math.jsonl", "mm_math.jsonl", "*.jsonl")
TOLERANCE = 1e-2 * 1.01
_DROPPED = re.compile(r"\\left|\\right|\\,|\^\s*\{?\\circ\}?|°|\$|厘米|平方|\\math(?:rm|bf)|\\text|\\;|\\!|\\\s")
_UNIT = re.compile(r"(?<=[\d}\s)])\s*\{?(?:cm|mm|m)\}?(?:\^?\{?[23²³]\}?)?\s*$")
_CHINESE = re.compile(r"[\u4e00-\u9fff]+")


def read(row: Row, at: At) -> Problem:
    picture = row.get("file_name") or row.get("image")
    name = str(row["index"]) if "index" in row else at.text(row, "file_name").rpartition("/")[2].rpartition(".")[0]
    gold = str(row.get("answer") or "").strip() or ",".join(boxes(at.text(row, "solution")))
    if not gold:
        raise RequestError(f"{at.file}, {at.name}: field 'solution' has no \\boxed answer; give the published file")
    knowledge = row.get("knowledge")
    named = {"knowledge_l1": row.get("knowledge_l1"), "knowledge_l2": row.get("knowledge_l2"), "knowledge": knowledge}
    return Problem(
        id=f"mmmath-{name}",
        images=at.picture(f"images/{picture}" if isinstance(picture, str) and "/" not in picture else picture, name),
        question=at.text(row, "question"),
        answer=gold,
        source=NAME,
        split="test",
        meta={
            "id": name,
            "difficulty": str(row.get("difficulty") or at.text(row, "difficult")).strip(),
            "year": at.text(row, "year").strip(),
            **{key: _names(value) for key, value in named.items() if value},
        },
    )


def _names(value: Any) -> list[str]:
    """Knowledge as a list, whether the row has one, its text, or names between commas."""
    parts = value if isinstance(value, list) else str(value).strip("[]").split(",")
    return [str(part).strip(" '\"") for part in parts if str(part).strip(" '\"")]


_PUBLISHED = Published(NAME, HUB, PATTERNS, read, json_or_file_rows)
problems, load = _PUBLISHED.problems, _PUBLISHED.load


def query(problem: Problem) -> str:
    """The question as it is: MM-Math adds no instruction."""
    return problem.question


def groups(problem: Problem) -> dict[str, list[str]]:
    meta = problem.meta
    knowledge = {key: meta[key] for key in ("knowledge", "knowledge_l1", "knowledge_l2") if key in meta}
    return {"difficulty": [meta["difficulty"]], "year": [meta["year"]], **knowledge}


def wanted(problem: Problem) -> Wanted:
    return Wanted("text")


def boxes(text: str) -> list[str]:
    r"""The contents of the outermost \boxed{…} that are closed, in order."""
    found: list[str] = []
    starts: list[int | None] = []  # of every open brace: where its box's content begins, None for a plain one
    inside = 0
    for match in re.finditer(r"\\boxed\s*\{|[{}]", text):
        if match[0] != "}":
            starts.append(None if match[0] == "{" else match.end())
            inside += match[0] != "{"
        elif starts and (start := starts.pop()) is not None:
            inside -= 1
            if not inside:
                found.append(text[start : match.start()].strip())
    return found


def own_form(response: str) -> str | None:
    """All boxes joined by commas, else what is in dollars on the last line; None leaves it to the rules."""
    text = answer_block(response) or response
    found = boxes(text) or re.findall(r"\$([^$]+)\$", (text.strip().splitlines() or [""])[-1])
    return ",".join(found) if found else None


def is_right(extraction: Any, problem: Problem) -> bool:
    answer, gold = clean("" if extraction is None else str(extraction)), clean(problem.answer)
    if not answer:
        return False
    if answer == gold:
        return True
    items, golds = (_items(text if _CHINESE.fullmatch(text) else _CHINESE.sub("", text)) for text in (answer, gold))
    if len(items) != len(golds):
        return False
    for item in golds:
        match = next((other for other in items if same_item(other, item)), None)
        if match is None:
            return False
        items.remove(match)
    return True


def clean(text: str) -> str:
    """An answer without units, dollars, degrees and full-width signs."""
    if len(text) > MAX_TEXT:
        return text.strip()
    for wide, plain in zip("（），＋：", "(),+:"):
        text = text.replace(wide, plain)
    text = _DROPPED.sub("", text).strip().rstrip("。.").strip()
    return _UNIT.sub("", text).strip()


def _items(text: str) -> list[str]:
    """What stands between top-level commas; a<x<b is an interval, ± two items."""
    if text.count("<") == 2 and "," not in text:
        low, _, high = text.split("<")
        text = f"({low},{high})"
    parts, depth, start = [], 0, 0
    for place, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth <= 0:
            parts.append(text[start:place])
            start = place + 1
    parts.append(text[start:])
    signed = [[part.replace(r"\pm", sign) for sign in "+-"] if r"\pm" in part else [part] for part in parts]
    return [item.strip() for pair in signed for item in pair if item.strip()]


def same_item(answer: str, gold: str) -> bool:
    """Equal texts, numbers within the tolerance (gold also as percent of 1 or of 100), or equal for our grader."""
    if answer == gold:
        return True
    try:
        value, right = float(answer), float(gold)
    except ValueError:
        return grade_answer(answer, gold).ok
    return any(abs(value - reference) <= TOLERANCE for reference in (right, right / 100, right * 100))


is_strictly_right = is_right


def report(
    problems: Sequence[Problem], right: Sequence[bool], share: Callable[[Sequence[bool]], Any]
) -> dict[str, Any]:
    """Overall, and by difficulty, school year and knowledge."""
    return overall_and_groups(problems, right, groups, share)


def headline(scores: dict[str, Any]) -> dict[str, Any]:
    return {"overall": scores["overall"], **scores["difficulty"], **scores["year"]}
