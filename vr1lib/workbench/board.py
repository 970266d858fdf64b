"""The copy of a run in W&B: config, curves, completion tables, figures, alerts, and artifacts with their lineage.

Offline unless asked otherwise, never a prompt, never waited for, and never in the way: a failure is said once, and the
run goes on in its folder.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vr1lib.records import Graded, Problem
from vr1lib.workbench.alerts import Alert
from vr1lib.workbench.completion_table import COLUMNS, completion_rows, divided_by_std
from vr1lib.workbench.labels import JOB_TYPES, tags_of
from vr1lib.workbench.params import Parameters
from vr1lib.workbench.run_folder import error_line, files_below, say, shown

TABLE_EVERY = 10  # steps between the completion tables of a run; also at its first and last step and at a new stage
ARTIFACT_BYTES = 100 * 2**20  # of larger outputs W&B gets the sha256, not the files
ARTIFACT_FILES = 200
WANDB_MODES = ("disabled", "offline", "online")


class Board:
    """A W&B run that cannot harm: every call into wandb goes through `attempt`, which says the first failure and stops.

    WANDB_MODE in the environment may lower the mode (offline, disabled), never raise it. `run_id` is the run to go on
    with, `already_logged` the rows of metrics it has that a resumed run will log again: W&B gets no row twice. Our
    choice: W&B could cut its own history back (`resume_from`), but few of its servers do.
    """

    def __init__(
        self,
        stem: str,
        params: Parameters,
        folder: Path,
        run_id: str | None = None,
        already_logged: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.run: Any = None
        self.run_id = run_id
        self.already_logged = {row_name(row) for row in already_logged}
        self.steps_with_completions = {row["step"] for row in already_logged}
        self.params = params
        self.aliases = [params.run]
        self.step = 0  # of the last row of metrics: figures and tables belong to it
        self.table: Any = None
        self.waiting: list[Graded] = []  # completions of one step, until all of them are there
        self.problems: Mapping[str, Problem] = {}
        self.written: Graded | None = None  # of the last table
        self.identity = {"mode": "disabled", "run_id": None, "url": None}
        wanted = [params.wandb_mode, os.environ.get("WANDB_MODE")]
        mode = min((name for name in wanted if name in WANDB_MODES), key=WANDB_MODES.index)
        if mode == "disabled":
            return
        try:
            import wandb
        except ImportError:
            say("W&B is not installed: this run is recorded in its folder only")
            return
        self.wandb = wandb
        os.environ["WANDB_DATA_DIR"] = str(folder / "wandb")  # pictures of tables: in the run folder, not in the home
        if mode == "online" and not self.attempt(wandb.login, prompt=False, verify=False):
            say("W&B is not logged in (`wandb login`): this run is recorded offline; `vr1 sync` uploads it later")
            mode = "offline"
        self.attempt(self.start, mode, stem, params, folder)
        if self.run is None and mode == "online":
            self.attempt(self.start, "offline", stem, params, folder)

    def start(self, mode: str, stem: str, params: Parameters, folder: Path) -> None:
        run = self.wandb.init(
            mode=mode,
            id=self.run_id,
            resume="allow" if self.run_id else None,
            dir=folder,
            project=params.wandb_project,
            group=params.wandb_group,
            job_type=JOB_TYPES.get(stem, stem),
            name=f"{stem}/{params.run}",
            tags=tags_of(params),
            config=params.model_dump(exclude={"resume"}),
            settings=self.wandb.Settings(
                console="off", silent=True, init_timeout=20, finish_timeout=120, x_save_requirements=False
            ),
        )
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        self.table = self.wandb.Table(columns=list(COLUMNS), log_mode="INCREMENTAL")
        self.identity = {"mode": mode, "run_id": run.id, "url": run.url if mode == "online" else None}
        self.run = run

    def attempt(self, action: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call into wandb; at the first failure of any kind say so and never call again."""
        try:
            return action(*arguments, **options)
        except Exception as error:  # a third party's failure, whatever it is, must not end a run of hours
            say(f"W&B failed ({error_line(error)}): the run goes on, recorded in its folder")
            self.run = None
            return None

    def log(self, row: Mapping[str, Any]) -> None:
        self.step = row["step"]
        if self.run is not None and row_name(row) not in self.already_logged:
            self.attempt(self.run.log, dict(row))

    def alert(self, alert: Alert) -> None:
        if self.run is not None:
            self.attempt(self.run.alert, title=alert.title, text=f"step {alert.step}: {alert.text}", level=alert.level)

    def log_completions(self, graded: Sequence[Graded], problems: Mapping[str, Problem]) -> None:
        """Rows for the completion table; they are written when the next step's come, or when the run ends."""
        if self.run is None:
            return
        for item in graded:
            if self.waiting and self.waiting[0].step != item.step:
                self.write_completions(problems)
            self.waiting.append(item)
        self.problems = problems

    def write_completions(self, problems: Mapping[str, Problem], last: bool = False) -> None:
        """Add the waiting step's rows to the table, if one is due."""
        graded, self.waiting = self.waiting, []
        if not graded or graded[0].step in self.steps_with_completions:
            return
        before, first = self.written, graded[0]
        due = before is None or first.step >= before.step + TABLE_EVERY or first.stage != before.stage
        if due or last:
            self.written = first
            self.attempt(self.add_rows, first.step, graded, problems)

    def add_rows(self, step: int, graded: Sequence[Graded], problems: Mapping[str, Problem]) -> None:
        for row in completion_rows(graded, problems, self.wandb.Image, divided_by_std(self.params)):
            self.table.add_data(*row)
        self.run.log({"step": step, "completions": self.table})

    def log_figure(self, name: str, path: Path) -> None:
        if self.run is not None:
            self.attempt(lambda: self.run.log({"step": self.step, f"figures/{name}": self.wandb.Image(str(path))}))

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        def log() -> None:
            table = self.wandb.Table(columns=list(columns), data=list(rows), allow_mixed_types=True)
            self.run.log({"step": self.step, f"tables/{name}": table})

        if self.run is not None:
            self.attempt(log)

    def produce(self, path: Path, kind: str, name: str, digest: str) -> None:
        if self.run is not None:
            self.attempt(lambda: self.run.log_artifact(self.artifact(path, kind, name, digest), aliases=self.aliases))

    def use(self, path: Path, kind: str, name: str, digest: str, by_digest: bool = False) -> None:
        """Lineage without waiting: `use_artifact` refuses offline and waits online, so this sends what it would send.

        The same content under the same name is the same version to W&B, whichever run uploads it first.
        """
        if self.run is not None:
            self.attempt(
                lambda: self.run._log_artifact(
                    self.artifact(path, kind, name, digest, by_digest), is_user_created=True, use_after_commit=True
                )
            )

    def artifact(self, path: Path, kind: str, name: str, digest: str, by_digest: bool = False) -> Any:
        """Files where they are small and few, else their sha256 alone, with the path beside it.

        The path is metadata: were it part of the content, as in W&B's references, a renamed folder would be another
        version, and the lineage would end there.
        """
        files = files_below(path)
        name = re.sub(r"[^\w.-]+", "-", name)[:120]
        about = {"sha256": digest, "files": len(files), "path": shown(path)}
        artifact = self.wandb.Artifact(name, type=kind, metadata=about)
        size = sum(file.stat().st_size for file in files)
        if by_digest or size > ARTIFACT_BYTES or len(files) > ARTIFACT_FILES:
            with artifact.new_file("sha256.txt", encoding="utf-8") as file:
                file.write(digest + "\n")
            return artifact
        for file in files:
            inside = file.relative_to(path).as_posix() if path.is_dir() else name + file.suffix
            artifact.add_file(str(file), name=inside, policy="immutable", skip_cache=True)
        return artifact

    def finish(self, exit_code: int) -> None:
        if self.run is not None:
            self.write_completions(self.problems, last=True)
        if self.run is not None:
            self.attempt(self.run.finish, exit_code=exit_code)
        self.run = None


def row_name(row: Mapping[str, Any]) -> tuple[int, frozenset[str]]:
    """What a row of metrics is about: its step and its keys."""
    return row["step"], frozenset(row)
