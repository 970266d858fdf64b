"""`vr1 dashboard`: the workspace and the report that W&B shows these runs in, written through wandb-workspaces.

What they hold stands here as plain data: sections of panels over the keys of docs/metrics.md, each with the question it
answers. `--dry-run` prints it without network, login or package.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from vr1lib.benchmarks.catalogue import BENCHMARKS
from vr1lib.records import RequestError
from vr1lib.workbench.run_folder import error_line
from vr1lib.workbench.wandb_server import wandb_for_upload

TITLE = "Vision-R1"


@dataclass(frozen=True)
class Panel:
    """curves: keys over `step`; bars: a run's last value of each; table: rows of a table key; media: pictures."""

    kind: Literal["curves", "bars", "table", "media"]
    title: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Section:
    name: str
    question: str
    panels: tuple[Panel, ...]


def curves(title: str, *keys: str) -> Panel:
    return Panel("curves", title, keys)


SECTIONS = (
    Section(
        "Overthinking",
        "Do wrong answers stay longer than right ones, does the limit cut less, and does accuracy rise meanwhile?",
        (
            curves("Length of right and of wrong answers (tokens)", "length/right_mean", "length/wrong_mean"),
            curves("Completions cut at the stage's limit (share)", "length/clipped_ratio"),
            curves("Accuracy on held-out problems (share)", "eval/accuracy"),
            curves("Length on held-out problems (tokens)", "eval/length_mean"),
        ),
    ),
    Section(
        "Curves by stage",
        "What changes where PTST's stage does? The first panel shows the stages over the same steps.",
        (
            curves("PTST stage", "stage"),
            curves("Mean reward", "reward/mean"),
            curves("Mean length (tokens)", "length/mean"),
            curves("Entropy (nats a token)", "entropy"),
        ),
    ),
    Section(
        "Reward parts",
        "Is it the format or the answer that is missing?",
        (curves("Format and answer right (share)", "reward/format_ok", "reward/answer_ok"),),
    ),
    Section(
        "Groups",
        "How many groups still teach something: neither all right nor all wrong?",
        (
            curves("Groups without a signal (share)", "groups/all_right", "groups/all_wrong", "groups/all_truncated"),
            curves("Groups sampled in place of those (count)", "groups/refilled"),
        ),
    ),
    Section(
        "Completions",
        "What does the model write, for which picture, and what was it worth?",
        (Panel("table", "Completions, a right and a wrong one of some problems every few steps", ("completions",)),),
    ),
    Section(
        "Scores",
        "How good are the models on the benchmarks, strict protocol?",
        (
            Panel("bars", "Accuracy (share)", tuple(f"{name}/accuracy" for name in BENCHMARKS)),
            Panel("bars", "Mean length (tokens)", tuple(f"{name}/mean_length_tokens" for name in BENCHMARKS)),
            Panel("bars", "Held-out accuracy at the end of training (share)", ("eval/accuracy",)),
        ),
    ),
    Section(
        "Is the update sound?",
        "Loss, gradient, distance from the cold-started model, and what was skipped.",
        (
            curves("Loss", "loss"),
            curves("Gradient norm", "grad_norm"),
            curves("KL to the reference (nats a token)", "kl"),
            curves("Ratio clipped (share of tokens)", "clip/low", "clip/high"),
            curves("Sampling against training (nats a token)", "logprob_gap"),
            curves("Bad steps (count)", "bad_steps"),
            curves("Learning rate", "learning_rate"),
        ),
    ),
    Section(
        "Time and memory",
        "Where a step's seconds go.",
        (
            curves("Seconds of a step", "time/rollout", "time/update", "time/reward"),
            curves("Tokens a second", "tokens_per_second"),
            curves("Memory (GiB)", "memory/rss_gib", "memory/vram_gib"),
        ),
    ),
    Section(
        "Figures",
        "Figure 1 D, E and F of each training run, as in the paper.",
        (Panel("media", "Progression", ("figures/figure_1D", "figures/figure_1E", "figures/figure_1F")),),
    ),
)
REPORTED = ("Overthinking", "Curves by stage", "Completions", "Scores")  # the sections of the report


def dashboard_command(project: str, entity: str | None, dry_run: bool, as_json: bool) -> int:
    """Write the workspace and the report, and print where they are; 1 if W&B did not take them.

    With `dry_run` print what they would be. Raises RequestError without the package, offline, or not logged in.
    """
    if dry_run:
        plan = {"entity": entity, "project": project, "workspace": described(SECTIONS), "report": list(REPORTED)}
        print(json.dumps(plan, indent=2, ensure_ascii=False) if as_json else in_words(project, entity))
        return 0
    refuse_without_package()
    wandb = wandb_for_upload("vr1 dashboard")
    urls: dict[str, str] = {}
    failed = ""
    try:
        entity = entity or wandb.Api().default_entity
        urls["workspace"] = workspace(project, entity).save().url
        urls["report"] = report(project, entity).save().url
    except Exception as error:  # a third party's failure: wandb-workspaces raises Exception itself, and private kinds
        failed = error_line(error)
    print(json.dumps(urls) if as_json else "\n".join(f"{name:<10} {url}" for name, url in urls.items()))
    if failed:
        print(f"W&B did not take the dashboard: {failed}", file=sys.stderr)
    return 1 if failed else 0


def refuse_without_package() -> None:
    try:
        import wandb_workspaces  # noqa: F401
    except ImportError:
        raise RequestError(
            "wandb-workspaces is not installed: pip install -e '.[dashboard]' (or --dry-run, which needs nothing)"
        ) from None


def described(sections: Sequence[Section]) -> list[dict[str, Any]]:
    return [asdict(section) for section in sections]


def in_words(project: str, entity: str | None) -> str:
    lines = [f"workspace '{TITLE}' in {entity or '(your default entity)'}/{project}, x axis: step"]
    for section in SECTIONS:
        lines += ["", f"{section.name}: {section.question}"]
        lines += [f"  {panel.kind:<7} {panel.title}: {', '.join(panel.keys)}" for panel in section.panels]
    return "\n".join([*lines, "", f"report '{TITLE}': {', '.join(REPORTED)}; runs by job type and group"])


# As wandb-workspaces has them.


def workspace(project: str, entity: str) -> Any:
    """The workspace: sections of panels, unsaved."""
    import wandb_workspaces.workspaces as ws

    return ws.Workspace(
        entity=entity,
        project=project,
        name=TITLE,
        sections=[
            ws.Section(name=section.name, panels=[panel_of(panel) for panel in section.panels], is_open=place < 3)
            for place, section in enumerate(SECTIONS)
        ],
        settings=ws.WorkspaceSettings(x_axis="step"),
    )


def report(project: str, entity: str) -> Any:
    """The report: each section's question above its panels, over all runs of the project, unsaved."""
    import wandb_workspaces.reports.v2 as wr

    blocks: list[Any] = [wr.TableOfContents()]
    for section in SECTIONS:
        if section.name in REPORTED:
            runs = wr.Runset(entity=entity, project=project, groupby=["JobType", "Group"])
            panels = [panel_of(panel, wr.Layout(w=24, h=14)) for panel in section.panels]
            blocks += [wr.H2(section.name), wr.P(section.question), wr.PanelGrid(runsets=[runs], panels=panels)]
    return wr.Report(entity=entity, project=project, title=TITLE, blocks=blocks, width="fluid")


def panel_of(panel: Panel, wide: Any = None) -> Any:
    """A panel as W&B has it. In a report tables and pictures take the whole width, `wide`."""
    import wandb_workspaces.reports.v2 as wr

    layout = {"layout": wide} if wide is not None and panel.kind in ("table", "media") else {}
    match panel.kind:
        case "curves":
            return wr.LinePlot(title=panel.title, x="step", y=list(panel.keys))
        case "bars":
            return wr.BarPlot(title=panel.title, metrics=list(panel.keys))
        case "table":
            return wr.WeavePanelSummaryTable(table_name=panel.keys[0], **layout)
        case "media":
            return wr.MediaBrowser(title=panel.title, media_keys=list(panel.keys), **layout)
