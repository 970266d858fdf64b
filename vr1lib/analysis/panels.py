"""The panels of the paper's Figure 1, drawn on given axes: ours, and the paper's from `paper/fig1_readings.csv`."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from vr1lib.analysis.drawing import (
    BAR,
    EDGE,
    GRID,
    draw_intervals,
    legend_below,
    name_rows,
    nothing,
    percent_axis,
    shade_stages,
    spread,
    step_axis,
    styles_of,
    wrapped,
)
from vr1lib.analysis.findings import AHA_WORDS, PER, part_name, thirds_of
from vr1lib.analysis.runs import ScoredModel, TrainingRun
from vr1lib.analysis.statistics import Interval, LengthBin, length_bins
from vr1lib.analysis.tables import paper_series, paper_value

PAPER_AVERAGE = "paper: 7B, mean of MathVista, MathVerse, MM-Math"
PAPER_LINES = {  # series of panels D to F → name, line, marker, colour
    "Vision-R1-Zero": ("Zero", ":", "^", "#9a9a9a"),
    "Vision-R1-Long": ("Long", "--", "s", "#6b6b6b"),
    "Vision-R1 stage": ("Vision-R1", "-", "o", "#111111"),
}
PAPER_STAGES = [(0, 100, "stage 1: 4K × 16"), (100, 200, "stage 2: 8K × 8"), (200, 300, "optional 3: 16K × 4")]
PROGRESSIONS: dict[str, dict[str, Any]] = {
    "D": {
        "title": "Average length over training",
        "unit": "tokens",
        "keys": {"length/mean": "sampled in training", "eval/length_mean": "held-out problems"},
        "factor": 1,
        "top": None,
    },
    "E": {
        "title": "Average accuracy over training",
        "unit": "right, %",
        "keys": {"eval/accuracy": "held-out problems"},
        "factor": 100,
        "top": 100,
    },
    "F": {
        "title": "Reward over training",
        "unit": "mean reward",
        "keys": {"reward/mean": "sampled in training"},
        "factor": 1,
        "top": 1,
    },
}


def draw_accuracies(
    axes: Axes, named: Mapping[str, Interval], papers: Mapping[str, float | None], letters: int = 24
) -> None:
    """A bar in percent for each name, its value behind the interval; the paper's value, where it has one, a diamond.
    Names are wrapped at so many letters."""
    axes.barh(range(len(named)), [100 * item.mean for item in named.values()], height=0.6, color=BAR, **EDGE)
    for row, (name, item) in enumerate(named.items()):
        draw_intervals(axes, [row], [item])
        axes.text(100 * item.high + 1.5, row, f"{100 * item.mean:.1f}", va="center", fontweight="bold")
        if papers.get(name) is not None:
            label = None if axes.get_legend_handles_labels()[0] else PAPER_AVERAGE
            axes.plot(papers[name], row + 0.3, "D", color="white", markeredgecolor="black", markersize=7, label=label)
    if named:
        name_rows(axes, list(named), letters)
    else:
        nothing(axes, "no scored model")
        axes.set_yticks([])
    percent_axis(axes)
    axes.set_title("Accuracy")
    legend_below(axes)


def draw_model_accuracies(
    axes: Axes, models: Sequence[ScoredModel], with_paper: bool = True, letters: int = 24
) -> None:
    """The plain mean over benchmarks of each model."""
    papers = {model.label: paper_value(model.label)[1] for model in models} if with_paper else {}
    draw_accuracies(axes, {model.label: model.accuracy for model in models}, papers, letters)


def draw_paper_bars(axes: Axes) -> None:
    """Figure 1B: the paper's accuracies on MathVista, from 60 % as printed."""
    bars = next(iter(paper_series("B").values()))
    for row, (_, value) in enumerate(bars):
        axes.barh(row, value - 60, left=60, height=0.6, color=BAR if row == 0 else "#d9d9d9", **EDGE)
        axes.text(value + 0.3, row, f"{value:.1f}", va="center", fontweight="bold")
    name_rows(axes, [name for name, _ in bars])
    axes.set_xlim(60, 80)
    axes.set_xticks(range(60, 81, 5))
    axes.set_xlabel("right, % (axis from 60, as printed)")
    axes.set_title("Paper, Figure 1B: MathVista")


def draw_share_and_accuracy(axes: Axes, model: ScoredModel) -> None:
    bins = paper_like_bins(model)
    draw_pairs_of_bars(
        axes,
        [part.label for part in bins],
        [100 * part.share for part in bins],
        [100 * part.accuracy.mean if part.accuracy else None for part in bins],
        [part.accuracy for part in bins],
    )
    axes.set_title(wrapped(f"Ours: {model.label}, limit {model.max_completion_tokens} tokens", 56))


def paper_like_bins(model: ScoredModel) -> list[LengthBin]:
    """Figure 1A's bins, scaled: the paper cuts its 16K limit at 4K and 8K, so ours is cut at a quarter and a half."""
    limit = model.max_completion_tokens
    edges = sorted({0, limit // 4, limit // 2})
    rows = model.graded
    problems = [row.problem_id for row in rows]
    return length_bins([row.tokens for row in rows], [row.reward for row in rows], edges, problems)


def draw_paper_share_and_accuracy(axes: Axes) -> None:
    shares, accuracies = (paper_series("A")[name] for name in ("Proportion (%)", "Accuracy (%)"))
    names = [name for name, _ in shares]
    draw_pairs_of_bars(axes, names, [value for _, value in shares], [value for _, value in accuracies], None)
    axes.set_title("Paper, Figure 1A: Vision-R1-CI-7B on MathVerse")


def draw_pairs_of_bars(
    axes: Axes,
    names: Sequence[str],
    shares: Sequence[float],
    accuracies: Sequence[float | None],
    intervals: Sequence[Interval | None] | None,
) -> None:
    """Two bars for each length bin: its share of completions and how many of them are right, both in percent."""
    for position, (share, accuracy) in enumerate(zip(shares, accuracies)):
        for x, height, colour, hatch, label in (
            (position - 0.2, share, "#d9d9d9", "///", "share of completions"),
            (position + 0.2, accuracy, BAR, "", "right"),
        ):
            if height is None:
                axes.text(x, 2, "–", ha="center", va="bottom")
                continue
            named = label if position == 0 else None
            axes.bar(x, height, width=0.4, color=colour, hatch=hatch, label=named, **EDGE)
            interval = intervals[position] if intervals and label == "right" else None
            top = height
            if interval:
                draw_intervals(axes, [x], [interval], along="y")
                top = 100 * interval.high
            axes.text(x, top + 1.5, f"{height:.0f}", ha="center", va="bottom", fontsize=10)
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.6, len(names) - 0.4)
    percent_axis(axes, "%", along="y")
    axes.set_xlabel("completion length, tokens")
    legend_below(axes)


def draw_accuracy_by_thirds(axes: Axes, models: Sequence[ScoredModel]) -> None:
    """Each model's completions in up to three parts, shortest to longest, at the parts' mean lengths."""
    for model, style in zip(models, styles_of([model.label for model in models])):
        bins = thirds_of(model.graded)
        lengths = [[row.tokens for row in model.graded if part.holds(row.tokens)] for part in bins]
        means = [sum(inside) / len(inside) for inside in lengths]
        accuracies = [part.accuracy for part in bins if part.accuracy]
        name = f"{model.label}, by {part_name(bins)}" if len(bins) > 1 else f"{model.label}, all about equally long"
        heights = [100 * item.mean for item in accuracies]
        axes.errorbar(means, heights, yerr=spread(accuracies), capsize=4, label=name, **style.curve)
    if not models:
        nothing(axes, "no scored model")
    axes.set_ylim(-4, 104)
    axes.set_xlabel("mean length of the part, tokens")
    axes.set_ylabel("right, % (line: 95 % interval)")
    axes.set_title("Right by length: shortest to longest part")
    axes.grid(axis="y", color=GRID)
    legend_below(axes)


def draw_words(axes: Axes, counts: Mapping[str, Mapping[str, float]]) -> None:
    """Grouped bars, one group a word, one bar a model."""
    width = 0.86 / max(1, len(counts))
    highest = max([1.0, *(count for words in counts.values() for count in words.values())])
    upright = len(counts) > 4
    for index, ((name, words), style) in enumerate(zip(counts.items(), styles_of(list(counts)))):
        for position, word in enumerate(AHA_WORDS):
            x = position + (index - (len(counts) - 1) / 2) * width
            label = name if position == 0 else None
            axes.bar(x, words[word], width=width, label=label, **style.bar)
            number = f"{words[word]:.0f}"
            turned = {"rotation": 90, "fontsize": 8} if upright else {"fontsize": 9}
            axes.text(x, words[word] + highest * 0.02, number, ha="center", va="bottom", **turned)
    if not counts:
        nothing(axes, "no scored model")
    axes.set_xticks(range(len(AHA_WORDS)), AHA_WORDS)
    axes.set_xlim(-0.6, len(AHA_WORDS) - 0.4)
    axes.set_ylim(0, highest * (1.25 if upright else 1.15))
    axes.set_ylabel(f"count in {PER} completions")
    legend_below(axes, columns=len(counts))


def draw_progression(axes: Axes, panel: str, runs: Sequence[TrainingRun]) -> None:
    """Ours: a line for what is logged every step, marks for what is measured at some."""
    settings = PROGRESSIONS[panel]
    highest = 0.0
    for run, style in zip(runs, styles_of([run.label for run in runs])):
        for key, name in settings["keys"].items():
            steps, values = run.series(key)
            if not steps:
                continue
            values = [settings["factor"] * value for value in values]
            highest = max(highest, *values)
            sparse = key.startswith("eval/")
            alone = {}
            if len(runs) == 1:
                alone = {"color": "black", "linestyle": "--"} if sparse else {"linestyle": "-"}
            marks = {} if sparse else {"marker": None, "linewidth": 1.2}
            label = f"{run.label}, {name}" if len(runs) > 1 else name
            axes.plot(steps, values, label=label, **{**style.curve, "markersize": 5, **marks, **alone})
    if not axes.lines:
        nothing(axes, "not measured in these runs")
    ceiling = 1.25 * highest or settings["top"] or 1.0
    axes.set_ylim(0, ceiling)
    if settings["top"]:
        axes.set_yticks([settings["top"] * part / 5 for part in range(6) if settings["top"] * part / 5 <= ceiling])
    axes.set_title(wrapped(f"Ours: {settings['title'].lower()}{shade_stages_of(axes, runs)}", 56))
    step_axis(axes)
    axes.set_ylabel(settings["unit"])
    legend_below(axes, columns=2)


def shade_stages_of(axes: Axes, runs: Sequence[TrainingRun], named: bool = True) -> str:
    """Shade the runs' stages; of runs with unlike ones the first staged run's, and say so in the words returned."""
    staged = [run for run in runs if run.spans]
    if not staged:
        return ""
    first = max(staged, key=lambda run: len(run.spans))
    bands = [(start - 1, last, first.stage_name(stage)) for stage, start, last in first.spans]
    shade_stages(axes, bands, named, max(last for run in staged for _, _, last in run.spans))
    if all(run.spans == first.spans for run in staged):
        return ""
    return f" (shaded: stages of {first.label})"


def draw_paper_progression(axes: Axes, panel: str) -> None:
    """The paper's panel, read off its Figure 1."""
    settings = PROGRESSIONS[panel]
    values: dict[str, list[tuple[float, float]]] = {prefix: [] for prefix in PAPER_LINES}
    for series, points in paper_series(panel).items():
        for prefix in PAPER_LINES:
            if series.startswith(prefix):
                values[prefix] += [(float(x), y) for x, y in points]
        if series.startswith("Qwen"):
            axes.axhline(points[0][1], color="#9a9a9a", linewidth=1, label="Qwen2.5-VL-72B")
    for prefix, points in values.items():
        name, line, marker, colour = PAPER_LINES[prefix]
        steps, heights = zip(*sorted(points))
        axes.plot(steps, heights, color=colour, linestyle=line, marker=marker, markersize=5, label=name)
    every = [y for points in values.values() for _, y in points]
    bottom = 40 if panel == "E" else 0
    axes.set_ylim(bottom, bottom + 1.25 * (max(every) - bottom))
    shade_stages(axes, PAPER_STAGES)
    step_axis(axes)
    axes.set_ylabel(settings["unit"])
    axes.set_title(f"Paper, Figure 1{panel}" + (" (Zero's reward counts the format too)" if panel == "F" else ""))
    legend_below(axes, columns=4)


def short_name(series: str) -> str:
    return series.removeprefix("Vision-R1-").removesuffix(" (Ours)")
