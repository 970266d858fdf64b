"""The analysis as one page, and one page over any run folders.

`write_report` tells what an analysis found; `write_run_report` shows run folders as they are: manifest, scores, curves,
pictures, completions, lineage, parameters.
"""

import hashlib
import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from vr1lib.analysis.browser import Picked, browser_html, label_of, pick_runs
from vr1lib.analysis.comparisons import Comparison, unlike_warnings
from vr1lib.analysis.completions import load_saved
from vr1lib.analysis.figures import metric_curves
from vr1lib.analysis.findings import Finding, headline, percent
from vr1lib.analysis.formats import Table, to_html
from vr1lib.analysis.page import Picture, example_html, figure_html, html_table, png_url, write_page
from vr1lib.analysis.runs import AnyGraded, ScoredModel, is_number, read_json, read_metrics
from vr1lib.analysis.side_by_side import (
    accuracy_cells,
    is_control,
    left_out,
    measured_rows,
    pair_rows,
    side_by_side,
    summary_rows,
)
from vr1lib.analysis.statistics import accuracy_interval
from vr1lib.analysis.tables import group_scores
from vr1lib.records import RequestError

CURVES = (
    "reward/mean",
    "eval/accuracy",
    "length/mean",
    "length/clipped_ratio",
    "groups/all_right",
    "groups/all_wrong",
    "loss",
    "kl",
    "entropy",
    "grad_norm",
    "learning_rate",
    "tokens_per_second",
)


def write_report(
    out: str | Path,
    *,
    title: str,
    models: Sequence[ScoredModel],
    findings: Sequence[Finding],
    pictures: Sequence[Picture],
    tables: Sequence[Table],
    comparisons: Sequence[Comparison],
    training_folders: Mapping[str, str | Path],
    board: tuple[Table, Sequence[str]] | None = None,
    picked: Sequence[Picked] = (),
    examples: int = 6,
) -> Path:
    """The analysis as one page, most important first.

    `tables` are shown folded but the first; `board` is an ablation's table with the sentences under it; `picked` are
    the completions of the browser.
    """
    plain = [model for model in models if not is_control(model)]
    sections = [f'<p class="lead">{escape(headline(plain))}</p>']
    if plain:
        sections.append(html_table(summary_rows(plain)))
    if findings:
        sections.append("<h2>What the paper saw, and what happened here</h2>")
        sections.append(f"<p>{escape(verdict_counts(findings))}</p>")
        sections += [finding_html(finding) for finding in findings]
    if tables:
        sections.append("<h2>Tables, ours beside the paper's</h2>")
        sections += [
            folded(re.split("[:,]", table.title)[0], to_html(table), opened=not place)
            for place, table in enumerate(tables)
        ]
    if board:
        sentences = "".join(f"<li>{escape(sentence)}</li>" for sentence in board[1])
        sections += ["<h2>Ablation</h2>", to_html(board[0]), f"<ul>{sentences}</ul>"]
    sections.append("<h2>Figures</h2>")
    sections.append(f'<div class="figures">{"".join(figure_html(picture) for picture in pictures)}</div>')
    sections += pairs_html(comparisons)
    sections += beside_html(models)
    if plain and examples:
        sections.append("<h2>Some problems, and what each model said</h2>")
        sections.append("<p>Chosen evenly over the patterns of who is right, the commonest pattern first.</p>")
        sections += examples_html(plain, examples)
    if picked:
        sections += ["<h2>Completions</h2>", *browser_html(picked)]
    sections.append("<h2>How this was measured</h2>")
    sections.append(notes_html(models))
    sections.append("<h2>Where it comes from</h2>")
    sections.append(html_table(origin_rows(models, training_folders)))
    return write_page(out, title, sections)


def folded(title: str, content: str, opened: bool = False) -> str:
    return f"<details{' open' if opened else ''}><summary>{escape(title)}</summary>{content}</details>"


def pairs_html(comparisons: Sequence[Comparison]) -> list[str]:
    """Model against model, and what makes a pair unlike."""
    if not comparisons:
        return []
    sections = ["<h2>Model against model, on the same problems</h2>", html_table(pair_rows(comparisons))]
    for line in unlike_warnings(comparisons):
        sections.append(f'<p class="warning">{escape(line)}.</p>')
    if only := left_out(comparisons):
        sections.append(f"<p>Problems that only one of a pair answered, left out: {escape('; '.join(only))}.</p>")
    return sections


def beside_html(models: Sequence[ScoredModel]) -> list[str]:
    """Protocols, samples, controls and clean subsets, as far as the runs have them, and every score by group."""
    beside = side_by_side(models).values()
    sections = ["<h2>What else the score owes to</h2>"] if beside else []
    for what, table in beside:
        sections += [to_html(table), f"<p><small>{escape(what)}</small></p>"]
    if models:
        sections += [
            "<h2>By group</h2>",
            folded("Every score by family, task, skill …", html_table(group_scores(models))),
        ]
    return sections


def verdict_counts(findings: Iterable[Finding]) -> str:
    counts = Counter(finding.verdict for finding in findings)
    return (
        "Of the paper's findings: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common()) + "."
    )


def finding_html(finding: Finding) -> str:
    kind = {"as in the paper": "same", "the opposite of the paper": "opposite"}.get(finding.verdict, "open")
    return (
        f'<div class="finding {kind}"><p><strong>{escape(finding.claim)}</strong> '
        f'<span class="chip">{escape(finding.verdict)}</span></p>'
        f"<p>Paper: {escape(finding.paper)}</p><p>Here: {escape(finding.ours)}</p></div>"
    )


def examples_html(models: Sequence[ScoredModel], count: int) -> list[str]:
    """Problems that all models answered, taken in turn from each pattern of right and wrong, in the order of a hash."""
    answers = [{row.problem_id: row for row in model.graded if row.sample == 0} for model in models]
    patterns: dict[tuple[bool, ...], list[str]] = defaultdict(list)
    for problem_id in sorted(answers[0], key=lambda name: hashlib.sha256(name.encode()).digest()):
        if all(problem_id in answer for answer in answers):
            patterns[tuple(answer[problem_id].reward == 1 for answer in answers)].append(problem_id)
    queues = sorted(patterns.values(), key=len, reverse=True)
    turns = max([0, *(len(queue) for queue in queues)])
    cards = []
    for queue, turn in [(queue, turn) for turn in range(turns) for queue in queues if turn < len(queue)][:count]:
        problem = models[0].problems[queue[turn]]
        said = {model.label: answer[problem.id] for model, answer in zip(models, answers)}
        note = f"{len(queue)} of {sum(map(len, queues))} problems go this way" if turn == 0 and len(models) > 1 else ""
        cards.append(example_html(problem, said, note))
    return cards


def notes_html(models: Sequence[ScoredModel]) -> str:
    """What a reader must know before comparing: how each score came about, and what the numbers are."""
    notes = []
    sizes = [(model.label, model.scores["parameters"]) for model in models if model.scores.get("parameters")]
    if sizes:
        said = ", ".join(f"{label} {size / 1e6:,.1f} million parameters" for label, size in dict(sizes).items())
        notes.append(f"Models: {said}.")
    if any(row["benchmark"] == "shapeworld" for model in models for row in model.scores["benchmarks"]):
        notes.append(
            "ShapeWorld is a small rendered world made for this workbench. Scores on it say whether the method works "
            "in miniature, nothing about any public benchmark."
        )
    notes += [
        "Right means: well-formed, and the answer equals the gold by rule (the hard reward). An answer cut at the "
        "limit is wrong.",
        "Intervals are 95 % percentile bootstraps over problems; two models are compared on the same problems, in "
        "pairs. They cover the choice of problems, not the luck of a training seed.",
        "The paper's values belong to a model of 7 billion parameters on MathVista, MathVerse and MM-Math, up to 16K "
        "tokens; those of Figure 1 D to F were read off the plot (±10 tokens, ±0.1 points, ±0.003 reward). They show a "
        "shape to compare, not a level.",
    ]
    return html_table(measured_rows(models)) + "<ul>" + "".join(f"<li>{escape(note)}</li>" for note in notes) + "</ul>"


def origin_rows(models: Sequence[ScoredModel], training_folders: Mapping[str, str | Path]) -> list[dict[str, Any]]:
    rows = [{"run": model.label, "folder": model.folder, "model": model.scores.get("model")} for model in models]
    return rows + [{"run": label, "folder": folder, "model": None} for label, folder in training_folders.items()]


# -------------------------------------------------------------------------------------------------- any run folders


def write_run_report(run_folders: Sequence[Path], out: Path) -> Path:
    """One page over any run folders. Raises RequestError for a folder without a manifest."""
    if not run_folders:
        raise RequestError("report: no run folder is given; give at least one, such as outputs/30_ptst_grpo/demo")
    sections, runs = [], []
    for folder in map(Path, run_folders):
        manifest = read_json(folder / "manifest.json", "give a run folder, such as outputs/30_ptst_grpo/demo")
        sections.append(f"<h1>{escape(str(manifest.get('stem')))} · {escape(str(manifest.get('run')))}</h1>")
        sections += run_sections(folder, manifest)
        if (folder / "completions.jsonl").is_file():
            saved = load_saved(folder)
            runs.append((label_of(folder), saved.graded, saved.problems))
            sections.append(f"<h2>Completions</h2><p>{escape(completions_sentence(saved.graded))}</p>")
    if any(graded for _, graded, _ in runs):
        sections += ["<h1>Completions</h1>", *browser_html(pick_runs(runs))]
    names = ", ".join(Path(folder).name for folder in run_folders)
    return write_page(out, f"Runs: {names}", sections, heading=False)


def run_sections(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """A run's page in order of interest: how it went, scores, curves, figures, completions, lineage, settings."""
    facts = {key: manifest.get(key) for key in ("status", "started_at", "finished_at", "seed", "resumed_from", "error")}
    git = manifest.get("git") or {}
    facts["commit"] = f"{git.get('commit')}{' with changes' if git.get('dirty') else ''}"
    sections = [html_table([{"": key, "value": value} for key, value in facts.items() if value is not None])]
    if manifest.get("summary"):
        sections.append(f"<pre>{escape(str(manifest['summary']))}</pre>")
    if (folder / "scores.json").is_file():
        sections += ["<h2>Scores</h2>", html_table(score_rows(read_json(folder / "scores.json", "run it again")))]
    if (folder / "metrics.jsonl").is_file():
        sections += curves_html(read_metrics(folder / "metrics.jsonl"))
    pictures = sorted((folder / "figures").glob("*.png"))
    if pictures:
        shown = "".join(figure_html(Picture(path, path.stem.replace("_", " "))) for path in pictures)
        sections.append(f'<h2>Figures</h2><div class="figures">{shown}</div>')
    for key in ("inputs", "outputs"):
        if manifest.get(key):
            sections += [f"<h2>{key.capitalize()}</h2>", html_table(lineage_rows(manifest[key]))]
    if (folder / "params.yaml").is_file():
        text = (folder / "params.yaml").read_text(encoding="utf-8")
        sections.append(f"<h2>Parameters</h2><pre>{escape(text)}</pre>")
    settings = {key: manifest.get(key) for key in ("hardware", "versions", "wandb", "image_spec", "prompt_spec")}
    machine = escape(json.dumps(settings, indent=2, ensure_ascii=False))
    sections.append(f"<details><summary>Machine and versions</summary><pre>{machine}</pre></details>")
    return sections


def score_rows(scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "benchmark": row["benchmark"],
            **accuracy_cells(row),
            "mean length, tokens": round(row["mean_length_tokens"], 1),
            "n": row["n"],
            "left out": sum(row["left_out"].values()),
        }
        for row in scores["benchmarks"]
    ]


def curves_html(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """The best-known metrics as curves, and the last value of each."""
    counts = Counter(key for row in metrics for key, value in row.items() if is_number(value))
    keys = [key for key in CURVES if counts[key] > 1]
    keys = keys or [key for key, count in counts.items() if count > 1 and key not in ("step", "stage", "seconds")][:12]
    latest = {key: value for row in metrics for key, value in row.items() if is_number(value)}
    rows = [{"metric": key, "last value": f"{value:.5g}"} for key, value in sorted(latest.items())]
    sections = ["<h2>Metrics</h2>"]
    if keys:
        buffer = io.BytesIO()
        metric_curves(metrics, keys).savefig(buffer, format="png")
        picture = png_url(buffer.getvalue())
        sections.append(f'<figure style="max-width: 48rem"><img src="{picture}" alt="metrics over steps"></figure>')
    return [*sections, f"<details><summary>Last value of every metric</summary>{html_table(rows)}</details>"]


def completions_sentence(graded: Sequence[AnyGraded]) -> str:
    if not graded:
        return "None."
    accuracy = accuracy_interval(row.reward == 1 for row in graded)
    mean_length = sum(row.tokens for row in graded) / len(graded)
    return (
        f"{len(graded):,} completions, {percent(accuracy)} right, {mean_length:.1f} tokens on average; "
        "the browser is at the end of the page."
    )


def lineage_rows(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"kind": entry.get("kind", ""), "path": entry.get("path", ""), "sha256": str(entry.get("sha256", ""))[:12]}
        for entry in entries
    ]
