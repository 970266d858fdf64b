"""Is a final answer right? One rule for the data filter, the reward and the benchmarks.

The paper's reward asks only for a correct final answer (Section 3.4); what is correct is our own rule, in this order:
an option is named by its letter, by its whole text or by a value equal to its value alone; a value is compared as a
value (numbers with their units, ordered pairs, sets, intervals, ratios, equations, inequalities); everything else is
compared as text. An answer that names two different things is wrong, and what cannot be read is wrong.

`expressions` reads and compares the mathematics under limits, so a hostile answer costs milliseconds.
"""

import re
import string
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from vr1lib import expressions, units
from vr1lib.expressions import Node, Unreadable
from vr1lib.units import Unit

MAX_ANSWER = 2000  # characters; a longer answer is right only if it is the gold itself
MAX_BRACES = 200  # and so is one with more braces
MAX_EXTRACTED = 200
MAX_PARTS = 40  # of a list, and bracketed levels in it


class AnswerGrade(NamedTuple):
    """The verdict, the answer as read (an option's letter, else the text) and a few words on why."""

    ok: bool
    extracted: str | None
    reason: str


class Quantity(NamedTuple):
    """A number or expression with its unit. `places`: the printed decimal places, None if it is exact."""

    node: Node
    unit: Unit | None
    places: int | None


class Collection(NamedTuple):
    """Several values. `brackets` is "" for a bare list, "{}" for a set, else as written: "()", "[)", …"""

    items: tuple["Value", ...]
    brackets: str


class Ratio(NamedTuple):
    """`clock`: it may also be a time of day (4:30)."""

    parts: tuple[Quantity, ...]
    clock: bool


class Union(NamedTuple):
    """Intervals joined by ∪."""

    parts: tuple["Value", ...]


class Side(NamedTuple):
    """One side of a relation: its text without blanks and its value, if it has one."""

    text: str
    value: "Value | None"


class Equation(NamedTuple):
    """`name = value`, or with `name` None a general equation between its sides."""

    name: str | None
    sides: tuple[Side, ...]


class Inequality(NamedTuple):
    """An ascending chain: sides[0] < sides[1] …; `strict` tells < from ≤ for each step."""

    sides: tuple[Side, ...]
    strict: tuple[bool, ...]


Value = Quantity | Collection | Ratio | Union | Equation | Inequality

# ------------------------------------------------------------------------------------------------------ from text to value

_SIGNS = {
    "\u00a0": " ", "\u202f": " ", "\u2007": " ", "\u2009": " ", "\u3000": " ",
    "−": "-", "×": "*", "·": "*", "⋅": "*", "∙": "*", "÷": "/", "π": r"\pi ", "√": r"\sqrt ", "∛": r"\cbrt ", "∞": r"\infty ",
    "≤": "<=", "⩽": "<=", "≥": ">=", "⩾": ">=", "≠": "!=", "≈": "=", "±": r"\pm ", "∪": r"\cup ", "∈": r"\in ",
    "∠": r"\angle ", "△": r"\triangle ", "∶": ":", "：": ":", "，": ",", "；": ";", "（": "(", "）": ")", "％": "%",
    "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}",
    "⅕": r"\frac{1}{5}", "⅖": r"\frac{2}{5}", "⅗": r"\frac{3}{5}", "⅘": r"\frac{4}{5}", "⅙": r"\frac{1}{6}",
    "⅚": r"\frac{5}{6}", "⅛": r"\frac{1}{8}", "⅜": r"\frac{3}{8}", "⅝": r"\frac{5}{8}", "⅞": r"\frac{7}{8}",
}  # fmt: skip
_SIGN_TABLE = str.maketrans(_SIGNS)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_SUPERSCRIPT_RUN = re.compile("[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_TEXT_COMMANDS = frozenset(
    "text textbf textit textrm textsf texttt textnormal textup emph mathrm mathbf mathit mathsf mathtt mathbb boldsymbol mbox"
    " hbox operatorname bm rm bf it boxed fbox framebox underline".split()
)
_COMMAND = re.compile(r"\\([a-zA-Z]+)\*?|\\(.)|([{}])", re.DOTALL)
_DELIMITERS = re.compile(r"\\(?:left|right|[bB]igg?[lrm]?|middle)(?![a-zA-Z])\.?|\\[()\[\]!]|\\(?:hline|displaystyle)\b")
_BLANKS = re.compile(r"\\(?:[,;:> ]|quad\b|qquad\b|enspace\b|\\)|~")
_STRAY_END = re.compile(r"(?:\s*\\\\|\s+\\\$|\\)\s*$|(?:\s*\\\\)(?=\$$)")
_PHANTOM = re.compile(r"\\(?:phantom|hspace|rule)\*?\{(?:[^{}]|\{[^{}]*\}){0,80}\}(?:\{[^{}]{0,20}\})?")
_THOUSANDS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?![\d,]|\.\d*,)")
_SPACED_THOUSANDS = re.compile(r"(?<![\d.,/])(?<![\d.,/] )[1-9]\d{0,2}(?: \d{3})+(?![\d/]| \d| ?/| ?\\frac)")
_SCIENTIFIC = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)[eE]([+-]?\d{1,6})(?!\w)")
_TIMES = re.compile(r"(?<=\d) ?[xX] ?(?=10 ?(?:\^|\*\*))")
_REPEATING = re.compile(r"(?<!\d)(\d{0,9})\.(\d{0,9})\\(?:overline|dot|bar)\{(\d{1,9})\}")
_RANGE = re.compile(r"\d+(?:\.\d+)?(?:\s*[-–—/]\s*\d+(?:\.\d+)?){2,}|\d+(?:\.\d+)?\s*[-–—]\s*\d+(?:\.\d+)?")
_MULTIPLIERS = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_MULTIPLIER = re.compile(rf"^(.*[\d}}])\s*({'|'.join(_MULTIPLIERS)})\b(.*)$", re.IGNORECASE)
_SEPARATOR = re.compile(r"[,;\n&]|(?<![^\W\d_])(?:and|or)(?![^\W\d_])", re.IGNORECASE)
_RELATION = re.compile(r"<=|>=|!=|=|<|>|\\(?:leqslant|geqslant|leq|geq|le|ge|lt|gt|neq|ne|approx|in)(?![a-zA-Z])")
_RELATIONS = {r"\leqslant": "<=", r"\leq": "<=", r"\le": "<=", r"\geqslant": ">=", r"\geq": ">=", r"\ge": ">=",
              r"\lt": "<", r"\gt": ">", r"\neq": "!=", r"\ne": "!=", r"\approx": "=", r"\in": "in"}  # fmt: skip
_CUP = re.compile(r"\\cup(?![a-zA-Z])")
_COLON = re.compile(r":")
_CLOCK = re.compile(r"[012]?\d\s*:\s*[0-5]\d")
_PLUS_MINUS = re.compile(r"\\(pm|mp)(?![a-zA-Z])")
_NAME_WRAPPERS = re.compile(r"\\(?:angle|measuredangle|triangle|overline|overrightarrow|vec|hat|bar)(?![a-zA-Z])|[{}\s]")
_NAME = re.compile(r"(?:\\?[A-Za-z]+'*\d{0,3}(?:_(?:\\?[A-Za-z]+|\d+)+)?)(?:\([A-Za-z0-9,]{1,8}\))?")
_PLAIN_NUMBER = re.compile(r"-?\d{1,40}(?:\.\d{1,40})?", re.ASCII)


def unwrap(text: str) -> str:
    """LaTeX's text and box commands taken off, their content left in place; neighbouring boxes are kept apart."""
    if "\\" not in text:
        return text
    pieces: list[str] = []
    closers: list[str] = []  # what each open brace ends with
    position, opened_box = 0, 0
    for match in _COMMAND.finditer(text):
        if match.start() < position:
            continue
        pieces.append(text[position : match.start()])
        position = match.end()
        command, _, brace = match.groups()
        if command in _TEXT_COMMANDS:
            follower = re.compile(r"\s*\{").match(text, position)
            if follower:
                position = follower.end()
                box = command in ("boxed", "fbox", "framebox")
                if box and opened_box and not "".join(pieces[opened_box:]).strip(" \t\n$"):
                    pieces.append(",")
                pieces.append(" ")
                closers.append("box" if box else " ")
            else:
                pieces.append(" ")
        elif brace == "{":
            closers.append("}")
            pieces.append("{")
        elif brace == "}":
            closer = closers.pop() if closers else "}"
            pieces.append(" " if closer == "box" else closer)
            if closer == "box":
                opened_box = len(pieces)
        else:
            pieces.append(match[0])
    pieces.append(text[position:])
    return "".join(pieces)


@lru_cache(maxsize=4096)
def _clean_short(text: str) -> str:
    return _clean(text)


def clean(text: str) -> str:
    """Mathematics in one spelling: wrappers, spacing commands, thousands separators and unusual signs replaced."""
    return _clean_short(text) if len(text) <= 200 else _clean(text)


def _clean(text: str) -> str:
    text = re.sub(r"[ \t]{2,}", " ", text)
    if not text.isascii():
        text = _SUPERSCRIPT_RUN.sub(lambda run: "^{" + run[0].translate(_SUPERSCRIPTS) + "}", text)
        text = text.translate(_SIGN_TABLE)
    text = _STRAY_END.sub("", unwrap(text))
    text = text.replace(r"\$", "\ue000").replace(r"\%", "%").replace(r"\&", "&")
    if "$" in text:
        if text.count("$") == 1 and re.search(r"\$\s*\d|\d\s*\$$", text):
            text = text.replace("$", "\ue000")
        text = text.replace("$$", " ").replace("$", " ")
    if "\\" in text or "~" in text:
        text = _PHANTOM.sub(" ", text)
        text = text.replace(r"\{", "\ue001").replace(r"\}", "\ue002")
        text = _DELIMITERS.sub("", text)
        text = _BLANKS.sub(" ", text)
        text = _REPEATING.sub(_repeating, text)
    text = text.replace("{,}", ",").replace("\ue000", "$")
    text = _join_thousands(text)
    text = _SCIENTIFIC.sub(r"\1*10^{\2}", _TIMES.sub("*", text))
    return text.strip()


def _repeating(match: re.Match[str]) -> str:
    whole, fixed, repeated = match.groups()
    value = Fraction(int((whole or "0") + fixed + repeated) - int((whole or "0") + fixed), (10 ** len(repeated) - 1) * 10 ** len(fixed))
    return rf"(\frac{{{value.numerator}}}{{{value.denominator}}})"


def _join_thousands(text: str) -> str:
    """1,000 and 1 000 → 1000, but not inside brackets, where a comma separates."""
    if not re.search(r"\d[, ]\d{3}", text):
        return text
    if not any(bracket in text for bracket in "([\ue001"):
        text = _THOUSANDS.sub(lambda match: match[0].replace(",", ""), text)
    return _SPACED_THOUSANDS.sub(lambda match: match[0].replace(" ", ""), text)


def _split(text: str, separator: re.Pattern[str]) -> list[str]:
    """The parts between top-level separators; brackets of any kind may close one another (half-open intervals)."""
    if not separator.search(text):
        return [text]
    depth, start, position, parts = 0, 0, 0, []
    for match in re.finditer(rf"(?P<bracket>[()\[\]{{}}\ue001\ue002])|(?:{separator.pattern})", text, separator.flags):
        if match["bracket"]:
            depth += 1 if match[0] in "([{\ue001" else -1
            if depth < 0:
                raise Unreadable("brackets")
        elif depth == 0 and match.start() >= position:
            parts.append(text[start : match.start()])
            start = position = match.end()
    if depth:
        raise Unreadable("brackets")
    parts.append(text[start:])
    return parts


def read_value(text: str) -> Value | None:
    """The value a text states, or None if it is not a value (a word, a range, a sentence, a limit broken)."""
    return _read_value_short(text) if len(text) <= 200 else _read_value(text)


@lru_cache(maxsize=4096)
def _read_value_short(text: str) -> Value | None:
    return _read_value(text)


def _read_value(text: str) -> Value | None:
    if len(text) > MAX_ANSWER:
        return None
    try:
        return _read(clean(text), 0)
    except Unreadable:
        return None


def _read(text: str, level: int) -> Value:
    if level > 6:
        raise Unreadable("nested too deeply")
    text = _trim(text)
    if not text or _RANGE.fullmatch(text):
        raise Unreadable("not a value")
    parts = _split(text, _SEPARATOR)
    if len(parts) > 1:
        return _read_list(parts, level)
    relation = _read_relation(text, level)
    if relation is not None:
        return relation
    parts = _split(text, _CUP)
    if len(parts) > 1:
        return Union(tuple(_read(part, level + 1) for part in parts[:MAX_PARTS]))
    bracketed = _read_brackets(text, level)
    if bracketed is not None:
        return bracketed
    parts = _split(text, _COLON)
    if len(parts) > 1:
        quantities = [_read_quantity(part.strip()) for part in parts]
        return Ratio(tuple(quantities), _CLOCK.fullmatch(text) is not None)
    if _PLUS_MINUS.search(text):
        upper = _PLUS_MINUS.sub(lambda sign: "+" if sign[1] == "pm" else "-", text)
        lower = _PLUS_MINUS.sub(lambda sign: "-" if sign[1] == "pm" else "+", text)
        return Collection((_read_quantity(upper), _read_quantity(lower)), "")
    return _read_quantity(text)


def _trim(text: str) -> str:
    """Without what says nothing at a value's ends: quotes, a full stop, emphasis, a leading equals sign."""
    text = text.strip(" \t\r\n\"`*_“”‘’#?,;.。、") if text[-1:] in "\"`*_“”‘’#?,;.。、" else text.strip()
    text = text.lstrip("\"`*_“”‘’# ")
    return text[1:].strip() if text.startswith("=") else text


def _read_list(parts: list[str], level: int) -> Value:
    parts = [part for part in (part.strip() for part in parts) if part]
    if not parts or len(parts) > MAX_PARTS:
        raise Unreadable("a list without end")
    items = tuple(_read(part, level + 1) for part in parts)
    return items[0] if len(items) == 1 else Collection(items, "")


def _read_brackets(text: str, level: int) -> Value | None:
    """(a, b), [a, b), {a, b}: brackets around the whole text; None if there are none or they hold a single value."""
    opener, closer = text[0], text[-1]
    if opener not in "([{\ue001" or closer not in ")]}\ue002" or len(text) < 2:
        return None
    depth = 0
    for place, character in enumerate(text):
        depth += (character in "([{\ue001") - (character in ")]}\ue002")
        if depth == 0 and place < len(text) - 1:
            return None
    inside = text[1:-1]
    if not inside.strip():
        raise Unreadable("empty brackets")
    brackets = "{}" if opener in "{\ue001" else opener + closer
    parts = _split(inside, re.compile(r"[,;]"))
    if len(parts) > 1:
        if len(parts) > MAX_PARTS:
            raise Unreadable("a list without end")
        return Collection(tuple(_read(part, level + 1) for part in parts), brackets)
    inner = _read(inside, level + 1)
    return Collection((inner,), brackets) if opener == "\ue001" else inner


def _read_relation(text: str, level: int) -> Value | None:
    if not _RELATION.search(text):
        return None
    texts = _split(text, _RELATION)
    if len(texts) == 1:
        return None
    if len(texts) > MAX_PARTS or not all(part.strip() for part in texts):
        raise Unreadable("a relation with an empty side")
    signs = [_RELATIONS.get(match[0], match[0]) for match in _top_level(text, _RELATION)]
    sides = tuple(_read_side(part, level) for part in texts)
    if all(sign == "=" for sign in signs) or signs == ["in"]:
        names = [_read_name(part) for part in texts]
        named = [name for name, side in zip(names, sides, strict=True) if name and not _is_number(side.value)]
        values = [side for name, side in zip(names, sides, strict=True) if not name or _is_number(side.value)]
        if len(named) == 1 and values and all(side.value is not None for side in values):
            return Equation(named[0], tuple(values))
        return Equation(None, sides)
    if set(signs) <= {">", ">="}:
        sides, signs = sides[::-1], [sign.replace(">", "<") for sign in signs[::-1]]
    if not set(signs) <= {"<", "<="}:
        raise Unreadable("mixed relations")
    return Inequality(sides, tuple(sign == "<" for sign in signs))


def _top_level(text: str, pattern: re.Pattern[str]) -> list[re.Match[str]]:
    depth, matches = 0, []
    for match in re.finditer(rf"(?P<bracket>[()\[\]{{}}\ue001\ue002])|(?:{pattern.pattern})", text):
        if match["bracket"]:
            depth += 1 if match[0] in "([{\ue001" else -1
        elif depth == 0:
            matches.append(match)
    return matches


def _read_side(text: str, level: int) -> Side:
    try:
        value = _read(text, level + 1)
    except Unreadable:
        value = None
    return Side(re.sub(r"\s+", "", text), value)


def _read_name(text: str) -> str | None:
    """The name on one side of an equation: x, x_1, AB, \\angle ABC, f(x), |AB|, (x, y), AB:CD, \\frac{AB}{CD}, Area."""
    fraction = re.fullmatch(r"\s*\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}\s*", text)
    if fraction:
        text = f"{fraction[1]}/{fraction[2]}"
    name = _NAME_WRAPPERS.sub("", text)
    if name.startswith("|") and name.endswith("|"):
        name = name[1:-1]
    if len(name) > 40:
        return None
    inner = name[1:-1] if name.startswith("(") and name.endswith(")") else name
    return name if all(_NAME.fullmatch(part) for part in re.split(r"[,:/](?![^(]*\))", inner)) else None


def _is_number(value: Value | None) -> bool:
    return isinstance(value, Quantity) and not expressions.variables(value.node)


_UNIT_START = re.compile(r"[^\W\d_]|[°%$€£¥₹¢℃℉]")


def _read_quantity(text: str, algebra: bool = False) -> Quantity:
    """A number or an expression, with a unit behind it or a currency sign before it.

    A single letter that could be both (3m) is a unit, unless the rest has variables too or `algebra` is asked for.
    """
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?|\\degree(?![a-zA-Z])", "°", text.strip())
    sign, unit = "", None
    match = re.match(r"([-+]?)\s*([$€£¥₹])\s*", text)
    if match:
        sign, unit = match[1], units.read_unit(units.CURRENCY_SIGNS[match[2]])
        text = text[match.end() :]
    multiplier = 1
    many = _MULTIPLIER.match(text) if re.search("[a-z]", text) else None
    if many:
        multiplier, text = _MULTIPLIERS[many[2].lower()], many[1] + many[3]
    number, found = _split_unit(text, algebra)
    if found is not None and unit is not None and found != unit:
        raise Unreadable("two units")
    unit = found or unit
    node = expressions.read_expression(sign + number)
    if unit is None and expressions.has_degrees(node):
        unit = units.DEGREE
    if unit is not None and not algebra and expressions.variables(node) and _letter_unit(text, number):
        return _read_quantity(text, algebra=True)
    if multiplier != 1:
        return Quantity(expressions.scaled(node, Fraction(multiplier)), unit, None)
    return Quantity(node, unit, expressions.decimal_places(node))


def _letter_unit(text: str, number: str) -> bool:
    return text[len(number) :].strip(" {}") in units.AMBIGUOUS


def _split_unit(text: str, algebra: bool) -> tuple[str, Unit | None]:
    """The number's text and the unit behind it: the longest ending that names one."""
    tried = 0
    for match in _UNIT_START.finditer(text):
        start = match.start()
        if start == 0 or text[start - 1] == "\\" or (text[start - 1].isalpha() and match[0].isalpha()):
            continue
        number, ending = text[:start].rstrip(), text[start:]
        while number.endswith("{") and ending.endswith("}"):  # 8{inches}
            number, ending = number[:-1].rstrip(), ending[:-1]
        if len(ending) > 60 or not number or number[-1] in "^_+-*/\\([{=":
            continue
        tried += 1
        if tried > 12:
            break
        ending = ending.replace("{", "").replace("}", "").replace("\\cdot", "*").strip()
        if algebra and ending in units.AMBIGUOUS:
            continue
        unit = units.read_unit(ending)
        if unit is not None and not (ending in units.AMBIGUOUS and re.search(r"[+\-](?![^(]*\))", number[1:]) and match.start() == len(number)):
            return number, unit
    return text, None


# ------------------------------------------------------------------------------------------------------------ comparison


def same_value(predicted: Value, gold: Value) -> bool:
    """Whether a predicted value is the gold one."""
    if isinstance(predicted, Equation) or isinstance(gold, Equation):
        return _same_equation(predicted, gold)
    if isinstance(predicted, Inequality) or isinstance(gold, Inequality):
        return _same_inequality(predicted, gold)
    if isinstance(predicted, Union) or isinstance(gold, Union):
        parts, others = (side.parts if isinstance(side, Union) else (side,) for side in (predicted, gold))
        return _same_items(parts, others, ordered=False)
    if isinstance(predicted, Collection):
        if isinstance(gold, Collection):
            return _same_collection(predicted, gold)
        return predicted.brackets in ("", "{}") and all(same_value(item, gold) for item in predicted.items)
    if isinstance(gold, Collection):
        return len(gold.items) == 1 and same_value(predicted, gold.items[0])
    if isinstance(predicted, Ratio) or isinstance(gold, Ratio):
        return _same_ratio(predicted, gold)
    return _same_quantity(predicted, gold)


def _same_collection(predicted: Collection, gold: Collection) -> bool:
    """The gold's brackets rule: none or {} compare without order, others keep order and brackets."""
    if gold.brackets == "":
        return _same_items(predicted.items, gold.items, ordered=False)
    if predicted.brackets not in ("", gold.brackets):
        return False
    if gold.brackets == "{}":
        return all(any(same_value(item, other) for other in gold.items) for item in predicted.items) and all(
            any(same_value(item, other) for item in predicted.items) for other in gold.items
        )
    return _same_items(predicted.items, gold.items, ordered=True)


def _same_items(predicted: Sequence[Value], gold: Sequence[Value], ordered: bool) -> bool:
    if len(predicted) != len(gold):
        return False
    if ordered:
        return all(same_value(item, other) for item, other in zip(predicted, gold, strict=True))
    left = list(gold)
    for item in predicted:
        place = next((place for place, other in enumerate(left) if same_value(item, other)), None)
        if place is None:
            return False
        del left[place]
    return True


def _same_ratio(predicted: Value, gold: Value) -> bool:
    if isinstance(predicted, Ratio) and isinstance(gold, Ratio) and predicted.clock and gold.clock:
        return predicted.parts == gold.parts  # 4:30 is not 2:15
    parts, others = (list(side.parts) if isinstance(side, Ratio) else [side, _ONE] for side in (predicted, gold))
    if len(parts) != len(others):
        return False
    if isinstance(predicted, Quantity) and isinstance(gold, Ratio):
        return _same_quantity(predicted, _quotient(gold))
    if isinstance(predicted, Ratio) and isinstance(gold, Quantity):
        return _same_quantity(_quotient(predicted), gold)
    return all(
        expressions.equal(("product", [parts[0].node, other.node]), ("product", [others[0].node, part.node]))
        for part, other in zip(parts[1:], others[1:], strict=True)
    )


_ONE = Quantity(("number", Fraction(1), None), None, None)


def _quotient(ratio: Ratio) -> Quantity:
    return Quantity(("product", [ratio.parts[0].node, ("inverse", ratio.parts[1].node)]), None, None)


def _same_quantity(predicted: Quantity, gold: Quantity) -> bool:
    """One side with a unit: compare the numbers. Both: compatible units, compared after conversion."""
    one, other = predicted.unit, gold.unit
    if one is None or other is None or one == other:
        if _same_number(predicted, gold):
            return True
        hundredth = Fraction(1, 100)
        if one == units.PERCENT and other is None:
            return _same_number(predicted, gold, hundredth)
        if other == units.PERCENT and one is None:
            return _same_number(predicted, gold, 1 / hundredth)
        return False
    if one.dimension != other.dimension:
        return False
    if one.offset or other.offset:
        predicted, gold = (
            Quantity(("sum", [expressions.scaled(side.node, side.unit.factor), ("number", side.unit.offset, None)]), None, None)
            for side in (predicted, gold)
        )
        return _same_number(predicted, gold)
    return _same_number(predicted, gold, one.factor / other.factor, one.pi_power - other.pi_power)


def _same_number(predicted: Quantity, gold: Quantity, factor: Fraction = Fraction(1), pi_power: int = 0) -> bool:
    """Whether factor · π^pi_power · predicted = gold, exactly or to a decimal's printed places."""
    if expressions.equal(expressions.scaled(predicted.node, factor, pi_power), gold.node):
        return True
    if gold.places is not None and predicted.places is None:
        return expressions.rounds_to(expressions.scaled(predicted.node, factor, pi_power), gold.node, gold.places)
    if predicted.places is not None and predicted.places >= 2 and gold.places is None:
        return expressions.rounds_to(expressions.scaled(gold.node, 1 / factor, -pi_power), predicted.node, predicted.places)
    return False


def _same_equation(predicted: Value, gold: Value) -> bool:
    if not isinstance(gold, Equation):
        assert isinstance(predicted, Equation)
        return all(side.value is not None and same_value(side.value, gold) for side in predicted.sides)
    if not isinstance(predicted, Equation):
        return gold.name is not None and all(same_value(predicted, side.value) for side in gold.sides)
    if predicted.name is not None and predicted.name == gold.name:
        return all(same_value(side.value, other.value) for side in predicted.sides for other in gold.sides)
    sides, others = _all_sides(predicted), _all_sides(gold)
    if _same_sides(sides, others, ordered=False):
        return True
    difference, other_difference = _difference(sides), _difference(others)
    return difference is not None and other_difference is not None and expressions.proportional(difference, other_difference)


def _all_sides(equation: Equation) -> tuple[Side, ...]:
    if equation.name is None:
        return equation.sides
    return (Side(equation.name, read_value(equation.name)), *equation.sides)


def _same_side(side: Side, other: Side) -> bool:
    if side.text == other.text:
        return True
    return side.value is not None and other.value is not None and same_value(side.value, other.value)


def _same_sides(sides: Sequence[Side], others: Sequence[Side], ordered: bool) -> bool:
    if len(sides) != len(others):
        return False
    if ordered:
        return all(_same_side(side, other) for side, other in zip(sides, others, strict=True))
    left = list(others)
    for side in sides:
        place = next((place for place, other in enumerate(left) if _same_side(side, other)), None)
        if place is None:
            return False
        del left[place]
    return True


def _difference(sides: Sequence[Side]) -> Node | None:
    """left - right of a relation between two expressions."""
    values = [side.value for side in sides]
    if len(values) != 2 or not all(isinstance(value, Quantity) and value.unit is None for value in values):
        return None
    return ("sum", [values[0].node, ("negative", values[1].node)])


def _same_inequality(predicted: Value, gold: Value) -> bool:
    if isinstance(predicted, Inequality) and isinstance(gold, Inequality):
        if predicted.strict != gold.strict:
            return False
        if _same_sides(predicted.sides, gold.sides, ordered=True):
            return True
        difference, other_difference = _difference(predicted.sides), _difference(gold.sides)
        return bool(difference and other_difference and expressions.proportional(difference, other_difference, positive=True))
    if isinstance(predicted, Inequality):
        interval = _interval(predicted)
        return interval is not None and isinstance(gold, Collection) and gold.brackets not in ("", "{}") and same_value(interval, gold)
    interval = _interval(gold)
    return interval is not None and isinstance(predicted, Collection) and predicted.brackets == interval.brackets and same_value(predicted, interval)


_INFINITY = Quantity(("infinity",), None, None)
_MINUS_INFINITY = Quantity(("negative", ("infinity",)), None, None)


def _interval(inequality: Inequality) -> Collection | None:
    """x ≥ 5 → [5, ∞); -2 < x ≤ 7 → (-2, 7]."""
    names = [_read_name(side.text) is not None and not _is_number(side.value) for side in inequality.sides]
    values = [side.value for side in inequality.sides]
    open_, close_ = (("(" if strict else "[", ")" if strict else "]") for strict in (inequality.strict[0], inequality.strict[-1]))
    if names == [True, False] and values[1] is not None:
        return Collection((_MINUS_INFINITY, values[1]), "(" + close_[1])
    if names == [False, True] and values[0] is not None:
        return Collection((values[0], _INFINITY), open_[0] + ")")
    if names == [False, True, False] and values[0] is not None and values[2] is not None:
        return Collection((values[0], values[2]), open_[0] + close_[1])
    return None


# ------------------------------------------------------------------------------------------------------------------ texts

_PUNCTUATION = "".join(set(string.punctuation) - set("+-!%<>=^/\\()[]{}$")) + "“”‘’«»。，、；：？…·¿¡"
_MARKS = re.compile(r"[{}$]")


def text_key(text: str, fold: bool = True) -> str:
    """A text for comparison: no LaTeX dress, no surrounding blanks and punctuation, one blank between words, no case."""
    if len(text) > MAX_ANSWER:
        return text.strip()
    if "\\" in text or "{" in text or "$" in text:
        text = text.replace(r"\%", "%")
        text = _MARKS.sub("", _BLANKS.sub(" ", _DELIMITERS.sub("", unwrap(text).replace(r"\$", ""))))
    text = " ".join(text.replace("–", "-").replace("—", "-").split())
    bare = text.strip(_PUNCTUATION + " ")
    if len(bare) > 1 and bare[0] in "([" and bare[-1] in ")]" and not any(mark in bare[1:-1] for mark in "()[],;"):
        bare = bare[1:-1].strip(_PUNCTUATION + " ") or bare
    bare = bare or text
    return bare.casefold() if fold else bare


def same_text(predicted: str, gold: str) -> bool:
    key, other = text_key(predicted), text_key(gold)
    if key == other:
        return True
    if "\\" in other or "^" in other or _RANGE.fullmatch(other):
        return re.sub(r"\s+", "", key) == re.sub(r"\s+", "", other)
    return False


def matches(predicted: str, gold: str) -> bool:
    """Whether a predicted answer is the gold answer, as a value if the gold is one, else as a text."""
    if predicted == gold:
        return True
    gold_value = _gold_value(gold)
    if gold_value is None:
        return same_text(predicted, gold)
    words = gold.replace(" ", "").replace(",", "").isalpha()
    if text_key(predicted, fold=words) == text_key(gold, fold=words):
        return True
    value = read_value(predicted)
    if value is not None:
        if same_value(value, gold_value):
            return True
        return _algebra_matches(predicted, gold)
    return False


def _gold_value(gold: str) -> Value | None:
    """The gold's value; None for words and names, which are texts."""
    key = text_key(gold)
    if re.fullmatch(r"[^\W\d_]+\d{0,3}", key) and "\\" not in gold and key not in ("π", "pi"):
        return None
    return read_value(gold)


def _algebra_matches(predicted: str, gold: str) -> bool:
    """3m as 3 times m: both read once more with a lone letter as a variable."""
    try:
        one, other = (_read_quantity(_trim(clean(text)), algebra=True) for text in (predicted, gold))
    except Unreadable:
        return False
    return one.unit is None and other.unit is None and _same_quantity(one, other)


# ---------------------------------------------------------------------------------------------------------------- options

_LETTER = re.compile(r"(?:(?:option|choice|answer)\b\s*:?\s*)?[(\[]?\s*([A-Ja-j])\s*[)\]]?[.:,;]*", re.IGNORECASE)
_LETTER_AND_TEXT = re.compile(
    r"(?:(?:option|choice|answer)\b\s*:?\s*)?"
    r"(?:\{?[(\[]\s*\{?([A-Ja-j])\}?\s*[)\]]\}?[.:]?|\{?([A-Ja-j])\}?\s?[).:](?![a-z\d]\.))\s*(\S.*)",
    re.DOTALL | re.IGNORECASE,
)
_LETTER_BLANK_TEXT = re.compile(r"(?:option\s+)?([A-J])\s+(\S.*)", re.DOTALL)
_TEXT_AND_LETTER = re.compile(r"(\S.*\S|\S)\s*\(([A-J])\)", re.DOTALL)
_ANOTHER_LABEL = re.compile(r"[(\[]([A-J])[)\]]|(?:^|[\s,;])([A-J])[).:]|\b(?:or|and)\s+([A-J])\b")
_LISTED = re.compile(r"[,;\n&/]|\b(?:and|or)\b", re.IGNORECASE)

_TWO = -1  # what names two different options


class Options(NamedTuple):
    """The choices of a question. `pictures`: the texts say nothing (they repeat the labels, the options are pictures),
    so a text beside a letter cannot contradict it; without choices any letter may come, and any text beside it."""

    count: int
    texts: tuple[str, ...]
    keys: tuple[str, ...]
    pictures: bool


def read_options(choices: tuple[str, ...]) -> Options:
    if not choices:
        return Options(10, (), (), True)
    labels = [_read_letter(plain(choice)) if len(choice) < 40 else None for choice in choices]
    pictures = all(label == chr(65 + place) for place, label in enumerate(labels))
    pictures = pictures or all(re.fullmatch(r"<image\d*>", choice.strip()) for choice in choices)
    return Options(len(choices), tuple(choice.strip() for choice in choices), tuple(map(text_key, choices)), pictures)


def plain(text: str) -> str:
    """A text without LaTeX's and Markdown's dress (braces stay), for finding option letters."""
    if "\\" in text or "$" in text:
        text = _BLANKS.sub(" ", _DELIMITERS.sub("", unwrap(text))).replace("$", "")
    return " ".join(text.replace("**", "").split()).strip("\"'`“”‘’ ")


def _read_letter(text: str) -> str | None:
    """The letter a plain text consists of: C, (C), c., {C}, Option C."""
    match = _LETTER.fullmatch(text.replace("{", "").replace("}", "")) if len(text) < 40 else None
    return match[1].upper() if match else None


def _place(letter: str | None, options: Options) -> int | None:
    place = ord(letter.upper()) - ord("A") if letter else options.count
    return place if place < options.count else None


def labelled_option(text: str, options: Options) -> int | None:
    """The place of the option that a plain text names by its letter, alone or with a text beside it.

    _TWO if the text beside it is not that option's own; None if no letter names an option.
    """
    if len(text) > 1 and options.texts.count(text) == 1:  # an option's whole text, whatever it begins with
        return None
    place = _place(_read_letter(text), options)
    if place is not None:
        return place
    if text_key(text) in options.keys:
        return None
    match = _LETTER_AND_TEXT.fullmatch(text)
    if match:
        place = _place(match[1] or match[2], options)
        if place is None or _goes_with(match[3], place, options):
            return place
        return _TWO
    for pattern, letter, rest in ((_LETTER_BLANK_TEXT, 1, 2), (_TEXT_AND_LETTER, 2, 1)):
        match = pattern.fullmatch(text)
        place = _place(match[letter], options) if match else None
        if match and place is not None and not options.pictures and _goes_with(match[rest], place, options):
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
    if matches(text, options.texts[place]):
        return True
    bracketed = re.fullmatch(r"\((.+)\)", text, re.DOTALL)
    return bracketed is not None and matches(bracketed[1], options.texts[place])


def named_option(prediction: str, options: Options) -> int | None:
    """The place of the one option an answer names by letter, whole text or value; _TWO if it contradicts itself."""
    text = plain(prediction)
    place = labelled_option(text, options)
    if place is None:
        place = _option_by_text(prediction, options)
    return place if place is not None else _option_named_twice(text, options)


def _option_by_text(prediction: str, options: Options) -> int | None:
    """The one option whose whole text the answer is, else the one whose value it equals."""
    key = text_key(prediction)
    if key in options.keys:
        return options.keys.index(key) if options.keys.count(key) == 1 else None
    if options.pictures:
        return None
    equal = [place for place, choice in enumerate(options.texts) if matches(prediction, choice)]
    return equal[0] if len(equal) == 1 else None


def _option_named_twice(text: str, options: Options) -> int | None:
    """`A or B`, `A, Monday`: the option that all parts of a list name, _TWO if they name different ones."""
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
    return places.pop() if len(places) == 1 else _TWO


# ---------------------------------------------------------------------------------------------------------------- verdict

_PREFIX = re.compile(r"\s*(?:\*\*)?\s*(?:final answer\s*:|the (?:final )?answer is\s*:?|answer\s*:)\s*(?:\*\*)?\s*", re.IGNORECASE)
_GOLD_LETTER = re.compile(r"[A-J]")
_BARE_LETTER = re.compile(r"[A-Ja-j]")


class Gold(NamedTuple):
    """What the gold answer is: an option's place, or a text with, if it is a plain number, its value."""

    text: str
    option: int | None
    options: Options
    number: Fraction | None


@lru_cache(maxsize=8192)
def _read_gold(answer: str, choices: tuple[str, ...]) -> Gold:
    text = answer.strip()
    options = read_options(choices)
    option = _place(text, options) if _GOLD_LETTER.fullmatch(text) else None
    return Gold(text, option, options, Fraction(text) if _PLAIN_NUMBER.fullmatch(text) else None)


def grade_answer(prediction: str, answer: str, choices: Sequence[str] | None = None) -> AnswerGrade:
    """Grade a final answer (the text of the answer block) against the gold one. Never raises, whatever the texts.

    `answer` is an option letter (A-J), a value or a text; `choices` are the options' texts in order, or None.
    """
    text = prediction.strip()
    while match := _PREFIX.match(text):
        text = text[match.end() :].strip()
    options = tuple(choices) if choices else ()
    small = len(answer) + sum(map(len, options)) <= MAX_ANSWER
    gold = _read_gold(answer, options) if small else _read_gold.__wrapped__(answer, options)
    if not text:
        return AnswerGrade(False, None, "nothing after the prefix")
    extracted = text if len(text) <= MAX_EXTRACTED else text[: MAX_EXTRACTED - 1] + "…"
    if len(text) > MAX_ANSWER or text.count("{") > MAX_BRACES:
        return AnswerGrade(text == gold.text, extracted, "same text" if text == gold.text else "too long")
    if gold.option is not None:
        return _grade_option(text, extracted, gold)
    if text == gold.text:
        return AnswerGrade(True, extracted, "same text")
    if gold.number is not None and _PLAIN_NUMBER.fullmatch(text):
        ok = Fraction(text) == gold.number
        return AnswerGrade(ok, extracted, f"number: {extracted} {'=' if ok else '≠'} {gold.text}")
    return _grade_value(text, extracted, gold)


def _grade_option(text: str, extracted: str, gold: Gold) -> AnswerGrade:
    letter = chr(65 + gold.option)
    place = _place(text, gold.options) if _BARE_LETTER.fullmatch(text) else None
    if place is None:
        place = named_option(text, gold.options)
    if place is None:
        return AnswerGrade(False, extracted, f"names no option, gold {letter}")
    if place == _TWO:
        return AnswerGrade(False, extracted, "two answers")
    named = chr(65 + place)
    return AnswerGrade(named == letter, named, f"option {named}, gold {letter}")


def _grade_value(text: str, extracted: str, gold: Gold) -> AnswerGrade:
    options = gold.options
    if options.texts:
        place = labelled_option(plain(text), options)
        if place == _TWO:
            return AnswerGrade(False, extracted, "two answers")
        if place is not None:
            key = text_key(gold.text)
            golds = [other for other, choice in enumerate(options.keys) if choice == key]
            golds = golds or [other for other, choice in enumerate(options.texts) if matches(choice, gold.text)]
            named = chr(65 + place)
            return AnswerGrade(golds == [place], named, f"option {named} is {options.texts[place][:60]}")
    if matches(text, gold.text):
        return AnswerGrade(True, extracted, "equal")
    return AnswerGrade(False, extracted, f"not {gold.text[:60]}")
