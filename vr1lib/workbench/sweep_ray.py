"""`vr1 sweep --executor ray`: the points of a sweep as tasks of a Ray cluster.

Where and when a run goes is Ray's: each point is one task that asks for GPUs (its `processes`; without any in the
cluster, for cores), and Ray starts the task again elsewhere when its node is lost. The task runs `vr1 run` in the
project's folder, which every node sees under the same path, with the node's own Python and environment.
"""

import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vr1lib.records import RequestError
from vr1lib.workbench.params import Parameters, project_root
from vr1lib.workbench.run_folder import refuse_if_running
from vr1lib.workbench.sweep import GRACE_SECONDS, LOOK_SECONDS, Runner, command_in, log_of, running_cell
from vr1lib.workbench.sweep_file import Sweep
from vr1lib.workbench.sweep_folder import Progress, State

TRIES = 4  # of a point whose node is lost; our choice: Ray's own default of three retries
FREE_SECONDS = 120.0  # until a lost node's run has let go of its folder: NFS frees a dead machine's locks after 90
CONNECT_SECONDS = 5.0
HTTP2_SETTINGS = b"\x04"  # a frame: length (3 bytes), type, flags, stream (4 bytes); each side sends this one first
HTTP2_OPENING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + HTTP2_SETTINGS + bytes(5)
SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux's prctl
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


@contextmanager
def connected(address: str) -> Iterator[None]:
    """This process as a driver of the cluster: "auto" (the one this machine is part of), HOST:PORT, or "local".

    "local" starts one on this machine for as long as the sweep takes; nothing else does. Raises RequestError if Ray
    is not installed or no cluster answers.
    """
    try:
        import ray
    except ImportError:
        raise RequestError("--executor ray: Ray is not installed: pip install 'vr1lib[ray]'") from None
    local = {"include_dashboard": False} if address == "local" else {}
    if local:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing leaves the machine
    elif address != "auto":
        refuse_silent(address)
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **local)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise RequestError(
            f"--address {address}: no Ray cluster can be used there ({first}); "
            "start one (ray start --head), or give HOST:PORT, or local for this machine alone"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def refuse_silent(address: str) -> None:
    """RequestError unless a gRPC server answers at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise RequestError(f"--address {address}: give HOST:PORT of the cluster's head, auto or local")
    try:
        with socket.create_connection((host, int(port)), CONNECT_SECONDS) as connection:
            if "RAY_USE_TLS" not in os.environ:
                connection.sendall(HTTP2_OPENING)
                if connection.recv(9)[3:4] != HTTP2_SETTINGS:
                    raise ConnectionError("something else than Ray; its own port is 6379 if not told otherwise")
    except (OSError, OverflowError) as error:
        raise RequestError(f"--address {address}: no Ray cluster there: {error}; ask `ray status` there") from None


class RayRunner(Runner):
    """Runs points as Ray tasks, `jobs` of them submitted at once (None: all, and Ray queues them)."""

    def __init__(self, sweep: Sweep, params: Mapping[str, Parameters], jobs: int | None) -> None:
        import ray

        super().__init__(sweep, params, jobs)
        self.at_once = jobs
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self.resources = {name: resources_of(point, nodes, jobs) for name, point in params.items()}
        for name, wanted in self.resources.items():
            refuse_no_room(name, params[name], wanted, nodes)
        self.task = ray.remote(max_retries=TRIES - 1)(run_point)
        self.submitted: list[Any] = []

    def execute(self, row: Progress, state: State, tell: Callable[[str], Any]) -> dict[str, Any]:
        import ray

        log, tries = log_of(state, row), log_of(state, row).with_suffix(".nodes")
        for path in (log, tries):
            path.unlink(missing_ok=True)
        task = self.task.options(name=row.name, **self.resources[row.name])
        reference = task.remote(str(project_root()), row.run, self.arguments(row), str(log), str(tries))
        self.submitted.append(reference)
        if self.stopped.is_set():
            ray.cancel(reference)
        ready: list[Any] = []
        while not ready:
            ready, _ = ray.wait([reference], timeout=LOOK_SECONDS)
            note_tries(row, state, tries, tell)
        try:
            code, seconds = ray.get(reference)
        except ray.exceptions.RayError as error:
            return self.outcome_without_code(row, error)
        return {**self.outcome(row, code, log), "seconds": seconds}

    def outcome_without_code(self, row: Progress, error: Exception) -> dict[str, Any]:
        """What became of a point whose task has given no exit code: cancelled, or lost too often, or it could not."""
        if self.stopped.is_set():
            started = {"status": "interrupted", "error": "the sweep was interrupted"}
            return started if row.nodes else {"status": "waiting", "seconds": None}
        cause = getattr(error, "cause", None) or error
        line = next((line for line in str(cause).splitlines() if line.strip()), "")
        times = f"in {len(row.nodes)} tries, the last on {row.nodes[-1]}: " if row.nodes else ""
        cell = running_cell(project_root() / row.run)
        return {"status": "killed", "error": f"{times}{type(cause).__name__}: {line}", "cell": cell}

    def stop(self) -> None:
        import ray

        self.stopped.set()
        for reference in self.submitted:
            ray.cancel(reference)
        ray.wait(self.submitted, num_returns=len(self.submitted), timeout=GRACE_SECONDS + CONNECT_SECONDS)


def resources_of(params: Parameters, nodes: list[dict[str, float]], jobs: int | None) -> dict[str, float]:
    """What a point's task asks Ray for: a GPU and a core per process; without GPUs in the cluster, cores.

    With `jobs`, as many cores as still let that many runs go at once; Ray gives the run as many threads.
    """
    processes = getattr(params, "processes", 1)
    if any(node.get("GPU") for node in nodes):
        return {"num_gpus": processes, "num_cpus": processes}
    each = [int(node.get("CPU", 0)) for node in nodes]
    shares = range(max(each, default=0), processes, -1)
    enough = (share for share in shares if jobs and sum(cores // share for cores in each) >= jobs)
    return {"num_cpus": next(enough, processes)}


def refuse_no_room(name: str, params: Parameters, wanted: Mapping[str, float], nodes: list[dict[str, float]]) -> None:
    """RequestError for a point that no node can hold, which Ray would let wait for ever."""
    if getattr(params, "nodes", 1) > 1:
        raise RequestError(f"{name}: nodes = {params.nodes}; over Ray a run has one node: set nodes to 1")
    gpus, cores = wanted.get("num_gpus", 0), wanted["num_cpus"]
    if not any(node.get("GPU", 0) >= gpus and node.get("CPU", 0) >= cores for node in nodes):
        told = ", ".join(f"{node.get('GPU', 0):g} GPUs and {node.get('CPU', 0):g} cores" for node in nodes)
        raise RequestError(f"{name}: wants {gpus} GPUs and {cores} cores on one node; the nodes have: {told or 'none'}")


def note_tries(row: Progress, state: State, tries: Path, tell: Callable[[str], Any]) -> None:
    """Take over on which nodes a point has been started; its task writes them down, a line a try."""
    nodes = tries.read_text(encoding="utf-8").splitlines() if tries.exists() else []
    if len(nodes) > len(row.nodes):
        again = "its node was lost, started again" if len(nodes) > 1 else "started"
        state.update(row, status="running", nodes=nodes)
        tell(f"{row.name}: {again} on {nodes[-1]}")


# ----------------------------------------------------------------------------------------------------- on a node


def run_point(root: str, run: str, arguments: list[str], log: str, tries: str) -> tuple[int, float]:
    """The task: `vr1` with these arguments, to its end; its exit code and seconds. Ray calls it again on a lost node.

    Raises FileNotFoundError where the node does not see the project's folder, TimeoutError after TRIES tries.
    """
    import ray

    here = f"{socket.gethostname()} (Ray node {ray.get_runtime_context().get_node_id()[:8]})"
    if not Path(log).parent.is_dir():
        raise FileNotFoundError(f"{here} does not see {root}: put the project on a file system that all nodes share")
    with open(tries, "a+", encoding="utf-8") as file:
        file.seek(0)
        if len(file.readlines()) >= TRIES:  # Ray counts tries that ended for lack of memory apart, without an end
            raise TimeoutError(f"lost {TRIES} times, its node or its memory; what Ray says: ray list tasks")
        file.write(f"{here}\n")
    folder = Path(root, run)
    wait_until_free(folder)
    started = time.monotonic()
    with open(log, "a", encoding="utf-8") as file:
        process = subprocess.Popen(
            command_in(folder, arguments), stdout=file, stderr=subprocess.STDOUT, cwd=root,
            env={**os.environ, "VR1_HOME": root}, start_new_session=True,
            preexec_fn=end_with_parent if LIBC else None,
        )  # fmt: skip
        try:
            while process.poll() is None:  # not wait(): Ray's cancelling does not end a system call
                time.sleep(0.2)
        finally:
            end(process)
    return process.returncode, round(time.monotonic() - started, 1)


def wait_until_free(folder: Path) -> None:
    """Until the run folder is nobody's: a lost node's run may still be ending. `vr1 run` refuses it if it never is."""
    deadline = time.monotonic() + FREE_SECONDS
    while folder.exists() and time.monotonic() < deadline:
        try:
            return refuse_if_running(folder)
        except RequestError:
            time.sleep(LOOK_SECONDS)


def end_with_parent() -> None:
    """Between fork and exec: the run gets SIGTERM when the Ray worker that started it is gone, however that ended."""
    LIBC.prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)


def end(process: subprocess.Popen) -> None:
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
