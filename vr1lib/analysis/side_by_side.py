"""Scores of runs beside each other for a reader: models, protocols, samples, controls, clean subsets, how measured.

Functions return rows of a table, none where the runs hold nothing of the kind. Accuracies are in percent with their
95 % intervals.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from vr1lib.analysis.comparisons import Comparison, protocol_table
from vr1lib.analysis.findings import p_value, points, tokens
from vr1lib.analysis.formats import Table, of_rows
from vr1lib.analysis.runs import ScoredModel
from vr1lib.analysis.scores import ScoreRow, protocol_name
from vr1lib.analysis.tables import summary

CONTROLS = {
    "blank_pictures": "blank pictures",
    "shuffled_pictures": "other problems' pictures",
    "shuffled_options": "options in another order",
}


def is_control(model: ScoredModel) -> bool:
    """Whether a run asked with pictures or options spoilt: no score of the model, and in none of the paper's tables."""
    return any(row.get("control", "none") != "none" for row in model.scores["benchmarks"])


def accuracy_cells(row: ScoreRow) -> dict[str, Any]:
    """An accuracy and its interval; `row` holds accuracy, low and high as shares."""
    return {"right, %": round(100 * row["accuracy"], 1), "95 % interval": interval_text(row)}


def interval_text(row: ScoreRow) -> str:
    return f"{100 * row['low']:.1f} – {100 * row['high']:.1f}"


def summary_rows(models: Sequence[ScoredModel]) -> list[dict[str, Any]]:
    """summary.json's rows in words a reader knows."""
    return [
        {
            "model": row["model"],
            **accuracy_cells(row),
            "mean length, tokens": round(row["mean_length"], 1),
            "n": row["n"],
        }
        for row in summary(models)
    ]


def side_by_side(models: Sequence[ScoredModel]) -> dict[str, tuple[str, Table]]:
    """File name → (what it is, table) of everything these runs allow."""
    parts = {
        "protocols": (
            "Strict: one answer, a malformed one is wrong, rules decide. Authors': up to five tries until the format "
            "is there, their extraction, a judge model if one was given. The difference is the protocol's, not the "
            "model's.",
            protocol_table(models),
        ),
        "samples": (
            "pass@k: the chance that one of k answers is right. majority@k: the most frequent of k answers is right.",
            of_rows("Several samples a problem", sample_rows(models)),
        ),
        "controls": (
            "The same questions with pictures that say nothing, with another problem's, or with the options in "
            "another order: what is right then owes nothing to the picture, or to an option's place.",
            of_rows("Controls", control_rows(models)),
        ),
        "clean": (
            "The problems of which no training row holds the id, the pictures or the question.",
            of_rows("Without what training came near", clean_rows(models)),
        ),
    }
    return {name: part for name, part in parts.items() if part[1].rows}


def sample_rows(models: Sequence[ScoredModel]) -> list[dict[str, Any]]:
    """pass@k and majority@k, a row each model, benchmark and k, of runs with several samples a problem."""
    return [
        {
            "model": model.label,
            "benchmark": row["benchmark"],
            "k": int(k),
            "pass@k, %": round(100 * passed, 1),
            "majority@k, %": round(100 * row["majority_at_k"][k], 1),
        }
        for model in models
        for row in model.scores["benchmarks"]
        for k, passed in row.get("pass_at_k", {}).items()
    ]


def control_rows(models: Sequence[ScoredModel]) -> list[dict[str, Any]]:
    """Each control beside the score of the same model as it should be asked, where there is one."""
    plain = {key: (model, row) for model in models for key, row in keyed(model) if key[2] == "none"}
    rows = []
    for model in models:
        for key, row in keyed(model):
            if key[2] != "none":
                whole = plain.get((key[0], key[1], "none"))
                rows.append(
                    {
                        "model": whole[0].label if whole else model.label,
                        "benchmark": row["benchmark"],
                        "control": CONTROLS.get(key[2], key[2]),
                        "n": row["n"],
                        "as asked, %": round(100 * whole[1]["accuracy"], 1) if whole else None,
                        "under the control, %": round(100 * row["accuracy"], 1),
                        "95 % interval": interval_text(row),
                    }
                )
    return rows


def keyed(model: ScoredModel) -> Iterator[tuple[tuple[str, str, str], ScoreRow]]:
    """((model, benchmark, control), row) of a run's scores."""
    for row in model.scores["benchmarks"]:
        yield (model.scores.get("model", model.label), row["benchmark"], row.get("control", "none")), row


def clean_rows(models: Sequence[ScoredModel]) -> list[dict[str, Any]]:
    """All problems beside those that no training row comes near."""
    rows = []
    for model in models:
        for clean in model.scores.get("clean") or []:
            whole = model.row_of[clean["benchmark"]]
            rows.append(
                {
                    "model": model.label,
                    "benchmark": clean["benchmark"],
                    "all, %": round(100 * whole["accuracy"], 1),
                    "n of all": whole["n"],
                    "clean, %": round(100 * clean["accuracy"], 1),
                    "95 % interval": interval_text(clean),
                    "n clean": clean["n"],
                }
            )
    return rows


def pair_rows(comparisons: Iterable[Comparison]) -> list[dict[str, Any]]:
    """Paired comparisons in words: what changed from the first model to the second."""
    return [
        {
            "from → to": f"{pair.first} → {pair.second}",
            "n": pair.accuracy.n,
            "right": points(pair.accuracy),
            "only first / only second right": f"{pair.test.only_first} / {pair.test.only_second}",
            "exact McNemar": p_value(pair.test.p_value),
            "length": tokens(pair.length),
        }
        for pair in comparisons
    ]


def left_out(comparisons: Iterable[Comparison]) -> list[str]:
    """Problems that only one of a pair answered, a line a pair: they are in no paired test."""
    return [f"{pair.first} / {pair.second}: {pair.only_in_one}" for pair in comparisons if pair.only_in_one]


def measured_rows(models: Iterable[ScoredModel]) -> list[dict[str, Any]]:
    """How each score came about: what a reader must see to be alike before comparing."""
    rows = []
    for model in models:
        for row in (*model.scores["benchmarks"], *(model.scores.get("authors") or [])):
            sampling = row["sampling"]
            greedy = "greedy" if sampling["temperature"] == 0 else f"temperature {sampling['temperature']}"
            rows.append(
                {
                    "model": model.label,
                    "benchmark": row["benchmark"],
                    "protocol": protocol_name(row),
                    "control": row.get("control", "none"),
                    "n": row["n"],
                    "samples": row.get("samples", 1),
                    "sampling": greedy if greedy == "greedy" else f"{greedy}, top-p {sampling['top_p']}",
                    "seed": str(sampling["seed"]),
                    "limit, tokens": sampling["max_completion_tokens"],
                    "well-formed, %": round(100 * row["well_formed"], 1),
                    "cut, %": round(100 * row["truncated"], 1),
                    "left out": "; ".join(f"{count} {why}" for why, count in row["left_out"].items()) or "none",
                    "prompt": row.get("prompt", "ours"),
                    "prompt spec": str(row.get("prompt_spec"))[:8],
                    "image spec": str(row.get("image_spec"))[:8],
                    "answered by": row.get("generated_by", "local"),
                }
            )
    return rows
