"""What value does a text state, and do two values agree: numbers with units, pairs, sets, intervals, ratios, equations.

Our own rule, where the paper only asks for a correct answer: a text is brought to one spelling (`clean`), cut at its
top-level separators, relations and brackets, and the pieces go to `expressions` and `units`. Reading gives None for
what is not a value (a word, a range, a sentence, a limit broken); comparing never fails.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple, TypeVar

from vr1lib import expressions, units
from vr1lib.expressions import Node, Unreadable
from vr1lib.units import Unit

MAX_TEXT = 2000  # characters
MAX_PARTS = 40  # of one list, relation or union
MAX_LEVEL = 6  # lists in brackets in relations …


class Quantity(NamedTuple):
    """A number or an expression with its unit. `places`: its printed decimal places, None if it is exact."""

    node: Node
    unit: Unit | None
    places: int | None


class Collection(NamedTuple):
    """Several values. `brackets`: "" for a bare list, "{}" for a set, else as written: "()", "[)", …"""

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
    """One side of a relation: its text without blanks, its value and its name if it has one."""

    text: str
    value: "Value | None"
    name: str | None


class Equation(NamedTuple):
    """`name = value (= value …)`; with `name` None a general equation between its sides."""

    name: str | None
    sides: tuple[Side, ...]


class Inequality(NamedTuple):
    """An ascending chain sides[0] < sides[1] …; `strict` tells < from ≤ at each step."""

    sides: tuple[Side, ...]
    strict: tuple[bool, ...]


Value = Quantity | Collection | Ratio | Union | Equation | Inequality

# --------------------------------------------------------------------------------------------------------- one spelling

CURRENCY, SET_OPEN, SET_CLOSE = "\ue000", "\ue001", "\ue002"  # stand for \$ \{ \} while $ { } are taken off
_OPENERS, _CLOSERS = "([{" + SET_OPEN, ")]}" + SET_CLOSE
_BRACKET = rf"(?P<bracket>[()\[\]{{}}{SET_OPEN}{SET_CLOSE}])"

_SIGN_TABLE = str.maketrans(
    dict(zip("\u00a0\u202f\u2007\u2009\u3000−×·⋅∙÷∶：，；（）％", "     -****/::,;()%", strict=True))
    | {"≤": "<=", "⩽": "<=", "≥": ">=", "⩾": ">=", "≠": "!=", "≈": r"\approx ", "±": r"\pm ", "π": r"\pi "}
    | {"√": r"\sqrt ", "∛": r"\cbrt ", "∞": r"\infty ", "∪": r"\cup ", "∈": r"\in ", "∠": r"\angle "}
    | {"△": r"\triangle "}
    | {
        sign: rf"\frac{{{top}}}{{{bottom}}}"
        for sign, top, bottom in zip("½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞", "112131234151357", "233445555668888", strict=True)
    }
)
_SUPERSCRIPTS = re.compile("[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_SUPERSCRIPT_TABLE = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_TEXT_COMMANDS = frozenset(
    "text textbf textit textrm textsf texttt textnormal textup emph mathrm mathbf mathit mathsf mathtt mathbb"
    " boldsymbol mbox hbox operatorname bm rm bf it boxed fbox framebox underline".split()
)
_BOXES = frozenset(("boxed", "fbox", "framebox"))
_COMMAND_OR_BRACE = re.compile(r"\\([a-zA-Z]+)\*?|\\.|([{}])", re.DOTALL)
_OPEN_BRACE = re.compile(r"\s*\{")
_DELIMITERS = re.compile(r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![a-zA-Z])\.?|\\!\s*|\\[()\[\]]|\\displaystyle\b")
_BLANKS = re.compile(r"\\(?:[,;:> ]|quad\b|qquad\b|enspace\b|\\)|~")
_PHANTOM = re.compile(r"\\(?:phantom|hspace|rule)\*?\{(?:[^{}]|\{[^{}]{0,40}\}){0,80}\}(?:\{[^{}]{0,20}\})?")
_STRAY_END = re.compile(r"(?:\\\\|\s\\\$|\\)\s*$|\\\\(?=\$$)")
_ONE_DOLLAR = re.compile(r"\$\s*\d|\d\s*\$$")
_THOUSANDS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?![\d,]|\.\d*,)")
_SPACED_THOUSANDS = re.compile(r"(?<![\d.,/])(?<![\d.,/] )[1-9]\d{0,2}(?: \d{3})+(?![\d/]| \d| ?/| ?\\frac)")
_SCIENTIFIC = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)[eE]([+-]?\d{1,6})(?!\w)")
_TIMES_TEN = re.compile(r"(?<=\d) ?[xX] ?(?=10 ?(?:\^|\*\*))")
_REPEATING = re.compile(r"(?<!\d)(\d{0,9})\.(\d{0,9})\\(?:overline|dot|bar)\{(\d{1,9})\}", re.ASCII)


_ESCAPES = {"\x0c": r"\f", "\x08": r"\b", "\t": r"\t", "\r": r"\r"}
_TAKEN_FOR_ESCAPE = re.compile("\x0c(?=rac)|\x08(?=oxed|inom)|\t(?=ext|imes|frac|heta)|\r(?=ight)")
_DOUBLED = re.compile(r"\\\\(?=(?:[dt]?frac|sqrt|left|right|text|boxed|pi|circ|cdot|times|mathrm)(?![a-z]))")


def unwrap(text: str) -> str:
    """LaTeX's text and box commands taken off, what they hold left in place; a comma between neighbouring boxes."""
    if "\\" not in text:
        return text
    pieces: list[str] = []
    closers: list[str] = []  # what stands for the closing brace of each group still open
    after_box = 0  # how many pieces there were when the last box closed
    position = 0
    for match in _COMMAND_OR_BRACE.finditer(text):
        if match.start() < position:
            continue
        pieces.append(text[position : match.start()])
        position = match.end()
        command, brace = match.groups()
        if command in _TEXT_COMMANDS:
            if after_box and command in _BOXES and not "".join(pieces[after_box:]).strip(" \t\n$"):
                pieces.append(",")
            if follower := _OPEN_BRACE.match(text, position):
                position = follower.end()
                closers.append("box" if command in _BOXES else " ")
            pieces.append(" ")
        elif brace == "}" and closers and closers[-1] != "}":
            after_box = len(pieces) + 1 if closers.pop() == "box" else after_box
            pieces.append(" ")
        else:
            if brace == "{":
                closers.append("}")
            elif brace and closers:
                closers.pop()
            pieces.append(match[0])
    if any(closer != "}" for closer in closers):  # a command that is never closed
        return text
    pieces.append(text[position:])
    return "".join(pieces)


def repair(text: str) -> str:
    """LaTeX commands whose backslash a JSON writer took for an escape (form feed + rac), or doubled."""
    if "\\" not in text and text.isprintable():
        return text
    text = _TAKEN_FOR_ESCAPE.sub(lambda match: _ESCAPES[match[0]], text)
    return _DOUBLED.sub(r"\\", text)


def undress(text: str) -> str:
    """LaTeX's wrappers, delimiters and spacing taken off; braces and dollars stay."""
    return _BLANKS.sub(" ", _DELIMITERS.sub("", unwrap(text)))


def clean(text: str) -> str:
    """Mathematics in one spelling: wrappers, spacing, thousands separators and unusual signs replaced."""
    text = re.sub(r"[ \t]{2,}", " ", text)
    if not text.isascii():
        text = _SUPERSCRIPTS.sub(lambda run: "^{" + run[0].translate(_SUPERSCRIPT_TABLE) + "}", text)
        text = text.translate(_SIGN_TABLE)
    text = _STRAY_END.sub("", unwrap(text)).replace(r"\$", CURRENCY).replace(r"\%", "%").replace(r"\&", "&")
    if "$" in text:
        if text.count("$") == 1 and _ONE_DOLLAR.search(text):
            text = text.replace("$", CURRENCY)
        text = text.replace("$", " ")
    if "\\" in text or "~" in text:
        text = _PHANTOM.sub(" ", text).replace(r"\{", SET_OPEN).replace(r"\}", SET_CLOSE)
        text = _BLANKS.sub(" ", _DELIMITERS.sub("", text))
        text = _REPEATING.sub(_repeating_decimal, text)
    text = text.replace("{,}", ",").replace(CURRENCY, "$")
    if not any(bracket in text for bracket in ("(", "[", SET_OPEN)):  # where a comma separates
        text = _THOUSANDS.sub(lambda match: match[0].replace(",", ""), text)
    text = _SPACED_THOUSANDS.sub(lambda match: match[0].replace(" ", ""), text)
    return _SCIENTIFIC.sub(r"\1*10^{\2}", _TIMES_TEN.sub("*", text)).strip()


def _repeating_decimal(match: re.Match[str]) -> str:
    whole, fixed, repeated = match.groups()
    difference = int((whole or "0") + fixed + repeated) - int((whole or "0") + fixed)
    value = Fraction(difference, (10 ** len(repeated) - 1) * 10 ** len(fixed))
    return rf"(\frac{{{value.numerator}}}{{{value.denominator}}})"


# -------------------------------------------------------------------------------------------------------------- reading

# numbers in a row that are not arithmetic: 10-20, 2-5-3-1-4, 04/02/2005
SEQUENCE = re.compile(r"\d+(?:\.\d+)?(?:\s*[-–—/]\s*\d+(?:\.\d+)?){2,}|\d+(?:\.\d+)?\s*[-–—]\s*\d+(?:\.\d+)?")
_END_MARKS = '"`*_“”‘’#?,;.。、 \t\r\n'
_START_MARKS = '"`*_“”‘’# \t\r\n'
_EQUALS_FIRST = re.compile(r"^(?:=|\\approx(?![a-zA-Z]))\s*")
_SEPARATOR = re.compile(r"[,;\n&]|(?<![^\W\d_])(?:and|or)(?![^\W\d_])", re.IGNORECASE)
_COMMA = re.compile(r"[,;]")
_CUP = re.compile(r"\\cup(?![a-zA-Z])")
_COLON = re.compile(r":")
_CLOCK = re.compile(r"[012]?\d\s*:\s*[0-5]\d")
_PLUS_MINUS = re.compile(r"\\(pm|mp)(?![a-zA-Z])")
_RELATION = re.compile(r"<=|>=|!=|=|<|>|\\(?:leqslant|geqslant|leq|geq|le|ge|lt|gt|neq|ne|approx|in)(?![a-zA-Z])")
_RELATIONS = {r"\leqslant": "<=", r"\leq": "<=", r"\le": "<=", r"\geqslant": ">=", r"\geq": ">=", r"\ge": ">=",
              r"\lt": "<", r"\gt": ">", r"\neq": "!=", r"\ne": "!=", r"\approx": "~", r"\in": "in"}  # fmt: skip
_NAME_DRESS = re.compile(r"\\(?:angle|measuredangle|triangle|overline|overrightarrow|vec|hat|bar)(?![a-zA-Z])|[{}\s]")
_NAME = re.compile(r"\\?[A-Za-z]+'*\d{0,3}(?:_(?:\\?[A-Za-z]+|\d+)+)?(?:\([A-Za-z0-9,]{1,8}\))?")
_TWO_WORDS = re.compile(r"[^\W\d_]\s+[^\W\d_]")
_NAME_FRACTION = re.compile(r"\s*\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}\s*")


def read_value(text: str, algebra: bool = False) -> Value | None:
    """The value a text states, or None if it is not a value.

    A lone letter behind a number that is both a unit and a variable (3m) is a unit, or a variable if `algebra`.
    """
    return _read_cached(text, algebra) if len(text) <= 200 else _read_whole(text, algebra)


def _read_whole(text: str, algebra: bool) -> Value | None:
    if len(text) > MAX_TEXT:
        return None
    try:
        return _Reader(algebra).read(clean(text), 0)
    except Unreadable:
        return None


_read_cached = lru_cache(maxsize=4096)(_read_whole)


class _Reader(NamedTuple):
    """Cleaned texts into values; everything raises Unreadable."""

    algebra: bool

    def read(self, text: str, level: int) -> Value:
        text = text.rstrip(_END_MARKS).lstrip(_START_MARKS)
        text = _EQUALS_FIRST.sub("", text)
        if not text or level > MAX_LEVEL or SEQUENCE.fullmatch(text):
            raise Unreadable("not a value")
        parts = _split(text, _SEPARATOR)
        if len(parts) > 1:
            items = self.parts([part for part in parts if part.strip()], level)
            return items[0] if len(items) == 1 else Collection(items, "")
        parts = _split(text, _RELATION)
        if len(parts) > 1:
            return self.relation(parts, [match[0] for match in _top_level(text, _RELATION)], level)
        parts = _split(text, _CUP)
        if len(parts) > 1:
            return Union(self.parts(parts, level))
        if (bracketed := self.brackets(text, level)) is not None:
            return bracketed
        parts = _split(text, _COLON)
        if len(parts) > 1:
            return Ratio(tuple(map(self.quantity, parts[:MAX_PARTS])), _CLOCK.fullmatch(text) is not None)
        if _PLUS_MINUS.search(text):
            upper = _PLUS_MINUS.sub(lambda sign: "+" if sign[1] == "pm" else "-", text)
            lower = _PLUS_MINUS.sub(lambda sign: "-" if sign[1] == "pm" else "+", text)
            return Collection((self.quantity(upper), self.quantity(lower)), "")
        return self.quantity(text)

    def parts(self, parts: Sequence[str], level: int) -> tuple[Value, ...]:
        if not 0 < len(parts) <= MAX_PARTS:
            raise Unreadable("a list without end")
        return tuple(self.read(part.strip(), level + 1) for part in parts)

    def brackets(self, text: str, level: int) -> Value | None:
        """(a, b), [a, b), {a, b} around the whole text, or one value in brackets; None if there are none around it."""
        opener, closer = text[0], text[-1]
        if opener not in _OPENERS or closer not in _CLOSERS:
            return None
        depth = 0
        for character in text[:-1]:
            depth += (character in _OPENERS) - (character in _CLOSERS)
            if depth == 0:
                return None
        inside = text[1:-1]
        parts = _split(inside, _COMMA)
        if len(parts) > 1 or opener == SET_OPEN:
            return Collection(self.parts(parts, level), "{}" if opener in "{" + SET_OPEN else opener + closer)
        return self.read(inside.strip(), level + 1)

    def relation(self, parts: Sequence[str], signs: Sequence[str], level: int) -> Value:
        if len(parts) > MAX_PARTS or not all(part.strip() for part in parts):
            raise Unreadable("a relation with an empty side")
        signs = [_RELATIONS.get(sign, sign) for sign in signs]
        sides = [self.side(part, level) for part in parts]
        for place in [place for place, sign in enumerate(signs) if sign == "~"][::-1]:
            if _approximates(sides[place + 1].value, sides[place].value):
                del sides[place + 1], signs[place]
        if not signs:
            return sides[0].value
        if set(signs) <= {"=", "~"} or signs == ["in"]:
            names = [side.name for side in sides if side.name]
            values = tuple(side for side in sides if not side.name)
            if len(names) == 1 and values and all(side.value is not None for side in values):
                return Equation(names[0], values)
            return Equation(None, tuple(sides))
        if set(signs) <= {">", ">="}:
            sides, signs = sides[::-1], [sign.replace(">", "<") for sign in signs[::-1]]
        if not set(signs) <= {"<", "<="}:
            raise Unreadable("mixed relations")
        return Inequality(tuple(sides), tuple(sign == "<" for sign in signs))

    def side(self, text: str, level: int) -> Side:
        try:
            value = self.read(text.strip(), level + 1)
        except Unreadable:
            value = None
        constant = isinstance(value, Quantity) and not expressions.variables(value.node)  # π is no name
        return Side(re.sub(r"\s+", "", text), value, None if constant else _name(text))

    def quantity(self, text: str) -> Quantity:
        """A number or an expression, with a unit behind it or a currency sign before it."""
        text = _DEGREE_SIGN.sub("°", text.strip())
        if _WORDS.fullmatch(text):
            raise Unreadable("words")
        if (compound := _read_compound(text)) is not None:
            return compound
        sign, unit, multiplier = "", None, None
        if match := _CURRENCY_FIRST.match(text):
            sign, unit = match[1], units.read_unit(units.CURRENCY_SIGNS[match[2]])
            text = text[match.end() :]
        if match := _MULTIPLIER.fullmatch(text):
            multiplier, text = Fraction(_MULTIPLIERS[match[2].lower()]), match[1] + match[3]
        if (match := _UNIT_IN_BRACKETS.search(text)) and units.read_known_unit(match[1]):
            text = f"{text[: match.start()]} {match[1]}"
        number, ending, found = _split_unit(text, self.algebra)
        if units.mentions_unit(number):
            raise Unreadable("two units")
        unit = found or unit
        node = expressions.read_expression(sign + number)
        if ending in units.AMBIGUOUS and expressions.variables(node):
            return _Reader(algebra=True).quantity(text)
        if unit is None and expressions.has_degrees(node):
            unit = units.DEGREE
        if multiplier:
            return Quantity(expressions.scaled(node, multiplier), unit, None)
        return Quantity(node, unit, expressions.decimal_places(node))


def _top_level(text: str, separator: re.Pattern[str]) -> Iterator[re.Match[str]]:
    """The separators outside all brackets; brackets of any kind may close one another (half-open intervals)."""
    depth = 0
    for match in re.finditer(rf"{_BRACKET}|(?:{separator.pattern})", text, separator.flags):
        if match["bracket"]:
            depth += 1 if match[0] in _OPENERS else -1
            if depth < 0:
                raise Unreadable("brackets")
        elif depth == 0:
            yield match
    if depth:
        raise Unreadable("brackets")


def _split(text: str, separator: re.Pattern[str]) -> list[str]:
    if not separator.search(text):
        return [text]
    start, parts = 0, []
    for match in _top_level(text, separator):
        parts.append(text[start : match.start()])
        start = match.end()
    return [*parts, text[start:]]


def _approximates(rounded: Value | None, exact: Value | None) -> bool:
    """Whether the right side of 5√2 ≈ 7.1 is the left one, rounded: then it says nothing new."""
    if not (isinstance(rounded, Quantity) and isinstance(exact, Quantity)) or rounded.unit not in (None, exact.unit):
        return False
    return expressions.rounds_to(exact.node, rounded.node, rounded.places or 0)


def _name(text: str) -> str | None:
    """The name on one side of an equation: x, x_1, AB, \\angle ABC, f(x), |AB|, (x,y), AB:CD, \\frac{AB}{CD}, Area."""
    if fraction := _NAME_FRACTION.fullmatch(text):
        text = f"{fraction[1]}/{fraction[2]}"
    if _TWO_WORDS.search(_COMMAND_OR_BRACE.sub("|", text)):
        return None
    name = _NAME_DRESS.sub("", text)
    if len(name) > 2 and name[0] + name[-1] == "||":
        name = name[1:-1]
    if len(name) > 40:
        return None
    inner = name[1:-1] if name.startswith("(") and name.endswith(")") else name
    return name if all(_NAME.fullmatch(part) for part in re.split(r"[,:/](?![^(]*\))", inner)) else None


# --------------------------------------------------------------------------------------------------- numbers with units

_DEGREE_SIGN = re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-zA-Z]))|\\degree(?![a-zA-Z])")
_WORDS = re.compile(r"(?=.*[^\W\d_]{2})[^\W\d_]+(?:\s+[^\W\d_]+)+")  # a product of letters only if each stands alone
_CURRENCY_FIRST = re.compile(r"([-+]?)\s*(?:US)?([$€£¥₹])\s*")
_MULTIPLIERS = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
                "dozen": 12}  # fmt: skip
_MULTIPLIER = re.compile(rf"(.*[\d}}])\s*({'|'.join(_MULTIPLIERS)})\b(.*)", re.IGNORECASE | re.DOTALL)
_UNIT_START = re.compile(r"[^\W\d_]+|[°%$€£¥₹¢℃℉]")
_TRIGONOMETRIC = re.compile(r"(?:sin|cos|tan|cot|sec|csc)(?![a-zA-Z])")
_NOT_BEFORE_UNIT = "^_+-*/\\([{="
_DIGIT = re.compile(r"[0-9]")
_MEASURE = re.compile(r"(\d+(?:\.\d+)?)\s*([^\W\d_]+)\.?\s*")
_UNIT_IN_BRACKETS = re.compile(r"\(([^()]{1,30})\)$")


def _split_unit(text: str, algebra: bool) -> tuple[str, str, Unit | None]:
    """A number's text, its unit's text (the longest ending that names a unit) and the unit."""
    for match in list(_UNIT_START.finditer(text))[:12]:
        start = match.start()
        number, ending = text[:start].rstrip(), text[start:]
        if number.endswith("{") and ending.endswith("}"):  # 8{inches}
            number, ending = number[:-1].rstrip(), ending[:-1]
        if not number or number[-1] in _NOT_BEFORE_UNIT:
            continue
        ending = ending.replace("{", "").replace("}", "").replace("\\cdot", "*").strip()
        if ending in units.AMBIGUOUS and (algebra or (len(number) == start and _is_sum(number))):
            continue
        if ending.startswith("°") and _TRIGONOMETRIC.search(number):
            continue
        unit = units.read_unit(ending)
        if unit and (_DIGIT.search(number) or not units.is_counted(unit)):  # 5 tiles, but no `the tiles`
            return number, ending, unit
    return text, "", None


def _is_sum(text: str) -> bool:
    return re.search(r"[+\-](?![^(]*\))", text[1:]) is not None


def _read_compound(text: str) -> Quantity | None:
    """2 h 30 min, 5 ft 3 in: several measures of one dimension, each unit smaller than the one before."""
    measures = _MEASURE.findall(text) if len(text) < 60 else ()
    if len(measures) < 2 or _MEASURE.sub("", text):
        return None
    found = [units.read_known_unit(name) for _, name in measures]
    if None in found or len({unit.dimension for unit in found}) > 1:
        return None
    factors = [unit.factor for unit in found]
    if factors != sorted(set(factors), reverse=True):
        return None
    total = sum(Fraction(number) * factor for (number, _), factor in zip(measures, factors, strict=True))
    return Quantity(("number", total / factors[0], None), found[0], None)


# ----------------------------------------------------------------------------------------------------------- comparison


def same_value(predicted: Value, gold: Value) -> bool:
    """Whether a predicted value is the gold one. The gold decides the order, the brackets and the rounding."""
    for kind, compare in _COMPARISONS:
        if isinstance(predicted, kind) or isinstance(gold, kind):
            return compare(predicted, gold)
    return _same_quantity(predicted, gold)


Item = TypeVar("Item")


def _same_items(items: Sequence[Item], others: Sequence[Item], same: Callable[[Item, Item], bool]) -> bool:
    """Whether every item has a partner among the others and every other one of its own, in any order."""
    left = list(others)
    for item in items:
        place = next((place for place, other in enumerate(left) if same(item, other)), None)
        if place is not None:
            del left[place]
        elif not any(same(item, other) for other in others):  # one value said twice is one value
            return False
    return not left


def _in_order(items: Sequence[Item], others: Sequence[Item], same: Callable[[Item, Item], bool]) -> bool:
    return len(items) == len(others) and all(map(same, items, others))


def _same_quantity(predicted: Quantity, gold: Quantity) -> bool:
    """One side with a unit: the numbers are compared. Both: compatible units, compared after conversion."""
    one, other = predicted.unit, gold.unit
    if one is None or other is None or one == other:
        if _same_number(predicted, gold):
            return True
        if one == units.PERCENT and other is None:
            return _same_number(predicted, gold, Fraction(1, 100))
        return other == units.PERCENT and one is None and _same_number(predicted, gold, Fraction(100))
    if one.dimension != other.dimension:
        return False
    if one.offset or other.offset:
        return expressions.equal(_in_base_units(predicted), _in_base_units(gold))
    return _same_number(predicted, gold, one.factor / other.factor, one.pi_power - other.pi_power)


def _in_base_units(quantity: Quantity) -> Node:
    unit = quantity.unit
    return ("sum", [expressions.scaled(quantity.node, unit.factor), ("number", unit.offset, None)])


def _same_number(predicted: Quantity, gold: Quantity, factor: Fraction = Fraction(1), pi_power: int = 0) -> bool:
    """Whether factor · π^pi_power · predicted = gold: exactly, or an exact value rounded to the other's printed places.

    A rounded prediction must show two places or more; a rounded gold says itself how far to round.
    """
    scaled = expressions.scaled(predicted.node, factor, pi_power)
    if expressions.equal(scaled, gold.node):
        return True
    if gold.places is not None and predicted.places is None:
        return expressions.rounds_to(scaled, gold.node, gold.places)
    if gold.places is None and predicted.places is not None and predicted.places >= 2:
        unscaled = expressions.scaled(gold.node, 1 / factor, -pi_power)
        return expressions.rounds_to(unscaled, predicted.node, predicted.places)
    return False


def _same_collection(predicted: Value, gold: Value) -> bool:
    """The gold's brackets rule: none and {} have no order, others do and tell intervals apart."""
    if not isinstance(predicted, Collection):
        return isinstance(gold, Collection) and len(gold.items) == 1 and same_value(predicted, gold.items[0])
    if not isinstance(gold, Collection):
        return predicted.brackets in ("", "{}") and all(same_value(item, gold) for item in predicted.items)
    if gold.brackets == "":
        return _same_items(predicted.items, gold.items, same_value)
    if gold.brackets != "{}":
        matching = predicted.brackets in ("", "{}", gold.brackets)
        return matching and _in_order(predicted.items, gold.items, same_value)
    if predicted.brackets not in ("", "{}", "()"):
        return False
    covered = all(any(same_value(item, other) for item in predicted.items) for other in gold.items)
    return covered and all(any(same_value(item, other) for other in gold.items) for item in predicted.items)


def _same_union(predicted: Value, gold: Value) -> bool:
    parts, others = (side.parts if isinstance(side, Union) else (side,) for side in (predicted, gold))
    return _same_items(parts, others, same_value)


def _same_ratio(predicted: Value, gold: Value) -> bool:
    if not (isinstance(predicted, Ratio) and isinstance(gold, Ratio)):
        one, other = (_quotient(side) if isinstance(side, Ratio) else side for side in (predicted, gold))
        return one is not None and other is not None and same_value(one, other)
    if predicted.clock and gold.clock:
        return predicted.parts == gold.parts  # 4:30 is not 2:15
    if len(predicted.parts) != len(gold.parts):
        return False
    first, other_first = predicted.parts[0].node, gold.parts[0].node
    return all(
        expressions.equal(("product", [first, other.node]), ("product", [other_first, part.node]))
        for part, other in zip(predicted.parts[1:], gold.parts[1:], strict=True)
    )


def _quotient(ratio: Ratio) -> Quantity | None:
    if len(ratio.parts) != 2:
        return None
    return Quantity(("product", [ratio.parts[0].node, ("inverse", ratio.parts[1].node)]), None, None)


def _same_equation(predicted: Value, gold: Value) -> bool:
    """`x = 3` is `3` if the other names no variable or the same one; general equations up to a constant factor."""
    if not isinstance(gold, Equation):
        return all(side.value is not None and same_value(side.value, gold) for side in predicted.sides)
    if not isinstance(predicted, Equation):
        return gold.name is not None and all(same_value(predicted, side.value) for side in gold.sides)
    if predicted.name is not None and predicted.name == gold.name:
        return all(same_value(side.value, other.value) for side in predicted.sides for other in gold.sides)
    sides, others = _all_sides(predicted), _all_sides(gold)
    if _same_items(sides, others, _same_side):
        return True
    difference, other_difference = _difference(sides), _difference(others)
    return bool(difference and other_difference and expressions.proportional(difference, other_difference))


def _all_sides(equation: Equation) -> tuple[Side, ...]:
    if equation.name is None:
        return equation.sides
    return (Side(equation.name, read_value(equation.name), equation.name), *equation.sides)


def _same_side(side: Side, other: Side) -> bool:
    if side.text == other.text:
        return True
    return side.value is not None and other.value is not None and same_value(side.value, other.value)


def _difference(sides: Sequence[Side]) -> Node | None:
    """right - left of a relation between two expressions."""
    if len(sides) != 2 or not all(isinstance(side.value, Quantity) and side.value.unit is None for side in sides):
        return None
    return ("sum", [sides[1].value.node, ("negative", sides[0].value.node)])


def _same_inequality(predicted: Value, gold: Value) -> bool:
    if isinstance(predicted, Inequality) and isinstance(gold, Inequality):
        if predicted.strict != gold.strict:
            return False
        if _in_order(predicted.sides, gold.sides, _same_side):
            return True
        difference, other_difference = _difference(predicted.sides), _difference(gold.sides)
        return bool(
            difference and other_difference and expressions.proportional(difference, other_difference, positive=True)
        )
    one, other = (_interval(side) if isinstance(side, Inequality) else side for side in (predicted, gold))
    if not (isinstance(one, Collection) and isinstance(other, Collection) and one.brackets == other.brackets):
        return False
    return same_value(one, other)


def _interval(inequality: Inequality) -> Collection | None:
    """x ≥ 5 as [5, ∞), -2 < x ≤ 7 as (-2, 7]; None if it is no interval of one name."""
    named = [side.name is not None for side in inequality.sides]
    low = (inequality.sides[0].value, "(" if inequality.strict[0] else "[")
    high = (inequality.sides[-1].value, ")" if inequality.strict[-1] else "]")
    if named == [True, False]:
        low = (Quantity(("negative", ("infinity",)), None, None), "(")
    elif named == [False, True]:
        high = (Quantity(("infinity",), None, None), ")")
    elif named != [False, True, False]:
        return None
    if low[0] is None or high[0] is None:
        return None
    return Collection((low[0], high[0]), low[1] + high[1])


# what one of the two is decides how both are compared; an earlier kind goes before a later one
_COMPARISONS = (
    (Equation, _same_equation),
    (Inequality, _same_inequality),
    (Union, _same_union),
    (Collection, _same_collection),
    (Ratio, _same_ratio),
)
