"""Reading a mathematical expression (LaTeX or plain) and comparing two of them exactly, in bounded time and memory.

Our own small parser instead of sympy on raw text: sympy evaluates code, expands without limit and hangs on towers of
powers. Here a text becomes a tree under limits on length, depth and digits; a tree without variables is evaluated in
exact fractions as far as they reach and beyond that to 100 digits, where equal closed forms agree and different ones do
not; with variables, two trees are compared at fixed rational points (polynomial identity testing), wherever both are
defined over the reals. What breaks a limit is unreadable, so nothing here needs a timeout, a signal or a thread.
"""

import math
import re
import threading
from fractions import Fraction
from typing import Any, NamedTuple

MAX_CHARACTERS = 1000
MAX_TOKENS = 400
MAX_DEPTH = 60  # of factors in factors: 30 pairs of brackets, or 60 roots of roots
MAX_DIGITS = 400  # of one written number
MAX_EXACT_BITS = 8000  # of a fraction's numerator or denominator; beyond it 100 digits carry on
MAX_LOG2 = 1_000_000  # no value beyond 2^±1,000,000
DIGITS = 100
SAME_DIGITS = 60  # two values that agree to so many digits are one value

Node = tuple[Any, ...]  # (kind, …): see _Parser for the kinds


class Unreadable(ValueError):
    """The text is not an expression, or breaks a limit."""


class Undefined(ArithmeticError):
    """The tree has no real value at this point, or one beyond the limits."""


class Token(NamedTuple):
    kind: str  # number, word, command, sign
    text: str
    spaced: bool  # white space stands before it


_TOKEN = re.compile(
    r"(?P<space>\s+)|(?P<number>\d+(?:\.\d+)?|\.\d+)|(?P<word>[^\W\d_]+)|\\(?P<command>[a-zA-Z]+)"
    r"|(?P<sign>\*\*|[-+*/^_(){}\[\]|!°'])"
)
_FUNCTIONS = {"sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "asin", "acos", "atan", "ln",
              "log", "lg", "exp", "sqrt", "abs", "sinh", "cosh", "tanh"}  # fmt: skip
_TRIGONOMETRIC = {"sin", "cos", "tan", "cot", "sec", "csc"}
_INVERSE = {"sin": "arcsin", "cos": "arccos", "tan": "arctan"}
_LONG_NAMES = {"asin": "arcsin", "acos": "arccos", "atan": "arctan"}
_GREEK = {"alpha", "beta", "gamma", "delta", "epsilon", "varepsilon", "zeta", "eta", "theta", "vartheta", "iota",
          "kappa", "lambda", "mu", "nu", "xi", "rho", "sigma", "tau", "phi", "varphi", "chi", "psi", "omega", "ell",
          "Gamma", "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Phi", "Psi", "Omega"}  # fmt: skip
_FRACTIONS = {"frac", "dfrac", "tfrac", "cfrac"}
_SPACES = {"quad", "qquad", "enspace", "thinspace", "displaystyle", "textstyle", "limits", "nolimits"}
_OPEN = {"(": ")", "[": "]", "{": "}"}


def tokenize(text: str) -> list[Token]:
    if len(text) > MAX_CHARACTERS:
        raise Unreadable("too long")
    tokens: list[Token] = []
    position, spaced = 0, False
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise Unreadable(f"character {text[position]!r}")
        position = match.end()
        kind = match.lastgroup or ""
        value = match[kind]
        if kind == "space" or (kind == "command" and value in _SPACES):
            spaced = True
            continue
        if kind == "number" and not value.isascii():
            raise Unreadable("digits that are not 0 to 9")
        if kind == "number" and len(value) > MAX_DIGITS:
            raise Unreadable("too many digits")
        tokens.append(Token(kind, value, spaced))
        spaced = False
    if len(tokens) > MAX_TOKENS:
        raise Unreadable("too long")
    return tokens


def read_expression(text: str) -> Node:
    """The tree of a whole text. Raises Unreadable."""
    parser = _Parser(tokenize(text))
    node = parser.sum()
    if parser.position != len(parser.tokens):
        raise Unreadable(f"left over: {parser.tokens[parser.position].text}")
    return node


class _Parser:
    """Recursive descent. Node kinds: number (value, decimal places or None), variable (name), pi, e, infinity,
    sum/product (operands), inverse, negative, power, root (index, radicand), call (function, argument), log (base,
    argument), factorial, absolute, degree, binomial."""

    def __init__(self, tokens: list[Token]):
        self.tokens = tokens
        self.position = 0
        self.depth = 0

    def peek(self, *texts: str) -> bool:
        return self.position < len(self.tokens) and self.tokens[self.position].text in texts

    def take(self, text: str) -> None:
        if not self.peek(text):
            raise Unreadable(f"expected {text}")
        self.position += 1

    def next(self) -> Token:
        if self.position == len(self.tokens):
            raise Unreadable("it ends too early")
        self.position += 1
        return self.tokens[self.position - 1]

    def sum(self) -> Node:
        operands = [self.product()]
        while self.peek("+", "-"):
            negative = self.next().text == "-"
            operand = self.product()
            operands.append(("negative", operand) if negative else operand)
        if self.peek("choose"):
            self.next()
            operands = [("binomial", _sum(operands), self.product())]
        return _sum(operands)

    def product(self) -> Node:
        operands = [self.signed()]
        while self.position < len(self.tokens):
            token = self.tokens[self.position]
            if token.text in ("*", "times", "cdot", "ast", "bullet"):
                self.position += 1
                operands.append(self.signed())
            elif token.text in ("/", "div"):
                self.position += 1
                operands.append(("inverse", self.signed()))
            elif token.kind == "number" and self.tokens[self.position - 1].kind in ("number", "word"):
                raise Unreadable("a number behind a number or a word")
            elif self.starts_operand(token):
                operands.append(self.power())
            else:
                break
        return operands[0] if len(operands) == 1 else ("product", operands)

    def starts_operand(self, token: Token) -> bool:
        if token.kind == "sign":
            return token.text in _OPEN
        if token.kind == "command":
            return token.text not in ("choose", "rfloor")
        return token.text != "choose"

    def signed(self) -> Node:
        negative = False
        for _ in range(4):
            if not self.peek("-", "+"):
                node = self.power()
                return ("negative", node) if negative else node
            negative ^= self.next().text == "-"
        raise Unreadable("too many signs")

    def deeper(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable("nested too deeply")

    def power(self) -> Node:
        self.deeper()
        node = self.atom()
        if self.peek("!"):
            self.position += 1
            node = ("factorial", node)
        if self.peek("^", "**"):
            self.position += 1
            if self.peek("circ", "°") or (self.peek("{") and self.is_degree_group()):
                self.position += 3 if self.peek("{") else 1
                node = ("degree", node)
            else:
                node = ("power", node, self.signed())
        if self.peek("°", "degree"):
            self.position += 1
            node = ("degree", node)
        if self.peek("!"):
            raise Unreadable("a second factorial")
        self.depth -= 1
        return node

    def is_degree_group(self) -> bool:
        inside = [token.text for token in self.tokens[self.position + 1 : self.position + 3]]
        return inside in (["circ", "}"], ["°", "}"])

    def atom(self) -> Node:
        self.deeper()
        token = self.next()
        if token.kind == "number":
            node = self.number(token)
        elif token.kind == "word":
            node = self.word(token)
        elif token.kind == "command":
            node = self.command(token.text)
        elif token.text in _OPEN:
            node = self.sum()
            self.take(_OPEN[token.text])
        elif token.text == "|":
            node = ("absolute", self.sum())
            self.take("|")
        else:
            raise Unreadable(f"unexpected {token.text}")
        self.depth -= 1
        return node

    def number(self, token: Token) -> Node:
        whole, _, decimals = token.text.partition(".")
        node: Node = ("number", Fraction(token.text), len(decimals) if decimals else None)
        if decimals:
            return node
        fraction = self.proper_fraction()
        return ("sum", [node, fraction]) if fraction else node

    def proper_fraction(self) -> Node | None:
        """The fraction of a mixed number (2 1/2, 2\\frac{1}{2}), stepped over; None if none follows."""
        tokens, at = self.tokens, self.position
        if at < len(tokens) and tokens[at].text in _FRACTIONS:
            start = self.position
            self.position += 1
            top, bottom = self.argument(), self.argument()
            integers = all(part[0] == "number" and part[2] is None for part in (top, bottom))
            if integers and 0 < top[1] < bottom[1] and not self.peek("^"):
                return ("number", top[1] / bottom[1], None)
            self.position = start
            return None
        texts = tokens[at : at + 3]
        if len(texts) == 3 and texts[0].spaced and [part.kind for part in texts] == ["number", "sign", "number"]:
            top, slash, bottom = (part.text for part in texts)
            if slash == "/" and top.isdigit() and bottom.isdigit() and 0 < int(top) < int(bottom):
                self.position += 3
                return ("number", Fraction(int(top), int(bottom)), None)
        return None

    def word(self, token: Token) -> Node:
        word = token.text
        lower = word.lower()
        if lower == "pi" or word == "π":
            return ("pi",)
        if lower in _FUNCTIONS:
            return self.function(lower)
        if lower in ("infinity", "inf"):
            return ("infinity",)
        if word in _GREEK:
            return self.variable(word)
        if len(word) > 3 or not (word.islower() or word.isupper() or len(word) == 1 or word[1:].isupper()):
            raise Unreadable(f"a word: {word}")
        letters = [("e",) if letter == "e" else ("variable", letter) for letter in word[:-1]]
        last = self.variable(word[-1])
        return ("product", [*letters, last]) if letters else last

    def variable(self, name: str) -> Node:
        """A letter with what belongs to its name: x_1, x_{ab}, x', R2."""
        if self.position < len(self.tokens):
            follower = self.tokens[self.position]
            if follower.kind == "number" and not follower.spaced and follower.text.isdigit() and len(name) == 1:
                self.position += 1
                name += follower.text
        if self.peek("_"):
            self.position += 1
            name += "_"
            if self.peek("{"):
                self.position += 1
                while not self.peek("}"):
                    name += self.next().text
                self.position += 1
            else:
                name += self.next().text
        while self.peek("'"):
            self.position += 1
            name += "'"
        return ("e",) if name == "e" else ("variable", name)

    def argument(self) -> Node:
        """What a LaTeX command takes: a group, a single digit or a single letter or command."""
        token = self.next()
        if token.text == "{":
            node = self.sum()
            self.take("}")
            return node
        if token.kind == "number" and len(token.text) > 1 and token.text.isdigit():
            self.position -= 1
            self.tokens[self.position] = Token("number", token.text[1:], False)
            return ("number", Fraction(int(token.text[0])), None)
        if token.kind == "word" and len(token.text) > 1:
            self.position -= 1
            self.tokens[self.position] = Token("word", token.text[1:], False)
            return ("variable", token.text[0])
        self.position -= 1
        return self.atom()

    def command(self, name: str) -> Node:
        if name in _FRACTIONS:
            top = self.argument()
            return ("product", [top, ("inverse", self.argument())])
        if name in ("binom", "dbinom", "tbinom"):
            top = self.argument()
            return ("binomial", top, self.argument())
        if name in ("sqrt", "surd"):
            return self.root()
        if name in ("cbrt",):
            return ("root", ("number", Fraction(3), None), self.atom())
        if name == "pi":
            return ("pi",)
        if name == "infty":
            return ("infinity",)
        if name in _FUNCTIONS:
            return self.function(name)
        if name in _GREEK:
            return self.variable("\\" + name)
        raise Unreadable(f"command \\{name}")

    def root(self) -> Node:
        index: Node = ("number", Fraction(2), None)
        if self.peek("["):
            self.position += 1
            index = self.sum()
            self.take("]")
        return ("root", index, self.atom())

    def function(self, name: str) -> Node:
        if name == "sqrt":
            return self.root()
        exponent: Node | None = None
        base: Node | None = None
        if self.peek("_") and name == "log":
            self.position += 1
            base = self.argument()
        if self.peek("^"):
            self.position += 1
            exponent = self.signed()
        name = _LONG_NAMES.get(name, name)
        if exponent == ("negative", ("number", Fraction(1), None)) and name in _INVERSE:
            name, exponent = _INVERSE[name], None
        if self.position < len(self.tokens) and self.tokens[self.position].text in _OPEN:
            argument = self.power()
        else:
            factors = [self.power()]
            while self.position < len(self.tokens):
                token = self.tokens[self.position]
                if not self.starts_operand(token) or token.text in _OPEN or token.text in _FUNCTIONS - {"sqrt"}:
                    break
                if token.text in ("times", "cdot", "div", "ast"):
                    break
                factors.append(self.power())
            argument = factors[0] if len(factors) == 1 else ("product", factors)
        if name == "abs":
            return ("absolute", argument)
        if name in ("log", "lg"):
            node: Node = ("log", base or ("number", Fraction(10), None), argument)
        else:
            node = ("call", name, argument)
        return ("power", node, exponent) if exponent else node


def _sum(operands: list[Node]) -> Node:
    return operands[0] if len(operands) == 1 else ("sum", operands)


# ---------------------------------------------------------------------------------------------------------------- trees


def children(node: Node) -> list[Node]:
    return [
        child for part in node[1:] for child in (part if isinstance(part, list) else [part]) if isinstance(child, tuple)
    ]


def variables(node: Node) -> frozenset[str]:
    if node[0] == "variable":
        return frozenset((node[1],))
    return frozenset().union(*(variables(child) for child in children(node)))


def has_degrees(node: Node) -> bool:
    """Whether a degree sign makes the value itself an angle (not only a function's argument)."""
    return node[0] == "degree" or (node[0] != "call" and any(has_degrees(child) for child in children(node)))


def decimal_places(node: Node) -> int | None:
    """The printed places if the whole text is one decimal number (a sign allowed), else None: it is exact."""
    while node[0] in ("negative", "degree"):
        node = node[1]
    return node[2] if node[0] == "number" else None


def scaled(node: Node, factor: Fraction, pi_power: int = 0) -> Node:
    if factor == 1 and pi_power == 0:
        return node
    operands: list[Node] = [node, ("number", factor, None)]
    if pi_power:
        operands.append(("power", ("pi",), ("number", Fraction(pi_power), None)))
    return ("product", operands)


# ----------------------------------------------------------------------------------------------------------- evaluation

_local = threading.local()


def _real() -> Any:
    """This thread's 100-digit context; mpmath is imported when first needed."""
    context = getattr(_local, "context", None)
    if context is None:
        from mpmath import MPContext

        context = _local.context = MPContext()
        context.dps = DIGITS
    return context


def evaluate(node: Node, point: dict[str, Fraction], in_radians: bool = False) -> Any:
    """The tree's real value, a Fraction or a 100-digit float. Raises Undefined (or another ArithmeticError)."""
    kind = node[0]
    if kind == "number":
        return node[1]
    if kind == "variable":
        return point[node[1]]
    if kind == "pi":
        return +_real().pi
    if kind == "e":
        return +_real().e
    if kind == "infinity":
        raise Undefined("infinity")
    if kind == "sum":
        total: Any = Fraction(0)
        for operand in node[1]:
            total = _add(total, evaluate(operand, point, in_radians))
        return total
    if kind == "product":
        total = Fraction(1)
        for operand in node[1]:
            total = _multiply(total, evaluate(operand, point, in_radians))
        return total
    if kind == "inverse":
        value = evaluate(node[1], point, in_radians)
        if value == 0:
            raise Undefined("division by zero")
        return 1 / value
    if kind == "negative":
        return -evaluate(node[1], point, in_radians)
    if kind == "absolute":
        return abs(evaluate(node[1], point, in_radians))
    if kind == "degree":
        value = evaluate(node[1], point)
        return _multiply(value, _real().pi / 180) if in_radians else value
    if kind == "power":
        return _power(evaluate(node[1], point), evaluate(node[2], point))
    if kind == "root":
        return _root(evaluate(node[2], point), evaluate(node[1], point))
    if kind == "call":
        return _call(node[1], evaluate(node[2], point, in_radians=node[1] in _TRIGONOMETRIC))
    if kind == "log":
        base, value = (_float(evaluate(part, point)) for part in node[1:])
        if base <= 0 or base == 1 or value <= 0:
            raise Undefined("logarithm")
        return _tidy(_real().log(value) / _real().log(base))
    if kind == "factorial":
        return Fraction(math.factorial(_small_integer(evaluate(node[1], point), 500)))
    top, bottom = (evaluate(part, point) for part in node[1:])  # binomial
    return Fraction(math.comb(_small_integer(top, 2000), _small_integer(bottom, 2000)))


def _float(value: Any) -> Any:
    if not isinstance(value, Fraction):
        return value
    return _real().mpf(value.numerator) / value.denominator


def _tidy(value: Any) -> Any:
    """A value within its limits: a fraction with too many digits becomes a float, a monster is Undefined."""
    if isinstance(value, Fraction):
        if value.numerator.bit_length() + value.denominator.bit_length() <= MAX_EXACT_BITS:
            return value
        value = _float(value)
    if not _real().isfinite(value):
        raise Undefined("not finite")
    if value != 0 and abs(_real().mag(value)) > MAX_LOG2:
        raise Undefined("too large or too small")
    return value


def _add(left: Any, right: Any) -> Any:
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return _tidy(left + right)
    return _tidy(_float(left) + _float(right))


def _multiply(left: Any, right: Any) -> Any:
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return _tidy(left * right)
    return _tidy(_float(left) * _float(right))


def _power(base: Any, exponent: Any) -> Any:
    if isinstance(exponent, Fraction):
        if exponent.denominator == 1:
            return _integer_power(base, exponent.numerator)
        if exponent.denominator <= 64:
            return _integer_power(_root(base, Fraction(exponent.denominator)), exponent.numerator)
    if base <= 0:
        raise Undefined("power of a negative number")
    base, exponent = _float(base), _float(exponent)
    if abs(exponent * _real().log(base, 2)) > MAX_LOG2:
        raise Undefined("too large")
    return _tidy(base**exponent)


def _integer_power(base: Any, exponent: int) -> Any:
    if base == 0 and exponent <= 0:
        raise Undefined("power of zero")
    if isinstance(base, Fraction):
        if abs(base) in (0, 1):
            return base if exponent % 2 else abs(base)
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if bits * abs(exponent) <= MAX_EXACT_BITS:
            return base**exponent
        base = _float(base)
    if base != 0 and abs(exponent) * abs(_real().log(abs(base), 2)) > MAX_LOG2:
        raise Undefined("too large")
    return _tidy(base**exponent)


def _root(value: Any, index: Any) -> Any:
    degree = _small_integer(index, 64)
    if degree == 0 or (value < 0 and degree % 2 == 0):
        raise Undefined("root")
    if value < 0:
        return -_root(-value, index)
    if isinstance(value, Fraction):
        top, bottom = _exact_root(value.numerator, degree), _exact_root(value.denominator, degree)
        if top is not None and bottom is not None:
            return Fraction(top, bottom)
    return _tidy(_real().root(_float(value), degree))


def _exact_root(value: int, degree: int) -> int | None:
    if degree == 2:
        root = math.isqrt(value)
        return root if root * root == value else None
    guess = int(_real().nint(_real().root(value, degree))) if value.bit_length() < 300 else -1
    return guess if guess >= 0 and guess**degree == value else None


def _call(name: str, value: Any) -> Any:
    real, value = _real(), _float(value)
    if name == "ln":
        if value <= 0:
            raise Undefined("logarithm")
        return _tidy(real.log(value))
    if abs(value) > 10**6:
        raise Undefined("argument too large")
    if name in ("arcsin", "arccos"):
        if abs(value) > 1:
            raise Undefined("arc of more than 1")
        return _tidy((real.asin if name == "arcsin" else real.acos)(value))
    if name == "arctan":
        return _tidy(real.atan(value))
    if name in ("exp", "sinh", "cosh", "tanh"):
        return _tidy(getattr(real, name)(value))
    sine, cosine = real.sin(value), real.cos(value)
    top, bottom = {"sin": (sine, 1), "cos": (cosine, 1), "tan": (sine, cosine), "cot": (cosine, sine),
                   "sec": (1, cosine), "csc": (1, sine)}[name]  # fmt: skip
    if abs(bottom) < real.mpf(10) ** -SAME_DIGITS:
        raise Undefined("pole")
    return _tidy(top / real.mpf(bottom))


def _small_integer(value: Any, largest: int) -> int:
    if not isinstance(value, Fraction) or value.denominator != 1 or not 0 <= value <= largest:
        raise Undefined(f"not an integer between 0 and {largest}")
    return int(value)


# ----------------------------------------------------------------------------------------------------------- comparison

_VALUES = [Fraction(n, 7) for n in (11, 17, 5, 23, 29, 13, 37, 3, 41, 19, 31, 43, 2, 47, 53, 59)]
_SIGNS = (1, 1, 1, 1, 1, 1, -1, -1)  # of each point's variables; a text's real domain is mostly the positive one
_ENOUGH = 3  # points at which both must be defined


def _points(names: frozenset[str]) -> list[dict[str, Fraction]]:
    ordered = sorted(names)
    return [
        {
            name: sign * (_VALUES[(3 * place + 5 * turn) % len(_VALUES)] + turn * (place + 1))
            for place, name in enumerate(ordered)
        }
        for turn, sign in enumerate(_SIGNS)
    ]


def close(left: Any, right: Any) -> bool:
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return left == right
    left, right = _float(left), _float(right)
    scale = max(abs(left), abs(right))
    return bool(abs(left - right) <= max(scale * _real().mpf(10) ** -SAME_DIGITS, _real().mpf(10) ** -(DIGITS - 10)))


def _values(nodes: list[Node]) -> list[list[Any]] | None:
    """The nodes' values at each point where all are defined; None if that is at too few points."""
    names = frozenset().union(*(variables(node) for node in nodes))
    rows = []
    for point in _points(names) if names else [{}]:
        try:
            rows.append([evaluate(node, point) for node in nodes])
        except (ArithmeticError, ValueError):
            continue
    return rows if len(rows) >= (_ENOUGH if names else 1) else None


def equal(left: Node, right: Node) -> bool:
    """Whether two trees are the same number, or the same function of their variables."""
    if left == right:
        return True
    rows = _values([left, right])
    return rows is not None and all(close(one, other) for one, other in rows)


def proportional(left: Node, right: Node, positive: bool = False) -> bool:
    """Whether left = constant · right with a constant that is not 0 (positive: above 0)."""
    rows = _values([left, right])
    if rows is None or all(one == 0 for one, _ in rows):
        return False
    pairs = [(one, other) for one, other in rows if not (close(one, 0 * one) and close(other, 0 * other))]
    if not pairs or any(close(one, 0 * one) or close(other, 0 * other) for one, other in pairs):
        return False
    ratio = _float(pairs[0][0]) / _float(pairs[0][1])
    return all(close(_float(one) / _float(other), ratio) for one, other in pairs) and (ratio > 0 or not positive)


def rounds_to(node: Node, decimal: Node, places: int) -> bool:
    """Whether the exact value, rounded half away from zero to so many places, is the decimal."""
    rows = _values([node, decimal]) if not variables(node) else None
    if rows is None:
        return False
    value, target = rows[0]
    if isinstance(value, Fraction):
        rounded = Fraction(math.floor(abs(value) * 10**places + Fraction(1, 2)), 10**places)
    else:
        if abs(value) > 10**40:
            return False
        rounded = Fraction(int(_real().floor(abs(value) * 10**places + _real().mpf(0.5))), 10**places)
    return (-rounded if value < 0 else rounded) == target
