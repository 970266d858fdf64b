"""Is a final answer right? One rule for the data filter, the reward and the benchmarks.

The paper's reward asks only for a correct final answer (Section 3.4); what is correct is our own rule. An option is
named by its letter, by its whole text or by a value that equals its value alone. A value is compared as a value
(`values`), everything else as a text. An answer that names two different things is wrong, so is what cannot be read.

Nothing raises, hangs or grows whatever the answer: every step is bounded by the limits here and in `expressions`, so no
timeout is needed and the grader works in notebooks, threads and processes alike.
"""

import re
import string
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from vr1lib.values import MAX_PARTS, MAX_TEXT, SEQUENCE, Value, read_value, repair, same_value, undress

MAX_BRACES = 200  # an answer with more, or with more than MAX_TEXT characters, is right only if it is the gold itself
MAX_EXTRACTED = 200  # characters of the answer that are shown


class AnswerGrade(NamedTuple):
    """The verdict, the answer as read (an option's letter, else the text) and a few words on why."""

    ok: bool
    extracted: str | None
    reason: str


# ----------------------------------------------------------------------------------------------------- texts and values

_PUNCTUATION = "".join(set(string.punctuation) - set("+-!%<>=^|/\\()[]{}$")) + "“”‘’«»。，、；：？…·¿¡ "
_DRESS = re.compile(r"[\\{}$%]")
_BRACES_AND_DOLLARS = re.compile(r"[{}$]")
_WORD = re.compile(r"[^\W\d_]+\d{0,3}")
_LONE_LETTER = re.compile(r"(?<![^\W\d_\\])[^\W\d_](?![^\W\d_])")
_WORDY = re.compile(r"[0-9:. ]*[^\W\d_]{2,}\.?|[^\W\d_]+(?:[ ,]+[^\W\d_]+)*")
_RESTATED = re.compile(r"(\S.{0,80}?)\s+\((.{1,80})\)")


def text_key(text: str) -> str:
    """A text for comparison: no case, LaTeX dress, surrounding blanks and punctuation; single blanks between words.

    Punctuation that means something stays: a sign, !, %, the point of .5, and all of it where there is nothing else.
    """
    if len(text) > MAX_TEXT:
        return text.strip()
    if _DRESS.search(text):
        text = _BRACES_AND_DOLLARS.sub("", undress(text.replace(r"\%", "%").replace(r"\$", "")))
    text = " ".join(text.replace("–", "-").replace("—", "-").split())
    bare = text.strip(_PUNCTUATION)
    if len(bare) > 2 and bare[0] + bare[-1] in ("()", "[]") and not re.search(r"[()\[\],;]", bare[1:-1]):
        bare = bare[1:-1].strip(_PUNCTUATION)
    if bare[:1].isdigit() and text[: text.index(bare)].endswith("."):
        bare = "." + bare
    return (bare or text).replace("\u212a", "\ue00a").casefold()  # the Kelvin sign would fold to k


def same_text(predicted: str, gold: str) -> bool:
    key, other = text_key(predicted), text_key(gold)
    if key == other:
        return True
    if any(sign in side for side in (key, other) for sign in "\\^×") or SEQUENCE.fullmatch(other):  # blanks say nothing
        key, other = (re.sub(r"\\times|×", "x", re.sub(r"\s+", "", side)) for side in (key, other))
    return key == other


def matches(predicted: str, gold: str) -> bool:
    """Whether a predicted answer is the gold answer: as a value if the gold is one, else as a text."""
    if predicted == gold:
        return True
    gold_value = _gold_value(gold)
    if gold_value is None:
        return same_text(predicted, gold)
    if _WORDY.fullmatch(gold) and text_key(predicted) == text_key(gold):  # 3:30 PM, W and Z
        return True
    if _same_values(read_value(predicted), gold_value):
        return True
    if _LONE_LETTER.search(gold) and _same_values(read_value(predicted, algebra=True), read_value(gold, algebra=True)):
        return True
    restated = _RESTATED.fullmatch(predicted)  # 1/2 (0.5)
    return restated is not None and all(_same_values(read_value(text), gold_value) for text in restated.groups())


def _same_values(predicted: Value | None, gold: Value | None) -> bool:
    return predicted is not None and gold is not None and same_value(predicted, gold)


def _gold_value(gold: str) -> Value | None:
    """The gold's value; None for words and names, which are texts."""
    key = text_key(gold)
    if _WORD.fullmatch(key) and "\\" not in gold and key not in ("π", "pi"):
        return None
    return read_value(gold)


# -------------------------------------------------------------------------------------------------------------- options

_LETTER = re.compile(r"(?:(?i:option|choice|answer)\b\s*:?\s*)?[(\[]?\s*([A-Ja-j])\s*[)\]]?[.:,;?…]*")
_LETTER_AND_TEXT = re.compile(
    r"(?:(?i:option|choice|answer)\b\s*:?\s*)?"
    r"(?:\{?[(\[]\s*\{?([A-Ja-j])\}?\s*[)\]]\}?[.:]?|\{?([A-Ja-j])\}?\s?[).:](?![a-z0-9]\.))\s*(\S.*)",
    re.DOTALL,
)
_LETTER_BLANK_TEXT = re.compile(r"(?:(?i:option)\s+)?([A-J])(?:\s+[-–—=]\s+|\s*[–—]\s*|\s+)(\S.*)", re.DOTALL)
_TEXT_AND_LETTER = re.compile(r"(\S.{0,400}?)\s*\(([A-J])\)", re.DOTALL)
_ANOTHER_LABEL = re.compile(r"[(\[]([A-J])[)\]]|(?:^|[\s,;])([A-J])[).:]|\b(?:or|and)\s+([A-J])\b")
_LISTED = re.compile(r"[,;\n&/]|\b(?:and|or)\b", re.IGNORECASE)
_OWN_LABEL = re.compile(r"(?:\(([A-J])\)|([A-J])[).:])\s*(\S.*)", re.DOTALL)
_WIDE = str.maketrans("（）：，；。、．", "():,;.,.")
_PICTURE = re.compile(r"<image\d*>")

TWO = -1  # the place of what names two different options


class Options(NamedTuple):
    """The choices of a question. `pictures`: their texts say nothing (they repeat the labels, or there are none), so a
    text beside a letter cannot contradict it."""

    count: int
    texts: tuple[str, ...]
    keys: tuple[str, ...]
    pictures: bool


def read_options(choices: tuple[str, ...]) -> Options:
    if not choices:
        return Options(10, (), (), True)
    labels = [_read_letter(plain(choice)) if len(choice) < 40 else None for choice in choices]
    pictures = labels == [chr(65 + place) for place in range(len(choices))]
    pictures = pictures or all(_PICTURE.fullmatch(choice.strip()) for choice in choices)
    labelled = [_OWN_LABEL.fullmatch(choice.strip()) for choice in choices]
    if all(match and (match[1] or match[2]) == chr(65 + place) for place, match in enumerate(labelled)):
        choices = tuple(match[3] for match in labelled)  # "A. 12", "B. 13"
    return Options(len(choices), tuple(map(str.strip, choices)), tuple(map(text_key, choices)), pictures)


def plain(text: str) -> str:
    """A text without LaTeX's and Markdown's dress (braces stay), for finding option letters."""
    if "\\" in text or "$" in text:
        text = undress(text).replace("$", "")
    if not text.isascii():
        text = text.translate(_WIDE)
    return " ".join(text.replace("**", "").split()).strip("\"'`*_“”‘’ ")


def _read_letter(text: str) -> str | None:
    """The letter a plain text consists of: C, (C), c., {C}, Option C."""
    match = _LETTER.fullmatch(text.replace("{", "").replace("}", "")) if len(text) < 40 else None
    return match[1].upper() if match else None


def _place(letter: str | None, options: Options) -> int | None:
    place = ord(letter.upper()) - ord("A") if letter else options.count
    return place if place < options.count else None


def labelled_option(text: str, options: Options) -> int | None:
    """The place of the option that a plain text names by its letter, alone or with a text beside it.

    TWO if the text beside it is not that option's own; None if no letter names an option.
    """
    if len(text) > 1 and options.texts.count(text) == 1:  # an option's whole text, whatever it begins with
        return None
    place = _place(_read_letter(text), options)
    if place is not None:
        return place
    if text_key(text) in options.keys:
        return None
    if match := _LETTER_AND_TEXT.fullmatch(text):
        place = _place(match[1] or match[2], options)
        return place if place is None or _goes_with(match[3], place, options) else TWO
    if options.pictures:
        return None
    for pattern, letter, rest in ((_LETTER_BLANK_TEXT, 1, 2), (_TEXT_AND_LETTER, 2, 1)):
        match = pattern.fullmatch(text)
        place = _place(match[letter], options) if match else None
        if match and place is not None and _goes_with(match[rest], place, options):
            return place
    return None


def _goes_with(text: str, place: int, options: Options) -> bool:
    """Whether a text beside an option's letter is that option's own, or (options are pictures) names no other."""
    key = text_key(text)
    if key in options.keys:
        return options.keys[place] == key
    if options.pictures:
        letter = chr(65 + place)
        others = {label for labels in _ANOTHER_LABEL.findall(text) for label in labels if label and label != letter}
        return not others and _read_letter(text) in (None, letter)
    return matches(text, options.texts[place])


def named_option(prediction: str, options: Options) -> int | None:
    """The place of the one option an answer names by letter, whole text or value; TWO if it contradicts itself."""
    text = plain(prediction)
    place = labelled_option(text, options)
    if place is None:
        place = _option_by_text(prediction, options)
    return place if place is not None else _option_of_list(text, options)


def _option_by_text(prediction: str, options: Options) -> int | None:
    """The one option whose whole text the answer is, else the one whose value it equals."""
    key = text_key(prediction)
    if key in options.keys:
        return options.keys.index(key) if options.keys.count(key) == 1 else None
    if options.pictures:
        return None
    equal = [place for place, choice in enumerate(options.texts) if matches(prediction, choice)]
    return equal[0] if len(equal) == 1 else None


def _option_of_list(text: str, options: Options) -> int | None:
    """The option that all parts of a list name (`B, Tuesday`), TWO if they name different ones (`A or B`)."""
    parts = [part.strip() for part in _LISTED.split(text) if part.strip()]
    if not 2 <= len(parts) <= MAX_PARTS:
        return None
    places = set()
    for part in parts:
        place = labelled_option(part, options)
        if place is None:
            place = _option_by_text(part, options)
        if place is None:
            return None
        places.add(place)
    return places.pop() if len(places) == 1 else TWO


# -------------------------------------------------------------------------------------------------------------- verdict

_PREFIX = re.compile(
    r"(?:\*\*)?(?:final answer\s*:|the (?:final )?answer is\b\s*:?|answer\s*:)\s*(?:\*\*)?\s*", re.IGNORECASE
)
_GOLD_LETTER = re.compile(r"[A-J]")
_BARE_LETTER = re.compile(r"[A-Ja-j]")
_PLAIN_NUMBER = re.compile(r"-?\d{1,40}(?:\.\d{1,40})?", re.ASCII)


class Gold(NamedTuple):
    """What the gold answer is: an option's place, or a text with, if it is a plain number, its value."""

    text: str
    option: int | None
    options: Options
    number: Fraction | None


def _read_gold(answer: str, choices: tuple[str, ...]) -> Gold:
    text = _drop_prefix(repair(answer))
    options = read_options(tuple(map(repair, choices)))
    option = None
    if _GOLD_LETTER.fullmatch(text):
        option = _place(text, options)
        if option is None and text_key(text) not in options.keys:  # more letters than choices: the letter alone counts
            options = read_options(())
            option = _place(text, options)
    return Gold(text, option, options, Fraction(text) if _PLAIN_NUMBER.fullmatch(text) else None)


def _drop_prefix(text: str) -> str:
    """The answer without `Final Answer:`, `The answer is`, `Answer:` and blanks around it."""
    text = text.strip()
    for _ in range(4):  # Final Answer: The answer is …
        match = _PREFIX.match(text)
        if match is None:
            break
        text = text[match.end() :]
    return text


_read_gold_cached = lru_cache(maxsize=8192)(_read_gold)


def grade_answer(prediction: str, answer: str, choices: Sequence[str] | None = None) -> AnswerGrade:
    """Grade a final answer (the text of the answer block) against the gold one. Never raises, whatever the texts.

    `answer` is an option letter (A-J), a value or a text; `choices` are the options' texts in order, or None.
    """
    text = _drop_prefix(repair(prediction))
    texts = tuple(choices) if choices else ()
    small = len(answer) + sum(map(len, texts)) <= MAX_TEXT
    gold = _read_gold_cached(answer, texts) if small else _read_gold(answer, texts)
    if not text:
        return AnswerGrade(False, None, "nothing after the prefix")
    extracted = _shown(text, MAX_EXTRACTED)
    if len(text) > MAX_TEXT or text.count("{") > MAX_BRACES:
        return AnswerGrade(text == gold.text, extracted, "same text" if text == gold.text else "too long")
    if gold.option is not None:
        return _grade_option(text, extracted, gold)
    if text == gold.text:
        return AnswerGrade(True, extracted, "same text")
    if gold.number is not None and _PLAIN_NUMBER.fullmatch(text):
        ok = Fraction(text) == gold.number
        return AnswerGrade(ok, extracted, f"number: {text} {'=' if ok else '≠'} {gold.text}")
    return _grade_value(text, extracted, gold)


def _grade_option(text: str, extracted: str, gold: Gold) -> AnswerGrade:
    letter = chr(65 + gold.option)
    place = _place(text, gold.options) if _BARE_LETTER.fullmatch(text) else None
    if place is None:
        place = named_option(text, gold.options)
    if place is None:
        return AnswerGrade(False, extracted, f"names no option, gold {letter}")
    if place == TWO:
        return AnswerGrade(False, extracted, "two answers")
    named = chr(65 + place)
    return AnswerGrade(named == letter, named, f"option {named}, gold {letter}")


def _grade_value(text: str, extracted: str, gold: Gold) -> AnswerGrade:
    options = gold.options
    place = labelled_option(plain(text), options) if options.texts else None
    if place == TWO:
        return AnswerGrade(False, extracted, "two answers")
    if place is not None:  # the letter of the one option that is the gold
        key, named = text_key(gold.text), chr(65 + place)
        golds = [other for other, choice in enumerate(options.keys) if choice == key]
        golds = golds or [other for other, choice in enumerate(options.texts) if matches(choice, gold.text)]
        return AnswerGrade(golds == [place], named, f"option {named} is {_shown(options.texts[place])}")
    ok = matches(text, gold.text)
    return AnswerGrade(ok, extracted, "equal" if ok else _difference(text, gold))


def _difference(text: str, gold: Gold) -> str:
    parts = _LISTED.split(text)[:MAX_PARTS]
    if len(parts) > 1 and any(matches(part.strip(), gold.text) for part in parts):
        return "two answers"
    kind = "text" if _gold_value(gold.text) is None else "unreadable" if read_value(text) is None else "value"
    return f"{kind}: not {_shown(gold.text)}"


def _shown(text: str, length: int = 60) -> str:
    """A text cut to a length, in characters that can be written to a file."""
    text = text if len(text) <= length else text[: length - 1] + "…"
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
