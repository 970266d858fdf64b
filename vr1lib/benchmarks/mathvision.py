r"""MathVision (MATH-V) test: competition problems of five levels and sixteen subjects, letters and values as golds.

The paper trains its RL on MathVision (Section 4.1) and does not report it; here it is a held-out check, so rows that
were trained on must be excluded. Official rule: an answer is right if it is the gold, or the text of the gold's
option, without case; or the same number when both are rounded to two decimals. Its computer algebra system is our
reader of values here: over the published outputs' own `model_answer` the verdicts agree on all but 0 to 6 of 3,040
rows. Ours is the way from a response to an answer: the official one takes "(D) 105" or a box with a unit for no
option's answer, so from responses alone our counts are up to 8 % of the rows higher. Predictions are named by `id`.
"""

import re
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from vr1lib.benchmarks.extraction import Wanted, last_boxed
from vr1lib.benchmarks.files import load_source, source_problems
from vr1lib.benchmarks.reports import overall_and_groups
from vr1lib.data import sources
from vr1lib.expressions import Unreadable, evaluate, read_expression
from vr1lib.prompts import IMAGE_MARKER, OPTION_LETTERS
from vr1lib.records import Problem

NAME = "mathvision"
MAX_NUMBER = 200  # characters
_QUERY = (
    'Please solve the problem step by step and put your answer in one "\\boxed{}". If it is a multiple choice '
    'question, only one letter is allowed in the "\\boxed{}".\n'
)
_LETTERS = re.compile(r"\nChoose from A[A-J, ]*\.$")  # the reader's line for options that are drawn in the picture
_NAMED = re.compile(r"\[image (\d+)\]")


def problems(data: str | Path) -> list[Problem]:
    """Every problem of the folder that holds test.jsonl, of the file itself, or of the hub's id."""
    return [_named(problem) for problem in source_problems(NAME, data)]


def load(
    data: str | Path | None = None, data_root: str | Path | None = None, panels: str | Path | None = None
) -> sources.Loaded:
    """The problems that can be shown, and every other row with the reason: of `data`, or of `data_root`/mathvision.

    Stacked pictures are cut into the folder `panels` if one is given, and then stand where question and options name
    them; without it each stays whole, as its pictures have their names printed on them.
    """
    loaded = load_source(NAME, data, data_root, panels)
    loaded.problems = [in_place(_named(problem)) for problem in loaded.problems]
    return loaded


def _named(problem: Problem) -> Problem:
    problem.meta["id"] = problem.id.removeprefix("mathvision-")
    return problem


def in_place(problem: Problem) -> Problem:
    """Pictures that options name, `[image 2]`, put there: in one order with their markers. Others stay before the text.

    Unchanged unless every name in question and options has its picture.
    """
    texts = [problem.question, *(problem.choices or [])]
    names = [int(name) for text in texts for name in _NAMED.findall(text)]
    if not names or len(problem.images) < 2 or not set(names) <= set(range(1, len(problem.images) + 1)):
        return problem
    unnamed = [number for number in range(1, len(problem.images) + 1) if number not in names]
    question, *choices = (_NAMED.sub(IMAGE_MARKER, text) for text in texts)
    return problem.model_copy(
        update={
            "question": IMAGE_MARKER * len(unnamed) + question,
            "choices": choices or None,
            "images": [problem.images[number - 1] for number in [*unnamed, *names]],
        }
    )


def query(problem: Problem) -> str:
    """The official text: an instruction to box the answer, the question, and the options unless they are drawn."""
    lines = [f"({letter}) {choice}\n" for letter, choice in zip(OPTION_LETTERS, problem.choices or [])]
    return f"{_QUERY}{_LETTERS.sub('', problem.question)}\n{''.join(lines)}"


def groups(problem: Problem) -> dict[str, list[str]]:
    """By level (1 easiest to 5), subject, and kind of answer."""
    kind = "options" if problem.choices or problem.answer in tuple("ABCDE") else "free answer"
    return {"level": [str(problem.meta["level"])], "skill": problem.meta["skills"], "answer": [kind]}


def wanted(problem: Problem) -> Wanted:
    if groups(problem)["answer"] == ["options"]:
        return Wanted("option", tuple(problem.choices or ()), problem.question)
    return Wanted("text")


def is_right(extraction: Any, problem: Problem) -> bool:
    golds = [problem.answer, last_boxed(problem.answer) or problem.answer]
    if problem.choices and problem.answer in OPTION_LETTERS:
        golds.append(problem.choices[OPTION_LETTERS.index(problem.answer)])
    answer = "" if extraction is None else str(extraction).strip().lower()
    return bool(answer) and any(same(answer, gold.strip().lower()) for gold in golds)


def same(answer: str, gold: str) -> bool:
    """Equal texts, or numbers that are equal when rounded to two decimals."""
    if answer == gold:
        return True
    value, right = number(answer), number(gold)
    return value is not None and right is not None and round(value, 2) == round(right, 2)


def number(text: str) -> float | None:
    """What a number, a ratio (2:3) or an expression without a name comes to; None for anything else, as for degrees.

    Of a text with a brace too many ("\\frac{1}{2}}. The answer …") the part before it is read.
    """
    depths = accumulate((character == "{") - (character == "}") for character in text)
    text = text[: next((place for place, depth in enumerate(depths) if depth < 0), len(text))]
    if len(text) > MAX_NUMBER or re.search("circ|degree|°", text):
        return None
    try:
        return float(evaluate(read_expression(text.strip("$ ").replace(":", "/")), {}))
    except (Unreadable, ArithmeticError, KeyError, TypeError, ValueError):
        return None


def report(
    problems: Sequence[Problem], right: Sequence[bool], share: Callable[[Sequence[bool]], Any]
) -> dict[str, Any]:
    """Overall, by level, by subject and by kind of answer."""
    return overall_and_groups(problems, right, groups, share)


def headline(scores: dict[str, Any]) -> dict[str, Any]:
    levels = {f"level {name}": row for name, row in scores["level"].items()}
    return {"overall": scores["overall"], **levels, **scores["answer"], **scores["skill"]}
