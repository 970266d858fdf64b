"""Model against model on the same problems, in pairs: what changed, how sure it is, and what was not measured alike.

The paper compares averages; pairing takes the difficulty of the problems out of the difference (our choice).
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from vr1lib.analysis.runs import ScoredModel
from vr1lib.analysis.statistics import Interval, McNemar, bootstrap_mean_of_strata, mcnemar_exact


@dataclass(frozen=True)
class Comparison:
    """`second` against `first` on the problems that both answered. Differences are second minus first: accuracy as a
    share, length in tokens. `unlike` names what was not the same for both."""

    first: str
    second: str
    accuracy: Interval
    length: Interval
    test: McNemar
    only_in_one: int
    unlike: list[str]

    @property
    def decided(self) -> bool:
        """Whether chance is ruled out: the interval excludes zero and the exact test agrees. Where two models differ on
        a handful of problems only, the bootstrap alone is too sure (4 against 0 would do)."""
        return self.accuracy.excludes_zero and self.test.p_value < 0.05


def compare(first: ScoredModel, second: ScoredModel) -> Comparison | None:
    """A paired comparison, None if the two share no problem."""
    answers = [
        {(benchmark, row.problem_id): row for benchmark, rows in model.by_benchmark.items() for row in rows}
        for model in (first, second)
    ]
    shared = [key for key in answers[0] if key in answers[1]]
    if not shared:
        return None
    accuracy, length = defaultdict(list), defaultdict(list)
    for key in shared:
        before, after = answers[0][key], answers[1][key]
        accuracy[key[0]].append(after.reward - before.reward)
        length[key[0]].append(after.tokens - before.tokens)
    right = [[answer[key].reward == 1 for key in shared] for answer in answers]
    rows = [{row["benchmark"]: row for row in model.scores["benchmarks"]} for model in (first, second)]
    unlike = sorted(
        {
            f"{benchmark}: {name}"
            for benchmark in accuracy
            for name in ("sampling", "image_spec", "prompt_spec", "reward")
            if rows[0][benchmark].get(name) != rows[1][benchmark].get(name)
        }
    )
    return Comparison(
        first.label,
        second.label,
        bootstrap_mean_of_strata(accuracy.values()),
        bootstrap_mean_of_strata(length.values()),
        mcnemar_exact(*right),
        len(answers[0]) + len(answers[1]) - 2 * len(shared),
        unlike,
    )


def compare_all(models: Sequence[ScoredModel]) -> list[Comparison]:
    """Every pair, the earlier model first; pairs without a common problem are left out."""
    pairs = (compare(first, second) for first, second in combinations(models, 2))
    return [pair for pair in pairs if pair is not None]


def comparison_rows(comparisons: Iterable[Comparison]) -> list[dict[str, Any]]:
    """Comparisons as table rows: points of accuracy and tokens of length, second minus first."""
    return [
        {
            "from": pair.first,
            "to": pair.second,
            "n": pair.accuracy.n,
            "difference_points": round(100 * pair.accuracy.mean, 2),
            "low_points": round(100 * pair.accuracy.low, 2),
            "high_points": round(100 * pair.accuracy.high, 2),
            "only_from_right": pair.test.only_first,
            "only_to_right": pair.test.only_second,
            "mcnemar_p": pair.test.p_value,
            "length_tokens": round(pair.length.mean, 1),
            "length_low": round(pair.length.low, 1),
            "length_high": round(pair.length.high, 1),
            "in_one_only": pair.only_in_one,
            "unlike": "; ".join(pair.unlike),
        }
        for pair in comparisons
    ]
