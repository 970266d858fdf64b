"""`vr1 sweep`: every point of a W&B sweep configuration as a run of its own, on this machine or over a Ray cluster.

All points are checked before the first one starts. Each is a `vr1 run` in a process of its own, `jobs` of them at once;
what becomes of them stands in outputs/sweeps/NAME/: sweep.yaml (the file), points.jsonl (rewritten whenever a point
starts or ends), logs/, failures.md, and at the end comparison.{csv,md,tex,png}. A point that fails is kept with its
cell and traceback, and the others go on; `resume` runs what has not finished. Exit codes: 0 all finished, 1 some not,
2 the request was wrong (then nothing has run), 130 interrupted.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from vr1lib.records import RequestError
from vr1lib.workbench.launch import DONE, FAILED, INTERRUPTED, first_line, notebook_of
from vr1lib.workbench.params import Parameters, load_parameters, project_root
from vr1lib.workbench.run_folder import read_manifest, say, shown
from vr1lib.workbench.sweep_file import Point, Sweep, read_sweep
from vr1lib.workbench.sweep_folder import Progress, State, claim, write_failures
from vr1lib.workbench.sweep_watch import Watch

GRACE_SECONDS = 30.0  # between asking an interrupted run to end and ending it
LOOK_SECONDS = 1.0  # between two looks at the runs
FAILED_CELL = "cell In ["  # how `vr1 run` begins the page of a failure


def sweep_command(
    path: str, jobs: int | None, resume: bool, executor: str = "local", address: str | None = None
) -> int:
    """Check, run and compare; returns the exit code. `jobs` None: one at once, over Ray as many as it has room for.

    Raises RequestError if the file or a point is not right, or the Ray cluster at `address` cannot be used.
    """
    if address and executor != "ray":
        raise RequestError(f"--address {address}: is for --executor ray")
    sweep = read_sweep(path)
    stem, params = check_points(sweep)
    runner_class, place = Runner, nullcontext()
    if executor == "ray":
        from vr1lib.workbench.sweep_ray import RayRunner, connected

        runner_class, place = RayRunner, connected(address or "auto")
    with place:
        runner = runner_class(sweep, params, jobs)
        state = claim(sweep, stem, resume)
        try:
            code = run_points(runner, state, sweep.metric)
        except KeyboardInterrupt:
            code = INTERRUPTED
    from vr1lib.analysis import ablation  # with matplotlib, which nothing before it needs
    from vr1lib.analysis.sweeps import write_comparison

    print(write_comparison(state.folder, sweep.metric))
    if ablation.is_ablation(state.folder) and state.counts().get("finished"):
        print(ablation.write_board(state.folder))
    counts = state.counts()
    print(
        f"{sweep.name}: {', '.join(f'{number} {status}' for status, number in counts.items())}; {shown(state.folder)}"
    )
    for row in state.unfinished():
        say(": ".join(filter(None, (row.name, row.status, row.cell, row.error))))
    if code != DONE:
        say(f"to run what has not finished: vr1 sweep {path} --resume")
    return code


# ---------------------------------------------------------------------------------------------- before anything runs


def check_points(sweep: Sweep) -> tuple[str, dict[str, Parameters]]:
    """Every point's parameters, and that what they read is there; the notebook's stem, and the parameters by point.

    Raises RequestError naming all points that are wrong, or the commands that make what is missing.
    """
    from vr1lib.workbench.cli import parse

    options = parse(sweep.command)
    if options.name or any(key == "run" for key, _ in options.overrides):
        raise RequestError(f"{sweep.path}: command names the run; the sweep does that: leave it out")
    notebook_of(options.stem)
    faults: dict[str, list[str]] = {}
    needed: list[str] = []
    checked: dict[str, Parameters] = {}
    for point in sweep.points:
        arguments = [tuple(argument.split("=", 1)) for argument in as_arguments(point)]
        try:
            params = load_parameters(options.stem, options.files, [*options.overrides, *arguments, ("run", point.name)])
        except RequestError as error:
            faults.setdefault(str(error), []).append(point.name)
        else:
            checked[point.name] = params
            needed += [command for command in commands_for(params) if command not in needed]
    if faults:
        lines = [f"{fault} ({len(names)} points: {names[0]}, …)" if len(names) > 1 else f"{fault} ({names[0]})"
                 for fault, names in faults.items()]  # fmt: skip
        raise RequestError("\n".join(f"{shown(sweep.path.resolve())}: {line}" for line in lines))
    if needed:
        raise RequestError(f"{sweep.path}: what its points read is not there yet; make it: {' && '.join(needed)}")
    return options.stem, checked


def commands_for(params: Parameters) -> list[str]:
    """The commands that make what these parameters read below outputs/ and is not there, in order."""
    commands: list[str] = []
    for value in params.model_dump().values():
        parts = Path(value).parts if isinstance(value, str) else ()
        if parts[:1] != ("outputs",) or len(parts) < 3 or (project_root() / value).exists():
            continue
        stem, run = parts[1:3]
        file = f"params/{stem}/{run}.yaml"
        if not (project_root() / file).exists():
            raise RequestError(f"{value}: not there, and no {file} to make it with; give another path")
        steps = [*commands_for(load_parameters(stem, [file])), f"vr1 run {stem} -f {file}"]
        commands += [command for command in steps if command not in commands]
    return commands


def as_arguments(point: Point) -> list[str]:
    """KEY=VALUE for `vr1 run`: text as it is, anything else as JSON."""
    return [
        f"{key}={value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for key, value in point.values.items()
    ]


# --------------------------------------------------------------------------------------------------------- the running


def run_points(runner: "Runner", state: State, metric: str | None) -> int:
    """Run what has not finished, as many at once as the runner takes, and tell how it goes; returns the exit code."""
    waiting = state.unfinished()
    for row in waiting:
        row.status, row.error, row.cell, row.traceback, row.nodes = "waiting", None, None, [], []
    state.write()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a batch system's stop is an interruption too
    with Watch(state, metric) as watch, ThreadPoolExecutor(runner.at_once or len(waiting) or 1) as pool:
        running: set[Future] = {pool.submit(runner.run, row, state, watch.say) for row in waiting}
        try:
            while running:
                done, running = wait(running, timeout=LOOK_SECONDS, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                watch.look()
        except BaseException:
            runner.stop()
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            write_failures(state)
    return DONE if not state.unfinished() else FAILED


class Runner:
    """Runs points as processes; `stop` ends those that run and lets no other start.

    `params` are the points' checked parameters; this runner, which has one machine's cores to share, needs none.
    """

    def __init__(self, sweep: Sweep, params: Mapping[str, Parameters], jobs: int | None) -> None:
        self.sweep = sweep
        self.at_once: int | None = jobs or 1
        self.stopped = threading.Event()
        self.processes: list[subprocess.Popen] = []
        self.environment = dict(os.environ)
        if self.at_once > 1:
            self.environment.setdefault("OMP_NUM_THREADS", str(max(1, cores() // self.at_once)))

    def arguments(self, row: Progress) -> list[str]:
        """What `vr1` is given for a point."""
        group = [] if "wandb_group" in row.values else ["-p", "wandb_group", self.sweep.name]
        return [*self.sweep.command, *group, *as_arguments(Point(row.name, row.values)), "--name", row.name]

    def command(self, row: Progress) -> list[str]:
        return command_in(project_root() / row.run, self.arguments(row))

    def run(self, row: Progress, state: State, tell: Callable[[str], Any]) -> None:
        if self.stopped.is_set():
            return
        started = time.monotonic()
        outcome = self.execute(row, state, tell)
        state.update(row, **{"seconds": round(time.monotonic() - started, 1), **outcome})
        if row.seconds is not None:
            tell(f"{row.name}: {row.status} after {row.seconds:.0f} s{': ' + row.error if row.error else ''}")

    def execute(self, row: Progress, state: State, tell: Callable[[str], Any]) -> dict[str, Any]:
        """Run a point to its end; returns what became of it."""
        log = log_of(state, row)
        with log.open("w", encoding="utf-8") as file:
            process = subprocess.Popen(
                self.command(row), stdout=file, stderr=subprocess.STDOUT, env=self.environment, start_new_session=True,
                cwd=project_root(),
            )  # fmt: skip
            self.processes.append(process)
            if self.stopped.is_set():
                process.terminate()
            state.update(row, status="running")
            tell(f"{row.name}: started")
            code = process.wait()
        return self.outcome(row, code, log)

    def outcome(self, row: Progress, code: int, log: Path) -> dict[str, Any]:
        """Status and, unless finished, reason, cell and traceback, from exit code, manifest and log."""
        if code == DONE:
            return {"status": "finished"}
        if self.stopped.is_set():
            return {"status": "interrupted", "error": "the sweep was interrupted"}
        if code < 0:
            reason, cell = f"killed by {signal.Signals(-code).name}", running_cell(project_root() / row.run)
            return {"status": "killed", "error": reason, "cell": cell}
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        start = max((number for number, line in enumerate(lines) if line.startswith(FAILED_CELL)), default=None)
        page = [] if start is None else lines[start:]
        manifest = read_manifest(project_root() / row.run)
        reason = manifest.get("error") if manifest.get("status") != "finished" else None
        status = "interrupted" if manifest.get("status") == "interrupted" else "failed"
        return {
            "status": status,
            "error": reason or (lines[-1] if lines else f"exit code {code}"),
            "cell": page[0] if page else running_cell(project_root() / row.run),
            "traceback": page[1:],
        }

    def stop(self) -> None:
        self.stopped.set()
        running = [process for process in self.processes if process.poll() is None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + GRACE_SECONDS
        for process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def command_in(folder: Path, arguments: Sequence[str]) -> list[str]:
    """`vr1` with these arguments, by this interpreter; a run that left a checkpoint in `folder` goes on from there."""
    resume = ["--resume"] if any((folder / "checkpoints").glob("step-*")) else []
    return [sys.executable, "-m", "vr1lib", *arguments, *resume]


def log_of(state: State, row: Progress) -> Path:
    return state.folder / "logs" / f"{row.name}.log"


def running_cell(folder: Path) -> str | None:
    """The cell that was running when a run's process was killed, as papermill has left it in the notebook."""
    path = folder / "notebook.ipynb"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"] if path.exists() else []
    for cell in cells:
        if cell["metadata"].get("papermill", {}).get("status") in ("running", "failed"):
            return f"in the cell: {first_line(''.join(cell['source']))}"
    return None


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
