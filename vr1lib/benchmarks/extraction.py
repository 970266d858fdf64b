"""The answer in a model's free response, by rules alone.

MathVista and others let a language model take the answer out of a response; these rules stand in for it, so that a
score needs no judge and is the same tomorrow. In order: our own answer block, a box, MathVista's published shortcuts
(the response is a choice or a number), then what a sentence says. A refusal gives words ("N/A"), for MathVista's rule
reads a choice out of any text.

Against the answers that a language model took out of MathVista's published outputs they agree on 93 % of GPT-4's worked
solutions and 88 % of LLaVAR's short sentences; most of what differs is a guess where the response says no answer
(`scoring.disagreements` lists it).
"""

import re
from typing import Literal, NamedTuple

Kind = Literal["option", "integer", "float", "list", "yes or no", "text"]


class Wanted(NamedTuple):
    """What a question asks for; `choices` are an option question's texts, none where they are only in the picture."""

    kind: Kind
    choices: tuple[str, ...] = ()


MAX_READ = 4_000  # characters of a response's end that are looked at: an answer stands at the end of a long one
FEW = 4  # sentences
MAX_CUES = 8  # places where a text calls something its answer
_BLOCK = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)
_AUTHORS = re.compile(r"<answer> Final Answer:(.*?) </answer>", re.DOTALL)
_PREFIX = re.compile(r"\s*(?:\*\*)?final answer\s*[:：]\s*", re.IGNORECASE)
_TOKENS = re.compile(r"</?s>|<\|[a-z_]{1,30}\|>")
_QUOTED = re.compile(r'The answer is "(.*)"\.')
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")
_POLITENESS = re.compile(r"i hope|let me know|feel free|please (?:provide|let)|if you have any", re.IGNORECASE)


def authors_text(response: str) -> str:
    """What Vision-R1's authors score: the first block of their exact form, stripped; without one the whole text."""
    match = _AUTHORS.search(response) if "<answer>" in response else None
    return match[1].strip() if match else response


def answer_block(response: str) -> str:
    """What the last `<answer>` block holds without `Final Answer:`, an empty text without a block."""
    blocks = _BLOCK.findall(response)
    return final_answer(blocks[-1]) if blocks else ""


def final_answer(block: str) -> str:
    """An answer block's text without its `Final Answer:`."""
    return _PREFIX.sub("", block, count=1).strip()


def extract(response: str, wanted: Wanted) -> str:
    """The answer in `response`, an empty text if it is blank."""
    text = _TOKENS.sub("", response[-MAX_READ:]).strip()
    if block := answer_block(text):
        return _read(block, wanted) or block
    text = text.rpartition("</think>")[2].strip() or text
    boxed = last_boxed(text)
    if boxed and (found := _read(boxed, wanted)):
        return found
    return _read(text, wanted)


def _read(text: str, wanted: Wanted) -> str:
    if not text:
        return ""
    if wanted.kind == "option":
        return _option(text, wanted.choices)
    if wanted.kind in ("integer", "float"):
        return _number(text, wanted.kind)
    if wanted.kind == "list":
        return _list(text)
    return yes_or_no(text) if wanted.kind == "yes or no" else said_text(text)


def last_boxed(text: str) -> str:
    r"""What stands in the last \boxed{…}, an empty text without one."""
    start = text.rfind(r"\boxed{")
    if start < 0:
        return ""
    depth = 0
    for place in range(start + 6, len(text)):
        depth += (text[place] == "{") - (text[place] == "}")
        if depth == 0:
            return text[start + 7 : place].strip()
    return ""


def sentences(text: str) -> list[str]:
    """The text's sentences and lines, without what is only polite."""
    parts = [part.strip() for part in _SENTENCE_END.split(text)]
    return [part for part in parts if part and not _POLITENESS.search(part)] or [text]


_CONCLUDES = re.compile(
    r"\W*(?:therefore|thus|hence|so\b|in conclusion|the (?:final|correct|answer)|final|answer|consequently|因此|所以|"
    r"故)",
    re.IGNORECASE,
)


def by_weight(parts: list[str], reasons_follow: bool = False) -> list[str]:
    """Sentences in the order in which they are asked: conclusions from the last, then the rest from the last.

    With `reasons_follow`, a few sentences without a conclusion are an answer and its reasons: the first goes first.
    """
    conclusions = [part for part in reversed(parts) if _CONCLUDES.match(part)]
    others = [part for part in parts if part not in conclusions]
    return conclusions + (others if reasons_follow and len(parts) <= FEW else others[::-1])


# -------------------------------------------------------------------------------------------------------------- options

_ANSWER_WORDS = r"(?:answer|choice|option|solution|选项|选择|答案|故选|选)"
_SAID = re.compile(
    rf"(?i:{_ANSWER_WORDS}(?:(?![.。\n]\s).){{0,60}}?(?:\bis\b|\bbe\b|:|：|是|为|应为|选))"
    r"\s*(?i:most likely\s+|therefore\s+)?(?i:option\s+|choice\s+|the\s+)?"
    r"(?:[*\"'“$]*[(（\[]\s*([A-Ha-h])\s*[)）\]]|[*\"'“$]*([A-H])(?![\w'’]))"
)
_NAMED = re.compile(r"(?i:\b(?:option|choice)\s+)[(（]?([A-H])[)）]?(?![\w'’])|故选\s*[(（]?([A-H])")
_BRACKETED = re.compile(r"(?<!\w)[(（]\s*([A-Ha-h])\s*[)）]")
_LEADING = re.compile(r"[*\"'\s]*[(（\[]?([A-H])[)）\]]?(?:\s*[.:,，、;\-–]\s|\s*[.)）]|\s*\n|\s*$|\s+[(（])")
_LETTERS = tuple("ABCDEFGHabcdefgh")
_LISTED = re.compile(r"^\s*[(（]?[A-Z][)）.:]\s*\S", re.MULTILINE)
_NONE_FITS = re.compile(r"(?:none|neither|not any) of the |\bno (?:correct )?(?:option|choice)s?\b", re.IGNORECASE)
_UNDETERMINED = re.compile(
    r"(?:cannot|can't|could not) (?:be )?(?:\w+ly )?(?:determine|answered)|(?:im|not )possible to determine",
    re.IGNORECASE,
)
_REFUSES = re.compile(
    r"(?:does|do|did)(?:\s?not|n't) (?:\w+ ){0,3}(?:provide|contain|show|have|give|specify|mention|match|list|include)|"
    r"(?:is|are|was|were|be)(?:\s?not|n't) (?:\w+ ){0,3}(?:provided|given|available|listed|shown|clear|specified|"
    r"possible|enough (?:info|data)|answered|an option|among|in the|determin)|"
    r"(?:cannot|can't|can not|could not|couldn't|unable to|impossible to) (?:\w+ ){0,3}(?:determin|answer|provid|"
    r"extract|find|calculat|solv|help|identif|tell)|insufficient|no information|not enough (?:info|data)|"
    r"mistake in the|more information|(?:选项|题目).{0,12}(?:错|误|没有|不正确)",
    re.IGNORECASE,
)


def _option(text: str, choices: tuple[str, ...]) -> str:
    """The option's letter or text, a refusal's words, or the sentence that matters most."""
    if text in choices:
        return text
    if letter := _letter(text, chr(ord("A") + len(choices) - 1) if choices else "H"):
        return letter
    if choices and not _without_echo(text):
        return ""
    parts = sentences(text)
    if choices and _is_yes_or_no(choices):
        return (
            _leading_yes_or_no(text, choices)
            or _refusal(parts, True)
            or _affirmed(by_weight(parts, reasons_follow=True), choices)
        )
    if refusal := _refusal(parts):
        return refusal
    if number := _number_option(by_weight(parts), choices):
        return number
    weighed = by_weight(parts, reasons_follow=True)
    return _mentioned(weighed, choices) or _by_own_words(weighed, choices) or weighed[0]


def _letter(text: str, last: str) -> str:
    """The last letter that the text calls its answer, else the one it begins with, else the one it brackets last."""
    if text in _LETTERS:
        return text.upper()
    for pattern in (_SAID, _NAMED):
        if found := [next(group for group in match.groups() if group).upper() for match in pattern.finditer(text)]:
            return found[-1]
    leading = _LEADING.match(text)
    bracketed = [match[1].upper() for match in _BRACKETED.finditer(text)]
    if len(_LISTED.findall(text)) > 1:  # the options once more
        return ""
    if leading and leading[1] <= last:
        return leading[1]
    within = [letter for letter in bracketed if letter <= last]
    return within[-1] if within else ""


def _without_echo(text: str) -> str:
    """What is left of a text without questions and lists of options, which only say the prompt once more."""
    lines = [line.strip() for line in text.splitlines()]
    said = [line for line in lines if not line.endswith(("?", "Choices:", "()", "is:")) and not _LISTED.match(line)]
    return " ".join(said) if len(_LISTED.findall(text)) > 1 else text


def _is_yes_or_no(choices: tuple[str, ...]) -> bool:
    return {choice.strip().lower() for choice in choices} == {"yes", "no"}


def _leading_yes_or_no(text: str, choices: tuple[str, ...]) -> str:
    match = re.match(r"\W*(yes|no)\b(?!\s+(?:information|data|one|image|answer))", text, re.IGNORECASE)
    return next((choice for choice in choices if match and choice.strip().lower() == match[1].lower()), "")


_NEGATED = re.compile(r"\b(?:not|no|never|neither|none|cannot|false)\b|n't\b", re.IGNORECASE)


def _affirmed(weighed: list[str], choices: tuple[str, ...]) -> str:
    """Yes or No of a statement that says neither word: by its being negated. A question says nothing."""
    statement = next((part for part in weighed if not part.endswith("?")), "")
    if not statement:
        return ""
    word = yes_or_no(statement).lower()
    if word == "unknown":
        word = "no" if _NEGATED.search(statement) else "yes"
    return next(choice for choice in choices if choice.strip().lower() == word)


def _refusal(parts: list[str], yes_or_no: bool = False) -> str:
    """The words in which one of the last sentences says that there is no answer."""
    for part in reversed(parts[-2:]):
        if match := _NONE_FITS.search(part):
            return part[match.start() :]
    for part in reversed(parts[-2:]):
        if yes_or_no and _UNDETERMINED.search(part):
            return "Cannot be determined"
        if _REFUSES.search(part) or _UNDETERMINED.search(part):
            return "N/A"
    return ""


def _number_option(weighed: list[str], choices: tuple[str, ...]) -> str:
    """The number that the weightiest sentence with one states, if the choices are numbers; it need be none of them."""
    values = [_value(choice) for choice in choices]
    if not choices or None in values:
        return ""
    for part in weighed:
        if not part.endswith("?") and (number := _said_in(part)):
            said = _value(number)
            return next((choice for choice, value in zip(choices, values) if value == said), number)
    return ""


_IS = re.compile(r"\b(?:is|are|was|were|be|been|equals?|called|shows?|becomes?)\b|=", re.IGNORECASE)


def _mentioned(weighed: list[str], choices: tuple[str, ...]) -> str:
    """The choice that the weightiest sentence to speak of one names: behind its last verb, else the last one."""
    for part in weighed:
        if part.endswith("?"):
            continue
        part = re.sub(r"\bthan\b.*", "", part) or part
        if places := _places(part, choices):
            said = max((match.end() for match in _IS.finditer(part) if match.end() <= places[-1][0] + 1), default=0)
            behind = [choice for place, choice in places if place >= said - 1]
            return behind[0] if behind else places[-1][1]
    return ""


def _by_own_words(weighed: list[str], choices: tuple[str, ...]) -> str:
    """The one choice all of whose words (but those that every choice has) the weightiest sentence uses, in any form."""
    words = [_stems(choice) for choice in choices]
    common = set.intersection(*words) if words else set()
    for part in weighed:
        said = _stems(part)
        fitting = [choice for choice, own in zip(choices, words) if own - common and own - common <= said]
        if len(fitting) == 1:
            return fitting[0]
    return ""


def _stems(text: str) -> set[str]:
    """A text's words without what inflects them, roughly: increased and increases are increas."""
    words = re.findall(r"[^\W\d_][^\W\d_]*(?:'[^\W\d_]+)?|\d+(?:\.\d+)?", text.lower())
    stems = {re.sub(r"(?<=\w{3})(?:ing|ed|es|s|e|d)$", "", word) for word in words}
    return {re.sub(r"(\w)\1$", r"\1", stem) for stem in stems} - {
        "a",
        "the",
        "an",
        "of",
        "it",
        "to",
        "would",
        "wil",
        "is",
    }


def _places(part: str, choices: tuple[str, ...]) -> list[tuple[int, str]]:
    """Where a sentence mentions choices, as words or as equal numbers; not inside a longer choice's mention."""
    lower, taken, places = _plain(part), [], []
    for choice in sorted(choices, key=len, reverse=True):
        word = _plain(choice)
        if not word:
            continue
        pattern = rf"(?<![\w.]){re.escape(word)}(?![\w]|\.\d)" if word[0].isascii() else re.escape(word)
        for match in re.finditer(pattern, lower):
            if not any(start < match.end() and match.start() < end for start, end in taken):
                taken.append(match.span())
                places.append((match.start(), choice))
    if not places:
        numbers = {_value(choice): choice for choice in reversed(choices) if _value(choice) is not None}
        found = [(match.start(), _value(match[0])) for match in _NUMBER.finditer(part)]
        places = [(place, numbers[value]) for place, value in found if value in numbers]
    return sorted(places)


def _plain(text: str) -> str:
    """Lower case without LaTeX's dress and final points; places do not matter beyond their order."""
    return re.sub(r"\s+", " ", re.sub(r"[${}]", "", text).replace("&", "and").lower()).strip().rstrip(".")


def _value(text: str) -> float | None:
    match = _NUMBER.search(text)
    rest = (text[: match.start()] + text[match.end() :]).strip(" °%$.") if match else "none"
    return (
        float(match[0].replace(",", "")) if match and len(rest) <= 6 and not re.search(r"[\\√π^/*\d]", rest) else None
    )


# -------------------------------------------------------------------------------------------------------------- numbers

_NUMBER = re.compile(r"(?<![\w.])-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+)?(?<=\d)")
_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
)
_WORDS += "eighteen nineteen twenty"
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_WORD_VALUES = {word: str(value) for value, word in enumerate(_WORDS.split())}
_WORD_VALUES |= {word: str(10 * value) for value, word in enumerate(_TENS.split(), start=2)}
_WORD = re.compile(rf"\b(?:{'|'.join(_WORD_VALUES)})\b", re.IGNORECASE)
_SAID_NUMBER = re.compile(r"(?i:answer|答案)[^.。\n]{0,80}?(?i:\bis|\bbe|:|：|是|为)")
_COUNTED = re.compile(
    r"\b(?:there (?:is|are|were|was|would be|will be)|leaves|left with|total of)"
    r"\s+(?:a total of |only |exactly |about )?",
    re.IGNORECASE,
)
_THRESHOLD = re.compile(
    r"\b(?:at least|at most|than|between|exactly|above|below|over|under)\s+\$?-?\d[\d,.]*\d*%?"
    r"(?:\s+and\s+-?\d[\d,.]*)?",
    re.IGNORECASE,
)
_EACH = re.compile(r"(\d[\d,.]*) (?:\w+ ){1,2}in each\b")
_YEAR = re.compile(r"\bthe year (\d{4})\b", re.IGNORECASE)
_LEADING_NUMBER = re.compile(r"^(?:(?:so|thus|therefore|hence|then|overall)\b,?\s*)?(?:only\s+)?", re.IGNORECASE)
_ABOUT = r"\s*(?:(?:approximately|about|around|only|exactly|also|just|now|then|equal to)\s+)*"
_STATED = re.compile(
    rf"(?:\b(?:is|are|was|were|be|equals?|equal to|gets?|gives?|simplifies to|up to)\b|[:≈=是为])(?:{_ABOUT})",
    re.IGNORECASE,
)
_VERB = re.compile(
    rf"\b(?:approximately|about|spends?|needs?|costs?|pays?|gives?|measures?|get|has|have|at|by|in|to)\b{_ABOUT}",
    re.IGNORECASE,
)
_DRESS = r"[\s*\"'“(\[$€£\\]*"


def _number(text: str, kind: Kind) -> str:
    """The number that is the answer; a refusal's words or nothing where there is none."""
    try:
        return str(int(text) if kind == "integer" else float(text))
    except (ValueError, OverflowError):
        pass
    if quoted := _QUOTED.search(text):
        return quoted[1]
    for match in list(_SAID_NUMBER.finditer(text))[: -MAX_CUES - 1 : -1]:
        if number := _NUMBER.search(sentences(text[match.end() :].lstrip() or " ")[0]):
            return _clean(number[0])
    parts = sentences(text)
    if refusal := _refusal(parts[-1:]):
        return refusal
    for part in by_weight(parts):
        if not part.endswith("?") and (number := _said_in(part)):
            return number
    return _refusal(parts)


def _said_in(sentence: str) -> str:
    """The number that a sentence states: counted, right of its last = or verb, else its last one."""
    if year := _YEAR.search(sentence):
        return year[1]
    sentence = _THRESHOLD.sub(" ", sentence)
    numbers = list(_NUMBER.finditer(sentence))
    if not numbers:
        words = _WORD.findall(sentence)
        return _WORD_VALUES[words[0].lower()] if words else ""
    if each := _EACH.search(sentence):
        return _clean(each[1])
    stated = max((match.end() for match in _STATED.finditer(sentence) if _at(sentence, match.end())), default=None)
    if stated is not None and "=" in sentence[:stated]:
        return _at(sentence, stated)
    for pattern in (_LEADING_NUMBER, _COUNTED):
        for match in pattern.finditer(sentence):
            if number := _at(sentence, match.end()):
                return number
    if stated is not None:
        return _at(sentence, stated)
    for match in reversed(list(_VERB.finditer(sentence))):
        if number := _at(sentence, match.end()):
            return number
    return _clean(numbers[-1][0])


def _at(sentence: str, place: int) -> str:
    """The number or number word that begins at a place, dress left off."""
    start = re.compile(_DRESS).match(sentence, place).end()
    number = _NUMBER.match(sentence, start)
    if number:
        return _clean(number[0])
    word = _WORD.match(sentence, start)
    return _WORD_VALUES[word[0].lower()] if word else ""


def _clean(number: str) -> str:
    return number.replace(",", "")


def _list(text: str) -> str:
    """The last list in square brackets, else the two numbers that are joined by "and" or a comma."""
    if brackets := re.findall(r"\[[^\[\]]*\]", text):
        return brackets[-1]
    numbers = [_clean(match[0]) for match in _NUMBER.finditer(sentences(text)[-1])]
    return f"[{', '.join(numbers)}]" if numbers else text


# ---------------------------------------------------------------------------------------------------------------- words


def yes_or_no(text: str) -> str:
    """Yes or No if the words of the text have one and not the other, else Unknown: VLMEvalKit's rule for MME."""
    words = set(re.sub(r"[^\w\s]", " ", text.lower()).split())
    if ("yes" in words) != ("no" in words):
        return "Yes" if "yes" in words else "No"
    return "Unknown"


_SAID_TEXT = re.compile(r"answer\s*(?:is|:|：)\s*(?:that\s+)?(.+?)(?:\.?\s*$|\.\s|\n)", re.IGNORECASE)


def said_text(text: str) -> str:
    """What the text calls its answer, else its last line."""
    text = text[-MAX_READ:].strip()
    said = _SAID_TEXT.findall(text)
    found = said[-1] if said else text.rpartition("\n")[2]
    return found.strip().strip('*"“”').strip()
