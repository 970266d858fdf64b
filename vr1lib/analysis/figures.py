"""The paper's Figure 1 with ours above and theirs below, and what else a run is looked at with.

Ours and the paper's never share an axis: other model, other benchmark, other step counts. Panels stand one over the
other, so that a figure is narrow enough for a phone. Every function returns a whole figure.
"""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vr1lib.analysis.drawing import (
    OURS,
    PROGRESSIONS,
    TRAINING,
    draw_accuracy,
    draw_accuracy_by_length,
    draw_pairs_of_bars,
    draw_paper_progression,
    draw_progression,
    draw_share_and_accuracy,
    draw_words,
    legend_below,
    nothing,
    short_name,
)
from vr1lib.analysis.findings import PER, words_per_50
from vr1lib.analysis.runs import ScoredModel, TrainingRun, is_number
from vr1lib.analysis.tables import paper_role, paper_series

WIDTH = 6.0  # inches: 900 pixels at 150 per inch


def accuracy_bars(models: Sequence[ScoredModel]) -> Figure:
    """Accuracy of each model with its interval, and the paper's average for the model of that name."""
    figure = new_figure(height=3.9)
    draw_accuracy(figure.subplots(), models)
    return figure


def accuracy_by_length(models: Sequence[ScoredModel]) -> Figure:
    """The overthinking picture: accuracy of each model's shortest, middle and longest third."""
    figure = new_figure(height=4.2)
    draw_accuracy_by_length(figure.subplots(), models)
    return figure


def share_and_accuracy(model: ScoredModel) -> Figure:
    """Figure 1A: how long the cold-started model thinks and how right it is at each length."""
    figure = new_figure(height=6.4)
    ours, paper = figure.subplots(2, 1)
    draw_share_and_accuracy(ours, model)
    bins = paper_series("A")
    draw_pairs_of_bars(
        paper,
        [name for name, _ in bins["Proportion (%)"]],
        [value for _, value in bins["Proportion (%)"]],
        [value for _, value in bins["Accuracy (%)"]],
        None,
    )
    paper.set_title("Paper, Figure 1A: Vision-R1-CI-7B on MathVerse")
    legend_below(paper)
    return figure


def reflection_words(models: Sequence[ScoredModel]) -> Figure:
    """Figure 1C: reflection words in every 50 completions."""
    figure = new_figure(height=6.4)
    ours, paper = figure.subplots(2, 1)
    draw_words(ours, {model.label: words_per_50(model.graded) for model in models})
    ours.set_title(f"Ours: words in {PER} completions")
    panel = paper_series("C")
    draw_words(paper, {short_name(series): dict(values) for series, values in panel.items()})
    paper.set_title(f"Paper, Figure 1C: words in {PER} MathVerse completions")
    return figure


def progression(panel: str, runs: Sequence[TrainingRun]) -> Figure:
    """Figure 1 D, E or F: length, accuracy or reward over the steps, stages shaded."""
    figure = new_figure(height=6.8)
    ours, paper = figure.subplots(2, 1)
    draw_progression(ours, panel, runs)
    draw_paper_progression(paper, panel)
    return figure


def figure_1(models: Sequence[ScoredModel], runs: Sequence[TrainingRun], cold: ScoredModel | None) -> Figure:
    """Ours alone in the paper's order of panels: A, accuracies in B's place, C, D, E, F."""
    figure = Figure(figsize=(13.5, 8.2), layout="constrained", dpi=150)
    panels = figure.subplots(2, 3).flatten()
    drawings: list[tuple[str, Callable[[Axes], None]]] = [
        ("A", lambda axes: draw_share_and_accuracy(axes, cold) if cold else nothing(axes, "no cold-started model")),
        ("B", lambda axes: draw_accuracy(axes, models, with_paper=False)),
        ("C", lambda axes: draw_words(axes, {model.label: words_per_50(model.graded) for model in models})),
        *[(panel, lambda axes, panel=panel: draw_progression(axes, panel, runs)) for panel in PROGRESSIONS],
    ]
    for axes, (letter, draw) in zip(panels, drawings):
        draw(axes)
        if letter == "C":
            axes.set_title(f"reflection words in {PER} completions")
        axes.set_title(f"({letter}) {axes.get_title().removeprefix('Ours: ')}")
        if letter == "A":
            legend_below(axes)
    return figure


def group_bars(scores: Sequence[Mapping[str, Any]]) -> Figure:
    """Accuracy of each group of problems with its interval, one panel a kind of group, groups of one kind together.

    `scores` are the benchmarks of scores.json. Of a kind with many groups the twelve largest are drawn.
    """
    panels = [
        (row["benchmark"], kind, sorted(sorted(groups.items(), key=lambda item: -item[1]["n"])[:12]))
        for row in scores
        for kind, groups in row["by"].items()
    ]
    heights = [0.8 + 0.28 * len(groups) for _, _, groups in panels]
    figure = new_figure(height=sum(heights))
    all_axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (benchmark, kind, groups) in zip(all_axes, panels):
        names = [f"{textwrap.shorten(name, 32, placeholder=' …')} (n = {cell['n']})" for name, cell in groups]
        means = [100 * cell["accuracy"] for _, cell in groups]
        low = [max(0.0, 100 * (cell["accuracy"] - cell["low"])) for _, cell in groups]
        high = [max(0.0, 100 * (cell["high"] - cell["accuracy"])) for _, cell in groups]
        axes.barh(names, means, color=OURS[1], edgecolor="black", linewidth=0.8)
        axes.errorbar(means, names, xerr=[low, high], fmt="none", color="black", capsize=3)
        axes.invert_yaxis()
        axes.set_xlim(0, 104)
        axes.tick_params(labelsize=9)
        axes.set_title(f"{benchmark} by {kind}: right, %", fontsize=10, loc="left")
    return figure


def metric_curves(metrics: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> Figure:
    """Small multiples, one metric a panel, over the steps."""
    rows = -(-len(keys) // 2)
    figure = new_figure(height=2.1 * rows)
    for axes, key in zip(figure.subplots(rows, 2, squeeze=False).flatten(), [*keys, None]):
        if key is None:
            axes.set_axis_off()
            continue
        points = [(row["step"], row[key]) for row in metrics if is_number(row.get(key))]
        if points:
            axes.plot(*zip(*points), color=TRAINING[0], marker="o" if len(points) < 15 else None, markersize=4)
        else:
            nothing(axes, "no value")
        axes.set_title(key, fontsize=10)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.set_xlabel("step", fontsize=9)
        axes.tick_params(labelsize=9)
    return figure


def cold_started_model(models: Sequence[ScoredModel], label: str) -> ScoredModel | None:
    """The model whose overthinking Figure 1A shows: the one of that label, or the one that means the paper's CI."""
    by_label = {model.label: model for model in models}
    return by_label.get(label) or next((model for model in models if paper_role(model.label) == "CI"), None)


def new_figure(height: float) -> Figure:
    return Figure(figsize=(WIDTH, height), layout="constrained", dpi=150)
