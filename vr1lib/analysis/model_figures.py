"""Scored models side by side: length, skills, controls, pairs, and the ablation board.

Every share has its 95 % interval and its number of completions or problems. Models keep their look in all figures.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from vr1lib.analysis.comparisons import Comparison
from vr1lib.analysis.drawing import (
    EDGE,
    GRID,
    Style,
    draw_intervals,
    empty_figure,
    name_rows,
    new_figure,
    percent_axis,
    rows_height,
    spread,
    styles_of,
    wrapped,
)
from vr1lib.analysis.runs import ScoredModel
from vr1lib.analysis.skill_figures import MOST_GROUPS, skill_bars, skill_radar
from vr1lib.analysis.statistics import Interval, LengthBin, length_bins, round_edges

CONTROLS = {  # a row's `control` → its name and look, the real thing first
    "none": ("pictures and options as they are", "#4a86b8", ""),
    "blank_pictures": ("blank pictures", "#f2f2f2", ""),
    "shuffled_pictures": ("another problem's picture", "#c9b27c", "///"),
    "shuffled_options": ("options in another order", "#6d6d6d", "..."),
}

# ------------------------------------------------------------------------------------------------------------ lengths


def accuracy_by_bins(models: Sequence[ScoredModel], edges: Sequence[int] | None = None) -> Figure:
    """Length against accuracy in the same bins of tokens for every model; without `edges`, bins of a round width."""
    if not models:
        return empty_figure("no scored model")
    edges = edges or round_edges([row.tokens for model in models for row in model.graded])
    named = {
        model.label: length_bins(
            [row.tokens for row in model.graded],
            [row.reward for row in model.graded],
            edges,
            [row.problem_id for row in model.graded],
        )
        for model in models
    }
    return bins_figure(named, styles_of(list(named)), "Right by length, the same bins for all")


def bins_figure(named: Mapping[str, Sequence[LengthBin]], styles: Sequence[Style], title: str) -> Figure:
    """Curves over shared bins, and below how many completions each bin holds. An empty bin is a gap."""
    table = 0.25 + rows_height(list(named), least=0.24)
    figure = new_figure(height=4.2 + table)
    axes, counts = figure.subplots(2, 1, height_ratios=[3, table], sharex=True)
    bins = next(iter(named.values()))
    for index, ((name, parts), style) in enumerate(zip(named.items(), styles)):
        shift = 0.5 * ((index + 0.5) / len(named) - 0.5)  # so that intervals stand beside one another
        places = [place + shift for place in range(len(parts))]
        items = [part.accuracy or Interval(math.nan, math.nan, math.nan, 0) for part in parts]  # a gap in the line
        heights = [100 * item.mean for item in items]
        axes.errorbar(places, heights, yerr=spread(items), capsize=3, label=name, **style.curve)
        for place, part in enumerate(parts):
            counts.text(place, index, f"{part.n:,}" if part.n else "–", ha="center", va="center", fontsize=9)
    axes.set_ylim(-4, 104)
    axes.set_ylabel("right, % (line: 95 % interval)")
    axes.set_title(title)
    axes.grid(axis="y", color=GRID)
    axes.set_xlim(-0.6, len(bins) - 0.4)
    axes.set_xticks(range(len(bins)), [part.label.replace("–", "–\n") for part in bins])
    axes.tick_params(labelbottom=True)
    axes.set_xlabel("completion length, tokens")
    name_rows(counts, list(named))
    for position, style in enumerate(styles):  # the look of each name, in the place of a legend
        counts.plot([-0.52], [position], clip_on=False, **style.curve)
    counts.tick_params(left=False, bottom=False, labelbottom=False, pad=8)
    counts.set_title("completions in each bin", fontsize=10)
    for side in counts.spines.values():
        side.set_visible(False)
    return figure


# ------------------------------------------------------------------------------------------------------------- skills


def group_kinds(models: Sequence[ScoredModel]) -> list[tuple[str, str]]:
    """(benchmark, kind) of every way of grouping with two or more groups that all models with it share."""
    kinds = dict.fromkeys(
        (benchmark, kind) for model in models for benchmark, row in plain_rows(model).items() for kind in row["by"]
    )
    return [(benchmark, kind) for benchmark, kind in kinds if len(shared_groups(models, benchmark, kind)[1]) > 1]


def plain_rows(model: ScoredModel) -> dict[str, dict[str, Any]]:
    """The row of each benchmark under the strict protocol and no control."""
    rows = model.scores["benchmarks"]
    return {row["benchmark"]: row for row in rows if row.get("control", "none") == "none"}


def shared_groups(
    models: Sequence[ScoredModel], benchmark: str, kind: str
) -> tuple[dict[str, dict[str, Interval]], list[str]]:
    """{label: {group: accuracy}} of the models scored so, and the groups all of them have, as the first orders them."""
    named = {}
    for model in models:
        groups = plain_rows(model).get(benchmark, {}).get("by", {}).get(kind, {})
        cells = {
            name: Interval(cell["accuracy"], cell["low"], cell["high"], cell["n"]) for name, cell in groups.items()
        }
        if cells:
            named[model.label] = cells
    first = next(iter(named.values()), {})
    return named, [name for name in first if all(name in cells for cells in named.values())]


def skills(models: Sequence[ScoredModel], benchmark: str, kind: str) -> Figure:
    """Accuracy by group: a radar of three to twelve groups that two or more models share, else bars."""
    named, groups = shared_groups(models, benchmark, kind)
    if not groups:
        return empty_figure(f"no model has {benchmark} by {kind}, or they share no group")
    if len(named) > 1 and 3 <= len(groups) <= MOST_GROUPS:
        return skill_radar(named, groups, f"{benchmark} by {kind}: right, %")
    return skill_bars(named, groups, f"{benchmark} by {kind}")


# ----------------------------------------------------------------------------------------------------------- controls


def has_controls(models: Sequence[ScoredModel]) -> bool:
    """Whether any was asked with pictures or options spoilt."""
    return any(row.get("control", "none") != "none" for model in models for row in model.scores["benchmarks"])


def controls(models: Sequence[ScoredModel]) -> Figure:
    """Accuracy with the pictures and without: what of a score needs no picture. One panel a benchmark.

    Runs of one model (scores.json's `model`) belong together, under the label of the run without a control. The dashed
    line is what guessing among the options gets, problems without options counting as never guessed right.
    """
    if not has_controls(models):
        return empty_figure("no run of these has a control (blank or shuffled pictures, shuffled options)")
    panels = control_panels(models)
    kinds = [kind for kind in CONTROLS if any(kind in found for named in panels.values() for found in named.values())]
    least = 0.2 * len(kinds) + 0.16
    heights = [1.0 + rows_height(list(named), least=least) for named in panels.values()]
    figure = new_figure(height=0.4 + 0.2 * len(kinds) + sum(heights))
    all_axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    guess = False
    for axes, (benchmark, named) in zip(all_axes, panels.items()):
        for row, found in enumerate(named.values()):
            draw_controls(axes, row, found, kinds)
        chance = guessing(models, benchmark)
        if chance:
            axes.axvline(100 * chance, color="black", linestyle="--", linewidth=1)
            guess = True
        name_rows(axes, list(named))
        percent_axis(axes)
        axes.set_title(benchmark, loc="left", fontsize=10)
    handles = [Patch(facecolor=CONTROLS[kind][1], hatch=CONTROLS[kind][2], **EDGE) for kind in kinds]
    names = [CONTROLS[kind][0] for kind in kinds]
    if guess:
        handles.append(Line2D([], [], color="black", linestyle="--", linewidth=1))
        names.append("guessing among the options")
    figure.legend(handles, names, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def control_panels(models: Sequence[ScoredModel]) -> dict[str, dict[str, dict[str, Interval]]]:
    """Benchmark → label of the model → control → accuracy, of models that have a control there. Of runs alike in all
    three the first counts."""
    label_of = {model.scores.get("model", model.label): model.label for model in reversed(models) if plain_rows(model)}
    panels: dict[str, dict[str, dict[str, Interval]]] = {}
    for model in models:
        label = label_of.get(model.scores.get("model", model.label), model.label)
        for row in model.scores["benchmarks"]:
            found = panels.setdefault(row["benchmark"], {}).setdefault(label, {})
            found.setdefault(row.get("control", "none"), Interval(row["accuracy"], row["low"], row["high"], row["n"]))
    return {
        benchmark: {label: found for label, found in named.items() if set(found) != {"none"}}
        for benchmark, named in panels.items()
        if any(set(found) != {"none"} for found in named.values())
    }


def draw_controls(axes: Axes, row: int, found: Mapping[str, Interval], kinds: Sequence[str]) -> None:
    """One model's bars, one for each kind of control, a gap where it has none."""
    thick = 0.84 / len(kinds)
    for index, kind in enumerate(kinds):
        if kind in found:
            item, place = found[kind], row + (index + 0.5) * thick - 0.42
            _, colour, hatch = CONTROLS[kind]
            axes.barh(place, 100 * item.mean, height=thick, color=colour, hatch=hatch, **EDGE)
            draw_intervals(axes, [place], [item])
            axes.text(100 * item.high + 1.5, place, f"{100 * item.mean:.1f}", va="center", fontsize=8)


def guessing(models: Sequence[ScoredModel], benchmark: str) -> float | None:
    """The share that a guess among the options gets right on a benchmark's problems; None where none has options."""
    problems = {
        problem.id: problem
        for model in models
        for problem in model.problems.values()
        if problem.meta["benchmark"] == benchmark
    }
    chances = [1 / len(problem.choices) if problem.choices else 0.0 for problem in problems.values()]
    return sum(chances) / len(chances) if any(chances) else None


# -------------------------------------------------------------------------------------------------------------- pairs


def paired_differences(comparisons: Sequence[Comparison], baseline: str | None = None) -> Figure:
    """Differences in accuracy on shared problems with their intervals; a filled mark where chance is ruled out.

    With `baseline`, the label of a model: only its pairs, each turned so that it is what the other is compared with.
    """
    rows = []
    for pair in comparisons:
        if baseline not in (None, pair.first, pair.second):
            continue
        difference, names = pair.accuracy, (pair.second, pair.first)
        if pair.second == baseline:
            difference = Interval(-difference.mean, -difference.high, -difference.low, difference.n)
            names = names[::-1]
        rows.append((names, difference, pair))
    if not rows:
        return empty_figure("no two models share problems" + (f" with {baseline}" if baseline else ""))
    labels = [first if baseline else f"{first} − {second}" for (first, second), _, _ in rows]
    figure = new_figure(height=1.3 + rows_height(labels, letters=26))
    axes = figure.subplots()
    axes.axvline(0, color="black", linewidth=1)
    for row, (_, difference, pair) in enumerate(rows):
        points = 100 * difference.mean
        filled = "black" if pair.decided else "white"
        axes.errorbar(
            points,
            row,
            xerr=spread([difference]),
            fmt="o",
            color="black",
            markerfacecolor=filled,
            markersize=7,
            capsize=4,
        )
        number = f"{points:+.1f}".replace("-", "−")
        axes.text(
            1.02, row, f"{number}  (n = {difference.n})", transform=axes.get_yaxis_transform(), va="center", fontsize=9
        )
    name_rows(axes, labels, letters=26)
    reach = 1.08 * max(abs(100 * end) for _, item, _ in rows for end in (item.low, item.high, 0.01))
    axes.set_xlim(-reach, reach)
    axes.grid(axis="x", color=GRID)
    axes.set_axisbelow(True)
    axes.set_xlabel("difference in accuracy, points (line: 95 % interval)\nfilled: decided (exact McNemar test agrees)")
    axes.set_title(
        wrapped(f"Against {baseline}, on the same problems" if baseline else "Pairs on the same problems", 50)
    )
    return figure


# ----------------------------------------------------------------------------------------------------------- ablation


def ablation_board(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Accuracy (interval, seeds as dots) and mean length of each arm; under an arm's name what it was made of.

    A row: {arm, start, schedule, accuracy, low, high, mean_length_tokens, tokens_sampled, token_budget, seeds}, as
    `analysis.ablation` makes them; accuracies are shares.
    """
    if not rows:
        return empty_figure("no arm of the ablation has finished")
    names = [arm_name(row) for row in rows]
    figure = new_figure(height=1.3 + sum(0.16 * (1 + name.count("\n")) + 0.2 for name in names))
    accuracy, length = figure.subplots(1, 2, sharey=True, width_ratios=[3, 2])
    styles = styles_of([row["arm"] for row in rows])
    for place, (row, style) in enumerate(zip(rows, styles)):
        item = Interval(row["accuracy"], row["low"], row["high"], 0)
        accuracy.barh(place, 100 * item.mean, height=0.6, **style.bar)
        draw_intervals(accuracy, [place], [item])
        seeds = [100 * seed["accuracy"] for seed in row["seeds"]]
        accuracy.plot(seeds, [place + 0.18] * len(seeds), "o", color="white", markeredgecolor="black", markersize=5)
        accuracy.text(100 * item.high + 2, place, f"{100 * item.mean:.1f}", va="center", fontweight="bold", fontsize=9)
        length.barh(place, row["mean_length_tokens"], height=0.6, **style.bar)
        length.text(row["mean_length_tokens"], place, f" {row['mean_length_tokens']:.0f}", va="center", fontsize=9)
    accuracy.set_yticks(range(len(names)), names, fontsize=9)
    accuracy.set_ylim(len(names) - 0.4, -0.6)
    percent_axis(accuracy, "right, %\n(line: 95 % interval, dots: seeds)")
    accuracy.set_xlim(0, 124)  # room for a number beside 100
    length.set_xlim(0, 1.4 * max(1, *(row["mean_length_tokens"] for row in rows)))
    length.set_xlabel("mean length, tokens")
    length.tick_params(left=False)
    return figure


def arm_name(row: Mapping[str, Any]) -> str:
    """The arm, what it started from and its schedule, and how much of the budget it sampled."""
    made = f"{row['start']}, {row['schedule']}".replace(" × ", "\u00a0×\u00a0")
    lines = [wrapped(row["arm"], 26), wrapped(made, 26)]
    if row.get("token_budget") and row.get("tokens_sampled"):
        lines.append(f"{100 * row['tokens_sampled'] / row['token_budget']:.0f} % of {row['token_budget']:,} tokens")
    return "\n".join(lines)
