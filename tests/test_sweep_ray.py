"""`vr1 sweep --executor ray` over two nodes of a real Ray cluster, one of which is killed; and what a user is told.

A small package stands in place of vr1lib in the project's folder, so that `python -m vr1lib` there is a second's work.
"""

import _thread
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import yaml

from vr1lib.records import RequestError
from vr1lib.workbench import sweep_ray
from vr1lib.workbench.cli import main
from vr1lib.workbench.params import load_parameters
from vr1lib.workbench.run_folder import lock_folder

STEM = "50_analysis"
STANDS_IN = """
import fcntl, json, os, pathlib, signal, sys, time
assert sys.argv[1:3] == ['run', '50_analysis'] and os.environ['VR1_HOME'] == os.getcwd()
name, seed = sys.argv[-1] if '--resume' not in sys.argv else sys.argv[-2], next(a for a in sys.argv if 'seed=' in a)
folder = pathlib.Path('outputs/50_analysis', name)
folder.mkdir(parents=True, exist_ok=True)
lock = (folder / '.lock').open('w')
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    sys.exit('another process is running there')
def ends_slowly(*_):
    with open('ended.txt', 'a') as file: file.write(f'{seed} ')
    time.sleep(1.5)
    sys.exit(130)
signal.signal(signal.SIGTERM, ends_slowly)
print(f'{seed} resumes' if '--resume' in sys.argv else f'{seed} starts', os.environ.get('OMP_NUM_THREADS'), flush=True)
(folder / 'manifest.json').write_text('{"status": "running"}')
if seed == 'seed=3':
    os.kill(os.getpid(), signal.SIGKILL)
(folder / 'checkpoints/step-000001').mkdir(parents=True, exist_ok=True)
time.sleep(60 if seed > 'seed=9' else 2)
(folder / 'manifest.json').write_text('{"status": "finished"}')
"""


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one core each on this machine; the driver belongs to the first."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        environment.delenv("RAY_ADDRESS", raising=False)
        cluster = Cluster(initialize_head=True, head_node_args=node)
        cluster.second = cluster.add_node(**node)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture
def write(home, tmp_path_factory, monkeypatch):
    """A function that writes a sweep file into a project whose `vr1 run` is a stand-in."""
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    monkeypatch.setattr(signal, "signal", lambda *arguments: None)
    (home / "notebooks" / f"{STEM}.ipynb").write_text("{}")
    (home / "vr1lib").mkdir()
    (home / "vr1lib/__init__.py").touch()
    (home / "vr1lib/__main__.py").write_text(STANDS_IN)

    def write(seeds, name):
        config = {"program": f"notebooks/{STEM}.ipynb", "method": "grid", "parameters": {"seed": {"values": seeds}}}
        (home / f"{name}.yaml").write_text(yaml.safe_dump(config))
        return str(home / f"{name}.yaml")

    return write


def rows_of(home, name):
    path = home / "outputs/sweeps" / name / "points.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {row["values"]["seed"]: row for row in map(json.loads, lines)}


def when(condition, action, seconds=60):
    """In the background: the action as soon as the condition holds."""

    def wait():
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                return
            time.sleep(0.1)
        action()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def ray_at(address):
    return ["--executor", "ray", "--address", address]


# The nodes' tests come first, on both nodes; the last of them kills one.


def test_an_interrupted_sweep_ends_its_runs_and_leaves_what_waits(home, write, cluster):
    file = write([97, 98, 99], "long")
    folders = home / "outputs" / STEM
    both_run = when(lambda: len(list(folders.glob("*/checkpoints/*"))) == 2, _thread.interrupt_main)
    assert main(["sweep", file, *ray_at(cluster.address)]) == 130
    both_run.join(1)
    rows = rows_of(home, "long")
    assert sorted(row["status"] for row in rows.values()) == ["interrupted", "interrupted", "waiting"]
    interrupted = {f"seed={seed}" for seed, row in rows.items() if row["status"] == "interrupted"}
    assert set((home / "ended.txt").read_text().split()) == interrupted


def test_both_nodes_work_and_a_killed_ones_points_are_run_again_and_all_finish(home, write, cluster, capsys):
    file = write([0, 1, 2, 3], "lost")

    def both_have_checkpoints():
        running = [row for row in rows_of(home, "lost").values() if row["status"] == "running"]
        return len({row["nodes"][-1] for row in running if (home / row["run"] / "checkpoints").exists()}) == 2

    killer = when(both_have_checkpoints, lambda: cluster.remove_node(cluster.second, allow_graceful=False))
    assert main(["sweep", file, *ray_at(cluster.address)]) == 1
    killer.join(1)
    rows = rows_of(home, "lost")
    assert rows.pop(3)["error"] == "killed by SIGKILL"  # the run's own end is no lost node: not tried again
    assert {row["status"] for row in rows.values()} == {"finished"}
    lost = [row for row in rows.values() if len(row["nodes"]) > 1]
    assert lost and len({node for row in rows.values() for node in row["nodes"]}) == 2
    assert all(row["nodes"][0] != row["nodes"][-1] and row["seconds"] > 1.9 for row in lost)
    log = (home / f"outputs/sweeps/lost/logs/{lost[0]['name']}.log").read_text()
    assert re.fullmatch(r"seed=\d starts 1\nseed=\d resumes 1\n", log)  # in turn, never two in one folder
    assert "its node was lost, started again on" in capsys.readouterr().out


def test_a_run_ends_when_the_worker_that_started_it_is_killed():
    child = "import time; print('runs', flush=True); time.sleep(60)"
    code = (
        "import subprocess, sys, time\nfrom vr1lib.workbench.sweep_ray import end_with_parent\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}], preexec_fn=end_with_parent)\ntime.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout.readline() == "runs\n"
        worker.kill()
        began = time.monotonic()
        assert worker.stdout.read() == "" and time.monotonic() - began < 10  # the pipe's last holder is gone


def test_a_run_waits_until_the_earlier_one_has_let_go_of_the_folder(home):
    sweep_ray.wait_until_free(home / "not there")
    lock = lock_folder(home)
    threading.Timer(1.0, lock.close).start()
    began = time.monotonic()
    sweep_ray.wait_until_free(home)
    assert lock.closed and time.monotonic() - began >= 1.0


def test_what_no_node_can_hold_is_one_line_and_nothing_has_run(home, write, cluster, capsys):
    file = write([0], "large")
    nodes = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 64.0, "GPU": 4.0}]
    four = load_parameters("30_ptst_grpo", [], [("processes", "4")])
    assert sweep_ray.resources_of(four, nodes, None) == {"num_gpus": 4, "num_cpus": 4}
    sweep_ray.refuse_no_room("p", four, {"num_gpus": 4, "num_cpus": 4}, nodes)
    with pytest.raises(RequestError, match="p: wants 4 GPUs and 4 cores on one node; the nodes have: 2 GPUs and 8 "):
        sweep_ray.refuse_no_room("p", four, {"num_gpus": 4, "num_cpus": 4}, nodes[:1])
    with pytest.raises(RequestError, match="nodes = 2; over Ray a run has one node"):
        sweep_ray.refuse_no_room("p", four.model_copy(update={"nodes": 2}), {"num_cpus": 4}, nodes)
    assert main(["sweep", file, *ray_at("localhost")]) == main(["sweep", file, "--address", "auto"]) == 2
    error = capsys.readouterr().err
    assert "give HOST:PORT" in error and "is for --executor ray" in error and error.count("\n") == 2
    assert not (home / "outputs").exists()


@pytest.mark.parametrize(("jobs", "cores"), [(None, 1), (1, 8), (2, 6), (3, 4), (7, 2), (30, 1)])
def test_cores_are_shared_so_that_jobs_runs_have_room_at_once(jobs, cores):
    nodes = [{"CPU": 8.0}, {"CPU": 6.0}, {}]
    assert sweep_ray.resources_of(load_parameters(STEM), nodes, jobs) == {"num_cpus": cores}


def test_a_wrong_address_and_a_missing_ray_are_one_line(home, write, capsys, monkeypatch):
    file = write([0], "nowhere")
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        threading.Thread(target=lambda: other.accept()[0].sendall(b"HTTP/1.0 400 Bad\r\n"), daemon=True).start()
        assert main(["sweep", file, *ray_at(address)]) == 2
    assert main(["sweep", file, *ray_at(address)]) == 2
    wrong, silent = capsys.readouterr().err.splitlines()
    assert "something else than Ray" in wrong and "refused" in silent
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["sweep", file, "--executor", "ray"]) == 2
    assert capsys.readouterr().err == "--executor ray: Ray is not installed: pip install 'vr1lib[ray]'\n"
    assert not (home / "outputs").exists() and os.environ["VR1_HOME"] == str(home)
