"""What a response's sentences say, by rules of our own: which of them matter, whether they refuse an answer, which
number one of them states, and one spelling for what is written in many ways."""

import re
from collections.abc import Iterator

FEW = 4  # sentences: so short a response is an answer and its reasons, a longer one comes to its answer at the end
MAX_ASKED = 100  # sentences
_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")
_ENUMERATOR = re.compile(r"^[ \t]*(?:[-*•]|\d{1,2}[.)])[ \t]+(?=\S)", re.MULTILINE)
_POLITENESS = re.compile(r"i hope|let me know|feel free|please (?:provide|let|check)|if you have any", re.IGNORECASE)
_CONCLUDES = re.compile(
    r"\W*(?:therefore|thus|hence|so\b|in conclusion|the (?:final|correct|answer)|final|answer|consequently|overall|"
    r"in (?:summary|total)|following this|因此|所以|故|综上)",
    re.IGNORECASE,
)


def split(text: str) -> list[str]:
    """The text's sentences and lines without list marks and without what is only polite."""
    parts = [part.strip() for part in _END.split(_ENUMERATOR.sub("", text))]
    return [part for part in parts if part and not _POLITENESS.search(part)] or [text]


def by_weight(parts: list[str], reasons_follow: bool = True) -> list[str]:
    """Sentences in the order in which they are asked: conclusions from the last, then the rest from the last.

    With `reasons_follow`, few sentences are an answer and its reasons: those without a conclusion go from the first.
    Questions say nothing.
    """
    parts = [part for part in parts if not part.endswith(("?", "？"))]
    conclusions = [part for part in reversed(parts) if _CONCLUDES.match(part)]
    others = [part for part in parts if not _CONCLUDES.match(part)]
    return (conclusions + (others if reasons_follow and len(parts) <= FEW else others[::-1]))[:MAX_ASKED]


_CONDITION = re.compile(
    r"^\W*(?:(?:so|therefore|thus|then|hence|now|however|in conclusion)\b,?\s+)?"
    r"(?:if|when|since|because|as|given|based on|according to|although|while|assuming|after|from|in|out of|among|of)\b"
    r"(?:[^,，]|,(?=\s+(?:(?:and|or)\s+[\d.]|[\d.]+(?:[^\w\s]{0,2},|\s(?:and|or)\b))))*[,，]\s+",
    re.IGNORECASE,
)
_REASON = re.compile(
    r",?\s+(?:because|since|when|if|and each|due to|given that|based on|which (?:means|indicates|would|includes?)|"
    r"meaning|indicating|assuming)\b.*|,\s+(?:as|at|while|where|but not)\b.*",
    re.IGNORECASE | re.DOTALL,
)


def clauses(sentence: str) -> list[str]:
    """The sentence's main clause, if it can be told, and then the whole sentence."""
    main = _REASON.sub("", _CONDITION.sub("", sentence))
    return [main, sentence] if main and main != sentence else [sentence]


def compared(sentence: str) -> Iterator[str]:
    """The sentence's clauses, each before itself without what it is compared with: "larger than …"."""
    for clause in clauses(sentence):
        if shorter := re.sub(r"\bthan\b.*", "", clause, flags=re.DOTALL):
            yield shorter
        yield clause


# ------------------------------------------------------------------------------------------------------------- refusals

_UNDETERMINED = re.compile(
    r"(?:cannot|can't|could not) (?:be )?(?:\w+ly )?(?:determine|answered)|(?:im|not )possible to determine",
    re.IGNORECASE,
)
_OPEN = re.compile(r"\b(?:numbers?|whether|determine if|to determine)\b", re.IGNORECASE)
_UNABLE = re.compile(
    r"(?:is|are|was|were|be)(?:\s?not|n't) (?:\w+ ){0,3}(?:provided|given|available|listed|shown|clear\b|specified|"
    r"possible|enough (?:info|data)|answered|an option|among|in the (?:options|choices|image|picture)|determin)|"
    r"(?:cannot|can't|can not|could not|couldn't|unable to|impossible to) (?:\w+ ){0,3}(?:determin|answer|provid|"
    r"extract|find|calculat|solv|help|identif|tell|be given)|insufficient|no information|not enough (?:info|data)|"
    r"mistake in the|more information|(?:选项|题目).{0,12}(?:错|误|没有|不正确)|"
    r"(?:none|neither|not any) of the (?:\w+ ){0,3}(?:above|answers?|options?|choices?|listed|given|provided)|"
    r"\bno (?:correct )?(?:option|choice)s?\b",
    re.IGNORECASE,
)
_LACKS = re.compile(
    r"(?:does|do|did)(?:\s?not|n't) (?:\w+ ){0,3}(?:provide|contain|show|have|give|specify|mention|match|list|include)",
    re.IGNORECASE,
)
_LACKING = re.compile(
    r"\b(?:image|picture|photo|figure|response|text|graph|chart|table|diagram|question|problem|description|calculation|"
    r"result|answer|context|information|data|options?|choices?|i)\b",
    re.IGNORECASE,
)


def _last_words(parts: list[str]) -> list[str]:
    """The last two sentences, last first, of each what follows a "but"."""
    return [part.rpartition(", but ")[2] for part in reversed(parts[-2:])]


def _no_answer(part: str) -> bool:
    """That a picture lacks something is no answer; that a thing lacks something may be one."""
    lacks = _LACKS.search(part)
    return bool(_UNABLE.search(part) or lacks and _LACKING.search(part[: lacks.start()]))


def refusal(parts: list[str]) -> str:
    """What stands for an answer ("N/A") if one of the last sentences says that there is none, else an empty text."""
    return "N/A" if any(map(_no_answer, _last_words(parts))) else ""


def undecided(parts: list[str]) -> str:
    """Like `refusal`, for a yes or no: "Cannot be determined" where only a number is missing, or whether it is so.

    Where a picture has nothing of what is asked about, a question does not apply to it.
    """
    for part in _last_words(parts):
        if _UNDETERMINED.search(part) and _OPEN.search(" ".join(parts)):
            return "Cannot be determined"
        if _no_answer(part):
            return "N/A"
    return ""


# -------------------------------------------------------------------------------------------------------------- numbers

MANY = 4  # numbers in a sentence that computes nothing: it lists what was counted
NUMBER = re.compile(r"(?<![A-Za-z0-9_.^])(?<![A-Za-z]-)-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+)?(?<=\d)")
_FRACTION = re.compile(r"\s?/\s?(\d+)(?![\d/]|\.\d)")
_POWER = re.compile(r"\s?(?:x|×|\*|\\times|\\cdot)\s?10\^\{?-?\d+\}?")
_UNITS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
_UNITS += " seventeen eighteen nineteen"
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_VALUES = {word: value for value, word in enumerate(_UNITS.split())}
_VALUES |= {word: 10 * value for value, word in enumerate(_TENS.split(), start=2)}
_WORD = re.compile(
    rf"\b(?:({_TENS.replace(' ', '|')})(?:[- ]({'|'.join(_UNITS.split()[1:10])}))?|one(?! of\b|other)|"
    rf"({'|'.join(word for word in _UNITS.split() if word != 'one')}))\b",
    re.IGNORECASE,
)
_NO_NUMBER = re.compile(r"\b(?:infinit[ey]|undefined|does not exist)\b", re.IGNORECASE)
_ABOUT = r"\s*(?:(?:approximately|about|around|only|exactly|also|just|now|then|equal to|a total of|at)\s+)*"
_STATED = re.compile(
    r"(?:\b(?:is|are|was|were|be|equals?|equal to|gets?|gives?|simplifies to|up to)\b|\\approx\b|[:≈=是为])" + _ABOUT,
    re.IGNORECASE,
)
_COUNTED = re.compile(
    r"\b(?:there (?:is|are|were|was|would be|will be)|leaves|left with|total of)\b" + _ABOUT, re.IGNORECASE
)
_VERB = re.compile(
    r"\b(?:approximately|about|spends?|needs?|costs?|pays?|gives?|measures?|get|has|have|at|by|in|to)\b" + _ABOUT,
    re.IGNORECASE,
)
_OPENING = re.compile(r"[^\w-]*(?:(?:so|thus|therefore|hence|then|overall)\b,?\s*)?(?:only\s+)?", re.IGNORECASE)
_THRESHOLD = re.compile(
    r"\b(?:at least|at most|than|between|exactly|above|below|over|under)\s+\$?-?\d[\d,.]*\d*%?"
    r"(?:\s+and\s+-?\d[\d,.]*)?",
    re.IGNORECASE,
)
_ZERO = re.compile(
    r"\b(?:there (?:are|were)|has|have) (?:none\b|no (?:\w+ ){0,2}\w+s\b)|^\W*(?:none of|no one|nobody)\b",
    re.IGNORECASE,
)
_EACH = re.compile(r"(\d[\d,.]*) (?:\w+ ){1,2}in each\b")
_YEAR = re.compile(r"\bthe year (\d{4})\b", re.IGNORECASE)


def plain_number(text: str) -> str:
    return text.replace(",", "")


def answer_number(parts: list[str], question: str = "") -> str:
    """The number that the weightiest sentence with one states; of two, rather one that the question does not state.

    Mere lists of numbers are asked last.
    """
    weighed = by_weight(parts, reasons_follow=False)
    given = set(map(plain_number, NUMBER.findall(question)))
    weighed.sort(key=lambda part: (_lists(part), stated_number(part) in given))
    return next(filter(None, map(stated_number, weighed)), "")


def _lists(sentence: str) -> bool:
    return "=" not in sentence and len(NUMBER.findall(_THRESHOLD.sub(" ", sentence))) >= MANY


def stated_number(sentence: str) -> str:
    """The number a sentence states, in figures: a year, its main clause's number, any; an empty text without one."""
    if year := _YEAR.search(sentence):
        return year[1]
    return next(filter(None, map(_stated, clauses(sentence))), "")


def _stated(sentence: str) -> str:
    """Behind the last "=", at the beginning, counted ("there are"), behind the last verb, else the last one."""
    sentence = _THRESHOLD.sub(" ", sentence)
    if each := _EACH.search(sentence):
        return plain_number(each[1])
    if _ZERO.search(sentence):
        return "0"
    stated = [(match.end(), number) for match, number in _behind(_STATED, sentence)]
    if stated and "=" in sentence[: stated[-1][0]]:
        return stated[-1][1]
    if number := _at(sentence, _OPENING.match(sentence).end()):
        return number
    for _, number in _behind(_COUNTED, sentence):
        return number
    if stated:
        return stated[-1][1]
    if verbs := [number for _, number in _behind(_VERB, sentence)]:
        return verbs[-1]
    if numbers := list(NUMBER.finditer(sentence)):
        return _at(sentence, numbers[-1].start())
    word = _WORD.search(sentence)
    return _in_figures(word[0]) if word else ""


def _behind(pattern: re.Pattern[str], sentence: str) -> Iterator[tuple[re.Match[str], str]]:
    """The pattern's matches that a number follows, and that number."""
    for match in pattern.finditer(sentence):
        if number := _at(sentence, match.end()):
            yield match, number


_DRESS = re.compile(r"[\s*\"'“(\[$€£\\]*")


def _at(sentence: str, place: int) -> str:
    """The number, with its power of ten, or number word that begins at a place, dress left off."""
    start = _DRESS.match(sentence, place).end()
    if number := NUMBER.match(sentence, start):
        below = _FRACTION.match(sentence, number.end())
        if below and float(below[1]):
            return str(round(float(plain_number(number[0])) / float(below[1]), 6))
        power = _POWER.match(sentence, number.end())
        return plain_number(number[0]) + (power[0] if power else "")
    if word := _WORD.match(sentence, start):
        return _in_figures(word[0])
    word = _NO_NUMBER.match(sentence, start)
    return word[0] if word else ""


def _in_figures(word: str) -> str:
    return str(sum(_VALUES[part] for part in re.split(r"[- ]", word.lower())))


# ------------------------------------------------------------------------------------------------ one spelling of many

_SPELLINGS = [
    (re.compile(pattern), plain)
    for pattern, plain in (
        (r"\s+", " "),
        (r"\\[dt]?frac\s*\{\s*([^{}]*?)\s*\}\s*\{\s*([^{}]*?)\s*\}", r"\1/\2"),
        (r"\\?sqrt\s*(?:\{([^{}]*)\}|\(([^()]*)\))?", r"√\1\2"),
        (r"\\pi\b|(?<=\d)\s*pi\b", "π"),
        (r"\s*(?:\\times|\\cdot|[*×·])\s*", ""),
        (r"\s*(?:\\degrees?|\\?\^\{?\\circ\}?|\bdegrees?\b)", "°"),
        (r"\\(?:left|right)|\\?[${}()]", ""),
        (r"&", "and"),
        (r"\s*([-+/=:^√°])\s*", r"\1"),
    )
]


def plain(text: str) -> str:
    """Lower case, in one spelling of formulas, without final points."""
    text = text.lower()
    for pattern, plain in _SPELLINGS:
        text = pattern.sub(plain, text)
    return text.strip().rstrip(".")


def value(text: str) -> float | None:
    """The number that a text consists of, but for a unit; None for any other text."""
    match = NUMBER.search(text)
    rest = (text[: match.start()] + text[match.end() :]).strip(" °%$.") if match else "none"
    return float(plain_number(match[0])) if match and len(rest) <= 6 and not re.search(r"[\\√π^/*\d]", rest) else None


_SMALL_WORDS = frozenset("a the an of it to would wil is".split())


def stems(text: str) -> set[str]:
    """A text's words without what inflects them, roughly: increased and increases are increas."""
    words = re.findall(r"[^\W\d_][^\W\d_]*(?:'[^\W\d_]+)?|\d+(?:\.\d+)?", text.lower())
    bare = {re.sub(r"(?<=\w{3})(?:ing|ed|es|s|e|d)$", "", word) for word in words}
    return {re.sub(r"(\w)\1$", r"\1", stem) for stem in bare} - _SMALL_WORDS
