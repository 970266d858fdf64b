"""The answer in a model's free response, by rules alone.

MathVista and others let a language model take the answer out of a response; these rules stand in for it, so that a
score needs no judge and is the same tomorrow. In order: our own answer block, a box, MathVista's published shortcuts
(the response is a choice or a number), then what a sentence says. A refusal gives words ("N/A"), for MathVista's rule
reads a choice out of any text. They agree with the published extractions on 93.5 % of GPT-4's worked solutions and on
89.8 % of LLaVAR's sentences; most of the rest are guesses where the response has no answer (`scoring.disagreements`).
"""

import re
from typing import Literal, NamedTuple

from vr1lib.benchmarks import sentences

Kind = Literal["option", "integer", "float", "list", "yes or no", "text"]


class Wanted(NamedTuple):
    """What a question asks for; `choices` are an option question's texts, none where they are only in the picture."""

    kind: Kind
    choices: tuple[str, ...] = ()


MAX_READ = 4_000  # characters of a response's end that are looked at: an answer stands at the end of a long one
MOST = 0.6  # of a choice's words
MAX_CUES = 8  # places where a text calls something its answer
_BLOCK = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)
_AUTHORS = re.compile(r"<answer> Final Answer:(.*?) </answer>", re.DOTALL)
_PREFIX = re.compile(r"\s*(?:\*\*)?final answer\s*[:：]\s*", re.IGNORECASE)
_TOKENS = re.compile(r"</?s>|<\|[a-z_]{1,30}\|>|\*\*|\\[,!;]")
_WRAPPED = re.compile(r"\\(?:text(?:bf|it|rm)?|math(?:rm|bf))\s*\{([^{}]*)\}")


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
    text = _WRAPPED.sub(r"\1", _TOKENS.sub("", response[-MAX_READ:])).replace("−", "-")
    text = re.sub(r"[^\S\n]+", " ", text).strip()
    if block := answer_block(text):
        return _read(last_boxed(block) or block, wanted) or block
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


# -------------------------------------------------------------------------------------------------------------- options

_ANSWER_WORDS = r"(?:answer|choice|option|solution|选项|选择|答案|故选|选)"
_SAID = re.compile(
    rf"(?i:{_ANSWER_WORDS}(?:(?![.。\n]\s).){{0,60}}?(?:\bis\b|\bbe\b|:|：|是|为|应为|选))"
    r"\s*(?i:most likely\s+|therefore\s+)?(?i:option\s+|choice\s+|the\s+)?"
    r"(?:[*\"'“$]*[(（\[]\s*([A-Ha-h])\s*[)）\]]|[*\"'“$]*([A-H])(?![A-Za-z0-9'’])|([a-h])(?=[).:]?\s*$|\)))"
)
_NAMED = re.compile(
    r"(?:(?i:\b(?:option|choice|choose|select|pick)\s+)|选项?\s*)[(（]?([A-H])[)）]?(?![A-Za-z0-9'’])"
    r"(?!\W+(?:is|are|was|would|can|does)(?:n't|not| not| wrong| incorrect| false))"
)
_BRACKETED = re.compile(r"(?<!\w)(?<!not )(?<!side )(?<!point )(?<!angle )(?<!line )[(（]\s*([A-Ha-h])\s*[)）]")
_LEADING = re.compile(
    r"[*\"'\s]*[(（\[]?([A-H])[)）\]]?(?:\s*[.:,，、;\-–]\s|\s*[.)）]|\s*\n|\s*$|\s+[(（])|([a-h])[.):](?:\s|$)"
)
_LISTED = re.compile(r"^[ \t]*[(（]?[A-Z][)）.:][ \t]*(\S.*)$", re.MULTILINE)


def _option(text: str, choices: tuple[str, ...]) -> str:
    """The option's letter or text, a refusal's words, or what the sentence that matters most says."""
    if text in choices:
        return text
    if letter := _letter(text, chr(ord("A") + len(choices) - 1) if choices else "H"):
        return letter
    text = _without_echo(text, choices)
    if not text:
        return ""
    parts = sentences.split(text)
    weighed = sentences.by_weight(parts)
    if {choice.strip().lower() for choice in choices} == {"yes", "no"}:
        word = _opening_yes_or_no(text)
        if not word and (words := sentences.undecided(parts)):
            return words
        word = word or (_affirmed(weighed[0]) if weighed else "")
        return next((choice for choice in choices if choice.strip().lower() == word), "")
    if words := sentences.refusal(parts):
        return words
    if number := _number_option(sentences.by_weight(parts, reasons_follow=False), choices):
        return number
    found = _mentioned(weighed, choices) or _by_own_words(weighed, choices)
    return _unmistakable(found, choices) if found else _stated_text(weighed, choices) or text


def _unmistakable(choice: str, choices: tuple[str, ...]) -> str:
    """A choice's text, but its letter where that text is itself a letter in brackets, which would be read as one."""
    return "ABCDEFGH"[choices.index(choice) % 8] if _BRACKETED.search(choice) else choice


def _letter(text: str, last: str) -> str:
    """The last letter that the text calls its answer, its first, or one in brackets."""
    if re.fullmatch("[A-Ha-h]", text):
        return text.upper()
    for pattern in (_SAID, _NAMED):
        if found := [next(filter(None, match.groups())).upper() for match in pattern.finditer(text)]:
            return found[-1]
    leading = _LEADING.match(text)
    if len(_LISTED.findall(text)) > 1:  # the options once more
        return ""
    if leading and (letter := (leading[1] or leading[2]).upper()) <= last:
        return letter
    parts = sentences.split(text)
    for part in (*sentences.by_weight(parts)[:1], parts[-1], parts[0]):
        within = {match[1].upper() for match in _BRACKETED.finditer(part)}
        if len(within) == 1 and (letter := within.pop()) <= last:
            return letter
    return ""


def _without_echo(text: str, choices: tuple[str, ...]) -> str:
    """What a text says behind the options, should it list them once more."""
    listed = {sentences.plain(choice) for choice in choices}
    echoes = [match.end() for match in _LISTED.finditer(text) if sentences.plain(match[1]) in listed]
    return text[echoes[-1] :].strip() if len(echoes) > 1 else text


def _opening_yes_or_no(text: str) -> str:
    match = re.match(r"\W*(yes|no)\b(?!\s+(?:information|data|one|image|answer))", text, re.IGNORECASE)
    return match[1].lower() if match else ""


_NEGATED = re.compile(r"\b(?:not|no|never|neither|none|cannot|false)\b|n't\b", re.IGNORECASE)


def _affirmed(sentence: str) -> str:
    """Yes or no of a statement that says neither word: by its being negated."""
    statement = sentence.rpartition(", but ")[2]
    word = yes_or_no(statement).lower()
    return word if word != "unknown" else "no" if _NEGATED.search(statement) else "yes"


def _number_option(weighed: list[str], choices: tuple[str, ...]) -> str:
    """The number that the weightiest sentence with one states, if the choices are numbers; it need be none of them."""
    values = [sentences.value(choice) for choice in choices]
    if None in values or len(set(values)) < 2:
        return ""
    for part in weighed:
        if number := sentences.stated_number(part):
            return next((choice for choice, value in zip(choices, values) if value == sentences.value(number)), number)
    return ""


_IS = re.compile(r"\b(?:is|are|was|were|be|been|equals?|called|shows?|becomes?)\b|=", re.IGNORECASE)


def _mentioned(weighed: list[str], choices: tuple[str, ...]) -> str:
    """The choice that the weightiest sentence to speak of one names: behind its last verb, else the last one."""
    for text in (sentences.plain(clause) for part in weighed for clause in sentences.compared(part)):
        if places := _places(text, choices):
            said = max((match.end() for match in _IS.finditer(text) if match.end() <= places[-1][0] + 1), default=0)
            return next((choice for place, choice in places if place >= said), places[-1][1])
    return ""


def _by_own_words(weighed: list[str], choices: tuple[str, ...]) -> str:
    """The one choice whose words (but those that every choice has) a sentence uses, in any form: all, or else most."""
    words = [sentences.stems(choice) if re.search(r"[^\W\d_]{2}", choice) else set() for choice in choices]
    common = set.intersection(*words) if words else set()
    said = [sentences.stems(clause) for part in weighed for clause in sentences.clauses(part)]
    for enough in (1.0, MOST):
        for used in said:
            shares = [len((own - common) & used) / max(len(own - common), 1) for own in words]
            best = max(shares, default=0.0)
            if best >= enough and shares.count(best) == 1:
                return choices[shares.index(best)]
    return ""


def _places(text: str, choices: tuple[str, ...]) -> list[tuple[int, str]]:
    """Where a plain text mentions choices, as words or as equal numbers; not inside a longer choice's mention."""
    places, rest = [], text
    names = [(sentences.plain(name), choice) for choice in choices for name in choice.split(";")]
    for name, choice in sorted(names, key=lambda pair: len(pair[0]), reverse=True):
        if name:
            pattern = rf"(?<![\w.√])(?<!not ){re.escape(name)}(?![\w√]|\.\d)" if name[0].isascii() else re.escape(name)
            pattern += r"(?! [a-z]{3})" if name == "a" else ""  # the article
            places += [(match.start(), choice) for match in re.finditer(pattern, rest)]
            rest = re.sub(pattern, "\0" * len(name), rest)
    if not places:
        numbers = {sentences.value(choice): choice for choice in reversed(choices)}
        found = [(match.start(), sentences.value(match[0])) for match in sentences.NUMBER.finditer(text)]
        places = [(place, numbers[value]) for place, value in found if value in numbers]
    return sorted(places)


def _stated_text(weighed: list[str], choices: tuple[str, ...]) -> str:
    """What the weightiest sentence says behind its last verb or "="; the sentence itself where choices are words."""
    if not weighed:
        return ""
    sentence = sentences.clauses(weighed[0])[0]
    verbs = list(_IS.finditer(sentence))
    if not verbs or not all(re.search(r"\d", choice) for choice in choices):
        return weighed[0]
    return re.sub(r",? (?:or|and)\b.*", "", sentence[verbs[-1].end() :]).strip(" $.:*") or weighed[0]


# ------------------------------------------------------------------------------------------------- numbers and lists

_QUOTED = re.compile(r'The answer is "(.*)"\.')
_FRACTION = re.compile(r"\\[dt]?frac\s?\{(\d+)\}\s?\{(\d+)\}")
_SAID_NUMBER = re.compile(r"(?i:answer|答案)[^.。\n]{0,80}?(?i:\bis|\bbe|:|：|是|为)")


def _number(text: str, kind: Kind) -> str:
    """The number that is the answer; a refusal's words or nothing where there is none."""
    try:
        return str(int(text) if kind == "integer" else float(text))
    except (ValueError, OverflowError):
        pass
    if quoted := _QUOTED.search(text):
        return quoted[1]
    text = _FRACTION.sub(r"\1/\2", text)
    for match in list(_SAID_NUMBER.finditer(text))[: -MAX_CUES - 1 : -1]:
        said = sentences.split(text[match.end() :].lstrip() or " ")[0]
        if sentences.NUMBER.search(said):
            return sentences.stated_number(said)
    parts = sentences.split(text)
    if words := sentences.refusal(parts[-1:]):
        return words
    return sentences.answer_number(parts) or sentences.refusal(parts)


def _list(text: str) -> str:
    """The last list in square brackets, else the last sentence's numbers."""
    if brackets := re.findall(r"\[[^\[\]]*\]", text):
        return brackets[-1]
    parts = sentences.split(text)
    numbers = [sentences.plain_number(number) for number in sentences.NUMBER.findall(parts[-1])]
    return f"[{', '.join(numbers)}]" if numbers else sentences.refusal(parts) or text


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
