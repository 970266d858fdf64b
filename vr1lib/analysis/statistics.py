"""Numbers with their uncertainty: bootstrap intervals, paired tests, accuracy by length, reflection words.

The paper prints accuracies without intervals; every one here carries a 95 % percentile bootstrap (our choice). A mean
depends on its values only through how often each distinct value occurs, so a resample is drawn as one multinomial over
the distinct values: the ordinary bootstrap's distribution at a cost that does not grow with the number of rows. Where
almost every value is distinct, rows are drawn; from five thousand of them on the means are drawn from their normal
limit, which differs by less than resampling noise. Several completions of one problem are not independent: where the
problems are given, whole problems are resampled. numpy only.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95
MANY_DISTINCT = 200  # beyond it rows are drawn instead of counts, which is faster
MANY_VALUES = 5_000  # beyond both, resampled means are drawn from their normal limit
DRAWS_AT_ONCE = 4_000_000  # counts or rows held in memory at a time: 32 MB
REFLECTION_WORDS = ("Wait", "Hmm", "Alternatively", "Mistake", "Check")  # the paper's Table 2; Figure 1C shows three


@dataclass(frozen=True)
class Interval:
    """A mean with the ends of its interval, in the values' unit. `n` is the number of values."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class McNemar:
    """The exact McNemar test of two models on the same problems: how many only the one and only the other got right."""

    only_first: int
    only_second: int
    p_value: float


@dataclass(frozen=True)
class LengthBin:
    """Completions of `low` ≤ tokens < `high` (the last bin without an end holds all longer ones, `high` None).

    `share` is of all completions; `accuracy` is None in an empty bin.
    """

    low: int
    high: int | None
    share: float
    n: int
    accuracy: Interval | None

    def holds(self, tokens: int) -> bool:
        return self.low <= tokens and (self.high is None or tokens < self.high)

    @property
    def label(self) -> str:
        if self.high is None:
            return f"{self.low}+"
        return f"{self.low}–{self.high - 1}" if self.high - 1 > self.low else f"{self.low}"


def bootstrap_mean(values: Iterable[float], *, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """The mean with its 95 % percentile bootstrap interval. Raises ValueError without values."""
    return bootstrap_mean_of_strata([values], seed=seed, resamples=resamples)


def bootstrap_mean_of_strata(
    strata: Iterable[Iterable[float]], *, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """The plain mean of several strata's means (the paper's average over benchmarks), each stratum resampled by itself.

    Raises ValueError without strata or with an empty one.
    """
    arrays = [np.asarray(list(values), dtype=float) for values in strata]
    if not arrays or any(array.size == 0 for array in arrays):
        raise ValueError("a mean needs at least one value in every stratum")
    rng = np.random.default_rng(seed)
    means = np.mean([_resampled_means(array, resamples, rng) for array in arrays], axis=0)  # [resamples]
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    centre = float(np.mean([array.mean() for array in arrays]))
    return Interval(centre, float(low), float(high), sum(array.size for array in arrays))


def accuracy_interval(right: Iterable[bool | float], *, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Share of right answers. Where none or all are right the bootstrap has no spread and would claim certainty: there
    the exact (Clopper-Pearson) end is given instead (our choice)."""
    values = np.asarray(list(right), dtype=float)
    interval = bootstrap_mean(values, seed=seed, resamples=resamples)
    edge = ((1 - LEVEL) / 2) ** (1 / values.size)
    if interval.mean == 0:
        return Interval(0.0, 0.0, 1 - edge, values.size)
    if interval.mean == 1:
        return Interval(1.0, edge, 1.0, values.size)
    return interval


def clustered_accuracy(
    right: Iterable[bool | float], problems: Sequence[Any], *, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """Share of right completions where several answer one problem: whole problems are resampled.

    `problems` names the problem of each completion; `n` is the number of completions. A resampled share is a ratio of
    sums, since problems may have unequal numbers of completions (as in a length bin). With one completion a problem it
    is `accuracy_interval`; where none or all are right its exact end counts problems, not completions (our choice).
    Raises ValueError without values.
    """
    right = np.asarray(list(right), dtype=float)
    names, index, counts = np.unique(np.asarray(problems), return_inverse=True, return_counts=True)
    if names.size == right.size or right.size == 0:
        return accuracy_interval(right, seed=seed, resamples=resamples)
    mean = float(right.mean())
    if mean in (0, 1):
        ends = accuracy_interval(np.full(names.size, mean))
        return Interval(mean, ends.low, ends.high, right.size)
    sums = np.bincount(index, weights=right)
    kinds, many = np.unique(np.column_stack([counts, sums]), axis=0, return_counts=True)  # problems that look alike
    rng = np.random.default_rng(seed)
    shares = []
    for rows in _chunks(resamples, len(kinds)):
        drawn = rng.multinomial(names.size, many / names.size, size=rows) @ kinds  # [rows, 2]: completions, right
        shares.append(drawn[:, 1] / drawn[:, 0])
    low, high = np.quantile(np.concatenate(shares), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(mean, float(low), float(high), right.size)


def mean_accuracy(strata: Iterable[Iterable[bool | float]], *, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """The plain mean of several benchmarks' shares of right answers; if none or all are right, of their exact ends."""
    strata = [list(values) for values in strata]
    mean = bootstrap_mean_of_strata(strata, seed=seed, resamples=resamples)
    if mean.mean not in (0, 1):
        return mean
    ends = [accuracy_interval(values) for values in strata]
    low, high = (sum(values) / len(ends) for values in zip(*((end.low, end.high) for end in ends)))
    return Interval(mean.mean, low, high, mean.n)


def paired_difference(
    first: Iterable[bool | float], second: Iterable[bool | float], *, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """Mean of `second - first` over the same problems in the same order, resampled in pairs."""
    first, second = np.asarray(list(first), dtype=float), np.asarray(list(second), dtype=float)
    if first.shape != second.shape:
        raise ValueError(f"{first.size} values cannot be paired with {second.size}")
    return bootstrap_mean(second - first, seed=seed, resamples=resamples)


def unpaired_difference(
    first: Iterable[float], second: Iterable[float], *, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """Difference of two means, `second - first`, each resampled by itself; `n` counts both."""
    return stratified_difference([(first, second)], seed=seed, resamples=resamples)


def stratified_difference(
    strata: Iterable[tuple[Iterable[float], Iterable[float]]], *, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """Mean of `second - first` within strata, so that what differs between strata cannot pass for the difference.

    Strata count by n1·n2/(n1 + n2) (Mantel-Haenszel); each side of each is resampled by itself. Raises ValueError
    without strata or with an empty side.
    """
    pairs = [tuple(np.asarray(list(values), dtype=float) for values in stratum) for stratum in strata]
    if not pairs or any(array.size == 0 for pair in pairs for array in pair):
        raise ValueError("a difference needs at least one value on either side")
    weights = np.array([first.size * second.size / (first.size + second.size) for first, second in pairs])
    weights /= weights.sum()
    rng = np.random.default_rng(seed)
    draws, mean = np.zeros(resamples), 0.0
    for weight, (first, second) in zip(weights, pairs):
        draws += weight * (_resampled_means(second, resamples, rng) - _resampled_means(first, resamples, rng))
        mean += weight * (second.mean() - first.mean())
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(mean), float(low), float(high), sum(array.size for pair in pairs for array in pair))


def mcnemar_exact(first: Iterable[bool], second: Iterable[bool]) -> McNemar:
    """Two-sided exact binomial test on the problems that one model alone got right; p is 1 where there are none."""
    first, second = np.asarray(list(first), dtype=bool), np.asarray(list(second), dtype=bool)
    if first.shape != second.shape:
        raise ValueError(f"{first.size} values cannot be paired with {second.size}")
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    return McNemar(only_first, only_second, _two_sided_binomial(min(only_first, only_second), only_first + only_second))


def length_bins(
    lengths: Sequence[int],
    right: Sequence[bool | float],
    edges: Sequence[int],
    problems: Sequence[str] | None = None,
) -> list[LengthBin]:
    """Share and accuracy of completions between fixed edges in tokens: [e0, e1), [e1, e2), … and [last, ∞).

    `problems` names the problem of each completion, where some answer the same one.
    """
    lengths, right = np.asarray(lengths, dtype=float), np.asarray(right, dtype=float)
    alone = problems is None or len(set(problems)) == lengths.size
    clusters = np.arange(lengths.size) if alone else np.unique(np.asarray(problems), return_inverse=True)[1]
    bins = []
    for low, high in zip(edges, [*edges[1:], None]):
        inside = (lengths >= low) & (lengths < (np.inf if high is None else high))
        count = int(inside.sum())
        accuracy = clustered_accuracy(right[inside], clusters[inside]) if count else None
        bins.append(LengthBin(int(low), high, count / max(1, lengths.size), count, accuracy))
    return bins


def round_edges(lengths: Sequence[int], most: int = 6) -> list[int]:
    """Edges in tokens for at most `most` bins of one round width (1, 2 or 5 times a power of ten): the first begins at
    0, the last has no end. The inner ones lie between the 5th and the 95th percentile."""
    lengths = np.asarray(lengths, dtype=float)
    if lengths.size == 0:
        return [0]
    low, high = np.quantile(lengths, [0.05, 0.95])
    widths = (step * 10**power for power in range(10) for step in (1, 2, 5))
    width = next(width for width in widths if high // width - low // width < most)
    return [0, *range(int(low // width + 1) * width, int(high) + 1, width)]


def length_thirds(
    lengths: Sequence[int], right: Sequence[bool | float], parts: int = 3, problems: Sequence[str] | None = None
) -> list[LengthBin]:
    """Accuracy in parts of (nearly) equal size, shortest completions first. `problems` as in `length_bins`.

    Equal lengths stay together: a cut that falls among them moves to their nearer end, so parts may differ in size, and
    may be fewer.
    """
    ordered = np.sort(np.asarray(lengths, dtype=int))
    if ordered.size == 0:
        return []
    edges = {int(ordered[0])}
    for part in range(1, parts):
        target = ordered.size * part / parts
        start, end = (np.searchsorted(ordered, ordered[int(target)], side) for side in ("left", "right"))
        cut = start if target - start <= end - target else end
        if cut < ordered.size:
            edges.add(int(ordered[cut]))
    bins = length_bins(lengths, right, sorted(edges), problems)
    last = bins[-1]
    return [*bins[:-1], LengthBin(last.low, int(ordered[-1]) + 1, last.share, last.n, last.accuracy)]


def count_words(texts: Iterable[str], words: Sequence[str] = REFLECTION_WORDS) -> dict[str, int]:
    """How often each word occurs, as a whole word in any case (our choice; the paper does not state its rule)."""
    patterns = {word: re.compile(rf"\b{re.escape(word)}\b", re.IGNORECASE) for word in words}
    counts = dict.fromkeys(words, 0)
    for text in texts:
        for word, pattern in patterns.items():
            counts[word] += len(pattern.findall(text))
    return counts


def _chunks(resamples: int, draws: int) -> list[int]:
    """Numbers of resamples that fit into memory at a time, with so many draws each."""
    rows = max(1, DRAWS_AT_ONCE // draws)
    return [min(rows, resamples - start) for start in range(0, resamples, rows)]


def _resampled_means(values: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Means [resamples] of samples of `values` with replacement, each as large as `values`."""
    distinct, counts = np.unique(values, return_counts=True)
    if distinct.size == 1:
        return np.full(resamples, distinct[0])
    if distinct.size > MANY_DISTINCT:
        if values.size >= MANY_VALUES:
            return rng.normal(values.mean(), values.std() / np.sqrt(values.size), size=resamples)
        draws = (rng.integers(values.size, size=(rows, values.size)) for rows in _chunks(resamples, values.size))
        return np.concatenate([values[rows].mean(axis=1) for rows in draws])
    draws = (
        rng.multinomial(values.size, counts / values.size, size=rows) for rows in _chunks(resamples, distinct.size)
    )
    return np.concatenate([rows @ distinct / values.size for rows in draws])


def _two_sided_binomial(smaller: int, total: int) -> float:
    """Probability of a split of `total` fair coins at least as uneven as `smaller` against the rest."""
    if 2 * smaller == total:
        return 1.0
    log_factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, total + 1)))])
    tail = np.arange(smaller + 1)
    log_terms = log_factorials[total] - log_factorials[tail] - log_factorials[total - tail] - total * np.log(2)
    return float(min(1.0, 2 * np.exp(log_terms).sum()))
