"""A sweep's runs side by side: comparison.{csv,md,tex} with each point's values and last metrics, comparison.png."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vr1lib.analysis.drawing import BAR, EDGE, name_rows, new_figure, nothing, rows_height
from vr1lib.analysis.formats import of_rows, to_markdown, write_table
from vr1lib.analysis.runs import is_number, read_metrics

METRICS = ("eval/accuracy", "eval/length_mean", "reward/mean", "length/mean", "length/clipped_ratio", "loss")


def write_comparison(folder: Path, metric: str | None) -> str:
    """Write a sweep folder's comparison and return its table as Markdown. `metric`: the sweep's own, shown first."""
    root = folder.parent.parent.parent  # outputs/sweeps/NAME
    points = [json.loads(line) for line in (folder / "points.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = comparison_rows(root, points, metric)
    table = of_rows(f"Sweep {folder.name}", rows)
    table.columns = [replace(column, name=key) for column, key in zip(table.columns, rows[0])]  # keys as they are
    write_table(folder, "comparison", table)
    figure = new_figure(height=1.0 + rows_height([row["point"] for row in rows], letters=40))
    axes = figure.subplots()
    told = [row for row in rows if metric and is_number(row.get(metric))]
    if told:
        axes.barh(range(len(told)), [row[metric] for row in told], color=BAR, height=0.6, **EDGE)
        name_rows(axes, [row["point"] for row in told], letters=40)
        axes.set_xlabel(f"{metric}, last value of the run")
    else:
        nothing(axes, f"no run has logged {metric}" if metric else "the sweep file names no metric")
    figure.savefig(folder / "comparison.png", dpi=150)
    return to_markdown(table)


def comparison_rows(root: Path, points: Sequence[dict[str, Any]], metric: str | None) -> list[dict[str, Any]]:
    """For each point its name (without the sweep's), values of what differs, status, seconds and last metrics."""
    swept = [key for key in points[0]["values"] if len({json.dumps(point["values"][key]) for point in points}) > 1]
    lasts = [last_values(root / point["run"] / "metrics.jsonl") for point in points]
    wanted = dict.fromkeys([*([metric] if metric else []), *METRICS])
    keys = [key for key in wanted if any(key in last for last in lasts)]
    common = len(shared_start([point["name"] for point in points]))
    return [
        {
            "point": point["name"][common:] or point["name"],
            **{key: as_text(point["values"][key]) for key in swept},
            "status": point["status"],
            "seconds": point["seconds"],
            **{key: last.get(key) for key in keys},
        }
        for point, last in zip(points, lasts)
    ]


def last_values(path: Path) -> dict[str, float]:
    """The last value of each number that a run has logged."""
    rows = read_metrics(path) if path.exists() else []
    return {key: value for row in rows for key, value in row.items() if is_number(value)}


def shared_start(names: Sequence[str]) -> str:
    """What all names begin with, up to a hyphen."""
    first, last = min(names), max(names)
    length = next((place for place, (a, b) in enumerate(zip(first, last)) if a != b), 0)
    return first[: first.rfind("-", 0, length) + 1]


def as_text(value: Any) -> Any:
    return value if isinstance(value, int | float | str) or value is None else json.dumps(value)
