"""The analysis as one page, and one page over any run folders.

`write_report` tells what an analysis found; `write_run_report` shows run folders as they are: manifest, scores, curves,
pictures, completions, lineage, parameters.
"""

import hashlib
import io
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from vr1lib.analysis.comparisons import Comparison
from vr1lib.analysis.completions import find_problems
from vr1lib.analysis.figures import metric_curves
from vr1lib.analysis.findings import Finding, headline, p_value, points, tokens
from vr1lib.analysis.page import Picture, answer_html, example_html, figure_html, html_table, png_url, write_page
from vr1lib.analysis.runs import ScoredModel, is_number, read_json, read_metrics
from vr1lib.analysis.statistics import REFLECTION_WORDS, accuracy_interval, count_words
from vr1lib.analysis.tables import group_scores, summary, table_4
from vr1lib.records import Graded, RequestError, read_jsonl

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
    comparisons: Sequence[Comparison],
    training_folders: Mapping[str, str | Path],
    examples: int = 6,
) -> Path:
    """The analysis as one page, most important first."""
    sections = [f'<p class="lead">{escape(headline(models))}</p>']
    if models:
        sections.append(html_table(summary_rows(models)))
    if findings:
        sections.append("<h2>What the paper saw, and what happened here</h2>")
        sections.append(f"<p>{escape(verdict_counts(findings))}</p>")
        sections += [finding_html(finding) for finding in findings]
    sections.append("<h2>Figures</h2>")
    sections.append(f'<div class="figures">{"".join(figure_html(picture) for picture in pictures)}</div>')
    sections += [f"<h2>Table 4, ours beside the paper's</h2>{html_table(table_4_rows(models))}"]
    if comparisons:
        sections += ["<h2>Model against model, on the same problems</h2>", html_table(pair_rows(comparisons))]
        unlike = sorted({f"{pair.first} / {pair.second}: {what}" for pair in comparisons for what in pair.unlike})
        if unlike:
            sections.append(f"<p><strong>Not measured alike:</strong> {escape('; '.join(unlike))}.</p>")
    if models:
        scores = html_table(group_scores(models))
        sections.append(
            f"<h2>By group</h2><details><summary>Every score by family, task, skill …</summary>{scores}</details>"
        )
    if models and examples:
        sections.append("<h2>Some problems, and what each model said</h2>")
        sections.append("<p>Chosen evenly over the patterns of who is right, the commonest pattern first.</p>")
        sections += examples_html(models, examples)
    sections.append("<h2>How this was measured</h2>")
    sections.append(notes_html(models))
    sections.append("<h2>Where it comes from</h2>")
    sections.append(html_table(origin_rows(models, training_folders)))
    return write_page(out, title, sections)


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


def accuracy_cells(row: Mapping[str, Any]) -> dict[str, Any]:
    """An accuracy and its interval as a table shows them; `row` holds accuracy, low and high as shares."""
    return {
        "right, %": round(100 * row["accuracy"], 1),
        "95 % interval": f"{100 * row['low']:.1f} – {100 * row['high']:.1f}",
    }


def table_4_rows(models: Sequence[ScoredModel]) -> list[dict[str, Any]]:
    """Table 4 under short headings."""
    return [
        {
            "method": row["method"],
            "cold start": row["cold_start"],
            "GRPO": row["grpo"],
            "PTST": row["ptst"],
            "paper: tokens": row["paper_length_tokens"],
            "paper: right, %": row["paper_accuracy_percent"],
            "our run": row["our_run"],
            "ours: tokens": row["our_length_tokens"],
            "ours: right, %": row["our_accuracy_percent"],
            "95 % interval": None
            if row["our_run"] is None
            else f"{row['our_low_percent']:.1f} – {row['our_high_percent']:.1f}",
        }
        for row in table_4(models)
    ]


def pair_rows(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
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
    answers = [{row.problem_id: row for row in model.graded} for model in models]
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
    """What a reader must know before comparing: benchmark, size, sampling, grading, what was left out."""
    notes = []
    for model in models:
        size = model.scores.get("parameters")
        size_text = f", {size / 1e6:,.1f} million parameters" if size else ""
        for row in model.scores["benchmarks"]:
            sampling = row["sampling"]
            drawn = (
                "greedy"
                if sampling["temperature"] == 0
                else f"temperature {sampling['temperature']}, top-p {sampling['top_p']}, seed {sampling['seed']}"
            )
            left_out = "; ".join(f"{count} {reason}" for reason, count in row["left_out"].items()) or "none"
            notes.append(
                f"{model.label}{size_text}, on {row['benchmark']}: n = {row['n']}, one answer each ({drawn}, at most "
                f"{sampling['max_completion_tokens']} tokens); {100 * row['well_formed']:.1f} % well-formed, "
                f"{100 * row['truncated']:.1f} % cut at the limit. Rows left out: {left_out}."
            )
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
    return "<ul>" + "".join(f"<li>{escape(note)}</li>" for note in notes) + "</ul>"


def origin_rows(models: Sequence[ScoredModel], training_folders: Mapping[str, str | Path]) -> list[dict[str, Any]]:
    rows = [{"run": model.label, "folder": model.folder, "model": model.scores.get("model")} for model in models]
    return rows + [{"run": label, "folder": folder, "model": None} for label, folder in training_folders.items()]


# -------------------------------------------------------------------------------------------------- any run folders


def write_run_report(run_folders: Sequence[Path], out: Path) -> Path:
    """One page over any run folders. Raises RequestError for a folder without a manifest."""
    if not run_folders:
        raise RequestError("report: no run folder is given; give at least one, such as outputs/30_ptst_grpo/demo")
    sections = []
    for folder in map(Path, run_folders):
        manifest = read_json(folder / "manifest.json", "give a run folder, such as outputs/30_ptst_grpo/demo")
        sections.append(f"<h1>{escape(str(manifest.get('stem')))} · {escape(str(manifest.get('run')))}</h1>")
        sections += run_sections(folder, manifest)
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
    if (folder / "completions.jsonl").is_file():
        sections += completions_html(folder, manifest)
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


def completions_html(folder: Path, manifest: Mapping[str, Any], count: int = 8) -> list[str]:
    """Completions evenly spaced over the file, with pictures where their problems are found, and how they went."""
    graded = list(read_jsonl(folder / "completions.jsonl", Graded))
    if not graded:
        return []
    count = min(count, len(graded))
    shown = [graded[index * len(graded) // count] for index in range(count)]
    problems = find_problems(folder, manifest, {row.problem_id for row in shown})
    accuracy = accuracy_interval([row.answer_ok and row.format_ok for row in graded])
    counts = count_words((row.text for row in graded), REFLECTION_WORDS)
    words = ", ".join(f"{word} {occurrences}" for word, occurrences in counts.items())
    mean_length = sum(row.tokens for row in graded) / len(graded)
    shares = f"{len(graded):,} completions, {100 * accuracy.mean:.1f} % right, {mean_length:.1f} tokens on average."
    sections = ["<h2>Completions</h2>", f"<p>{shares} Words: {words}.</p>"]
    for row in shown:
        label = f"step {row.step}, stage {row.stage + 1}" if row.step else "answer"
        if row.problem_id in problems:
            sections.append(example_html(problems[row.problem_id], {label: row}))
        else:
            sections.append(f"<p><code>{escape(row.problem_id)}</code></p>{answer_html(label, row)}")
    return sections


def lineage_rows(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"kind": entry.get("kind", ""), "path": entry.get("path", ""), "sha256": str(entry.get("sha256", ""))[:12]}
        for entry in entries
    ]
