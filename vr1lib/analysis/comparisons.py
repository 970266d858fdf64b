"""Model against model on the same problems, in pairs; protocol against protocol; and what was not measured alike.

The paper compares averages; pairing takes the difficulty of the problems out of the difference (our choice).
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from vr1lib.analysis.formats import Cell, Column, Row, Table, with_interval
from vr1lib.analysis.runs import AnyGraded, ScoredModel, mean_reward
from vr1lib.analysis.scores import accuracy, protocol_name
from vr1lib.analysis.statistics import (
    Interval,
    McNemar,
    bootstrap_mean_of_strata,
    mcnemar_exact,
    paired_difference,
)
from vr1lib.benchmarks.comparability import unlike
from vr1lib.records import RequestError


@dataclass(frozen=True)
class Comparison:
    """`second` against `first` on the problems that both answered. Differences are second minus first: accuracy as a
    share, length in tokens; of several samples a problem, their mean counts. The exact test takes the first samples.
    `unlike` names what was not the same for both."""

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
    """A paired comparison, None if the two share no problem. Benchmarks count alike, as in the paper's averages."""
    accuracy, length, right, notes, shared_problems = [], [], ([], []), [], 0
    for benchmark, before in first.by_problem.items():
        after = second.by_problem.get(benchmark, {})
        shared = [problem for problem in before if problem in after]
        if not shared:
            continue
        shared_problems += len(shared)
        accuracy.append([mean_reward(after[problem]) - mean_reward(before[problem]) for problem in shared])
        length.append([_mean_tokens(after[problem]) - _mean_tokens(before[problem]) for problem in shared])
        for verdicts, answers in zip(right, (before, after)):
            verdicts += [answers[problem][0].reward == 1 for problem in shared]
        notes += [f"{benchmark}: {what}" for what in unlike(first.row_of[benchmark], second.row_of[benchmark])]
    if not shared_problems:
        return None
    answered = [sum(map(len, model.by_problem.values())) for model in (first, second)]
    return Comparison(
        first.label,
        second.label,
        bootstrap_mean_of_strata(accuracy),
        bootstrap_mean_of_strata(length),
        mcnemar_exact(*right),
        sum(answered) - 2 * shared_problems,
        notes,
    )


def _mean_tokens(rows: Sequence[AnyGraded]) -> float:
    return sum(row.tokens for row in rows) / len(rows)


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


def unlike_warnings(comparisons: Iterable[Comparison]) -> list[str]:
    """One line a pair that was not measured alike, naming what differs."""
    return [
        f"{pair.first} and {pair.second} are not measured alike: {'; '.join(pair.unlike)}"
        for pair in comparisons
        if pair.unlike
    ]


def protocol_table(models: Iterable[ScoredModel]) -> Table:
    """The same answers under the strict and under the authors' protocol: a row a model and benchmark that has both.

    The difference is authors' minus strict in points, problems paired, the strict verdict that of the first sample.
    """
    rows = []
    for model in models:
        verdicts = authors_verdicts(model) if model.scores.get("authors") else {}
        for authors in model.scores.get("authors") or []:
            strict = model.row_of.get(authors["benchmark"])
            if strict is None:
                continue
            values = [accuracy(row) for row in (strict, authors)]
            problems = model.by_problem[authors["benchmark"]]
            shared = [problem for problem in problems if problem in verdicts]
            before = [problems[problem][0].reward == 1 for problem in shared]
            difference = paired_difference(before, [verdicts[problem] for problem in shared]) if shared else None
            judge = authors.get("judge") or {}
            cells = [
                model.label,
                authors["benchmark"],
                f"{authors['n']:,}",
                *(with_interval(value.value, value.low, value.high) for value in values),
                _points(difference) if difference else f"{values[1].value - values[0].value:+.1f}",
                str(authors.get("tries", 1)),
                str(authors.get("later_tries_kept", "")),
                protocol_name(authors).rsplit(", ", 1)[1],
                str(judge.get("calls", "")),
            ]
            rows.append(Row(tuple(map(Cell, cells))))
    columns = [
        Column("Model", number=False),
        Column("Benchmark", number=False),
        Column("n"),
        Column("Strict", "%"),
        Column("Authors'", "%"),
        Column("Difference", "points"),
        Column("Tries at most"),
        Column("Later tries kept"),
        Column("Judge", number=False),
        Column("Judge's calls"),
    ]
    return Table("The same model under two protocols", columns, rows)


def authors_verdicts(model: ScoredModel) -> dict[str, bool]:
    """Problem id → right under the authors' protocol, as verdicts_authors.jsonl has it; empty without the file."""
    path = Path(model.folder) / "verdicts_authors.jsonl"
    if not path.is_file():
        return {}
    verdicts = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            verdicts[row["problem_id"]] = bool(row["right"])
        except (ValueError, KeyError, TypeError):
            raise RequestError(f"{path}, line {number}: no verdict; run 40_benchmark again") from None
    return verdicts


def _points(difference: Interval) -> str:
    mean, low, high = (100 * value for value in (difference.mean, difference.low, difference.high))
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"
