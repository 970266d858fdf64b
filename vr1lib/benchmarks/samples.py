"""Several samples of each problem as one figure: pass@k and majority@k.

pass@k is the unbiased estimator of Chen et al. 2021 (arXiv 2107.03374, Equation 1). majority@k is the verdict on the
most frequent answer of the first k samples. Our choices there: answers are the same if our grader takes one for the
other, so 0.5 and 1/2 vote together, as do an option's letter and its text; of equally frequent answers the first given
wins; a sample without an answer has no vote, and where none has one the problem is wrong.
"""

from collections.abc import Callable, Sequence
from math import comb

from vr1lib.answers import grade_answer
from vr1lib.records import Problem


def pass_at_k(right: Sequence[Sequence[bool]], k: int) -> list[float]:
    """For each problem the chance that at least one of k samples is right, 1 − C(n − c, k) / C(n, k).

    right: [problems, samples], n samples with c right each. Raises ValueError for a problem with fewer than k samples.
    """
    _check(right, k)
    return [1 - comb(len(row) - sum(row), k) / comb(len(row), k) for row in right]


def majority_at_k(
    answers: Sequence[Sequence[str | None]],
    problems: Sequence[Problem],
    k: int,
    is_right: Callable[[str, Problem], bool],
) -> list[bool]:
    """For each problem whether the most frequent of its first k answers is right.

    answers: [problems, samples], None for a sample without one. Raises ValueError for a problem with fewer than k.
    """
    _check(answers, k)
    verdicts = []
    for row, problem in zip(answers, problems, strict=True):
        answer = majority(row[:k], problem)
        verdicts.append(answer is not None and is_right(answer, problem))
    return verdicts


def majority(answers: Sequence[str | None], problem: Problem) -> str | None:
    """The most frequent answer in the words of the first who gave it; None without answers."""
    votes: dict[str, int] = {}
    for answer in answers:
        if answer is None:
            continue
        same = next((one for one in votes if one == answer or grade_answer(answer, one, problem.choices).ok), answer)
        votes[same] = votes.get(same, 0) + 1
    return max(votes, key=votes.__getitem__, default=None)


def _check(rows: Sequence[Sequence], k: int) -> None:
    fewest = min(map(len, rows), default=k)
    if not 1 <= k <= fewest:
        raise ValueError(f"k = {k}: a problem has {fewest} samples; give 1 to {fewest}")
