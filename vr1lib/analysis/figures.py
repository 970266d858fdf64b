"""The paper's Figure 1 with ours above and theirs below, and the first looks at a run.

Ours and the paper's never share an axis: other model, other benchmark, other step counts. Panels stand one over the
other, so that a figure is narrow enough for a phone. Every function returns a whole figure. More of scored models is in
`model_figures`, of training runs in `training_figures`.
"""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vr1lib.analysis.drawing import (
    BAR,
    EDGE,
    STYLES,
    draw_intervals,
    new_figure,
    nothing,
    rows_height,
    step_axis,
)
from vr1lib.analysis.findings import PER, words_per_50
from vr1lib.analysis.panels import (
    PROGRESSIONS,
    draw_accuracies,
    draw_accuracy_by_thirds,
    draw_model_accuracies,
    draw_paper_bars,
    draw_paper_progression,
    draw_paper_share_and_accuracy,
    draw_progression,
    draw_share_and_accuracy,
    draw_words,
    short_name,
)
from vr1lib.analysis.runs import ScoredModel, TrainingRun, is_number, mean_reward
from vr1lib.analysis.statistics import Interval, accuracy_interval
from vr1lib.analysis.tables import paper_role, paper_series


def accuracy_bars(models: Sequence[ScoredModel]) -> Figure:
    """Accuracy of each model with its interval, and the paper's average for the model of that name."""
    figure = new_figure(height=1.5 + max(1.0, rows_height([model.label for model in models], least=0.5)))
    draw_model_accuracies(figure.subplots(), models)
    return figure


def accuracy_by_length(models: Sequence[ScoredModel]) -> Figure:
    """The overthinking picture: accuracy of each model's shortest, middle and longest third."""
    figure = new_figure(height=4.2 + 0.1 * len(models))
    draw_accuracy_by_thirds(figure.subplots(), models)
    return figure


def share_and_accuracy(model: ScoredModel) -> Figure:
    """Figure 1A: how long the cold-started model thinks and how right it is at each length."""
    figure = new_figure(height=6.8)
    ours, paper = figure.subplots(2, 1)
    draw_share_and_accuracy(ours, model)
    draw_paper_share_and_accuracy(paper)
    return figure


def benchmark_bars(models: Sequence[ScoredModel]) -> Figure:
    """Figure 1B: ours on MathVista if all were scored on it, else their mean over benchmarks; the paper's below."""
    names = [model.label for model in models]
    heights = [1.0 + max(1.0, rows_height(names, least=0.42)), 1.0 + 5 * 0.42]
    figure = new_figure(height=sum(heights))
    ours, paper = figure.subplots(2, 1, height_ratios=heights)
    on_mathvista = bool(models) and all("mathvista" in model.by_benchmark for model in models)
    if on_mathvista:
        by_label = {model.label: model.by_problem["mathvista"].values() for model in models}
        accuracies = {label: [mean_reward(rows) for rows in problems] for label, problems in by_label.items()}
        draw_accuracies(ours, {label: accuracy_interval(values) for label, values in accuracies.items()}, {})
    else:
        draw_model_accuracies(ours, models, with_paper=False)
    measured = sorted({name for model in models for name in model.by_benchmark})
    where = "MathVista" if on_mathvista else ", ".join(measured) or "no scored model"
    ours.set_title(textwrap.fill(f"Ours: {'mean over ' if len(measured) > 1 and not on_mathvista else ''}{where}", 56))
    draw_paper_bars(paper)
    return figure


def reflection_words(models: Sequence[ScoredModel]) -> Figure:
    """Figure 1C: reflection words in every 50 completions."""
    figure = new_figure(height=6.6 + 0.1 * len(models))
    ours, paper = figure.subplots(2, 1)
    draw_words(ours, {model.label: words_per_50(model) for model in models})
    ours.set_title(f"Ours: words in {PER} completions")
    draw_words(paper, {short_name(series): dict(values) for series, values in paper_series("C").items()})
    paper.set_title(f"Paper, Figure 1C: words in {PER} MathVerse completions")
    return figure


def progression(panel: str, runs: Sequence[TrainingRun]) -> Figure:
    """Figure 1 D, E or F: length, accuracy or reward over the steps, stages shaded."""
    figure = new_figure(height=6.8 + 0.25 * max(0, len(runs) - 1))
    ours, paper = figure.subplots(2, 1)
    draw_progression(ours, panel, runs)
    draw_paper_progression(paper, panel)
    return figure


def figure_1(models: Sequence[ScoredModel], runs: Sequence[TrainingRun], cold: ScoredModel | None) -> Figure:
    """Ours alone in the paper's order of panels: A, accuracies in B's place, C, D, E, F."""
    figure = Figure(figsize=(13.5, 8.2 + 0.4 * max(len(models), len(runs))), layout="constrained", dpi=150)
    panels = figure.subplots(2, 3).flatten()
    drawings: list[tuple[str, Callable[[Axes], None]]] = [
        ("A", lambda axes: draw_share_and_accuracy(axes, cold) if cold else nothing(axes, "no cold-started model")),
        ("B", lambda axes: draw_model_accuracies(axes, models, with_paper=False, letters=38)),
        ("C", lambda axes: draw_words(axes, {model.label: words_per_50(model) for model in models})),
        *[(panel, lambda axes, panel=panel: draw_progression(axes, panel, runs)) for panel in PROGRESSIONS],
    ]
    for axes, (letter, draw) in zip(panels, drawings):
        draw(axes)
        if letter == "C":
            axes.set_title(f"reflection words in {PER} completions")
        axes.set_title(textwrap.fill(f"({letter}) {axes.get_title().removeprefix('Ours: ')}", 40))
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
        cells = [Interval(cell["accuracy"], cell["low"], cell["high"], cell["n"]) for _, cell in groups]
        means = [100 * cell.mean for cell in cells]
        axes.barh(range(len(names)), means, color=BAR, **EDGE)
        draw_intervals(axes, range(len(names)), cells)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlim(0, 104)
        axes.tick_params(labelsize=9)
        axes.set_xlabel("right, %", fontsize=9)
        axes.set_title(f"{benchmark} by {kind}", fontsize=10, loc="left")
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
            axes.plot(*zip(*points), color=STYLES[2].colour, marker="o" if len(points) < 15 else None, markersize=4)
        else:
            nothing(axes, "no value")
        axes.set_title(key, fontsize=10)
        step_axis(axes)
        axes.tick_params(labelsize=9)
    return figure


def cold_started_model(models: Sequence[ScoredModel], label: str) -> ScoredModel | None:
    """The model whose overthinking Figure 1A shows: the one of that label, or the one that means the paper's CI."""
    by_label = {model.label: model for model in models}
    return by_label.get(label) or next((model for model in models if paper_role(model.label) == "CI"), None)
