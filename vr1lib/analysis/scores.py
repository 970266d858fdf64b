"""Scores of benchmark runs as a table shows them: percent or points, with interval, protocol, and what they are of.

A pick takes a row of scores.json and gives a Score, or None where the row has no such value. Rows written before a key
was there are read as what was then the only way.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vr1lib.analysis.runs import ScoredModel
from vr1lib.benchmarks.mathverse import VERSIONS

PUBLISHED_SIZES = {  # problems; another version of a benchmark may have another
    "mathvista": (1000,),
    "mathverse": (3940,),
    "mmmath": (5929,),
    "dynamath": (5010,),
    "mmstar": (1500,),
    "chartqa": (2500,),
    "mme": (2374,),
    "hallusionbench": (1129, 951),  # 951 without the questions that have no picture
}

ScoreRow = Mapping[str, Any]


@dataclass(frozen=True)
class Score:
    """A value in the table's unit, with the ends of its interval where it has one."""

    value: float
    low: float | None = None
    high: float | None = None
    digits: int = 1
    of_first_samples: bool = False


Pick = Callable[[ScoreRow], Score | None]


def accuracy(row: ScoreRow) -> Score | None:
    """The whole benchmark, in percent."""
    return _percent(row)


def group(kind: str, name: str) -> Pick:
    """The accuracy of one of the benchmark's groups, in percent."""
    return lambda row: _percent(row.get("by", {}).get(kind, {}).get(name))


def _percent(share: Mapping[str, Any] | None) -> Score | None:
    if not share or share.get("accuracy") is None:
        return None
    return Score(*(None if share.get(key) is None else 100 * share[key] for key in ("accuracy", "low", "high")))


def mathverse_mean(row: ScoreRow) -> Score | None:
    """The mean of MathVerse's five versions, of those that were asked."""
    versions = [score for version in VERSIONS if (score := group("version", version)(row))]
    return mean_of(versions) if versions else accuracy(row)


def hallusionbench_mean(row: ScoreRow) -> Score | None:
    """The mean of aAcc, fAcc and qAcc over the questions with a picture (our reading: the paper does not say)."""
    report = row.get("report") or {}
    mean = (report.get("with_picture") or {}).get("mean")
    return None if mean is None else Score(100 * mean, of_first_samples=True)


def mme_sum(row: ScoreRow) -> Score | None:
    """Perception and cognition together, in points."""
    points = (row.get("report") or {}).get("sum")
    return None if points is None else Score(points, digits=0, of_first_samples=True)


def mean_of(scores: Sequence[Score | None]) -> Score | None:
    """The plain mean, None if one is missing. Its interval takes the scores for independent: the distances from each
    to its ends add in squares."""
    if not scores or any(score is None for score in scores):
        return None
    mean = sum(score.value for score in scores) / len(scores)
    if any(score.low is None or score.high is None for score in scores):
        return Score(mean)
    below = math.hypot(*(score.value - score.low for score in scores)) / len(scores)
    above = math.hypot(*(score.high - score.value for score in scores)) / len(scores)
    return Score(mean, mean - below, mean + above)


def part_of(row: ScoreRow) -> str | None:
    """Which part of its benchmark a row is of: `mathvista: 400 of 1,000 (left out: …)`; None for all of it."""
    name, n, left_out = row["benchmark"], row["n"], row.get("left_out") or {}
    sizes = PUBLISHED_SIZES.get(name, (n,))
    if n in sizes and not left_out:
        return None
    total = max(n + sum(left_out.values()), sizes[0])
    shard = row.get("shard", "1/1")
    details = [f"shard {shard}"] * (shard != "1/1")
    details += [f"{count:,} {reason}" for reason, count in left_out.items()]
    return f"{name}: {n:,} of {total:,}" + (f" (left out: {'; '.join(details)})." if details else ".")


def protocol_name(row: ScoreRow) -> str:
    """`strict`, or `authors', at most 5 tries, judge NAME`."""
    if row.get("protocol", "strict") == "strict":
        return "strict"
    judge = (row.get("judge") or {}).get("model")
    return f"authors', at most {row.get('tries', 1)} tries, {f'judge {judge}' if judge else 'no judge'}"


def by_protocol(model: ScoredModel) -> dict[str, dict[str, ScoreRow]]:
    """Protocol → benchmark → score row, problems that no training row comes near as a protocol of their own. Controls
    (blank pictures, shuffled options …) are not scores of a model."""
    found: dict[str, dict[str, ScoreRow]] = {}
    for key, suffix in (("benchmarks", ""), ("authors", ""), ("clean", ", clean problems alone")):
        for row in model.scores.get(key) or []:
            if row.get("control", "none") == "none":
                found.setdefault(protocol_name(row) + suffix, {})[row["benchmark"]] = row
    return found
