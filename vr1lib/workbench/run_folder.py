"""The run folder and its manifest: claimed, locked, moved aside, and its files by content.

Our choice: a run whose folder already holds an earlier run moves that folder to RUN~1 (RUN~2, …), so that a notebook
can simply be run again and nothing is lost.
"""

import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from vr1lib.records import RequestError, file_sha256
from vr1lib.workbench.params import Parameters, load_parameters, project_root
from vr1lib.workbench.provenance import git_state, hardware, versions

LAUNCHED = "VR1_RUN_FOLDER"  # set by `vr1 run`: the folder it has claimed for the kernel
CHANGEABLE = set(  # parameters that a resumed run may have anew: none of them changes what comes out
    "resume wandb_mode rdzv_endpoint checkpoint_every checkpoints_kept max_bad_steps preflight "
    "mllm reasoner in_flight token_budget cost_budget retry_failed endpoints judge "
    "rollout_endpoints rollout_folder rollout_wait_seconds".split()
)


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


@dataclass(frozen=True)
class Producer:
    """The output of a run that an input is: what to call it in W&B so that the two are linked."""

    path: Path
    kind: str
    artifact: str
    sha256: str


def find_producer(path: Path, digest: str) -> Producer | None:
    """The output that `path`, whose content has `digest`, is or lies in; None if no run has made it as it is now.

    By content: a run folder may have been renamed, moved aside (RUN~1) or copied since, and a file changed by hand is
    nobody's output. A copy outside is looked up among all runs below outputs/.
    """
    for folder in path.parents:
        for output, made in outputs_of(folder):
            if path == output and digest == made.sha256:
                return made
            if output in path.parents and sha256(output) == made.sha256:
                return made
    if path.is_file() and path.stat().st_size == 0:
        return None  # every empty file has the same content
    for manifest in sorted((project_root() / "outputs").glob("*/*/manifest.json")):
        for _, made in outputs_of(manifest.parent):
            if digest == made.sha256:
                return replace(made, path=path)
    return None


def outputs_of(folder: Path) -> list[tuple[Path, Producer]]:
    """The outputs that the manifest of a run folder names, where they are now, whatever the folder's name."""
    manifest = read_manifest(folder)
    found = []
    for entry in manifest.get("outputs", []):
        path = Path(entry["path"])
        made_in = Path("outputs", manifest["stem"], manifest["run"])
        path = folder / path.relative_to(made_in) if path.is_relative_to(made_in) else project_root() / path
        path = path.resolve()
        found.append((path, Producer(path, entry["kind"], f"{manifest['stem']}-{entry['name']}", entry["sha256"])))
    return found


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


def error_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    line = text if isinstance(error, RequestError) else f"{type(error).__name__}: {text}".removesuffix(": ")
    return line if len(line) <= 500 else line[:497] + "..."


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def say(message: str) -> None:
    print(message, file=sys.stderr)
