"""Panels drawn on given axes: ours and the paper's, to be read in grey, on paper and on a phone.

Colours differ in lightness, marks in shape, bars in hatching, and a role of the paper has the same ones everywhere. The
paper's values are read from `paper/fig1_readings.csv`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from vr1lib.analysis.findings import AHA_WORDS, part_name, thirds_of
from vr1lib.analysis.runs import ScoredModel, TrainingRun
from vr1lib.analysis.statistics import LengthBin, length_bins
from vr1lib.analysis.tables import paper_role, paper_series, paper_value

OURS = ("#a0a0a0", "#4a86b8", "#123a5e", "#c9b27c", "#5b5b5b")  # by lightness, so that grey keeps them apart
TRAINING = ("#123a5e", "#4a86b8", "#a0a0a0", "#c9b27c", "#5b5b5b")
ROLE_PLACES = {"base": 0, "CI": 1, "Vision-R1": 2, "Long": 3, "Zero": 4}  # one colour for one role in every figure
HATCHES = ("", "///", "...", "xxx", "\\\\\\")
MARKERS = ("o", "s", "^", "D", "v")
LINES = ("-", "--", "-.", ":", (0, (5, 1)))
STAGE_SHADES = ("#e4e4e4", "#f5f5f5")
PAPER_AVERAGE = "paper: 7B, mean of MathVista, MathVerse, MM-Math"
PAPER_LINES = {  # series of panels D to F → name, line, marker, colour
    "Vision-R1-Zero": ("Zero", ":", "^", "#9a9a9a"),
    "Vision-R1-Long": ("Long", "--", "s", "#6b6b6b"),
    "Vision-R1 stage": ("Vision-R1", "-", "o", "#111111"),
}
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


def draw_accuracy(axes: Axes, models: Sequence[ScoredModel], with_paper: bool = True) -> None:
    """Bars in percent, value above the interval; the paper's value as a diamond."""
    for position, model in enumerate(models):
        accuracy = model.accuracy
        mean, low, high = (100 * value for value in (accuracy.mean, accuracy.low, accuracy.high))
        spread = [[max(0.0, mean - low)], [max(0.0, high - mean)]]
        axes.bar(position, mean, width=0.55, color=OURS[1], edgecolor="black", linewidth=0.8)
        axes.errorbar(position, mean, yerr=spread, color="black", capsize=5, linewidth=1.4)
        axes.text(position, high + 1.5, f"{mean:.1f}", ha="center", va="bottom", fontweight="bold")
        paper = paper_value(model.label)[1]
        if paper is not None and with_paper:
            label = None if axes.get_legend_handles_labels()[0] else PAPER_AVERAGE
            axes.plot(position + 0.4, paper, "D", color="white", markeredgecolor="black", markersize=8, label=label)
    axes.set_xticks(range(len(models)), [model.label for model in models])
    axes.set_xlim(-0.6, len(models) - 0.3)
    axes.set_ylim(0, 112)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel("right, % (bar: 95 % interval)")
    axes.set_title("Accuracy")
    legend_below(axes)


def draw_share_and_accuracy(axes: Axes, model: ScoredModel) -> None:
    bins = paper_like_bins(model)
    accuracies = [100 * part.accuracy.mean if part.accuracy else None for part in bins]
    spreads = [
        (100 * (part.accuracy.mean - part.accuracy.low), 100 * (part.accuracy.high - part.accuracy.mean))
        if part.accuracy
        else (0, 0)
        for part in bins
    ]
    draw_pairs_of_bars(axes, [part.label for part in bins], [100 * part.share for part in bins], accuracies, spreads)
    axes.set_title(f"Ours: {model.label}, limit {model.max_completion_tokens} tokens")


def paper_like_bins(model: ScoredModel) -> list[LengthBin]:
    """Figure 1A's bins, scaled: the paper cuts its 16K limit at 4K and 8K, so ours is cut at a quarter and a half."""
    limit = model.max_completion_tokens
    edges = sorted({0, limit // 4, limit // 2})
    return length_bins([row.tokens for row in model.graded], [row.reward for row in model.graded], edges)


def draw_pairs_of_bars(
    axes: Axes,
    names: Sequence[str],
    shares: Sequence[float],
    accuracies: Sequence[float | None],
    spreads: Sequence[tuple[float, float]] | None,
) -> None:
    """Two bars for each length bin: its share of completions and how many of them are right, both in percent."""
    for position, (share, accuracy) in enumerate(zip(shares, accuracies)):
        bars = [
            (position - 0.2, share, "#d9d9d9", "///", "share of completions"),
            (position + 0.2, accuracy, OURS[1], "", "right"),
        ]
        for index, (x, height, colour, hatch, label) in enumerate(bars):
            if height is None:
                axes.text(x, 2, "–", ha="center", va="bottom")
                continue
            named = label if position == 0 else None
            axes.bar(x, height, width=0.4, color=colour, hatch=hatch, edgecolor="black", linewidth=0.8, label=named)
            top = height
            if index == 1 and spreads is not None:
                low, high = spreads[position]
                axes.errorbar(x, height, yerr=[[max(0.0, low)], [max(0.0, high)]], color="black", capsize=4)
                top = height + high
            axes.text(x, top + 1.5, f"{height:.0f}", ha="center", va="bottom", fontsize=10)
    axes.set_xticks(range(len(names)), names)
    axes.set_ylim(0, 115)
    axes.set_yticks(range(0, 101, 25))
    axes.set_xlabel("completion length, tokens")
    axes.set_ylabel("%")


def draw_accuracy_by_length(axes: Axes, models: Sequence[ScoredModel]) -> None:
    for index, model in enumerate(models):
        bins = thirds_of(model.graded)
        lengths = [mean_length(model, part) for part in bins]
        means = [100 * part.accuracy.mean for part in bins]
        low = [max(0.0, 100 * (part.accuracy.mean - part.accuracy.low)) for part in bins]
        high = [max(0.0, 100 * (part.accuracy.high - part.accuracy.mean)) for part in bins]
        axes.errorbar(
            lengths,
            means,
            yerr=[low, high],
            color=OURS[place(model.label, index)],
            marker=MARKERS[place(model.label, index)],
            linestyle=LINES[place(model.label, index)],
            markersize=8,
            capsize=4,
            label=f"{model.label}, by {part_name(bins)}" if len(bins) > 1 else f"{model.label}, all about equally long",
        )
    axes.set_ylim(-4, 104)
    axes.set_xlabel("mean length of the part, tokens")
    axes.set_ylabel("right, % (bar: 95 % interval)")
    axes.set_title("Right by length: shortest to longest part")
    axes.grid(axis="y", color="#dddddd")
    legend_below(axes)


def mean_length(model: ScoredModel, part: LengthBin) -> float:
    inside = [
        row.tokens for row in model.graded if part.low <= row.tokens and (part.high is None or row.tokens < part.high)
    ]
    return sum(inside) / len(inside)


def short_name(series: str) -> str:
    return series.removeprefix("Vision-R1-").removesuffix(" (Ours)")


def draw_words(axes: Axes, counts: Mapping[str, Mapping[str, float]]) -> None:
    """Grouped bars, one group a word, one bar a model."""
    width = 0.8 / max(1, len(counts))
    highest = max([1.0, *(count for words in counts.values() for count in words.values())])
    for index, (name, words) in enumerate(counts.items()):
        for position, word in enumerate(AHA_WORDS):
            x = position + (index - (len(counts) - 1) / 2) * width
            axes.bar(
                x,
                words[word],
                width=width,
                color=OURS[place(name, index)],
                hatch=HATCHES[place(name, index)],
                edgecolor="black",
                linewidth=0.8,
                label=name if position == 0 else None,
            )
            axes.text(x, words[word] + highest * 0.02, f"{words[word]:.0f}", ha="center", va="bottom", fontsize=9)
    axes.set_xticks(range(len(AHA_WORDS)), AHA_WORDS)
    axes.set_ylim(0, highest * 1.15)
    axes.set_ylabel("count")
    legend_below(axes, columns=len(counts))


def draw_progression(axes: Axes, panel: str, runs: Sequence[TrainingRun]) -> None:
    """Ours: a line for what is logged every step, marks for what is measured at some."""
    settings = PROGRESSIONS[panel]
    highest = 0.0
    for index, run in enumerate(runs):
        for key, name in settings["keys"].items():
            steps, values = run.series(key)
            if not steps:
                continue
            values = [settings["factor"] * value for value in values]
            highest = max(highest, *values)
            sparse = key.startswith("eval/")
            axes.plot(
                steps,
                values,
                color="black" if sparse and len(runs) == 1 else TRAINING[index % len(TRAINING)],
                linestyle="--" if sparse else LINES[index % len(LINES)],
                marker=MARKERS[index % len(MARKERS)] if sparse else None,
                label=f"{run.label}, {name}" if len(runs) > 1 else name,
            )
    if highest == 0 and not axes.lines:
        axes.text(0.5, 0.5, "not measured in these runs", transform=axes.transAxes, ha="center")
    ceiling = 1.25 * highest or settings["top"] or 1.0
    axes.set_ylim(0, ceiling)
    if settings["top"]:
        axes.set_yticks([settings["top"] * part / 5 for part in range(6) if settings["top"] * part / 5 <= ceiling])
    staged = next((run for run in runs if run.spans), None)
    if staged:
        spans = [(first - 1, last, staged.stage_name(stage)) for stage, first, last in staged.spans]
        shade_stages(axes, spans, ceiling)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlabel("step")
    axes.set_ylabel(settings["unit"])
    axes.set_title(f"Ours: {settings['title'].lower()}")
    legend_below(axes, columns=2)


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
    ceiling = bottom + 1.25 * (max(every) - bottom)
    axes.set_ylim(bottom, ceiling)
    stages = [(0, 100, "stage 1: 4K × 16"), (100, 200, "stage 2: 8K × 8"), (200, 300, "optional 3: 16K × 4")]
    shade_stages(axes, stages, ceiling, bottom)
    axes.set_xlabel("step")
    axes.set_ylabel(settings["unit"])
    axes.set_title(f"Paper, Figure 1{panel}" + (" (Zero's reward counts the format too)" if panel == "F" else ""))
    legend_below(axes, columns=4)


def shade_stages(axes: Axes, spans: Sequence[tuple[float, float, str]], ceiling: float, bottom: float = 0) -> None:
    """Bands behind the lines with the stage's name at the top; names go on two lines where a band is narrow."""
    whole = max(1.0, spans[-1][1] - spans[0][0])
    for index, (first, last, name) in enumerate(spans):
        axes.axvspan(first, last, color=STAGE_SHADES[index % 2], zorder=0, linewidth=0)
        text = name.replace(": ", ":\n") if (last - first) / whole < 0.6 else name
        height = bottom + 0.98 * (ceiling - bottom)
        axes.text((first + last) / 2, height, text, ha="center", va="top", fontsize=9)
    margin = 0.015 * whole
    axes.set_xlim(spans[0][0] - margin, spans[-1][1] + margin)


def nothing(axes: Axes, why: str) -> None:
    axes.text(0.5, 0.5, why, transform=axes.transAxes, ha="center")


def place(label: str, index: int) -> int:
    """Which colour, hatch and mark a model has: by its role in the paper, else by its order."""
    role = "base" if label.startswith("Qwen") else paper_role(label)
    return ROLE_PLACES.get(role or "", index) % len(OURS)


def legend_below(axes: Axes, columns: int = 2) -> None:
    """The legend under the axes, never over the data; none where nothing is named."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=columns, frameon=False, fontsize=9)
