"""Which of a question's options a free response chooses, by rules: a letter, a text, or words that only one has."""

import re

from vr1lib.benchmarks import sentences

MOST = 0.6  # of a choice's words

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


def choose(text: str, choices: tuple[str, ...], question: str = "") -> str:
    """The option's letter or text, a refusal, or what the sentence that matters most says.

    `choices` are the options' texts, none where they are unknown; `question` serves a yes or no that the text only
    implies.
    """
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
        if not word and (refusal := sentences.undecided(parts)):
            return refusal
        word = word or (_affirmed(weighed[0], question) if weighed else "")
        return next((choice for choice in choices if choice.strip().lower() == word), "")
    if refusal := sentences.refusal(parts):
        return next((choice for choice in choices if sentences.refusal([choice])), refusal)
    if number := _number_option(sentences.by_weight(parts, reasons_follow=False), choices):
        return number
    found = _clock_word(weighed, choices) or _mentioned(weighed, choices) or _by_own_words(weighed, choices)
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

_MORE = re.compile(
    r"\b(?:more|most|greater|larger|bigger|higher|longer|taller|wider|heavier|older|full|open|odd|above|increas\w+)\b",
    re.IGNORECASE,
)
_LESS = re.compile(
    r"\b(?:less|least|fewer|smaller|lower|shorter|narrower|lighter|younger|empty|closed|even|below|decreas\w+)\b",
    re.IGNORECASE,
)
_SAME = re.compile(r"\b(?:same|equal|as (?:many|much) as)\b", re.IGNORECASE)


def _affirmed(sentence: str, question: str) -> str:
    """Yes or no of a statement that says neither word: no if negated, or less or the same where more is asked."""
    statement = sentence.rpartition(", but ")[2]
    word = yes_or_no(statement).lower()
    if word != "unknown":
        return word
    asked, said = _direction(question), _direction(statement)
    denied = _NEGATED.search(statement) or asked * said < 0 or asked and not said and _SAME.search(statement)
    return "no" if denied else "yes"


def _direction(text: str) -> int:
    """1 for a text with words for more and none for less, -1 for the reverse, else 0."""
    return bool(_MORE.search(text)) - bool(_LESS.search(text))


_QUARTERS = ("o'clock", "quarter past", "half", "quarter to")
_CLOCK = re.compile(r"\b\d{1,2}:([0-5]\d)\b")


def _clock_word(weighed: list[str], choices: tuple[str, ...]) -> str:
    """Where the choices are words for a clock's quarters: the one nearest to a time in figures, if no word is said."""
    if not set(_QUARTERS) <= set(choices) or any(choice in part for part in weighed for choice in choices):
        return ""
    minutes = [int(match[1]) for part in weighed for match in _CLOCK.finditer(part)]
    return _QUARTERS[round(minutes[0] / 15) % 4] if minutes else ""


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
            if fuller := _fuller(text, {choice for _, choice in places}, choices):
                return fuller
            said = max((match.end() for match in _IS.finditer(text) if match.end() <= places[-1][0] + 1), default=0)
            return next((choice for place, choice in places if place >= said), places[-1][1])
    return ""


def _fuller(text: str, named: set[str], choices: tuple[str, ...]) -> str:
    """A choice whose words are all said, though apart, and hold those of one that is named: slightly decrease."""
    said = sentences.stems(text)
    for choice in choices:
        words = sentences.stems(choice)
        if choice not in named and words <= said and any(sentences.stems(name) < words for name in named):
            return choice
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


def yes_or_no(text: str) -> str:
    """Yes or No if the words of the text have one and not the other, else Unknown: VLMEvalKit's rule for MME."""
    words = set(re.sub(r"[^\w\s]", " ", text.lower()).split())
    if ("yes" in words) != ("no" in words):
        return "Yes" if "yes" in words else "No"
    return "Unknown"
