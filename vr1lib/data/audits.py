"""What the texts are like: the word counts of the paper's Table 2, lengths, and descriptions that give the gold away.

The paper does not say how Table 2 counted ("Wait" as a word or inside "waiting", with or without case), so both
countings are made, ignoring case. Lengths are in words: tokens would depend on a tokenizer.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from vr1lib.data.filters import states_answer
from vr1lib.records import ColdRow

REFLECTION_WORDS = ("wait", "hmm", "mistake", "alternatively", "check")
_WORDS = {word: re.compile(rf"\b{word}\b") for word in REFLECTION_WORDS}


@dataclass(frozen=True)
class WordCount:
    """How often a word occurs in a set of texts: as a whole word, as a piece of any word, and in how many texts."""

    word: int
    substring: int
    rows: int


def count_words(texts: Iterable[str]) -> dict[str, WordCount]:
    """The reflection words of Table 2 over all texts, upper and lower case alike."""
    counts = {word: [0, 0, 0] for word in REFLECTION_WORDS}
    for text in texts:
        lower = text.lower()
        for word, count in counts.items():
            substrings = lower.count(word)
            if substrings:
                whole = len(_WORDS[word].findall(lower))
                count[0] += whole
                count[1] += substrings
                count[2] += whole > 0
    return {word: WordCount(*count) for word, count in counts.items()}


def length_distribution(texts: Iterable[str]) -> dict[str, float]:
    """Number of texts, and mean, median, 90th percentile and maximum of their lengths in words."""
    lengths = np.array([len(text.split()) for text in texts])
    if not len(lengths):
        return {"texts": 0, "mean": 0.0, "median": 0.0, "p90": 0.0, "max": 0.0}
    return {
        "texts": len(lengths),
        "mean": float(lengths.mean()),
        "median": float(np.median(lengths)),
        "p90": float(np.percentile(lengths, 90)),
        "max": float(lengths.max()),
    }


@dataclass(frozen=True)
class LeakAudit:
    """`stated`: descriptions that say outright what the answer is. `mentioned`: the gold's text is a word of them.

    A mention need not be a leak: a description that names all lengths in a picture may well name the one that is
    asked for.
    """

    rows: int
    stated: tuple[str, ...]
    mentioned: tuple[str, ...]


def audit_leaks(rows: Sequence[ColdRow]) -> LeakAudit:
    """Which rows' descriptions give the gold away, by row id."""
    stated = tuple(row.id for row in rows if states_answer(row.description, row.answer, row.choices))
    mentioned = tuple(row.id for row in rows if mentions(row.description, row.answer))
    return LeakAudit(len(rows), stated, mentioned)


def mentions(text: str, answer: str) -> bool:
    """The answer occurs in the text as a word of its own."""
    return re.search(rf"(?<![\w.]){re.escape(answer)}(?![\w]|\.\d)", text) is not None
