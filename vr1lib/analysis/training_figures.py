"""What one training run did over its steps, stages shaded: rewards, groups, cut completions, words of doubt, length.

`graded` are rows of the run's completions.jsonl or evaluation.jsonl, with their step and stage.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vr1lib.analysis.drawing import STYLES, empty_figure, legend_below, new_figure, nothing, step_axis, wrapped
from vr1lib.analysis.findings import PER
from vr1lib.analysis.model_figures import bins_figure
from vr1lib.analysis.panels import shade_stages_of
from vr1lib.analysis.runs import AnyGraded, TrainingRun
from vr1lib.analysis.statistics import REFLECTION_WORDS, length_bins, round_edges
from vr1lib.data.audits import count_word

REWARDS = {  # metric → name and look; the reward lies on top of its parts
    "reward/format_ok": ("well-formed", {"color": "#a0a0a0", "linestyle": "--", "linewidth": 1.6}),
    "reward/answer_ok": ("answer right", {"color": "#4a86b8", "linestyle": "-", "linewidth": 3.2}),
    "reward/mean": ("mean reward", {"color": "#123a5e", "linestyle": ":", "linewidth": 1.8}),
}
GROUPS = {  # what a group of completions can teach, from the top of the stack down: colour, hatch
    "all right: no advantage": ("#ffffff", ""),
    "mixed: something to learn": ("#4a86b8", ""),
    "all wrong, not all cut": ("#c9b27c", "///"),
    "all cut at the limit": ("#6d6d6d", "..."),
}
WORD_STYLES = [STYLES[place] for place in (2, 1, 4, 6, 3)]


def reward_parts(run: TrainingRun) -> Figure:
    """Reward with its two parts, groups by what they can teach, and the share of completions cut at the limit."""
    steps, _ = run.series("reward/mean")
    if not steps:
        return empty_figure(f"{run.label} logged no reward")
    figure = new_figure(height=8.4)
    rewards, groups, cut = figure.subplots(3, 1, sharex=True, height_ratios=[3, 3, 2])
    for key, (name, look) in REWARDS.items():
        rewards.plot(*run.series(key), label=name, **look)
    rewards.set_title(wrapped(f"{run.label}: reward and its parts", 56))
    rewards.set_ylabel("share; mean reward")
    draw_groups(groups, run)
    cut.plot(*run.series("length/clipped_ratio"), color="#123a5e", linewidth=1.6)
    cut.set_title("Completions cut at the stage's limit")
    cut.set_ylabel("share of completions")
    for axes in (rewards, groups, cut):
        shade_stages_of(axes, [run], named=axes is rewards)
        axes.set_ylim(0, 1.22 if axes is rewards else 1.02)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", ".25", ".5", ".75", "1"])
        axes.tick_params(labelbottom=True)
        step_axis(axes)
        legend_below(axes, columns=3 if axes is rewards else 2)
    return figure


def draw_groups(axes: Axes, run: TrainingRun) -> None:
    """Shares of groups stacked to one."""
    keys = ("groups/all_right", "groups/all_wrong", "groups/all_truncated")
    rows = [row for row in run.metrics if all(row.get(key) is not None for key in keys)]
    axes.set_title("Groups of completions of one problem")
    axes.set_ylabel("share of groups")
    if not rows:
        nothing(axes, "not logged in this run")
        return
    right, wrong, cut = (np.array([row[key] for row in rows], dtype=float) for key in keys)
    cut = np.minimum(cut, wrong)
    edges = np.array([row["step"] for row in rows] + [rows[-1]["step"] + 1]) - 0.5
    shares = (right, 1 - right - wrong, wrong - cut, cut)
    bottom = np.zeros(len(rows))
    for (name, (colour, hatch)), share in reversed(list(zip(GROUPS.items(), shares))):
        low, high = (np.append(heights, heights[-1]) for heights in (bottom, bottom + share))  # a step ends at the next
        look = {"facecolor": colour, "hatch": hatch, "edgecolor": "black", "linewidth": 0.5}
        axes.fill_between(edges, low, high, step="post", label=name, **look)
        bottom = bottom + share


def words_over_time(run: TrainingRun, graded: Iterable[AnyGraded]) -> Figure:
    """Each reflection word in every 50 completions sampled in training, step by step, as whole words in any case.

    Of a long run each point is the mean over several steps, as the axis says.
    """
    words = [word.lower() for word in REFLECTION_WORDS]
    counts: dict[int, np.ndarray] = defaultdict(lambda: np.zeros(len(words)))
    totals: dict[int, int] = defaultdict(int)
    for row in graded:
        text = row.text.lower()
        counts[row.step] += [count_word(word, text)[0] for word in words]
        totals[row.step] += 1
    if not totals:
        return empty_figure(f"{run.label} kept no completions")
    steps = np.array(sorted(totals))
    window = max(1, len(steps) // 40)
    starts = np.arange(0, len(steps), window)
    sums = np.add.reduceat(np.array([counts[step] for step in steps]), starts)  # [points, words]
    sizes = np.add.reduceat(np.array([totals[step] for step in steps], dtype=float), starts)
    places = np.add.reduceat(steps.astype(float), starts) / np.diff([*starts, len(steps)])
    figure = new_figure(height=4.6)
    axes = figure.subplots()
    rates = PER * sums / sizes[:, None]
    for word, style, rate in zip(REFLECTION_WORDS, WORD_STYLES, rates.T):
        axes.plot(places, rate, label=word, **{**style.curve, "markersize": 4 if len(places) > 15 else 6})
    axes.set_title(wrapped(f"{run.label}: reflection words over training", 56))
    axes.set_ylabel(f"count in {PER} completions")
    axes.set_ylim(0, 1.25 * max(1.0, rates.max()))
    shade_stages_of(axes, [run])
    step_axis(axes)
    if window > 1:
        axes.set_xlabel(f"step (a point is the mean of {window} steps)")
    legend_below(axes, columns=len(REFLECTION_WORDS))
    return figure


def accuracy_by_length_and_stage(run: TrainingRun, graded: Sequence[AnyGraded]) -> Figure:
    """The overthinking picture over training: length against accuracy at the start and at the end of each stage.

    Rows with step 0 among them are answers to held-out problems: the first evaluation, and the last of each stage.
    Without them they are what training sampled: its first steps, and the last fifth of each stage's steps.
    """
    named = moments(run, graded)
    if not named:
        return empty_figure(f"{run.label} kept no completions")
    edges = round_edges([row.tokens for rows in named.values() for row in rows])
    bins = {
        f"{name} (mean\u00a0{mean_length(rows):.0f}\u00a0tokens)": length_bins(
            [row.tokens for row in rows], [row.answer_ok for row in rows], edges, [row.problem_id for row in rows]
        )
        for name, rows in named.items()
    }
    kind = "held-out problems" if any(row.step == 0 for row in graded) else "sampled in training"
    return bins_figure(bins, STYLES[: len(bins)], wrapped(f"{run.label}: right by length, {kind}", 50))


def moments(run: TrainingRun, graded: Sequence[AnyGraded]) -> dict[str, list[AnyGraded]]:
    """Rows at the start and at the end of each stage; a moment without rows is left out."""
    by_step: dict[int, list[AnyGraded]] = defaultdict(list)
    for row in graded:
        by_step[row.step].append(row)
    held_out = 0 in by_step
    windows: dict[str, list[int]] = {}
    for stage, first, last in run.spans:
        steps = [step for step in sorted(by_step) if first <= step <= last]
        few = 1 if held_out else max(1, len(steps) // 5)
        if stage == run.spans[0][0]:
            windows["start"] = [0] if held_out else steps[:few]
        windows[f"end of stage {stage + 1}"] = steps[-few:]
    found = {name: [row for step in steps for row in by_step[step]] for name, steps in windows.items()}
    return {name: rows for name, rows in found.items() if rows}


def mean_length(rows: Sequence[AnyGraded]) -> float:
    return sum(row.tokens for row in rows) / len(rows)
