"""Rule filters and word replacement of the cold-start texts (Section 3.3.1).

The paper names its filters but prints none, so each rule here is our choice and says what it means. A rule looks at one
text and returns what it found, or None. Overthinking is no fault: a pass over the picture that is repeated after
"Wait, let me check." stays, as it does in the paper's data; only a unit said more often than any thinker would is a
loop.
"""

import re
from collections.abc import Sequence

import numpy as np

from vr1lib.answers import grade_answer

MAX_REPEATS = 20  # our choice: a unit said more often, back to back, is a stuck generator and not a doubt
MAX_UNIT_WORDS = 80  # our choice: the longest unit looked for, a pass over a picture with its doubt
DESCRIPTION_WORDS = re.compile(
    r"\bdescriptions?\b|\bcaption\b|\bas described\b|\bdescribed (?:above|here)\b|\b(?:provided|given|above) text\b",
    re.I,
)
ANSWER_STATEMENT = re.compile(
    r"\banswer(?: is| must be| should be|:)\s{0,3}:?\s{0,3}(?!not\b)"
    r"(?P<value>\S[^\n]{0,60}?)(?=[.!,;]*(?:$|\s*\n|[.!,;]\s))",
    re.I,
)
ANSWER_LIKE = re.compile(r"\(?[A-J]\)?|.*[\d\\].*|yes|no|true|false", re.I)
CLOSING_VALUE = re.compile(r"(?:\bis|\bare|\bequals|\btotal|=)\s*(?P<value>-?\d+(?:\.\d+)?)\s*\.?\s*$", re.I)
BOXED = re.compile(r"\\boxed\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}")
END_MARKS = tuple(".!?:;)]}$*\"'”’✅")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")

_THE = (
    r"the (?:(?:above|given|provided|detailed) )*(?:image |picture |figure )?description(?: (?:above|given|provided))?"
)
_TELLS = r"(?:says|states|mentions|tells(?: us| me)?|indicates|specifies|notes|describes)"
_TELL = r"(?:say|state|mention|tell(?: us| me)?|indicate|specify|note|describe)"
_REPLACEMENTS = [  # whole phrases first, what they leave last
    (rf"{_THE} of (the (?:image|picture|figure|diagram))\b", r"\1"),
    (r"\b(the (?:problem|question))(?:'s|’s)? description\b", r"\1"),
    (rf"\b(?:re-?)?read(ing)? (?={_THE}\b)", r"look\1 at "),
    (rf"\bfollowing (?={_THE}\b)", "looking at "),
    (rf"\b{_THE} (does|did)( not|n['’]t) {_TELL}\b", r"the image \1\2 show"),
    (rf"\b{_THE} (also )?{_TELLS}\b", r"the image \1shows"),
    (rf"\b{_THE}\b", "the image"),
    (r"\bimage description\b", "image"),
    (r"\bas described\b(?: (?:above|here))?", "as shown"),
    (r"\b(is|are|was|were) described as (?=an? |the )", r"\1 "),
    (r"\bthe described\b", "the shown"),
]
REPLACEMENTS = [(re.compile(pattern, re.I), replacement) for pattern, replacement in _REPLACEMENTS]


def replace_description_words(text: str) -> str:
    """The text as one who sees the picture would put it: whole phrases are exchanged, so that sentences stay English.

    >>> replace_description_words("The description says that AB is 5.")
    'The image shows that AB is 5.'
    """
    for pattern, replacement in REPLACEMENTS:

        def keep_case(match: re.Match[str], replacement: str = replacement) -> str:
            new = match.expand(replacement)
            return new[0].upper() + new[1:] if match.group()[0].isupper() else new

        text = pattern.sub(keep_case, text)
    return text


def talk_of_description(reasoning: str) -> str | None:
    """A word of the description that is left: the thinker is meant to see the picture."""
    found = DESCRIPTION_WORDS.search(reasoning)
    return found and reasoning[max(0, found.start() - 30) : found.end() + 30].replace("\n", " ")


def truncated(reasoning: str, text: str, finish: str) -> str | None:
    """The reply was cut at its length, one of its parts is missing, or the reasoning stops without an end mark."""
    if finish == "length":
        return "cut at the length limit"
    if not text.strip() or not reasoning.strip():
        return "no answer text" if reasoning.strip() else "no reasoning"
    end = reasoning.rstrip()
    return None if end.endswith(END_MARKS) else f"ends with {end[-30:]!r}"


def repetition_loop(reasoning: str, max_repeats: int = MAX_REPEATS) -> str | None:
    """A unit of 1 to MAX_UNIT_WORDS words said more than `max_repeats` times back to back."""
    words = reasoning.split()
    index: dict[str, int] = {}
    ids = np.array([index.setdefault(word, len(index)) for word in words])  # [words]
    for unit in range(1, min(MAX_UNIT_WORDS, len(words) // (max_repeats + 1)) + 1):
        changes = np.flatnonzero(ids[unit:] != ids[:-unit])
        runs = np.diff(np.concatenate([[-1], changes, [len(ids) - unit]])) - 1  # [changes + 1] equal stretches
        longest = int(runs.argmax())
        repeats = int(runs[longest]) // unit + 1
        if repeats > max_repeats:
            start = 0 if longest == 0 else int(changes[longest - 1]) + 1
            return f"{' '.join(words[start : start + unit])[:60]!r} said {repeats} times"
    return None


def final_statement(reasoning: str) -> str | None:
    """The answer that the reasoning says it arrives at: the last boxed or stated one; None where it says none."""
    boxed = [(match.start(), match.group(1).strip()) for match in BOXED.finditer(reasoning)]
    return max([*boxed, *answer_statements(reasoning)], default=(0, None))[1]


def answer_statements(text: str) -> list[tuple[int, str]]:
    """Where "the answer is …" stands and what it says, if that looks like an answer: a letter, a value, yes or no."""
    stated = [(match.start(), match.group("value").strip(" *$")) for match in ANSWER_STATEMENT.finditer(text)]
    return [(start, value) for start, value in stated if ANSWER_LIKE.fullmatch(value) and len(value.split()) <= 6]


def inconsistent(reasoning: str, answer: str, choices: Sequence[str] | None) -> str | None:
    """The reasoning arrives at another answer than the one given.

    What it states or boxes last counts; where it states nothing, a number that closes it (`total 3.`) is held against
    an answer that is a number.
    """
    statement = final_statement(reasoning)
    if statement is None and NUMBER.fullmatch(answer.strip("$ ")):
        closing = CLOSING_VALUE.search(reasoning)
        statement = closing and closing.group("value")
    if statement is None or any(
        grade_answer(given, gold, choices).ok for given, gold in ((statement, answer), (answer, statement))
    ):
        return None
    return f"reasons to {statement!r}, answers {answer!r}"


def answer_before_thinking(reasoning: str) -> str | None:
    """The first sentence already states the answer, and thinking follows."""
    first, *rest = re.split(r"(?<=[.!?])\s", reasoning.strip(), maxsplit=1)
    return first[:80] if rest and answer_statements(first) else None


def states_answer(text: str, answer: str, choices: Sequence[str] | None) -> str | None:
    """The text says outright what the right answer is: a leak, where a description should only describe."""
    for start, value in answer_statements(text):
        if grade_answer(value, answer, choices).ok:
            return text[start : start + 80]
    return None
