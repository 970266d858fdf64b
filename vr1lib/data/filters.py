"""Rule filters and word replacement of the cold-start texts (Section 3.3.1).

The paper names its filters but prints none, so each rule here is our choice and says what it means. A rule looks at one
text and returns what it found, or None. Overthinking is no fault: a pass over the picture that is repeated after
"Wait, let me check." stays, as it does in the paper's data; only a unit said more often than any thinker would is a
loop.
"""

import re
from collections.abc import Iterator, Sequence

import numpy as np

from vr1lib.answers import grade_answer

MAX_REPEATS = 20  # our choice: a unit said more often, back to back, is a stuck generator and not a doubt
MAX_UNIT_WORDS = 80  # our choice: the longest unit looked for, a pass over a picture with its doubt
DESCRIPTION_WORDS = re.compile(
    r"\bdescriptions?\b|\bcaption\b|\bas described\b|\bdescribed (?:above|here)\b|\b(?:provided|given|above) text\b"
    r"|\b(?:can(?:not|['’]t| not)|could(?: not|n['’]t)|unable to|without(?: actually)?|not able to) (?:actually )?"
    r"(?:see(?:ing)?|view(?:ing)?|look(?:ing)? at) (?:the |an? |any )?(?:actual )?(?:image|picture|figure|diagram)\b"
    r"|\bno (?:image|picture) (?:is |was )?(?:attached|given|provided)\b",
    re.I,
)
ANSWER_STATEMENT = re.compile(
    r"\b(?:answer|correct (?:option|choice))(?: is| must be| should be|:)\s{0,3}:?\s{0,3}(?!not\b)"
    r"(?P<value>\S[^\n]{0,60}?)(?=[.!,;]*(?:$|\s*\n|[.!,;]\s))",
    re.I,
)
OPTION_CALLED_RIGHT = re.compile(
    r"\b(?:option|choice)\s{1,3}\(?(?P<value>[A-J])\)?\s{1,3}is\s{1,3}(?:the\s)?(?:correct|right)\b", re.I
)
ANSWER_LIKE = re.compile(r"\(?[A-J]\)?|.*[\d\\].*|yes|no|true|false", re.I)
CLOSING_VALUE = re.compile(r"(?:\bis|\bare|\bequals|\btotal|=)\s*(?P<value>-?\d+(?:\.\d+)?)\s*\.?\s*$", re.I)
BOXED = re.compile(r"\\boxed\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}")
END_MARKS = tuple(".!?:;)]}$*\"'”’✅")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
SCRIPT_LETTER = re.compile(
    r"(?P<Han>[\u3400-\u9fff\uf900-\ufaff])|(?P<Kana>[\u3041-\u309f\u30a1-\u30fa])|(?P<Hangul>[\u1100-\u11ff\uac00-\ud7af])"
    r"|(?P<Cyrillic>[\u0400-\u052f])|(?P<Arabic>[\u0620-\u064a\u066e-\u06d3])|(?P<Hebrew>[\u05d0-\u05ea])"
    r"|(?P<Devanagari>[\u0904-\u0939])|(?P<Thai>[\u0e01-\u0e30])"
)
WORD = re.compile(r"[^\W\d_]+")
MIN_LITTLE_WORDS = 3  # different ones in a sentence; our choice: names and quotations have fewer
LITTLE_WORDS = {
    "German": set("und ist nicht der das ein eine wir mit sich auf dann aber auch wenn oder für dem".split()),
    "French": set("le la les est une des donc nous avec pour dans que qui et sur cette".split()),
    "Spanish": set("el la los las es una que con para por entonces del más cuando".split()),
    "Italian": set("il lo gli è una che con per quindi di della sono non nel".split()),
    "Portuguese": set("os é uma que com para por então não do da mais quando".split()),
}
ENGLISH_WORDS = set("the is of and to a in that it we so for this are with not on be as then if has".split())

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
    if "descri" not in text.lower():  # every phrase holds it, and most texts don't
        return text
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


def cut_or_empty(text: str, finish: str) -> tuple[str, str] | None:
    """A pseudo-CoT or a description that is not whole, as (reason, what was found)."""
    if not text.strip():
        return "empty reply", ""
    return ("truncated", f"cut at the length limit, {len(text):,} characters") if finish == "length" else None


def language_mixing(reasoning: str, given: Sequence[str]) -> str | None:
    """A letter of a script, or a sentence in a language, that is neither English nor in what the reasoner was given.

    Greek is mathematics. What is written in a picture comes with its description, so it was given.
    """
    read = "\n".join(given)
    known = {letter.lastgroup for letter in SCRIPT_LETTER.finditer(read)}
    for letter in () if reasoning.isascii() else SCRIPT_LETTER.finditer(reasoning):
        if letter.lastgroup not in known:
            return f"{letter.lastgroup}: {reasoning[max(0, letter.start() - 10) : letter.end() + 20]!r}"
    known = {language for language, _ in foreign_sentences(read)}
    return next((f"{name}: {said!r}" for name, said in foreign_sentences(reasoning) if name not in known), None)


def foreign_sentences(text: str) -> Iterator[tuple[str, str]]:
    """(language, beginning) of sentences in another language of Latin letters, known by its little words."""
    words = set(WORD.findall(text.lower()))
    likely = [name for name, little in LITTLE_WORDS.items() if len(words & little) >= MIN_LITTLE_WORDS]
    for sentence in re.split(r"[.!?\n]", text) if likely else ():
        words = set(WORD.findall(sentence.lower()))
        for name in likely:
            found = len(words & LITTLE_WORDS[name])
            if found >= MIN_LITTLE_WORDS and found > len(words & ENGLISH_WORDS):
                yield name, sentence.strip()[:60]


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
    called_right = [(match.start(), match.group("value")) for match in OPTION_CALLED_RIGHT.finditer(text)]
    for start, value in answer_statements(text) + called_right:
        if grade_answer(value, answer, choices).ok:
            return text[start : start + 80]
    return None
