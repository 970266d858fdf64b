"""`vr1 run`: a notebook executed by papermill with checked parameters, its story and its output live in the terminal.

Nothing heavy is imported here, so that a launch costs its kernel and little more. The kernel is this interpreter's, its
working directory the project root. Exit codes: 0 done, 1 the work failed, 2 the request was wrong, 130 interrupted.
"""

import os
import re
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vr1lib.records import RequestError
from vr1lib.workbench.params import Parameters, load_parameters, parameters_class, project_root
from vr1lib.workbench.run_folder import LAUNCHED, claim_folder, now, read_manifest, say, shown, write_manifest

DONE, FAILED, WRONG_REQUEST, INTERRUPTED = 0, 1, 2, 130
TRACEBACK_LINES = 12
SPIN_COUNT = "1000"  # torch's waiting threads: with the default, a step beside one busy process takes 10 times as long
TEXT_BARS = "import sys; sys.modules['tqdm.notebook'] = None"  # tqdm.auto: a terminal shows text, but no widgets
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def launch(
    stem: str,
    files: Sequence[str | Path] = (),
    overrides: Iterable[tuple[str, str]] = (),
    name: str | None = None,
    resume: bool = False,
) -> int:
    """Validate, make the run folder (with `resume`, go on in it), execute; returns the exit code.

    Raises RequestError if the parameters or the notebook are not there or not right: then nothing has been written.
    """
    overrides = [*overrides, *([("run", name)] if name else [])]
    if resume:
        if "resume" not in parameters_class(stem).model_fields:
            raise RequestError(f"--resume: {stem} is done anew; run it without")
        run = dict(overrides).get("run") or load_parameters(stem, files).run
        earlier = project_root() / "outputs" / stem / run / "params.yaml"
        files = [*([earlier] if earlier.exists() else []), *files]  # a resumed run keeps its parameters
        overrides.append(("resume", "true"))
    params = load_parameters(stem, files, overrides)
    if not name and "WANDB_SWEEP_ID" in os.environ:  # W&B's agent starts many runs of one file
        params = params.model_copy(update={"run": f"{params.run}-{os.environ['WANDB_RUN_ID']}"})
    return execute(stem, notebook_of(stem), params)


def notebook_of(stem: str) -> Path:
    notebook = project_root() / "notebooks" / f"{stem}.ipynb"
    if not notebook.exists():
        raise RequestError(f"{shown(notebook)}: no such notebook; restore it from git")
    return notebook


def execute(stem: str, notebook: Path, params: Parameters) -> int:
    root = project_root()
    folder = root / "outputs" / stem / params.run
    started = time.monotonic()
    _, lock = claim_folder(stem, params)
    os.environ[LAUNCHED] = str(folder)
    os.environ["JUPYTER_PATH"] = str(Path(sys.prefix, "share", "jupyter"))  # this interpreter's kernel, no other's
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    os.environ.setdefault("TQDM_MININTERVAL", "1")  # each state of a text bar is kept in the notebook
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a batch system's stop is an interruption too
    print(f"{stem}: {shown(folder)}", flush=True)
    try:
        code, error = run_papermill(notebook, folder / "notebook.ipynb", params, root)
    except KeyboardInterrupt:
        code, error = INTERRUPTED, "interrupted"
    if code == DONE and read_manifest(folder)["status"] != "finished":
        code, error = FAILED, f"notebooks/{stem}.ipynb ended without run.finish(...); add it as the last cell"
    settle(folder, code, error)
    keep_last_state_of_bars(folder / "notebook.ipynb")
    lock.close()
    if code == DONE:
        print(f"{stem}: finished in {time.monotonic() - started:.0f} s, {shown(folder)}")
    else:
        say(error)
    return code


def run_papermill(notebook: Path, output: Path, params: Parameters, root: Path) -> tuple[int, str]:
    """Execute; returns the exit code and, unless done, what to tell the user."""
    sys.modules.setdefault("rfc3987_syntax", None)  # jsonschema's optional grammar of URLs: a second to build, unused
    from nbclient.exceptions import DeadKernelError
    from papermill import execute_notebook
    from papermill.exceptions import PapermillExecutionError

    begun: list[Any] = []

    def begin(cell: Any, cell_index: int) -> None:
        begun.append(cell)
        tell_heading(cell)

    try:
        execute_notebook(
            str(notebook),
            str(output),
            parameters=params.model_dump(),
            kernel_name="python3",
            cwd=str(root),
            progress_bar=False,
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
            on_cell_start=begin,
            extra_arguments=["--log-level=CRITICAL", f"--IPKernelApp.exec_lines={TEXT_BARS}"],
        )
    except PapermillExecutionError as error:
        if error.ename == "RequestError":
            return WRONG_REQUEST, error.evalue
        if error.ename == "TrainingStopped":  # its message says it all
            return FAILED, error.evalue
        return FAILED, failure_page(error, output)
    except DeadKernelError:
        line = first_line(begun[-1].source)
        return FAILED, f"the kernel died (out of memory?) in the cell: {line}; the notebook so far: {shown(output)}"
    return DONE, ""


def tell_heading(cell: Any) -> None:
    """The story's next heading, when the execution comes to it."""
    first = cell.source.strip().split("\n")[0]
    if cell.cell_type == "markdown" and first.startswith("#"):
        print(f"── {first.lstrip('# ')}", flush=True)


def failure_page(error: Any, output: Path) -> str:
    """One screen: the cell, its first line, the end of its traceback, and where the notebook lies."""
    lines = COLOURS.sub("", "\n".join(error.traceback)).splitlines()[-TRACEBACK_LINES:]
    cell = f"cell In [{error.exec_count}] failed: {first_line(error.source)}"
    return "\n".join([cell, *(f"    {line}" for line in lines), f"the notebook so far: {shown(output)}"])


def first_line(source: str) -> str:
    return next((line.strip() for line in source.splitlines() if line.strip()), "")


def keep_last_state_of_bars(path: Path) -> None:
    """In the executed notebook a progress bar is one line, as it was last, instead of one for each state."""
    if not path.exists():
        return
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        merged: list[Any] = []
        for output in cell.get("outputs", []):
            if merged and output.output_type == "stream" == merged[-1].output_type and output.name == merged[-1].name:
                merged[-1].text += output.text
            else:
                merged.append(output)
        for output in merged:
            if output.output_type == "stream":
                lines = output.text.split("\n")
                output.text = "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in lines)
        if merged:
            cell.outputs = merged
    nbformat.write(notebook, path)


def settle(folder: Path, code: int, error: str) -> None:
    """Complete the manifest where the kernel could not: it died, was killed, or never came to `start_run`."""
    manifest = read_manifest(folder)
    status = "interrupted" if code == INTERRUPTED else "failed"
    if code == DONE or manifest["status"] == status:
        return
    line = next((line.strip() for line in reversed(error.splitlines()[:-1]) if line.strip()), error)
    write_manifest(folder, {**manifest, "status": status, "finished_at": now(), "error": line})
