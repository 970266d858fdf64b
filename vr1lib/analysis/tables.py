"""Runs as rows of numbers, and the values that the paper prints.

The paper's values lie in `paper/*.csv`, copied from its Tables 1 to 4 and read off Figure 1 (column `kind` says which
are printed and which are read from the plot, within ±10 tokens, ±0.1 points, ±0.003 reward). They belong to a model of
7 billion parameters on MathVista, MathVerse and MM-Math; beside another model on another benchmark they show a shape
to compare, not a level.
Accuracies are shares 0 to 1 in `summary.json`, percent in the tables, as the paper prints them.
"""

import csv
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vr1lib.analysis.runs import ScoredModel

PAPER = Path(__file__).parent / "paper"
PAPER_METHODS = {
    "base": "Qwen2.5-VL-7B",
    "Zero": "Vision-R1-Zero",
    "CI": "Vision-R1-CI",
    "Long": "Vision-R1-Long",
    "Vision-R1": "Vision-R1 (Ours)",
}


# ---------------------------------------------------------------------------------------------------------- the paper


def paper_rows(name: str) -> list[dict[str, str]]:
    """The rows of `paper/NAME.csv` as text, as printed; "-" is a blank in print."""
    with (PAPER / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def paper_series(panel: str) -> dict[str, list[tuple[str, float]]]:
    """Figure 1's panel as {series: [(x, y), …]}, x as printed."""
    series: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for row in paper_rows("fig1_readings"):
        if row["panel"] == panel:
            series[row["series"]].append((row["x"], float(row["y"])))
    return dict(series)


def paper_role(label: str) -> str | None:
    """Which of the paper's models a label means: base, Zero, CI, Long, Vision-R1, or None for none of them."""
    plain = label.strip().lower()
    roles = {role.lower(): role for role in PAPER_METHODS}
    return roles.get(plain) or roles.get(plain.removeprefix("vision-r1-"))


def paper_value(label: str) -> tuple[int | None, float | None]:
    """Average length in tokens and average accuracy in percent that the paper prints for the model a label means."""
    method = PAPER_METHODS.get(paper_role(label) or "")
    for row in paper_rows("paper_table4"):
        if row["method"] == method:
            return int(row["avg_len"]), float(row["avg_acc"])
    for row in paper_rows("paper_table1"):
        if row["model"] == method:
            return None, float(row["avg"])
    return None, None


# ------------------------------------------------------------------------------------------------------- our tables


def summary(models: Sequence[ScoredModel]) -> list[dict[str, Any]]:
    """One row a model, in the given order: accuracy as a share with its 95 % interval, mean length in tokens, number of
    problems. Where a model answered several times: samples, pass@k and majority@k, plain means over benchmarks as the
    accuracy is; None for a k that one of a model's benchmarks lacks."""
    several = any(model.samples > 1 for model in models)
    scored = [row for model in models for row in model.scores["benchmarks"]]
    ks = {
        name: sorted({int(k) for row in scored for k in row.get(name, {}) if k != "1"})
        for name in ("pass_at_k", "majority_at_k")
    }
    rows = []
    for model in models:
        row = {
            "model": model.label,
            "accuracy": model.accuracy.mean,
            "low": model.accuracy.low,
            "high": model.accuracy.high,
            "mean_length": model.mean_length,
            "n": model.accuracy.n,
        }
        if several:
            row["samples"] = model.samples
            for name, each in ks.items():
                row |= {name.replace("_k", f"_{k}"): _mean_over_benchmarks(model, name, str(k)) for k in each}
        rows.append(row)
    return rows


def _mean_over_benchmarks(model: ScoredModel, name: str, k: str) -> float | None:
    values = [row.get(name, {}).get(k) for row in model.scores["benchmarks"]]
    return None if None in values else sum(values) / len(values)


def summary_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The summary as a small table of plain text."""
    width = max([len("model"), *(len(row["model"]) for row in rows)])
    several = [key for key in (rows[0] if rows else {}) if "_at_" in key]
    heads = [key.replace("_at_", "@") for key in several]
    lines = ["  ".join([f"{'model':<{width}}  accuracy  95 % interval   mean length     n", *heads])]
    for row in rows:
        interval = f"{100 * row['low']:5.1f} – {100 * row['high']:5.1f}"
        cells = [f"{row['model']:<{width}}", f"{100 * row['accuracy']:6.1f} %", f"{interval:<14}"]
        cells += [f"{row['mean_length']:11.1f}", f"{row['n']:4d}"]
        for key, head in zip(several, heads):
            cells.append(f"{'–' if row[key] is None else f'{100 * row[key]:.1f} %':>{len(head)}}")
        lines.append("  ".join(cells))
    return "\n".join(lines)


def group_scores(models: Iterable[ScoredModel]) -> list[dict[str, Any]]:
    """Every score of every run: one row a model, benchmark and group, the whole benchmark as group "all"."""
    rows = []
    for model in models:
        for benchmark in model.scores["benchmarks"]:
            groups = [("all", "all", benchmark)]
            groups += [(kind, name, cell) for kind, named in benchmark["by"].items() for name, cell in named.items()]
            for kind, name, cell in groups:
                where = {"model": model.label, "benchmark": benchmark["benchmark"], "by": kind, "group": name}
                percents = {f"{key}_percent": round(100 * cell[key], 2) for key in ("accuracy", "low", "high")}
                rows.append({**where, "n": cell["n"], **percents})
    return rows
