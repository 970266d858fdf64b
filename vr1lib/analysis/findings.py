"""What the numbers say, in sentences, and whether the paper's findings happened here.

Every sentence is made from the runs at hand; the paper's values only stand beside. A finding counts as happening when
the 95 % interval of our difference excludes zero on the paper's side, as the opposite when it excludes zero on the
other, and as undecided when it does not; of two accuracies the exact McNemar test must agree (our choice).
"""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vr1lib.analysis.comparisons import Comparison, compare
from vr1lib.analysis.runs import AnyGraded, ScoredModel, TrainingRun
from vr1lib.analysis.statistics import (
    REFLECTION_WORDS,
    Interval,
    LengthBin,
    length_thirds,
    stratified_difference,
    unpaired_difference,
)
from vr1lib.analysis.tables import paper_role, paper_series

Roles = tuple[str, str, int]
Verdict = Literal["as in the paper", "the opposite of the paper", "undecided", "not tested"]
AHA_WORDS = ("Wait", "Hmm", "Alternatively")  # Figure 1C
AHA_COLUMNS = [REFLECTION_WORDS.index(word) for word in AHA_WORDS]
PER = 50  # Figure 1C counts words over 50 samples


@dataclass(frozen=True)
class Finding:
    """One of the paper's findings: what it claims, its own numbers, ours, and the verdict."""

    claim: str
    paper: str
    ours: str
    verdict: Verdict


def findings(
    models: Sequence[ScoredModel], training_runs: Sequence[TrainingRun], cold_started: str = "CI"
) -> list[Finding]:
    """The paper's findings that runs like these can show, in the order of its story."""
    by_role = {paper_role(model.label): model for model in models}
    by_label = {model.label: model for model in models}
    base, final = by_role.get("base"), by_role.get("Vision-R1")
    cold = by_label.get(cold_started) or by_role.get("CI")
    staged = [run for run in training_runs if len(run.spans) > 1]
    return [
        accuracy_finding(
            "Learning to think at length costs accuracy at first: the cold-started model is below its base.",
            "49.6 % → 44.5 % (Tables 1 and 4)",
            base,
            cold,
            ("base", "CI", -1),
        ),
        overthinking(cold),
        accuracy_finding(
            "GRPO with progressive thinking suppression lifts the cold-started model.",
            "44.5 % → 55.4 %: +10.9 points (Table 4)",
            cold,
            final,
            ("CI", "Vision-R1", 1),
        ),
        accuracy_finding(
            "Cold start and RL together end above the base.",
            "49.6 % → 55.4 %: +5.8 points (Table 1)",
            base,
            final,
            ("base", "Vision-R1", 1),
        ),
        accuracy_finding(
            "Suppressing thought at first is better than the full length from the start.",
            "47.7 % → 55.4 %: +7.7 points (Table 4)",
            by_role.get("Long"),
            final,
            ("Long", "Vision-R1", 1),
        ),
        accuracy_finding(
            "RL alone, without a cold start, gains less.",
            "50.7 % → 55.4 %: +4.7 points (Table 4)",
            by_role.get("Zero"),
            final,
            ("Zero", "Vision-R1", 1),
        ),
        ptst_shortens(cold, final),
        *[finding for run in staged for finding in stages_shorten_then_lengthen(run)],
        *[finding for run in training_runs for finding in reward_rises(run)],
        reflection_survives(base, cold, final),
    ]


def overthinking(cold: ScoredModel | None) -> Finding:
    claim = "Overthinking: the longer the cold-started model thinks, the less it is right."
    paper = "41 % right up to 4K tokens, 28 % to 8K, 7 % beyond (Figure 1A)"
    if not cold:
        return Finding(claim, paper, untested("CI"), "not tested")
    bins = thirds_of(cold.graded)
    if len(bins) < 2:
        return Finding(claim, paper, f"{cold.label}'s completions are all about equally long.", "undecided")
    shortest, longest = rewards_between(cold.graded, bins[0]), rewards_between(cold.graded, bins[-1])
    difference = unpaired_difference(shortest, longest)
    ours = f"{cold.label}, right by length {part_name(bins)}: {thirds_sentence(bins)}; last against first "
    ours += f"{points(difference)}."
    within = longer_half_within_kinds(cold)
    if within:
        ours += f" Within problems of one kind, longer half against shorter: {points(within)}."
    return Finding(claim, paper, ours, verdict(difference, expected=-1))


def longer_half_within_kinds(model: ScoredModel) -> Interval | None:
    """Accuracy of the longer half of completions minus the shorter's, among problems of one kind: harder problems ask
    for longer answers, and that alone is no overthinking. None if no kind has completions of different length."""
    kinds: dict[tuple, list[AnyGraded]] = defaultdict(list)
    for row in model.graded:
        kinds[model.kind(row.problem_id)].append(row)
    halves = []
    for rows in kinds.values():
        middle = statistics.median(row.tokens for row in rows)
        shorter = [row.reward for row in rows if row.tokens <= middle]
        longer = [row.reward for row in rows if row.tokens > middle]
        if longer:
            halves.append((shorter, longer))
    return stratified_difference(halves) if halves else None


def accuracy_finding(
    claim: str, paper: str, first: ScoredModel | None, second: ScoredModel | None, roles: Roles
) -> Finding:
    """Whether accuracy went from `first` to `second` as the paper's did; `roles` names them and the paper's sign."""
    *names, expected = roles
    if not first or not second or not (pair := compare(first, second)):
        return Finding(claim, paper, untested(*names), "not tested")
    return Finding(claim, paper, accuracy_sentence(pair), accuracy_verdict(pair, expected))


def ptst_shortens(cold: ScoredModel | None, final: ScoredModel | None) -> Finding:
    claim = "After it the model thinks more briefly than the cold-started one."
    paper = "3,566 → 2,057 tokens (Table 4)"
    if not cold or not final or not (pair := compare(cold, final)):
        return Finding(claim, paper, untested("CI", "Vision-R1"), "not tested")
    means = f"{cold.mean_length:.1f} → {final.mean_length:.1f} tokens"
    ours = f"{cold.label} → {final.label}: {means}, {tokens(pair.length)}."
    return Finding(claim, paper, ours, verdict(pair.length, expected=-1))


def stages_shorten_then_lengthen(run: TrainingRun) -> list[Finding]:
    """Figure 1D: stage 1 cuts the chains, the next stage's wider limit lets them grow."""
    steps, lengths = run.series("length/mean")
    by_stage = {
        stage: [length for step, length in zip(steps, lengths) if first <= step <= last]
        for stage, first, last in run.spans
    }
    (_, first), (_, second), *_ = by_stage.items()
    if len(first) < 4 or len(second) < 4:
        return []
    window = max(2, min(len(first), len(second)) // 5)
    shortened = unpaired_difference(first[:window], first[-window:])
    grown = unpaired_difference(first[-window:], second[-window:])

    def sentence(difference: Interval, before: str, after: str) -> str:
        return (
            f"{run.label}: mean length of the sampled completions, {after} against {before} "
            f"({window} steps each): {tokens(difference)}."
        )

    return [
        Finding(
            "Stage 1's tight limit shortens the chains.",
            "2,344 → 1,324 tokens by step 100 (Figure 1D)",
            sentence(shortened, "its first steps", "end of stage 1"),
            verdict(shortened, expected=-1),
        ),
        Finding(
            "Stage 2's wider limit lets them grow again.",
            "1,324 → 2,056 tokens by step 200 (Figure 1D)",
            sentence(grown, "end of stage 1", "end of stage 2"),
            verdict(grown, expected=1),
        ),
    ]


def reward_rises(run: TrainingRun) -> list[Finding]:
    """Figure 1F; at most one finding, none of a run too short to tell."""
    _, rewards = run.series("reward/mean")
    if len(rewards) < 8:
        return []
    window = max(4, len(rewards) // 10)
    risen = unpaired_difference(rewards[:window], rewards[-window:])
    means = f"{sum(rewards[:window]) / window:.3f} → {sum(rewards[-window:]) / window:.3f}"
    ours = f"{run.label}: {means}, last against first {window} steps: {signed(risen, 1, 'reward', digits=3)}."
    paper = "0.277 → 0.599 by step 200 (Figure 1F)"
    return [Finding("The reward rises over training.", paper, ours, verdict(risen, expected=1))]


def reflection_survives(base: ScoredModel | None, cold: ScoredModel | None, final: ScoredModel | None) -> Finding:
    """Figure 1C compares with a base that never reflects; ours says where the words went too."""
    claim = "The final model still stops and looks again (Wait, Hmm, Alternatively), which its base never did."
    panel = paper_series("C")
    words = " / ".join(f"{dict(panel['Vision-R1 (Ours)'])[word]:.0f}" for word in AHA_WORDS)
    paper = f"{words} in 50 completions, base 0 / 0 / 0 (Figure 1C)"
    if not base or not final:
        return Finding(claim, paper, untested("base", "Vision-R1"), "not tested")
    named = [model for model in (base, cold, final) if model]
    ours = ", ".join(f"{model.label} {words_per_50_text(model)}" for model in named) + f" in {PER} completions."
    difference = unpaired_difference(words_each(base), words_each(final))
    ours += f" {final.label} against {base.label}: {signed(difference, 1, 'words a completion', digits=2)}."
    if cold and cold.by_benchmark.keys() == final.by_benchmark.keys():
        before, after = words_each(cold).mean(), words_each(final).mean()
        if after < before / 2:
            ours += f" Of {cold.label}'s reflection, training removed {100 * (1 - after / before):.0f} %."
    if not words_each(final).any():  # no doubt about it: not one such word in any completion
        return Finding(claim, paper, ours, "the opposite of the paper")
    return Finding(claim, paper, ours, verdict(difference, expected=1))


# --------------------------------------------------------------------------------------------------- words for numbers


def headline(models: Sequence[ScoredModel]) -> str:
    """The main result in one sentence: the last model against the one before it, or the one model alone."""
    if not models:
        return "No run of ours is in this report: it shows the paper's own values."
    pair = compare(models[-2], models[-1]) if len(models) > 1 else None
    if pair:
        return accuracy_sentence(pair)
    accuracy = models[-1].accuracy
    return f"{models[-1].label} is right on {percent(accuracy)} of {accuracy.n} problems."


def accuracy_sentence(pair: Comparison) -> str:
    """`PTST lifts …`: which way accuracy went, by how much, and whether chance explains it."""
    if not pair.decided:
        verb = "is not told apart from"
    else:
        verb = "is above" if pair.accuracy.mean > 0 else "is below"
    return (
        f"{pair.second} {verb} {pair.first}: {points(pair.accuracy)}; "
        f"problems only {pair.second} solves: {pair.test.only_second}, only {pair.first}: {pair.test.only_first} "
        f"(exact McNemar {p_value(pair.test.p_value)}, n = {pair.accuracy.n})."
    )


def verdict(difference: Interval, expected: int) -> Verdict:
    """`expected` is +1 or -1, the paper's direction."""
    if not difference.excludes_zero:
        return "undecided"
    return "as in the paper" if difference.mean * expected > 0 else "the opposite of the paper"


def accuracy_verdict(pair: Comparison, expected: int) -> Verdict:
    """As `verdict`, but undecided too where the exact test is."""
    return verdict(pair.accuracy, expected) if pair.decided else "undecided"


def untested(*labels: str) -> str:
    return f"No runs labelled {' and '.join(labels)} that share problems are in this report."


def percent(interval: Interval) -> str:
    return f"{100 * interval.mean:.1f} % (95 % interval {100 * interval.low:.1f} to {100 * interval.high:.1f})"


def points(difference: Interval) -> str:
    return signed(difference, 100, "points")


def tokens(difference: Interval) -> str:
    return signed(difference, 1, "tokens")


def signed(difference: Interval, factor: float, unit: str, digits: int = 1) -> str:
    """`+10.9 points (95 % interval +8.1 to +13.2)` with a real minus sign."""
    values = (difference.mean, difference.low, difference.high)
    mean, low, high = (f"{factor * value:+.{digits}f}".replace("-", "−") for value in values)
    return f"{mean} {unit} (95 % interval {low} to {high})"


def p_value(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def thirds_of(graded: Sequence[AnyGraded]) -> list[LengthBin]:
    lengths, rewards, problems = zip(*((row.tokens, row.reward, row.problem_id) for row in graded))
    return length_thirds(lengths, rewards, problems=problems)


def rewards_between(graded: Sequence[AnyGraded], part: LengthBin) -> list[float]:
    return [row.reward for row in graded if part.holds(row.tokens)]


def part_name(bins: Sequence[LengthBin]) -> str:
    return {2: "half", 3: "third"}.get(len(bins), "part")


def thirds_sentence(bins: Sequence[LengthBin]) -> str:
    """`50.3 % at 20–45 tokens (n = 167), 37.1 % at …`"""
    return ", ".join(f"{100 * part.accuracy.mean:.1f} % at {part.label} tokens (n = {part.n})" for part in bins)


def words_per_50(model: ScoredModel) -> dict[str, float]:
    """Reflection words in every 50 completions, Figure 1C's unit."""
    counts = model.word_counts[:, AHA_COLUMNS].sum(axis=0)  # [words]
    return {word: PER * int(count) / max(1, len(model.graded)) for word, count in zip(AHA_WORDS, counts)}


def words_per_50_text(model: ScoredModel) -> str:
    return " / ".join(f"{rate:.0f}" for rate in words_per_50(model).values())


def words_each(model: ScoredModel) -> np.ndarray:
    """Reflection words in each completion: [completions]."""
    return model.word_counts[:, AHA_COLUMNS].sum(axis=1)
