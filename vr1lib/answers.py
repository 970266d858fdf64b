"""Is an answer right? (First, thin version: letters, plain numbers and texts.)"""

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple


class AnswerGrade(NamedTuple):
    ok: bool
    extracted: str | None
    reason: str


_LETTER = re.compile(r"(?:option\s*)?\(?([A-Ja-j])\)?[.:]?")
_NUMBER = re.compile(r"-?\d{1,30}(?:\.\d{1,30})?")


def grade_answer(prediction: str, answer: str, choices: Sequence[str] | None = None) -> AnswerGrade:
    prediction = re.sub(r"^\s*final answer\s*:", "", prediction, flags=re.I).strip()
    answer = answer.strip()
    if re.fullmatch("[A-J]", answer):
        match = _LETTER.fullmatch(prediction)
        if match:
            letter = match.group(1).upper()
            return AnswerGrade(letter == answer, letter, f"option {letter}")
    if _NUMBER.fullmatch(prediction) and _NUMBER.fullmatch(answer):
        return AnswerGrade(Fraction(prediction) == Fraction(answer), prediction, f"number: {prediction}")
    same = prediction.casefold().strip(" .") == answer.casefold().strip(" .")
    return AnswerGrade(same, prediction[:200], "same text" if same else "another text")
