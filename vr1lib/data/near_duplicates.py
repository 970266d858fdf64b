"""Which problems are the same but for recolouring, resizing, a cropped margin or another wording.

A picture becomes a vector: how far each pixel is from the background (so colours and inversion don't matter) and how
strong its edges are, both whole and with the margin trimmed off (so a cropped margin doesn't), on 32 × 32 fields, of
which the 16 × 16 lowest frequencies are kept: a perceptual hash ("pHash") with its numbers instead of their signs.
Line drawings on white differ little from each other, and the signs alone mix them up.
Where a picture is like many of a set, as those of drawn worlds are that differ by a colour or a shape, likeness says
nothing: then only a picture that is the same in its colours too counts. A question that many of a set ask says as
little without its picture.
A question becomes its words and pairs of words, without markers, LaTeX wrappers and punctuation; rare ones
weigh more. All thresholds are our choice; `bench/contamination.py` measures them on altered problems.
"""

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from vr1lib.records import Problem, RequestError, open_image

FIELDS = 32  # fields a side that a picture is averaged over
FREQUENCIES = 16  # lowest frequencies a side that are kept
LARGEST_SIDE = 256  # pixels; more make no difference on 32 fields
COLOUR_FIELDS = 8  # fields a side whose colours are kept
SAME_PICTURE = 0.9  # likeness of pictures that is enough by itself
MANY, COPY, COPY_COLOURS = 10, 0.93, 8.0  # of a picture like more than MANY: likeness, and mean distance out of 255
LIKE_PICTURE, LIKE_BOTH = 0.6, 0.95  # enough together with the question: the picture's likeness, the sum of both
LIKE_QUESTION = 0.1  # at least, to be named as a reason
LIKE_PICTURE_SHORT = 0.8  # instead of LIKE_PICTURE where the question is shorter than ENOUGH_WORDS ("Find x.")
SAME_QUESTION, ENOUGH_WORDS = 0.75, 8  # enough by itself, for a question that long with the same numbers

_COSINES = np.cos(np.pi / FIELDS * (np.arange(FIELDS) + 0.5) * np.arange(FREQUENCIES)[:, None]).astype(np.float32)
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_WRAPPERS = re.compile(r"<image\d*>|\[image \d+\]|\\(?:text|mathrm|mathbf|left|right|displaystyle)\b")
_WORD = re.compile(r"\d+(?:\.\d+)?|[^\W\d_]+|[=+<>√π°∠△%/^-]")


class Fingerprint(NamedTuple):
    """A picture's `shape`, of length 1, so that the product of two is their likeness, and its `colours` in fields."""

    shape: np.ndarray  # [4 × (FREQUENCIES² − 1)]
    colours: np.ndarray  # [COLOUR_FIELDS × COLOUR_FIELDS × 3], 0 to 255


def fingerprint(path: str | Path) -> Fingerprint | None:
    """The picture as what it is compared by; None if it is of one colour. Raises RequestError for no picture."""
    image = open_image(path)
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.BOX)
    pixels = np.asarray(image, dtype=np.float32)  # [height, width, 3]
    ink = np.abs(pixels - _background(pixels)).sum(axis=2)
    across = np.abs(np.diff(pixels, axis=1, append=pixels[:, -1:])).sum(axis=2)
    edges = across + np.abs(np.diff(pixels, axis=0, append=pixels[-1:])).sum(axis=2)
    parts = [_low_frequencies(part) for layer in (ink, edges) for part in (layer, _trim(layer))]
    if any(part is None for part in parts):
        return None
    colours = image.resize((COLOUR_FIELDS, COLOUR_FIELDS), Image.Resampling.BOX)
    return Fingerprint(np.concatenate(parts) / 2, np.asarray(colours, dtype=np.float32).ravel())


def _background(pixels: np.ndarray) -> np.ndarray:
    """The mean of the most frequent colour, colours taken to 16 steps a channel."""
    steps = (pixels.astype(np.uint8) >> 4).astype(np.int32)
    codes = (steps[..., 0] << 8 | steps[..., 1] << 4 | steps[..., 2]).ravel()
    return pixels.reshape(-1, 3)[codes == np.bincount(codes).argmax()].mean(axis=0)


def _trim(layer: np.ndarray) -> np.ndarray:
    """The layer without the margin in which nothing is drawn."""
    drawn = layer > 0.15 * layer.max()
    rows, columns = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
    return layer[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if len(rows) else layer


def _low_frequencies(layer: np.ndarray) -> np.ndarray | None:
    fields = Image.fromarray(layer).resize((FIELDS, FIELDS), Image.Resampling.BOX)
    frequencies = (_COSINES @ np.asarray(fields, dtype=np.float32) @ _COSINES.T).ravel()[1:]  # without the mean
    size = float(np.linalg.norm(frequencies))
    return frequencies / size if size > 1e-3 else None


def question_words(text: str) -> list[str]:
    """The words, numbers and signs of a question in lower case, without what only sets it."""
    return _WORD.findall(_WRAPPERS.sub(" ", unicodedata.normalize("NFKC", text)).lower())


def question_grams(text: str) -> frozenset[str]:
    words = question_words(text)
    return frozenset(" ".join(words[at : at + n]) for n in (1, 2) for at in range(len(words) - n + 1))


@dataclass(frozen=True)
class Match:
    """Another problem that is this one, by what, and how alike they are (0 to 1; pictures −1 to 1)."""

    id: str
    by: str  # "picture and question", "picture" or "question"
    picture: float
    question: float


class Index:
    """Problems that others are held against. Memory: 5 KB a picture, and the questions."""

    def __init__(self, problems: Iterable[Problem] = ()):
        self.ids: list[str] = []
        self._shapes = np.empty((64, 4 * (FREQUENCIES**2 - 1)), dtype=np.float32)  # [room, 1020]
        self._colours = np.empty((64, 3 * COLOUR_FIELDS**2), dtype=np.float32)  # [room, 192]
        self._owners: list[int] = []  # of each picture
        self._grams: list[frozenset[str]] = []
        self._numbers: list[Counter[str]] = []
        self._having: dict[str, list[int]] = defaultdict(list)
        for problem in problems:
            self.add(problem)

    def add(self, problem: Problem, pictures: Sequence[Fingerprint] | None = None) -> None:
        """Take a problem in; `pictures` spare reading them again."""
        place = len(self.ids)
        self.ids.append(problem.id)
        for picture in fingerprints(problem) if pictures is None else pictures:
            if len(self._owners) == len(self._shapes):
                self._shapes = np.concatenate([self._shapes, np.empty_like(self._shapes)])
                self._colours = np.concatenate([self._colours, np.empty_like(self._colours)])
            self._shapes[len(self._owners)] = picture.shape
            self._colours[len(self._owners)] = picture.colours
            self._owners.append(place)
        grams = question_grams(problem.question)
        self._grams.append(grams)
        self._numbers.append(Counter(_NUMBER.findall(problem.question)))
        for gram in grams:
            self._having[gram].append(place)

    def matches(self, problem: Problem, pictures: Sequence[Fingerprint] | None = None) -> list[Match]:
        """The problems that are this one, the likest first."""
        alike = self._picture_likeness(fingerprints(problem) if pictures is None else pictures)
        grams = question_grams(problem.question)
        questions = self._question_likeness(grams)
        long_enough = len(question_words(problem.question)) >= ENOUGH_WORDS
        numbers = Counter(_NUMBER.findall(problem.question))
        by_question = sum(likeness >= SAME_QUESTION for likeness in questions.values()) <= MANY
        found = []
        for place in alike.keys() | questions.keys():
            picture, question = alike.get(place, 0.0), questions.get(place)
            if question is None:
                question = self._likeness(grams, place)
            enough = LIKE_PICTURE if long_enough else LIKE_PICTURE_SHORT
            if picture >= enough and picture + question >= LIKE_BOTH and question >= LIKE_QUESTION:
                by = "picture and question"
            elif picture >= SAME_PICTURE:
                by = "picture"
            elif by_question and question >= SAME_QUESTION and long_enough and numbers == self._numbers[place]:
                by = "question"
            else:
                continue
            found.append(Match(self.ids[place], by, round(picture, 3), round(question, 3)))
        return sorted(found, key=lambda match: -(match.picture + match.question))

    def _picture_likeness(self, pictures: Sequence[Fingerprint]) -> dict[int, float]:
        """By problem, the likeness of its likest picture to any of these, where that may matter."""
        best: dict[int, float] = {}
        for picture in pictures:
            likeness = self._shapes[: len(self._owners)] @ picture.shape  # [pictures]
            near = np.flatnonzero(likeness >= LIKE_PICTURE)
            if (likeness >= LIKE_PICTURE_SHORT).sum() > MANY:
                distance = np.abs(self._colours[near] - picture.colours).mean(axis=1)
                near = near[(likeness[near] >= COPY) & (distance <= COPY_COLOURS)]
            for at in near:
                best[self._owners[at]] = max(best.get(self._owners[at], 0.0), float(likeness[at]))
        return best

    def _question_likeness(self, grams: frozenset[str]) -> dict[int, float]:
        """The problems that share enough rare grams to be the same by their question alone, and how alike they are."""
        weights = {gram: self._weight(gram) for gram in grams}
        room = (1 - SAME_QUESTION) * sum(weights.values())  # a same question can miss no more than this
        shared: Counter[int] = Counter()
        for gram in sorted(grams, key=lambda gram: -weights[gram]):  # rare ones find the candidates
            if room < 0:
                break
            room -= weights[gram]
            shared.update(self._having.get(gram, ()))
        return {place: self._likeness(grams, place) for place in shared}

    def _likeness(self, grams: frozenset[str], place: int) -> float:
        """Weight of the shared grams over that of all."""
        other = self._grams[place]
        every = sum(map(self._weight, grams | other))
        return sum(map(self._weight, grams & other)) / every if every else 0.0

    def _weight(self, gram: str) -> float:
        return math.log((1 + len(self.ids)) / (1 + len(self._having.get(gram, ())))) + 0.1


def fingerprints(problem: Problem) -> list[Fingerprint]:
    """Those of a problem's pictures; one that cannot be read, or is of one colour, has none."""
    found = []
    for path in dict.fromkeys(problem.images):
        try:
            picture = fingerprint(path)
        except RequestError:
            continue
        if picture is not None:
            found.append(picture)
    return found
