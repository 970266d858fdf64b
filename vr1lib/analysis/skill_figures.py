"""Accuracy by group of problems for several models: as a radar, or as bars with intervals."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from vr1lib.analysis.drawing import (
    draw_intervals,
    legend_below,
    name_rows,
    new_figure,
    percent_axis,
    rows_height,
    styles_of,
    wrapped,
)
from vr1lib.analysis.statistics import Interval

MOST_GROUPS = 12  # on a radar; of more the largest are drawn as bars


def skill_radar(named: Mapping[str, Mapping[str, Interval]], groups: Sequence[str], title: str) -> Figure:
    """A closed line for each model; of up to three models the intervals as bands."""
    figure = new_figure(height=5.6 + 0.12 * len(named))
    axes = figure.subplots(subplot_kw={"projection": "polar"})
    angles = np.linspace(0, 2 * np.pi, len(groups), endpoint=False)
    around = np.append(angles, angles[0])
    for (name, cells), style in zip(named.items(), styles_of(list(named))):
        low, mean, high = (
            [100 * getattr(cells[group], end) for group in [*groups, groups[0]]] for end in ("low", "mean", "high")
        )
        axes.plot(around, mean, label=name, linewidth=1.8, **style.curve)
        if len(named) <= 3:
            axes.fill_between(around, low, high, color=style.colour, alpha=0.18, linewidth=0)
    axes.set_theta_offset(np.pi / 2)
    axes.set_theta_direction(-1)
    sizes = [{cells[group].n for cells in named.values()} for group in groups]
    names = [
        wrapped(group, 16) + f"\nn = {min(size)}" + (f"–{max(size)}" if len(size) > 1 else "")
        for group, size in zip(groups, sizes)
    ]
    axes.set_xticks(angles, names, fontsize=9)
    for label, angle in zip(axes.get_xticklabels(), angles):  # words grow away from the circle
        side = np.sin(angle)
        label.set_horizontalalignment("left" if side > 0.1 else "right" if side < -0.1 else "center")
        label.set_verticalalignment("bottom" if np.cos(angle) > 0.9 else "top" if np.cos(angle) < -0.9 else "center")
    axes.tick_params(axis="x", pad=2)
    axes.set_ylim(0, 100)
    axes.set_yticks([20, 40, 60, 80, 100], ["20", "40", "60", "80", "100 %"], fontsize=8, color="#444444")
    axes.set_rlabel_position(180 / len(groups))  # between the first two groups
    axes.set_title(title, pad=14)
    figure.legend(
        axes.lines,
        [wrapped(name, 60) for name in named],
        loc="outside lower center",
        ncols=2,
        frameon=False,
        fontsize=9,
        handlelength=3,
    )
    return figure


def skill_bars(named: Mapping[str, Mapping[str, Interval]], groups: Sequence[str], title: str) -> Figure:
    """Bars of every model in each group, with intervals; of more than twelve groups the largest."""
    largest = sorted(groups, key=lambda group: -max(cells[group].n for cells in named.values()))[:MOST_GROUPS]
    if len(groups) > MOST_GROUPS:
        title += f", the {MOST_GROUPS} largest of {len(groups)}"
    shown = [group for group in groups if group in largest]
    sizes = [max(cells[group].n for cells in named.values()) for group in shown]
    names = [f"{group} (n\u00a0=\u00a0{size})" for group, size in zip(shown, sizes)]
    thick = 0.8 / len(named)
    figure = new_figure(height=1.1 + rows_height(names, least=max(0.4, 0.14 * len(named) + 0.12)) + 0.2 * len(named))
    axes = figure.subplots()
    for index, ((name, cells), style) in enumerate(zip(named.items(), styles_of(list(named)))):
        places = [row + (index + 0.5) * thick - 0.4 for row in range(len(shown))]
        values = [cells[group] for group in shown]
        means = [100 * item.mean for item in values]
        axes.barh(places, means, height=thick, label=name if len(named) > 1 else None, **style.bar)
        draw_intervals(axes, places, values)
    name_rows(axes, names)
    percent_axis(axes)
    axes.set_title(title if len(named) > 1 else wrapped(f"{next(iter(named))}: {title}", 50))
    legend_below(axes)
    return figure
