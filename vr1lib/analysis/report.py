"""One HTML page that opens anywhere: no server, no script, pictures inside, readable on a phone and on paper.

`write_report` tells what an analysis found; `write_run_report` shows any run folders as they are (manifest, parameters,
curves, pictures, completions, lineage). All text from runs is escaped: a completion can hold anything.
"""

import base64
import io
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from vr1lib.analysis.figures import metric_curves
from vr1lib.analysis.findings import Finding, headline
from vr1lib.analysis.statistics import REFLECTION_WORDS, accuracy_interval, count_words
from vr1lib.analysis.tables import ScoredModel, is_number, read_json, read_metrics, summary
from vr1lib.records import Graded, Problem, RequestError, open_image, read_jsonl

PICTURE_SIDE = 240  # pixels of an example's longest side
LONGEST_TEXT = 6000  # characters of a completion shown
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
STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1rem; color: #1c1c1c; background: #fff;
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.25rem; margin: 2rem 0 .5rem; border-bottom: 1px solid #ccc; }
h3 { font-size: 1rem; margin: 1rem 0 .3rem; }
p.lead { font-size: 1.15rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
th { background: #f3f3f3; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 28rem), 1fr)); gap: 1rem; }
figure { margin: 0; }
figure img { width: 100%; height: auto; border: 1px solid #e3e3e3; }
figcaption { font-size: .9rem; color: #444; }
.finding { border-left: 5px solid #999; padding: .1rem .8rem; margin: .8rem 0; }
.finding.same { border-color: #1b6e3c; } .finding.opposite { border-color: #a3321f; }
.finding p { margin: .2rem 0; }
.chip { display: inline-block; padding: 0 .5rem; border: 1px solid #777; border-radius: .8rem; font-size: .85rem;
  white-space: nowrap; }
.example { display: flex; flex-wrap: wrap; gap: 1rem; border-top: 1px solid #ccc; padding: .8rem 0; }
.example .pictures { flex: 0 0 auto; max-width: 100%; }
.example .pictures img { max-width: 100%; border: 1px solid #ddd; image-rendering: auto; display: block; margin-bottom: .3rem; }
.example .words { flex: 1 1 20rem; min-width: 0; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f6f6; padding: .5rem; margin: .3rem 0;
  font-size: .85rem; }
details { margin: .3rem 0; } summary { cursor: pointer; }
code { overflow-wrap: anywhere; }
@media print { details { display: block; } }
"""


@dataclass(frozen=True)
class Picture:
    """A saved figure with what it shows."""

    path: Path
    caption: str


def write_report(
    out: str | Path,
    *,
    title: str,
    models: Sequence[ScoredModel],
    findings: Sequence[Finding],
    pictures: Sequence[Picture],
    tables: Mapping[str, Sequence[Mapping[str, Any]]],
    training_folders: Mapping[str, str | Path],
    examples: int = 6,
) -> Path:
    """The analysis as one page. `tables` are shown under their names in the given order."""
    sections = [f'<p class="lead">{escape(headline(models))}</p>']
    if models:
        sections.append(html_table(summary_rows(models)))
    if findings:
        sections.append("<h2>What the paper saw, and what happened here</h2>")
        sections.append(f"<p>{escape(verdict_counts(findings))}</p>")
        sections += [finding_html(finding) for finding in findings]
    sections.append("<h2>Figures</h2>")
    sections.append(f'<div class="figures">{"".join(figure_html(picture) for picture in pictures)}</div>')
    for name, rows in tables.items():
        sections.append(f"<h2>{escape(name)}</h2>{html_table(rows)}")
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
            "right, %": round(100 * row["accuracy"], 1),
            "95 % interval": f"{100 * row['low']:.1f} – {100 * row['high']:.1f}",
            "mean length, tokens": round(row["mean_length"], 1),
            "n": row["n"],
        }
        for row in summary(models)
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
    """Problems that all models answered, taken in turn from each pattern of right and wrong."""
    answers = [{row.problem_id: row for row in model.graded} for model in models]
    patterns: dict[tuple[bool, ...], list[str]] = defaultdict(list)
    for problem_id in answers[0]:
        if all(problem_id in answer for answer in answers):
            patterns[tuple(answer[problem_id].reward == 1 for answer in answers)].append(problem_id)
    queues = sorted(patterns.values(), key=len, reverse=True)
    turns = max([0, *(len(queue) for queue in queues)])
    chosen = [queue[turn] for turn in range(turns) for queue in queues if turn < len(queue)][:count]
    cards = []
    for problem_id in chosen:
        said = [answer[problem_id] for answer in answers]
        pattern = patterns[tuple(row.reward == 1 for row in said)]
        cards.append(
            example_html(models[0].problems[problem_id], dict(zip((model.label for model in models), said)))
            + f"<p><small>{len(pattern)} of {sum(map(len, queues))} problems share this pattern.</small></p>"
        )
    return cards


def example_html(problem: Problem, answers: Mapping[str, Graded]) -> str:
    """One problem with its pictures and gold, and each answer folded under its verdict."""
    pictures = "".join(f'<img src="{thumbnail(path)}" alt="picture of the problem">' for path in problem.images)
    choices = "".join(f"<br>{letter}: {escape(choice)}" for letter, choice in zip("ABCDEFGHIJ", problem.choices or []))
    said = "".join(answer_html(label, row) for label, row in answers.items())
    return (
        f'<div class="example"><div class="pictures">{pictures}</div><div class="words">'
        f"<p>{escape(problem.question)}{choices}<br><small>gold: <strong>{escape(problem.answer)}</strong> · "
        f"<code>{escape(problem.id)}</code></small></p>{said}</div></div>"
    )


def answer_html(label: str, row: Graded) -> str:
    verdict = "right" if row.reward == 1 else f"wrong: {row.reason}"
    text = row.text if len(row.text) <= LONGEST_TEXT else f"{row.text[:LONGEST_TEXT]} … ({len(row.text):,} characters)"
    cut = ", cut at the limit" if row.finish == "length" else ""
    read = f" · read as <code>{escape(row.extracted)}</code>" if row.extracted is not None else ""
    return (
        f"<details><summary><strong>{escape(label)}</strong>: {escape(verdict)}{read} · {row.tokens} tokens{cut}"
        f"</summary><pre>{escape(text)}</pre></details>"
    )


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
            "ShapeWorld is a small rendered world made for this workbench. Scores on it say whether the method works in "
            "miniature, nothing about any public benchmark. Length there goes with the size of the picture as well as with "
            "overthinking."
        )
    notes += [
        "Right means: well-formed, and the answer equals the gold by rule (the hard reward). An answer cut at the limit is wrong.",
        "Intervals are 95 % percentile bootstraps over problems; two models are compared on the same problems, in pairs. They "
        "cover the choice of problems, not the luck of a training seed.",
        "The paper's values belong to a 7-billion-parameter model on MathVista, MathVerse and MM-Math, up to 16K tokens; those "
        "of Figure 1 D to F were read off the plot (±10 tokens, ±0.1 points, ±0.003 reward). They show a shape to compare, not a level.",
    ]
    return "<ul>" + "".join(f"<li>{escape(note)}</li>" for note in notes) + "</ul>"


def origin_rows(models: Sequence[ScoredModel], training_folders: Mapping[str, str | Path]) -> list[dict[str, Any]]:
    rows = [
        {"run": model.label, "folder": str(model.folder), "model": str(model.scores.get("model", ""))}
        for model in models
    ]
    return rows + [
        {"run": label, "folder": str(folder), "model": "training"} for label, folder in training_folders.items()
    ]


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
    sections.append(
        f"<details><summary>Machine and versions</summary><pre>{escape(json.dumps(settings, indent=2))}</pre></details>"
    )
    return sections


def score_rows(scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "benchmark": row["benchmark"],
            "right, %": round(100 * row["accuracy"], 1),
            "95 % interval": f"{100 * row['low']:.1f} – {100 * row['high']:.1f}",
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
    rows = [{"metric": key, "last value": float(f"{value:.5g}")} for key, value in sorted(latest.items())]
    sections = ["<h2>Metrics</h2>"]
    if keys:
        buffer = io.BytesIO()
        metric_curves(metrics, keys).savefig(buffer, format="png")
        sections.append(
            f'<figure style="max-width: 48rem"><img src="{png_url(buffer.getvalue())}" alt="metrics over steps"></figure>'
        )
    return [*sections, f"<details><summary>Last value of every metric</summary>{html_table(rows)}</details>"]


def completions_html(folder: Path, manifest: Mapping[str, Any], count: int = 8) -> list[str]:
    """Completions evenly spaced over the file, with pictures where their problems are found, and how they went."""
    graded = list(read_jsonl(folder / "completions.jsonl", Graded))
    if not graded:
        return []
    step = max(1, len(graded) // count)
    problems = find_problems(folder, manifest, {row.problem_id for row in graded[::step]})
    accuracy = accuracy_interval([row.answer_ok and row.format_ok for row in graded])
    words = ", ".join(
        f"{word} {count}" for word, count in count_words((row.text for row in graded), REFLECTION_WORDS).items()
    )
    sections = [
        "<h2>Completions</h2>",
        f"<p>{len(graded):,} completions, {100 * accuracy.mean:.1f} % right, {sum(row.tokens for row in graded) / len(graded):.1f} "
        f"tokens on average. Words: {escape(words)}.</p>",
    ]
    for row in graded[::step][:count]:
        label = f"step {row.step}, stage {row.stage + 1}"
        if row.problem_id in problems:
            sections.append(example_html(problems[row.problem_id], {label: row}))
        else:
            sections.append(f"<p><code>{escape(row.problem_id)}</code></p>{answer_html(label, row)}")
    return sections


def find_problems(folder: Path, manifest: Mapping[str, Any], wanted: set[str]) -> dict[str, Problem]:
    """The wanted problems from the run's own file or from the problem files it read, as far as they are still there."""
    root = folder.resolve().parent.parent.parent
    files = [folder / "problems.jsonl"]
    files += [root / entry["path"] for entry in manifest.get("inputs") or [] if str(entry["path"]).endswith(".jsonl")]
    found: dict[str, Problem] = {}
    for file in files:
        if file.is_file() and wanted - found.keys():
            try:
                found |= {problem.id: problem for problem in read_jsonl(file, Problem) if problem.id in wanted}
            except RequestError:
                continue  # an input of another kind, such as cold-start rows
    return found


def lineage_rows(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"kind": entry.get("kind", ""), "path": entry.get("path", ""), "sha256": str(entry.get("sha256", ""))[:12]}
        for entry in entries
    ]


# ----------------------------------------------------------------------------------------------------- building HTML


def write_page(out: str | Path, title: str, sections: Iterable[str], heading: bool = True) -> Path:
    """Write the page; returns its path."""
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    top = f"<h1>{escape(title)}</h1>" if heading else ""
    out.write_text(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>{top}\n"
        + "\n".join(sections)
        + "\n</body></html>\n",
        encoding="utf-8",
    )
    return out


def html_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows under the first row's keys; numbers to the right, None as an empty cell, wide tables scroll by themselves."""
    if not rows:
        return "<p>None.</p>"
    head = "".join(f"<th>{escape(str(key).replace('_', ' '))}</th>" for key in rows[0])
    body = "".join(f"<tr>{''.join(cell_html(value) for value in row.values())}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def cell_html(value: Any) -> str:
    if value is None:
        return "<td></td>"
    if isinstance(value, float):
        text = f"{value:.3g}" if 0 < abs(value) < 0.01 else f"{value:,.4f}".rstrip("0").rstrip(".")
        return f'<td class="number">{text}</td>'
    if isinstance(value, int) and not isinstance(value, bool):
        return f'<td class="number">{value:,}</td>'
    return f"<td>{escape(str(value))}</td>"


def figure_html(picture: Picture) -> str:
    url = png_url(picture.path.read_bytes())
    caption = escape(picture.caption)
    return f'<figure><img src="{url}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'


def thumbnail(path: str | Path) -> str:
    """A picture as a data URL, at most PICTURE_SIDE pixels; small ones are enlarged by whole factors, so stay sharp."""
    picture = open_image(path)
    longest = max(picture.size)
    if longest > PICTURE_SIDE:
        picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    elif longest * 2 <= PICTURE_SIDE:
        factor = PICTURE_SIDE // longest
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return png_url(buffer.getvalue())


def png_url(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"
