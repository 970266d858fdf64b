"""The run folder and its mirror in W&B: what ran, with what, what came of it.

A run writes outputs/STEM/RUN/: manifest.json (first, and replaced atomically), params.yaml, metrics.jsonl (one line
per `log`, on disk when the call returns), completions.jsonl, figures/ and wandb/. The folder is the truth and W&B a
copy of it: offline unless asked otherwise, never a prompt, never waited for. Whatever goes wrong there is said once,
and the run goes on. Our choice: a run whose folder already holds an earlier run moves that folder to RUN~1 (RUN~2, …),
so that a notebook can simply be run again and nothing is lost. A run that resumes keeps its folder and its W&B run: its
record is cut back to what it was when the checkpoint was written, and goes on from there; what it does again W&B has
already and does not get twice.
"""

import atexit
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from vr1lib.records import Graded, Problem
from vr1lib.workbench.alerts import Watch
from vr1lib.workbench.board import Board
from vr1lib.workbench.params import Parameters, TrainingParameters, project_root
from vr1lib.workbench.record import Record
from vr1lib.workbench.run_folder import (
    LAUNCHED,
    claim_folder,
    error_line,
    find_producer,
    lock_folder,
    now,
    read_manifest,
    say,
    sha256,
    shown,
    write_manifest,
)


class Run:
    """One run of a notebook. `log` is a plain callable: algorithms get it without knowing what is behind it."""

    resume_from: Path | None = None  # the checkpoint a resumed run goes on from

    def __init__(self, stem: str, params: Parameters, folder: Path, manifest: dict[str, Any], lock: TextIO) -> None:
        self.stem, self.name, self.params, self.folder = stem, params.run, params, folder
        self.manifest, self.lock = manifest, lock
        self.record = Record(folder)
        self.closed = False
        already_logged = self.go_back() if isinstance(params, TrainingParameters) and params.resume else []
        self.watch, self.warned = Watch(), set[str]()
        for row in self.record.rows():
            self.watch.see(row)
        self.board = Board(stem, params, folder, manifest["wandb"]["run_id"], already_logged)
        self.update(wandb=self.board.identity)

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Record.log, the same to W&B, and an alert if there is cause for one."""
        self.mirror(self.record.log(metrics))

    def mirror(self, row: Mapping[str, Any]) -> None:
        """What follows a row of metrics.jsonl, whoever has written it: W&B's copy, and alerts, each kind said once."""
        self.board.log(row)
        for alert in self.watch.see(row):
            self.record.log_alert(alert)
            self.board.alert(alert)
            if alert.kind not in self.warned:
                self.warned.add(alert.kind)
                say(f"ALERT, step {alert.step}: {alert.title}. {alert.text} (more of its kind: alerts.jsonl)")

    def log_completions(self, graded: Sequence[Graded], problems: Mapping[str, Problem]) -> None:
        """Record.log_completions; W&B gets a table of some of them with their pictures."""
        self.record.log_completions(graded, problems)
        self.board.log_completions(graded, problems)

    def log_evaluation(self, graded: Sequence[Graded]) -> None:
        """Record.log_evaluation; of the answers to held-out problems W&B has the metrics."""
        self.record.log_evaluation(graded)

    def save_figure(self, figure: Any, name: str) -> Path:
        """A matplotlib figure as figures/NAME.png (the path returned), as NAME.svg, and as a W&B image."""
        from vr1lib.analysis.drawing import save_png_and_svg  # with matplotlib, which no run needs before

        path = save_png_and_svg(figure, self.folder / "figures" / f"{name}.png")
        self.board.log_figure(name, path)
        return path

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table to W&B as tables/NAME; the run folder keeps its own files of it."""
        self.board.log_table(name, columns, rows)

    def add_input(self, path: str | Path, kind: str) -> None:
        """Record a file or folder this run reads, by content; W&B links it to the run that made it."""
        path = Path(path).resolve()
        digest = sha256(path)
        self.read_specs(path)
        self.update(inputs=[*self.manifest["inputs"], {"path": shown(path), "kind": kind, "sha256": digest}])
        producer = find_producer(path, digest)
        if producer:
            self.board.use(producer.path, producer.kind, producer.artifact, producer.sha256)
        else:
            self.board.use(path, kind, f"input-{path.stem}", digest, by_digest=True)

    def add_output(self, path: str | Path, kind: str, name: str) -> None:
        """Record a file or folder this run has made, by content, and as the W&B artifact STEM-NAME."""
        path = Path(path).resolve()
        entry = {"path": shown(path), "kind": kind, "name": name, "sha256": sha256(path)}
        self.read_specs(path)
        self.update(outputs=[*self.manifest["outputs"], entry])
        self.board.produce(path, kind, f"{self.stem}-{name}", entry["sha256"])

    def finish(self, summary: str = "") -> None:
        """The run is done; `summary`, a few lines, is printed and kept in the manifest.

        Its metrics become an output: an analysis that reads them is linked to the run.
        """
        if not self.closed and self.record.metrics.exists():
            self.add_output(self.record.metrics, "metrics", "metrics")
        self.close("finished", summary=summary, error=None)
        if summary:
            print(summary)

    def fail(self, error: BaseException) -> None:
        """Mark the run failed (interrupted, for Ctrl-C). It may still be finished later, from JupyterLab."""
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        self.update(status=status, finished_at=now(), error=error_line(error))

    def close(self, status: str, **more: Any) -> None:
        """Set the final status and let go of W&B and of the folder. The first call counts."""
        if self.closed:
            return
        self.closed = True
        self.board.finish(exit_code=0 if status == "finished" else 1)
        self.update(status=status, finished_at=now(), **more)
        stop_watching_cells(self.after_cell)
        self.lock.close()

    def close_at_exit(self) -> None:
        """The kernel ends: a run that nobody finished was interrupted."""
        status = self.manifest["status"]
        self.close("interrupted" if status == "running" else status)

    def after_cell(self, result: Any) -> None:
        error = result.error_before_exec or result.error_in_exec
        if error is not None and not self.closed:
            self.fail(error)

    def go_back(self) -> list[dict[str, Any]]:
        """Choose the checkpoint to go on from and cut the record back to it; returns the rows of metrics cut off."""
        from vr1lib.training.checkpoint import newest_checkpoint, read_state  # with torch, which others don't need

        before = self.record.rows()
        self.resume_from = newest_checkpoint(self.folder / "checkpoints", say)
        self.record.rewind(read_state(self.resume_from)["recorded"] if self.resume_from else {})
        self.update(resumed_from=shown(self.resume_from) if self.resume_from else None)
        say(f"resumed from {shown(self.resume_from)}" if self.resume_from else "no checkpoint yet: starting anew")
        return before[len(self.record.rows()) :]

    def update(self, **entries: Any) -> None:
        self.manifest.update(entries)
        write_manifest(self.folder, self.manifest)

    def read_specs(self, path: Path) -> None:
        """The image and prompt specification of a model folder, into the manifest."""
        spec = path / "vr1_spec.json"
        if path.is_dir() and spec.exists():
            hashes = json.loads(spec.read_text(encoding="utf-8"))
            for entry in ("image_spec", "prompt_spec"):
                self.manifest[entry] = hashes.get(f"{entry}_sha256")


active: Run | None = None


def start_run(stem: str, params: Parameters) -> Run:
    """Claim outputs/STEM/RUN, write its manifest, and watch the notebook's cells: one that raises fails the run.

    With `resume` among the parameters an earlier run there goes on instead; if it trains, `run.resume_from` is its
    newest whole checkpoint, or None if it has none yet and starts anew. A run of this process that is still open is
    closed as interrupted.
    """
    global active
    if active is not None:
        active.close_at_exit()
    folder = project_root() / "outputs" / stem / params.run
    if os.environ.get(LAUNCHED) == str(folder):
        manifest, lock = read_manifest(folder), lock_folder(folder)
    else:
        manifest, lock = claim_folder(stem, params)
    active = Run(stem, params, folder, manifest, lock)
    atexit.register(active.close_at_exit)
    watch_cells(active.after_cell)
    return active


def watch_cells(callback: Callable[[Any], None]) -> None:
    shell = interactive_shell()
    if shell is not None:
        shell.events.register("post_run_cell", callback)


def stop_watching_cells(callback: Callable[[Any], None]) -> None:
    shell = interactive_shell()
    if shell is not None and callback in shell.events.callbacks["post_run_cell"]:
        shell.events.unregister("post_run_cell", callback)


def interactive_shell() -> Any:
    return sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
