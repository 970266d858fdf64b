"""How everything is drawn: to be read in colour and in grey, on paper and on a phone.

Colours differ in lightness, marks in shape, lines in dashes, bars in hatching; a role of the paper has the same ones in
every figure. A figure is six inches wide; names that are too long for their place are wrapped, never cut.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation, blended_transform_factory

from vr1lib.analysis.statistics import Interval
from vr1lib.analysis.tables import paper_role

WIDTH = 6.0  # inches: 900 pixels at 150 per inch
LETTERS_PER_INCH = 13  # of 9 point text, on the average
BAR = "#4a86b8"
GRID = "#dddddd"
STAGE_SHADES = ("#e4e4e4", "#f5f5f5")
EDGE = {"edgecolor": "black", "linewidth": 0.8}


@dataclass(frozen=True)
class Style:
    """How one model looks as a bar (colour, hatch) and as a line (colour, line, marker)."""

    colour: str
    hatch: str
    marker: str
    line: Any

    @property
    def curve(self) -> dict[str, Any]:
        """Options of Axes.plot and Axes.errorbar."""
        return {
            "color": self.colour,
            "marker": self.marker,
            "linestyle": self.line,
            "markersize": 7,
            "markeredgecolor": "black",
            "markeredgewidth": 0.6,
        }

    @property
    def bar(self) -> dict[str, Any]:
        """Options of Axes.bar and Axes.barh."""
        return {"color": self.colour, "hatch": self.hatch, **EDGE}


STYLES = (
    Style("#a0a0a0", "", "o", "-"),
    Style("#4a86b8", "///", "s", "--"),
    Style("#123a5e", "", "^", "-."),
    Style("#c9b27c", "xxx", "D", ":"),
    Style("#6d6d6d", "\\\\\\", "v", (0, (5, 1))),
    Style("#86bfae", "...", "P", (0, (3, 1, 1, 1))),
    Style("#8c4a5a", "|||", "X", (0, (1, 1))),
    Style("#e6b08a", "++", "*", (0, (7, 2, 1, 2))),
)
ROLE_PLACES = {"base": 0, "CI": 1, "Vision-R1": 2, "Long": 3, "Zero": 4}  # one style for one role in every figure
FREE_PLACES = (2, 1, 0, 3, 4, 5, 6, 7)  # whatever has no role, in its order: the most different first


def styles_of(labels: Sequence[str]) -> list[Style]:
    """A style for each label: by its role in the paper, else the first that no other has (again from the start after
    eight)."""
    roles = ["base" if label.startswith("Qwen") else paper_role(label) for label in labels]
    places: list[int | None] = [None] * len(labels)
    for index, role in enumerate(roles):
        place = ROLE_PLACES.get(role or "")
        places[index] = None if place in places else place
    free = [place for place in FREE_PLACES if place not in places] or list(FREE_PLACES)
    without = [index for index, place in enumerate(places) if place is None]
    for order, index in enumerate(without):
        places[index] = free[order % len(free)]
    return [STYLES[place] for place in places if place is not None]


def new_figure(height: float) -> Figure:
    return Figure(figsize=(WIDTH, height), layout="constrained", dpi=150)


def save_png_and_svg(figure: Figure, path: Path) -> Path:
    """The figure as `path`, a PNG of 150 pixels an inch, and beside it as an SVG with its words as text and nothing in
    it that differs from one time to the next. Returns the PNG's path; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches="tight")
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "vision-r1"}):
        figure.savefig(path.with_suffix(".svg"), bbox_inches="tight", metadata={"Date": None})
    return path


def wrapped(text: str, letters: int) -> str:
    """The text on lines of at most so many letters; what has no blank is broken after hyphens or anywhere."""
    return "\n".join(textwrap.wrap(text, letters)) or text


def spread(intervals: Sequence[Interval], factor: float = 100) -> list[list[float]]:
    """How far the ends lie below and above the means: `yerr` and `xerr` of Axes.errorbar."""
    return [
        [max(0.0, factor * (item.mean - item.low)) for item in intervals],
        [max(0.0, factor * (item.high - item.mean)) for item in intervals],
    ]


def draw_intervals(axes: Axes, places: Sequence[float], items: Sequence[Interval], along: str = "x") -> None:
    """Intervals in percent over bars that lie (`along` x) or stand (y); a white rim shows them on dark bars."""
    means, ends = [100 * item.mean for item in items], spread(items)
    across = {"x": means, "y": places, "xerr": ends} if along == "x" else {"x": places, "y": means, "yerr": ends}
    _, caps, bars = axes.errorbar(**across, fmt="none", color="black", capsize=3, linewidth=1.2)
    for line in (*caps, *bars):
        line.set_path_effects([withStroke(linewidth=2.6, foreground="white")])


def name_rows(axes: Axes, names: Sequence[str], letters: int = 24) -> None:
    """Names down the left side, the first at the top."""
    axes.set_yticks(range(len(names)), [wrapped(name, letters) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", labelsize=9)


def rows_height(names: Sequence[str], letters: int = 24, least: float = 0.36) -> float:
    """Inches that equally high rows with these names need, each of `least` or more."""
    lines = max([1, *(1 + wrapped(name, letters).count("\n") for name in names)])
    return len(names) * max(least, 0.15 * lines + 0.09)


def percent_axis(axes: Axes, label: str = "right, % (line: 95 % interval)", along: str = "x") -> None:
    """0 to 100 % with room for a number at the end."""
    if along == "x":
        axes.set_xlim(0, 114)
        axes.set_xticks(range(0, 101, 20))
        axes.set_xlabel(label)
    else:
        axes.set_ylim(0, 114)
        axes.set_yticks(range(0, 101, 20))
        axes.set_ylabel(label)


def step_axis(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlabel("step")


def shade_stages(
    axes: Axes, spans: Sequence[tuple[float, float, str]], named: bool = True, last_step: float = 0
) -> None:
    """Bands behind the lines from one step to another, their names at the top of the axes as long as they fit; the axis
    goes on to `last_step` if that comes later."""
    end = max(spans[-1][1], last_step)
    whole = max(1.0, end - spans[0][0])
    top = blended_transform_factory(axes.transData, axes.transAxes)
    for index, (first, last, name) in enumerate(spans):
        axes.axvspan(first, last, color=STAGE_SHADES[index % 2], zorder=0, linewidth=0)
        if index:
            axes.axvline(first, color="black", linestyle=(0, (1, 2)), linewidth=0.9)
        room = (last - first) / whole * letters_across(axes) * 0.85
        forms = [name, name.replace(": ", ":\n"), name.split(":")[0], str(index + 1)]
        text = next((form for form in forms if max(map(len, form.split("\n"))) <= room), forms[-1])
        if named:
            axes.text((first + last) / 2, 0.98, text, transform=top, ha="center", va="top", fontsize=9)
    margin = 0.015 * whole
    axes.set_xlim(spans[0][0] - margin, end + margin)


def nothing(axes: Axes, why: str) -> None:
    axes.text(0.5, 0.5, wrapped(why, letters_across(axes) - 10), transform=axes.transAxes, ha="center", va="center")


def empty_figure(why: str) -> Figure:
    """What is drawn where there is nothing to draw: a sentence that says so."""
    figure = new_figure(height=1.2)
    axes = figure.subplots()
    axes.set_axis_off()
    nothing(axes, why)
    return figure


def legend_below(axes: Axes, columns: int = 2) -> None:
    """The legend under the axes, never over the data, in as many columns as its names leave room for; none where
    nothing is named."""
    handles, names = axes.get_legend_handles_labels()
    if not names:
        return
    room = letters_across(axes)
    names = [wrapped(name, room - 6) for name in names]
    longest = max(len(line) for name in names for line in name.split("\n"))
    columns = max(1, min(columns, len(names), room // (longest + 6)))
    lines = 1 + max([0, *(label.get_text().count("\n") for label in axes.get_xticklabels())])
    points = 10 + 12 * lines + (14 if axes.get_xlabel() else 0)
    below = axes.transAxes + ScaledTranslation(0, -points / 72, axes.figure.dpi_scale_trans)
    axes.legend(
        handles,
        names,
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        bbox_transform=below,
        ncols=columns,
        frameon=False,
        fontsize=9,
        handlelength=2.6,
        borderaxespad=0,
    )


def letters_across(axes: Axes) -> int:
    """About how many letters of 9 points fit across the axes, before the layout is known."""
    grid = axes.get_subplotspec().get_gridspec()
    return int(LETTERS_PER_INCH * (axes.figure.get_figwidth() / grid.ncols - 0.8))
