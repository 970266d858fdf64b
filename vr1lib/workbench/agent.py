"""Training in many processes from a notebook's cell: torchrun's elastic agent, run in the kernel.

The agent starts one `worker` per GPU and watches them; several machines meet by torchrun's rendezvous, every other one
running `vr1 join RUN` on the same file system. The cell shows process 0's words as they come, W&B gets the record as it
grows, and a failure is told by the process that failed first, with its own traceback.
"""

import json
import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from vr1lib.records import Graded, Problem, RequestError
from vr1lib.training.processes import TrainingStopped
from vr1lib.workbench.params import TrainingParameters, load_parameters
from vr1lib.workbench.run_folder import shown
from vr1lib.workbench.tracking import Run

FOLLOW_SECONDS = 0.5
SHUTDOWN_SECONDS = 15  # between asking the other processes to end and ending them
JOIN_SECONDS = 900  # how long machines wait for each other
TRACEBACK_LINES = 15


def run_processes(run: Run, problems: dict[str, Problem]) -> None:
    """Run the job of `run` in its processes and return when all have ended.

    Raises RequestError or TrainingStopped with the failing process's own line, RuntimeError with its rank and
    traceback, KeyboardInterrupt if the cell was interrupted (the processes have ended then, too).
    """
    with following(run, problems):
        start_agent(run.folder, run.params)


def start_agent(folder: Path, params: TrainingParameters) -> None:
    """This machine's agent: `processes` workers on the run in `folder`, until they have ended."""
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # failures are told here
    logs = folder / "logs"
    logs.mkdir(exist_ok=True)
    config = LaunchConfig(
        min_nodes=params.nodes,
        max_nodes=params.nodes,
        nproc_per_node=params.processes,
        run_id=folder.name,
        rdzv_backend="c10d",
        rdzv_endpoint=params.rdzv_endpoint or "localhost:0",
        rdzv_configs={"timeout": JOIN_SECONDS, "read_timeout": JOIN_SECONDS},
        max_restarts=0,  # a run is resumed by hand: the fault that stopped it is likely still there
        shutdown_timeout=SHUTDOWN_SECONDS,
        logs_specs=DefaultLogsSpecs(log_dir=str(logs), redirects=Std.ALL),
    )
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        elastic_launch(config, sys.executable)("-m", "vr1lib.workbench.worker", str(folder))
    except ChildFailedError as error:
        raise in_one_voice(first_failure(error), folder) from None
    except SignalException:
        raise KeyboardInterrupt from None
    finally:
        for number, handler in handlers.items():  # the agent leaves its own behind
            signal.signal(number, handler)


def join(folder: Path) -> None:
    """Lend this machine to the run in `folder`, which another machine's notebook leads, until it has ended."""
    params = load_parameters(folder.parent.name, [folder / "params.yaml"])
    if getattr(params, "nodes", 1) == 1:
        raise RequestError(f"{shown(folder / 'params.yaml')}: nodes = 1: this run takes no other machine")
    start_agent(folder, params)


def first_failure(error: ChildFailedError) -> ProcessFailure:
    """The process that failed by itself: one killed from outside before those that lost it, else the earliest."""
    failures = sorted(error.failures.values(), key=lambda failure: failure.timestamp)
    killed = [failure for failure in failures if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM]
    return (killed or failures)[0]


def in_one_voice(failure: ProcessFailure, folder: Path) -> Exception:
    """What went wrong, as the exception that the same failure in the kernel would have been."""
    where = f"process {failure.local_rank}"
    if failure.exitcode < 0:
        name = failure.signal_name()
        hint = ", perhaps out of memory" if failure.exitcode == -signal.SIGKILL else ""
        return TrainingStopped(f"{where} was killed by {name}{hint}; go on from the last checkpoint with --resume")
    message = failure.message if isinstance(failure.message, str) else failure.message["message"]
    kind, _, line = message.partition(": ")
    if kind == RequestError.__name__:
        return RequestError(line)
    if kind == TrainingStopped.__name__:
        return TrainingStopped(line)
    traceback = failure_traceback(failure)
    page = "\n".join(f"    {row}" for row in traceback[-TRACEBACK_LINES:])
    return RuntimeError(f"{where} failed: {message}\n{page}\nall of it: {shown(Path(failure.error_file))}")


def failure_traceback(failure: ProcessFailure) -> list[str]:
    details: Any = json.loads(Path(failure.error_file).read_text(encoding="utf-8"))["message"]
    return details["extraInfo"]["py_callstack"].strip().splitlines() if isinstance(details, dict) else []


# What the cell and W&B see meanwhile.


@contextmanager
def following(run: Run, problems: dict[str, Problem]) -> Iterator[None]:
    """Inside, what process 0 writes to the run folder is shown and mirrored as it comes; at the end, all of it."""
    tails = [
        Tail(run.folder / "progress.log", lambda text: print(text, end="", flush=True)),
        Tail(run.record.metrics, lambda text: mirror_metrics(run, text), whole_lines=True),
        Tail(run.record.completions, lambda text: mirror_completions(run, text, problems), whole_lines=True),
    ]
    ended = threading.Event()

    def follow() -> None:
        while not ended.wait(FOLLOW_SECONDS):
            for tail in tails:
                tail.read()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        for tail in tails:
            tail.read()


class Tail:
    """What is appended to a file from now on, given to `take` piece by piece."""

    def __init__(self, path: Path, take: Any, whole_lines: bool = False) -> None:
        self.path, self.take, self.whole_lines = path, take, whole_lines
        self.place = path.stat().st_size if path.exists() else 0

    def read(self) -> None:
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self.place)
            piece = file.read()
        piece = piece[: piece.rfind(b"\n") + 1] if self.whole_lines else piece
        if piece:
            self.place += len(piece)
            self.take(piece.decode("utf-8", errors="replace"))


def mirror_metrics(run: Run, text: str) -> None:
    for line in text.splitlines():
        run.mirror(json.loads(line))


def mirror_completions(run: Run, text: str, problems: dict[str, Problem]) -> None:
    by_step: dict[int, list[Graded]] = {}
    for line in text.splitlines():
        graded = Graded.model_validate_json(line)
        by_step.setdefault(graded.step, []).append(graded)
    for graded in by_step.values():
        run.board.log_completions(graded, problems)
