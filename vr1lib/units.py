"""Units of measurement behind a number in an answer: `cm`, `square inches`, `km/h`, `dollars`, `%`, `tiles`.

A unit is a product of powers of base dimensions with an exact factor, so that two units compare exactly when their
dimensions agree. Our choices: a month and a year do not convert into days, one currency does not convert into another,
and a word we do not know (`tiles`) is a counted thing, a dimension of its own.
"""

import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple


class Unit(NamedTuple):
    """A value in this unit is factor · π^pi_power · value + offset in base units; `dimension`: ((base, power), …)."""

    dimension: tuple[tuple[str, int], ...]
    factor: Fraction = Fraction(1)
    pi_power: int = 0
    offset: Fraction = Fraction(0)


PERCENT = Unit((("percent", 1),))
DEGREE = Unit((("degree", 1),))
CURRENCY_SIGNS = {"$": "usd", "€": "eur", "£": "gbp", "¥": "cny", "₹": "inr"}

# Single letters only where they are common (m g s h L): 2W is more often twice W than two watts.
# base dimension → {names: how many of the base}
_TABLE: dict[str, dict[str, str | int]] = {
    "metre": {
        "nm nanometer nanometers": "1/1000000000",
        "µm μm micron microns micrometer micrometers": "1/1000000",
        "mm millimeter millimeters millimetre millimetres": "1/1000",
        "cm centimeter centimeters centimetre centimetres cms 厘米": "1/100",
        "dm decimeter decimeters decimetre decimetres 分米": "1/10",
        "m meter meters metre metres 米": 1,
        "km kilometer kilometers kilometre kilometres kms 千米": 1000,
        "in inch inches": "254/10000",
        "ft foot feet": "3048/10000",
        "yd yds yard yards": "9144/10000",
        "mi mile miles": "1609344/1000",
    },
    "gram": {
        "mg milligram milligrams": "1/1000",
        "g gram grams gm gms 克": 1,
        "kg kilogram kilograms kgs kilo kilos 千克": 1000,
        "tonne tonnes": 1000000,
        "oz ounce ounces": "45359237/1600000",
        "lb lbs pound pounds": "45359237/100000",
    },
    "second": {
        "ms millisecond milliseconds": "1/1000",
        "s sec secs second seconds 秒": 1,
        "min mins minute minutes 分钟": 60,
        "h hr hrs hour hours 小时": 3600,
        "day days 天": 86400,
        "week weeks wk wks": 604800,
    },
    "month": {"month months mo mos": 1, "year years yr yrs 年": 12, "decade decades": 120, "century centuries": 1200},
    "degree": {"° deg degs degree degrees 度": 1, "arcmin arcminute arcminutes": "1/60"},
    "kelvin": {"kelvin kelvins": 1},
    "percent": {"% percent pct percentage": 1},
    "usd": {"$ usd dollar dollars buck bucks": 1, "cent cents ¢": "1/100"},
    "eur": {"€ eur euro euros": 1},
    "gbp": {"£ gbp": 1, "pence": "1/100"},
    "cny": {"¥ cny rmb yuan 元": 1},
    "inr": {"₹ inr rupee rupees rs": 1},
    "newton": {"newton newtons": 1, "kN": 1000},
    "joule": {"joule joules": 1, "kJ": 1000},
    "watt": {"watt watts": 1, "kW kilowatt kilowatts": 1000},
    "volt": {"volt volts": 1},
    "ohm": {"Ω ohm ohms": 1},
    "hertz": {"Hz hertz": 1, "kHz": 1000},
    "pascal": {"Pa pascal pascals": 1, "kPa": 1000},
    "unit": {"unit units": 1},
}
_LITRE = {"ml mL milliliter milliliters millilitre millilitres cc 毫升": 1, "cl cL centiliter centiliters": 10,
          "dl dL deciliter deciliters": 100, "L ℓ liter liters litre litres 升": 1000}  # fmt: skip

_NAMES: dict[str, Unit] = {
    name: Unit(((base, 1),), Fraction(factor))
    for base, rows in _TABLE.items()
    for names, factor in rows.items()
    for name in names.split()
}
_NAMES |= {
    name: Unit((("metre", 3),), Fraction(cubic_cm, 1000000))
    for names, cubic_cm in _LITRE.items()
    for name in names.split()
}
_NAMES |= {name: Unit((("metre", 2),), Fraction(10000)) for name in ("ha", "hectare", "hectares")}
_NAMES |= {name: Unit((("degree", 1),), Fraction(180), -1) for name in ("rad", "rads", "radian", "radians")}
_NAMES |= {name: Unit((("kelvin", 1),), Fraction(1), 0, Fraction("273.15")) for name in ("°C", "celsius", "℃")}
_NAMES |= {
    name: Unit((("kelvin", 1),), Fraction(5, 9), 0, Fraction("273.15") - Fraction(160, 9))
    for name in ("°F", "fahrenheit", "℉")
}
_NAMES |= {"mph": Unit((("metre", 1), ("second", -1)), Fraction(1609344, 3600000))}
_NAMES |= {name: Unit((("metre", 1), ("second", -1)), Fraction(1000, 3600)) for name in ("kph", "kmh", "kmph")}
_NAMES |= {name: Unit((("metre", 1), ("second", -1)), Fraction(1852, 3600)) for name in ("knot", "knots")}

# names that are also variables in algebra: a unit only if nothing else in the answer speaks for algebra
AMBIGUOUS = frozenset(name for name in _NAMES if len(name) == 1 and name.isalpha() and name.isascii())
# words after a number that make it a phrase and not a counted thing
_NO_NOUN = frozenset(
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
    " seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety or and of to is are was"
    " be not no than then more less least most about approximately approx roughly nearly almost around maybe"
    " perhaps probably possibly only if when because since plus minus times th st nd rd between from the a an"
    " by with wrong correct incorrect right true false answer option choice each both either neither nor but so"
    " ish sqrt pi choose factorial over into on at in as it i we you dozen hundred thousand million billion"
    " trillion".split()
)
_TOKEN = re.compile(r"([^\W\d_]+|[°%$€£¥₹¢℃℉])(?:\.|\s*\^\s*\(?([+-]?[0-9])\)?|([0-9])|)")
_LONG_WORD = re.compile(r"(?<![\\a-zA-Z])(?!sec\b)[a-zA-Z]{2,}")
_COUNTED = "counted "
_NOUN = re.compile(r"[a-z]{3,20}(?: [a-z]{3,20})?", re.IGNORECASE)


@lru_cache(maxsize=2048)
def read_unit(text: str) -> Unit | None:
    """The unit a short text names, or None. A word or two that we do not know are a counted thing (`grey tiles`)."""
    text = " ".join(text.split())
    if not text or len(text) > 60:
        return None
    known = read_known_unit(text)
    if known:
        return known
    noun = text.rstrip(".").lower()
    if _NOUN.fullmatch(noun) and not _NO_NOUN.intersection(noun.split()):
        return Unit(((_COUNTED + _singular(noun), 1),))
    return None


def read_known_unit(text: str) -> Unit | None:
    """The unit a short text names if it is one of ours, in its own case or in lower case."""
    return _read_product(text) or (_read_product(text.lower()) if len(text) > 1 else None)


def is_counted(unit: Unit) -> bool:
    """Whether the unit is a word that we do not know."""
    return unit.dimension[:1] != () and unit.dimension[0][0].startswith(_COUNTED)


def mentions_unit(text: str) -> bool:
    """Whether a unit's name of two letters or more stands in a text (not as a LaTeX command)."""
    return any(word in _NAMES for word in _LONG_WORD.findall(text))


def _read_product(text: str) -> Unit | None:
    text = re.sub(r"(?<![^\W\d_])per cent\b", "percent", text)
    text = re.sub(r"\s*(?:/|\bper\b)\s*", " / ", re.sub(r"\b(?:US|us) (?=dollar|cent)", "", text))
    text = re.sub(r"(?:°|\bdegrees?|\bdeg) ?(?:C\b|Celsius\b|celsius\b)", "°C", text)
    text = re.sub(r"(?:°|\bdegrees?|\bdeg) ?(?:F\b|Fahrenheit\b|fahrenheit\b)", "°F", text)
    text = re.sub(r"\b(square|cubic)(?=(?:inch|feet|foot|met|cent|unit|mile|yard))", r"\1 ", text)
    text = re.sub(r"\b(?:square|sq)\b\.? ?(?=[^\W\d_])", "square ", text)
    text = re.sub(r"\b(?:cubic|cu)\b\.? ?(?=[^\W\d_])", "cubic ", text)
    text = re.sub(r" (squared|cubed)\b", lambda match: "^2" if match[1] == "squared" else "^3", text)
    if text in _NAMES:
        return _NAMES[text]
    dimension: dict[str, int] = {}
    factor, pi_power, sign, power = Fraction(1), 0, 1, 1
    position = 0
    while position < len(text):
        if text[position] in " *·":
            position += 1
        elif text.startswith("/ ", position):
            sign, position = -1, position + 2
        elif text.startswith("square ", position):
            power, position = 2, position + 7
        elif text.startswith("cubic ", position):
            power, position = 3, position + 6
        else:
            match = _TOKEN.match(text, position)
            unit = _NAMES.get(match[1]) if match else None
            if unit is None:
                return None
            exponent = sign * power * int(match[2] or match[3] or 1)
            for base, times in unit.dimension:
                dimension[base] = dimension.get(base, 0) + times * exponent
            factor *= unit.factor**exponent
            pi_power += unit.pi_power * exponent
            power, position = 1, match.end()
    if power != 1 or not dimension or dimension.get("percent", 1) != 1:
        return None
    return Unit(tuple(sorted((base, times) for base, times in dimension.items() if times)), factor, pi_power)


def _singular(noun: str) -> str:
    return noun[:-1] if noun.endswith("s") and not noun.endswith("ss") else noun
