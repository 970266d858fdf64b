"""The answer in a model's free response, by rules alone.

MathVista and others let a language model take the answer out of a response; these rules stand in for it, so that a
score needs no judge and is the same tomorrow. In order: our own answer block, a box, MathVista's published shortcuts
(the response is a choice or a number), then what a sentence says. The words of a refusal ("cannot be determined") are
given back as they are, for MathVista's rule reads a choice out of any text.
"""

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

Kind = Literal["option", "integer", "float", "list", "yes or no", "text"]


class Wanted(NamedTuple):
    """What a question asks for; `choices` are an option question's texts, none where they are only in the picture."""

    kind: Kind
    choices: tuple[str, ...] = ()


MAX_READ = 20_000  # characters of a response's end that are looked at: an answer stands at the end of a long one
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


def final_answer(block: str) -> str:
    """An answer block's text without its `Final Answer:`."""
    return _PREFIX.sub("", block, count=1).strip()


def extract(response: str, wanted: Wanted) -> str:
    """The answer in `response`, an empty text if it is blank."""
    text = _TOKENS.sub("", response[-MAX_READ:]).strip()
    blocks = _BLOCK.findall(text)
    if blocks:
        block = final_answer(blocks[-1])
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
    return yes_or_no(text) if wanted.kind == "yes or no" else _text(text)


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


# -------------------------------------------------------------------------------------------------------------- options

_ANSWER_WORDS = r"(?:answer|choice|option|solution|选项|选择|答案|故选|选)"
_SAID = re.compile(
    rf"(?i:{_ANSWER_WORDS}(?:(?![.。\n]\s).){{0,60}}?(?:\bis\b|\bbe\b|:|：|是|为|应为|选))"
    r"\s*(?i:most likely\s+|therefore\s+)?(?i:option\s+|choice\s+|the\s+)?"
    r"(?:[*\"'“$]*[(（\[]\s*([A-Ha-h])\s*[)）\]]|[*\"'“$]*([A-H])(?![\w'’]))"
)
_NAMED = re.compile(r"(?i:\b(?:option|choice)\s+)[(（]?([A-H])[)）]?(?![\w'’])|故选\s*[(（]?([A-H])")
_BRACKETED = re.compile(r"[(（]\s*([A-Ha-h])\s*[)）]")
_LEADING = re.compile(r"[*\"'\s]*[(（\[]?([A-H])[)）\]]?(?:\s*[.:,，、;\-–]\s|\s*[.)）]|\s*\n|\s*$|\s+[(（])")
_REFUSALS = (
    (re.compile(r"cannot be (?:\w+ly )?(determined)", re.IGNORECASE), "Cannot be {}"),
    (
        re.compile(r"((?:none|neither|not any) of the .*|.*(?:no|not an?) (?:correct )?(?:option|choice)s?\b.*)", re.I),
        "{}",
    ),
    (
        re.compile(
            r"(?:does|do|did|is|are|was|were|can|could)(?:\s?not|n't)\b.{0,60}\b(?:provid|determin|answer|enough|information|"
            r"possible|clear|contain|list|match|specif|given|available|option|choice|show|mention)|impossible to|"
            r"unable to|insufficient|no information|without (?:the|more|additional|further) |mistake in the|"
            r"more information|(?:选项|题目).{0,12}(?:错|误|没有)",
            re.IGNORECASE,
        ),
        "N/A",
    ),
)


def _option(text: str, choices: tuple[str, ...]) -> str:
    """The option's letter or text, a refusal's words, or the last sentence."""
    if text in choices:
        return text
    last = chr(ord("A") + len(choices) - 1) if choices else "H"
    if letter := _letter(text, last):
        return letter
    parts = sentences(text)
    if choices and _is_yes_or_no(choices) and (said := _leading_yes_or_no(text, choices)):
        return said
    if refusal := _refusal(parts):
        return refusal
    return _mentioned(parts, choices) or parts[-1]


def _letter(text: str, last: str) -> str:
    """The last letter that the text calls its answer, else the one it brackets last, else the one it begins with."""

    def of(matches: Iterator[re.Match[str]]) -> list[str]:
        found = [next(group for group in match.groups() if group).upper() for match in matches]
        return [letter for letter in found if letter <= last]

    for pattern in (_SAID, _NAMED):
        if letters := of(pattern.finditer(text)):
            return letters[-1]
    if match := _LEADING.match(text):
        if match[1] <= last:
            return match[1]
    letters = of(_BRACKETED.finditer(text))
    return letters[-1] if letters else ""


def _is_yes_or_no(choices: tuple[str, ...]) -> bool:
    return {choice.strip().lower() for choice in choices} == {"yes", "no"}


def _leading_yes_or_no(text: str, choices: tuple[str, ...]) -> str:
    match = re.match(r"\W*(yes|no)\b(?!\s+(?:information|data|one|image|answer))", text, re.IGNORECASE)
    return next((choice for choice in choices if match and choice.strip().lower() == match[1].lower()), "")


def _refusal(parts: list[str]) -> str:
    """The words in which one of the last sentences says that there is no answer."""
    for part in reversed(parts[-2:]):
        for pattern, words in _REFUSALS:
            if match := pattern.search(part):
                return words.format(*match.groups()) if match.groups() else words
    return ""


def _mentioned(parts: list[str], choices: tuple[str, ...]) -> str:
    """The choice that the last sentence to speak of one names: behind its verb, else the only or last one."""
    for part in reversed(parts):
        places = _places(part, choices)
        if not places:
            continue
        said = re.search(
            r"\b(?:is|are|was|were|be|equals?|called|has|shows?)\b(?!.*\b(?:is|are|was|were|be)\b)|=(?!.*=)", part
        )
        behind = [choice for place, choice in places if said and place >= said.end()]
        return behind[0] if behind else places[-1][1]
    return ""


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
    return re.sub(r"\s+", " ", text.replace("$", "").lower()).strip().rstrip(".")


def _value(text: str) -> float | None:
    match = _NUMBER.search(text)
    rest = (text[: match.start()] + text[match.end() :]).strip(" °%$.") if match else "none"
    return float(match[0].replace(",", "")) if match and len(rest) <= 6 and not re.search(r"[\\√π^/*]", rest) else None


# -------------------------------------------------------------------------------------------------------------- numbers

_NUMBER = re.compile(r"(?<![\w.])-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+)?(?<=\d)")
_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
)
_WORDS += "eighteen nineteen twenty"
_WORD_VALUES = {word: str(value) for value, word in enumerate(_WORDS.split())} | {
    "no": "0",
    "none": "0",
    "a dozen": "12",
}
_WORD = re.compile(rf"\b(?:{'|'.join(_WORDS.split())})\b", re.IGNORECASE)
_SAID_NUMBER = re.compile(r"(?i:answer|答案)[^.。\n]{0,80}?(?i:\bis|\bbe|:|：|是|为)(.*)", re.DOTALL)
_COUNTED = re.compile(
    r"\b(?:there (?:is|are|were|was|would be|will be)|leaves|left with)\s+(?:\w+\s+){0,2}?", re.IGNORECASE
)
_LEADING_NUMBER = re.compile(r"^(?:(?:so|thus|therefore|hence|then|overall)\b,?\s*)?(?:only\s+)?", re.IGNORECASE)
_ABOUT = r"\s*(?:(?:approximately|about|around|only|exactly|also|just|now|then|equal to)\s+)*"
_STATED = re.compile(rf"(?:\b(?:is|are|was|were|be|equals?|equal to)\b|[:≈=是为])(?:{_ABOUT})", re.IGNORECASE)
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
    said = list(_SAID_NUMBER.finditer(text))
    for match in reversed(said):
        if number := _NUMBER.search(sentences(match[1])[0]):
            return _clean(number[0])
    parts = sentences(text)
    if refusal := _refusal(parts[-1:]):
        return refusal
    for part in reversed(parts):
        if number := _said_in(part):
            return number
    return _refusal(parts) or ""


def _said_in(sentence: str) -> str:
    """The number that a sentence states: counted, right of its last = or verb, else its last one."""
    numbers = list(_NUMBER.finditer(sentence))
    if not numbers:
        words = _WORD.findall(sentence)
        return _WORD_VALUES[words[0].lower()] if words else ""
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


def _text(text: str) -> str:
    """What the text calls its answer, else its last line."""
    said = _SAID_TEXT.findall(text)
    found = said[-1] if said else text.splitlines()[-1]
    return found.strip().strip('*"“”').strip()
