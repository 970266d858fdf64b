"""The copy of a run in W&B."""

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vr1lib.records import Graded, Problem
from vr1lib.workbench.completion_table import thumbnail
from vr1lib.workbench.params import Parameters
from vr1lib.workbench.run_folder import error_line, files_below, say

TABLE_ROWS = 32  # completions per W&B table, evenly spaced; completions.jsonl holds them all
ARTIFACT_BYTES = 100 * 2**20  # larger outputs go to W&B as a reference with their sha256
ARTIFACT_FILES = 200
WANDB_MODES = ("disabled", "offline", "online")


class Board:
    """A W&B run that cannot harm: every call into wandb goes through `attempt`, which says the first failure and stops.

    WANDB_MODE in the environment may lower the mode (offline, disabled), never raise it.
    """

    def __init__(self, stem: str, params: Parameters, folder: Path, run_id: str | None = None) -> None:
        self.run: Any = None
        self.run_id = run_id  # of the run to go on with
        self.aliases = [params.run]
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
            say("W&B is not logged in (`wandb login`): this run is recorded offline; `wandb sync` uploads it later")
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
            job_type=stem,
            name=f"{stem}/{params.run}",
            config=params.model_dump(exclude={"resume"}),
            settings=self.wandb.Settings(
                console="off", silent=True, init_timeout=20, finish_timeout=120, x_save_requirements=False
            ),
        )
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
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
        if self.run is not None:
            self.attempt(self.run.log, dict(row))

    def log_completions(self, graded: Sequence[Graded], problems: Mapping[str, Problem]) -> None:
        if self.run is not None and graded:
            chosen = graded[:: max(1, math.ceil(len(graded) / TABLE_ROWS))]
            table = self.attempt(self.completion_table, chosen, problems)
            self.log({"step": max(item.step for item in graded), "completions": table})

    def completion_table(self, graded: Sequence[Graded], problems: Mapping[str, Problem]) -> Any:
        pictures: dict[str, Any] = {}
        for problem_id in dict.fromkeys(item.problem_id for item in graded):
            picture = thumbnail(problems[problem_id])
            pictures[problem_id] = picture and self.wandb.Image(picture)
        columns = "step stage id picture question gold extracted verdict reason tokens finish text".split()
        rows = []
        for item in graded:
            problem = problems[item.problem_id]
            verdict = "right" if item.answer_ok else "wrong" if item.format_ok else "malformed"
            start = [item.step, item.stage, problem.id, pictures[problem.id], problem.question, problem.answer]
            rows.append([*start, item.extracted, verdict, item.reason, item.tokens, item.finish, item.text])
        return self.wandb.Table(columns=columns, data=rows)

    def log_figure(self, name: str, path: Path) -> None:
        if self.run is not None:
            self.attempt(lambda: self.run.log({f"figures/{name}": self.wandb.Image(str(path))}))

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        def log() -> None:
            table = self.wandb.Table(columns=list(columns), data=list(rows), allow_mixed_types=True)
            self.run.log({f"tables/{name}": table})

        if self.run is not None:
            self.attempt(log)

    def produce(self, path: Path, kind: str, name: str, digest: str) -> None:
        if self.run is not None:
            self.attempt(lambda: self.run.log_artifact(self.artifact(path, kind, name, digest), aliases=self.aliases))

    def use(self, path: Path, kind: str, name: str, digest: str, by_reference: bool = False) -> None:
        """Lineage without waiting: `use_artifact` refuses offline and waits online, so this sends what it would send.

        The same content under the same name is the same version to W&B, whichever run uploads it first.
        """
        if self.run is not None:
            self.attempt(
                lambda: self.run._log_artifact(
                    self.artifact(path, kind, name, digest, by_reference), is_user_created=True, use_after_commit=True
                )
            )

    def artifact(self, path: Path, kind: str, name: str, digest: str, by_reference: bool = False) -> Any:
        """Files where they are small and few, else a reference to them beside their sha256."""
        files = files_below(path)
        name = re.sub(r"[^\w.-]+", "-", name)[:120]
        artifact = self.wandb.Artifact(name, type=kind, metadata={"sha256": digest, "files": len(files)})
        size = sum(file.stat().st_size for file in files)
        if by_reference or size > ARTIFACT_BYTES or len(files) > ARTIFACT_FILES:
            with artifact.new_file("sha256.txt", encoding="utf-8") as file:
                file.write(digest + "\n")
            artifact.add_reference(path.as_uri(), checksum=False)
            return artifact
        for file in files:
            inside = file.relative_to(path).as_posix() if path.is_dir() else file.name
            artifact.add_file(str(file), name=inside, policy="immutable", skip_cache=True)
        return artifact

    def finish(self, exit_code: int) -> None:
        if self.run is not None:
            self.attempt(self.run.finish, exit_code=exit_code)
        self.run = None
