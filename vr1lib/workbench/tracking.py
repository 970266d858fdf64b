"""The run folder and its mirror in W&B: what ran, with what, what came of it.

A run writes outputs/STEM/RUN/: manifest.json (first, and replaced atomically), params.yaml, metrics.jsonl (one line
per `log`, on disk when the call returns), completions.jsonl, figures/ and wandb/. The folder is the truth and W&B a
copy of it: offline unless asked otherwise, never a prompt, never waited for. Whatever goes wrong there is said once,
and the run goes on. Our choice: a run whose folder already holds an earlier run moves that folder to RUN~1 (RUN~2, …),
so that a notebook can simply be run again and nothing is lost. A run that resumes keeps its folder and its W&B run: its
record is cut back to what it was when the checkpoint was written, and goes on from there.
"""

import atexit
import fcntl
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import psutil
from PIL import Image

import vr1lib
from vr1lib.records import Graded, Problem, RequestError, file_sha256, open_image, write_jsonl
from vr1lib.workbench.params import Parameters, TrainingParameters, load_parameters, project_root

LAUNCHED = "VR1_RUN_FOLDER"  # set by `vr1 run`: the folder it has claimed for the kernel
THUMBNAIL_PIXELS = 128  # longest side of a picture in a W&B table
TABLE_ROWS = 32  # completions per W&B table, evenly spaced; completions.jsonl holds them all
ARTIFACT_BYTES = 100 * 2**20  # larger outputs go to W&B as a reference with their sha256
ARTIFACT_FILES = 200
CHANGEABLE = set(  # parameters that a resumed run may have anew: none of them changes what comes out
    "resume wandb_mode rdzv_endpoint checkpoint_every checkpoints_kept max_bad_steps preflight "
    "mllm reasoner in_flight token_budget cost_budget retry_failed endpoints judge "
    "rollout_endpoints rollout_folder rollout_wait_seconds".split()
)
WANDB_MODES = ("disabled", "offline", "online")
PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "datasets", "numpy", "papermill", "wandb")


class Record:
    """The growing files of a run folder: on disk when the call returns, whoever writes them.

    metrics.jsonl, completions.jsonl and, of GRPO's answers to held-out problems, evaluation.jsonl.
    """

    def __init__(self, folder: Path) -> None:
        self.metrics, self.completions = folder / "metrics.jsonl", folder / "completions.jsonl"
        self.evaluation = folder / "evaluation.jsonl"
        self.started = time.monotonic()

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl. `step` is required; numbers that are not finite become null; `seconds`
        since the start is added where it is not given."""
        if "step" not in metrics:
            raise ValueError("log: metrics hold no 'step'")
        row = {"step": metrics["step"], "seconds": round(time.monotonic() - self.started, 3), **metrics}
        line = json.dumps({key: plain(value) for key, value in row.items()}, ensure_ascii=False, allow_nan=False)
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def log_completions(self, graded: Sequence[Graded], problems: Mapping[str, Problem]) -> None:
        """Append graded completions to completions.jsonl."""
        write_jsonl(self.completions, graded, append=True)

    def log_evaluation(self, graded: Sequence[Graded]) -> None:
        """Append the graded answers of one evaluation to evaluation.jsonl."""
        write_jsonl(self.evaluation, graded, append=True)

    def files(self) -> list[Path]:
        return [path for path in (self.metrics, self.completions, self.evaluation) if path.exists()]

    def sizes(self) -> dict[str, int]:
        """Bytes of each file now; a checkpoint remembers them."""
        return {path.name: path.stat().st_size for path in self.files()}

    def rewind(self, sizes: Mapping[str, int]) -> None:
        """Cut the files back to the sizes that a checkpoint remembers; a line half written goes with the rest."""
        for path in self.files():
            os.truncate(path, min(sizes.get(path.name, 0), path.stat().st_size))


class Run:
    """One run of a notebook. `log` is a plain callable: algorithms get it without knowing what is behind it."""

    resume_from: Path | None = None  # the checkpoint a resumed run goes on from

    def __init__(self, stem: str, params: Parameters, folder: Path, manifest: dict[str, Any], lock: TextIO) -> None:
        self.stem, self.name, self.params, self.folder = stem, params.run, params, folder
        self.manifest, self.lock = manifest, lock
        self.record = Record(folder)
        self.closed = False
        self.board = Board(stem, params, folder, manifest["wandb"]["run_id"])
        self.update(wandb=self.board.identity)

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Record.log, and the same to W&B."""
        self.record.log(metrics)
        self.board.log(metrics)

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
        producer = find_producer(path)
        if producer:
            self.board.use(producer["path"], producer["kind"], producer["artifact"], producer["sha256"])
        else:
            self.board.use(path, kind, f"input-{path.stem}", digest, by_reference=True)

    def add_output(self, path: str | Path, kind: str, name: str) -> None:
        """Record a file or folder this run has made, by content, and as the W&B artifact STEM-NAME."""
        path = Path(path).resolve()
        entry = {"path": shown(path), "kind": kind, "name": name, "sha256": sha256(path)}
        self.read_specs(path)
        self.update(outputs=[*self.manifest["outputs"], entry])
        self.board.produce(path, kind, f"{self.stem}-{name}", entry["sha256"])

    def finish(self, summary: str = "") -> None:
        """The run is done; `summary`, a few lines, is printed and kept in the manifest."""
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

    def go_back(self) -> None:
        """Choose the checkpoint to go on from, and cut the record back to it."""
        from vr1lib.training.checkpoint import newest_checkpoint, read_state  # with torch, which others don't need

        self.resume_from = newest_checkpoint(self.folder / "checkpoints", say)
        self.record.rewind(read_state(self.resume_from)["recorded"] if self.resume_from else {})
        self.update(resumed_from=shown(self.resume_from) if self.resume_from else None)
        say(f"resumed from {shown(self.resume_from)}" if self.resume_from else "no checkpoint yet: starting anew")

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
    if isinstance(params, TrainingParameters) and params.resume:
        active.go_back()
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


# The folder and its manifest.


def claim_folder(stem: str, params: Parameters) -> tuple[dict[str, Any], TextIO]:
    """Make outputs/STEM/RUN ours, with its first manifest and params.yaml; an earlier run there moves to RUN~1, ….

    Returns the manifest and a lock; closing the lock lets go. Raises RequestError if a process is still running there.
    """
    folder = project_root() / "outputs" / stem / params.run
    if getattr(params, "resume", False):
        return reclaim_folder(folder, params)
    if (folder / "manifest.json").exists():
        refuse_if_running(folder)
        number = 1
        while (aside := folder.with_name(f"{folder.name}~{number}")).exists():
            number += 1
        folder.rename(aside)
        say(f"{shown(folder)} held an earlier run; it is now {shown(aside)}")
    folder.mkdir(parents=True, exist_ok=True)
    lock = lock_folder(folder)
    manifest = {
        "run": params.run,
        "stem": stem,
        "status": "running",
        "started_at": now(),
        "finished_at": None,
        "git": git_state(),
        "versions": versions(),
        "hardware": hardware(),
        "seed": params.seed,
        "wandb": {"mode": "disabled", "run_id": None, "url": None},
        "inputs": [],
        "outputs": [],
        "image_spec": None,
        "prompt_spec": None,
        "resumed_from": None,
        "error": None,
        "summary": None,
    }
    write_manifest(folder, manifest)
    (folder / "params.yaml").write_text(params.to_yaml(), encoding="utf-8")
    return manifest, lock


def reclaim_folder(folder: Path, params: Parameters) -> tuple[dict[str, Any], TextIO]:
    """The folder of a run that has not finished, to go on in: its manifest, running again, and a lock.

    Raises RequestError if there is none, it has finished, or it was started with other parameters.
    """
    manifest = read_manifest(folder)
    if not manifest:
        raise RequestError(f"{shown(folder)}: no run to resume; start it without resume (--resume)")
    refuse_if_running(folder)
    if manifest["status"] == "finished":
        raise RequestError(f"{shown(folder)}: finished at {manifest['finished_at']}; nothing to resume")
    refuse_other_parameters(folder, params)
    manifest |= {"status": "running", "finished_at": None, "error": None, "inputs": [], "outputs": []}
    write_manifest(folder, manifest)
    return manifest, lock_folder(folder)


def refuse_other_parameters(folder: Path, params: Parameters) -> None:
    """A resumed run is the same run: RequestError naming the first parameter that is not as it was."""
    earlier = load_parameters(folder.parent.name, [folder / "params.yaml"]).model_dump()
    for key, value in params.model_dump().items():
        if key not in CHANGEABLE and value != earlier[key]:
            raise RequestError(
                f"{key} = {value!r}, but {shown(folder)} was started with {earlier[key]!r}; "
                "a resumed run keeps its parameters: leave it out, or start a new run"
            )


def refuse_if_running(folder: Path) -> None:
    try:
        lock_folder(folder, alone=True).close()
    except BlockingIOError:
        message = f"{shown(folder)}: another process is running there; give this run another name (run, --name)"
        raise RequestError(message) from None


def lock_folder(folder: Path, alone: bool = False) -> TextIO:
    """Hold a lock that ends with this process. Launcher and kernel share it; with `alone` nobody else may hold it."""
    lock = (folder / ".lock").open("w")
    fcntl.flock(lock, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    return lock


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    new = folder / "manifest.json.new"
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    new.write_text(text, encoding="utf-8", errors="backslashreplace")
    os.replace(new, folder / "manifest.json")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run folder, or nothing where there is none."""
    path = folder / "manifest.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def find_producer(path: Path) -> dict[str, Any] | None:
    """The output of an earlier run that is `path` or holds it: path, kind, sha256 and the artifact's name."""
    for folder in path.parents:
        manifest = read_manifest(folder)
        for entry in manifest.get("outputs", []):
            output = (project_root() / entry["path"]).resolve()
            if path == output or output in path.parents:
                return {**entry, "path": output, "artifact": f"{manifest['stem']}-{entry['name']}"}
    return None


def shown(path: Path) -> str:
    """A path as manifests and messages give it: relative to the project root where it lies below."""
    root = project_root()
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def sha256(path: Path) -> str:
    """Of a file's bytes; of a folder, over its files' names and hashes. Raises RequestError if there is nothing."""
    if path.is_dir():
        whole = hashlib.sha256()
        for file in files_below(path):
            whole.update(f"{file.relative_to(path).as_posix()}\0{sha256(file)}\n".encode())
        return whole.hexdigest()
    try:
        return file_sha256(path)
    except OSError as error:
        raise RequestError(
            f"{shown(path)}: cannot be read ({error.strerror}); run the notebook that makes it"
        ) from None


def files_below(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def plain(value: Any) -> Any:
    """A value as JSON knows it: scalars of torch and numpy unpacked, numbers that are not finite as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def error_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    line = text if isinstance(error, RequestError) else f"{type(error).__name__}: {text}".removesuffix(": ")
    return line if len(line) <= 500 else line[:497] + "..."


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def git_state() -> dict[str, Any]:
    """The commit of the checkout that vr1lib runs from, and whether tracked files differ from it."""

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(Path(vr1lib.__file__).parent), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    changes = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if changes is None else bool(changes)}


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "vr1lib": vr1lib.__version__}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": gpus(),
    }


def gpus() -> list[dict[str, Any]]:
    """Name and memory of each NVIDIA GPU, as its driver tells; without torch, which takes seconds to import."""
    if not shutil.which("nvidia-smi"):
        return []
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.splitlines()
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = [line.rsplit(",", 1) for line in lines if line.count(",")]
    return [{"name": name, "vram_gib": round(float(mib) / 1024, 1)} for name, mib in rows if mib.strip().isdigit()]


# The copy in W&B.


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


def thumbnail(problem: Problem) -> Image.Image | None:
    """The problem's pictures side by side, each at most THUMBNAIL_PIXELS; None without readable pictures."""
    pictures = []
    for path in problem.images:
        try:
            picture = open_image(path)
        except RequestError:
            continue
        picture.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
        pictures.append(picture)
    if not pictures:
        return None
    strip = Image.new("RGB", (sum(item.width for item in pictures), max(item.height for item in pictures)), "white")
    left = 0
    for picture in pictures:
        strip.paste(picture, (left, 0))
        left += picture.width
    return strip


def say(message: str) -> None:
    print(message, file=sys.stderr)
