"""A node of a Ray cluster lost in the middle of a sweep: its points run again elsewhere, and come out the same.

    python bench/ray_sweep.py [--power] [--json]            # some five minutes on two cores, in a folder of its own

Two nodes of one core on this machine; four points of 30_ptst_grpo at tiny size, eight steps each. Once both nodes have
a run with checkpoints, the second node's Ray is killed and its run left an orphan; with `--power` the node's processes
die all at once, run and kernel too. Fails unless all points finish, on both nodes, the lost one from its checkpoint,
and with the same metrics as that point run alone, undisturbed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
STEM, NAME = "30_ptst_grpo", "lost"
VR1 = [sys.executable, "-m", "vr1lib"]
SWEEP = """
name: lost
program: notebooks/30_ptst_grpo.ipynb
command: [vr1, run, 30_ptst_grpo, -f, params/30_ptst_grpo/tiny.yaml, -p, stages, "[[16, 4, 6], [32, 2, 2]]",
          "${args_no_hyphens}"]
method: grid
metric: {name: eval/accuracy, goal: maximize}
parameters:
  seed: {values: [0, 1, 2, 3]}
"""
TIMES = ("seconds", "per_second", "time", "memory", "gib")  # parts of keys that tell of the machine, not of the run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--power", action="store_true", help="the node's runs die with it, by SIGKILL")
    parser.add_argument("--json", action="store_true", help="print JSON for a program")
    options = parser.parse_args()
    try:
        from ray.cluster_utils import Cluster
    except ImportError:
        print("Ray is not installed (pip install 'vr1lib[ray]'): not tried")
        return 0
    environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "PYTHONPATH": str(ROOT)}
    os.environ.update(environment, RAY_USAGE_STATS_ENABLED="0")
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        for name in ("notebooks", "params"):
            (project / name).symlink_to(ROOT / name)
        (project / f"{NAME}.yaml").write_text(SWEEP, encoding="utf-8")
        for stem in ("00_base_model", "10_data_building", "20_cold_sft"):
            vr1(project, "run", stem, "-f", f"params/{stem}/tiny.yaml")
        node = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80 * 2**20, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=node)
        second = cluster.add_node(**node)
        try:
            result = sweep(project, cluster, second, options.power)
        finally:
            cluster.shutdown()
        result |= compared(project, result["lost"])
    print(json.dumps(result, indent=2) if options.json else "\n".join(f"{key}: {told}" for key, told in result.items()))
    return 0 if result["passed"] else 1


def vr1(project: Path, *arguments: str) -> int:
    print(f"vr1 {' '.join(arguments)}", file=sys.stderr)
    done = subprocess.run([*VR1, *arguments], cwd=project, stdout=sys.stderr)
    return done.returncode


def sweep(project: Path, cluster: Any, second: Any, power: bool) -> dict[str, Any]:
    killed: list[float] = []

    def kill_when_both_have_checkpoints() -> None:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            running = [row for row in points_of(project) if row["status"] == "running" and steps_of(project, row) >= 2]
            if len({row["nodes"][-1] for row in running}) == 2:
                break
            time.sleep(0.2)
        else:
            return
        if power:
            (raylet,) = [started.process for started in second.all_processes["raylet"]]
            processes = [psutil.Process(raylet.pid), *psutil.Process(raylet.pid).children(recursive=True)]
            for act in (psutil.Process.suspend, psutil.Process.kill):  # none sees another one end
                for process in processes:
                    act(process)
        cluster.remove_node(second, allow_graceful=False)
        killed.append(time.monotonic())

    killer = threading.Thread(target=kill_when_both_have_checkpoints, daemon=True)
    killer.start()
    started = time.monotonic()
    code = vr1(project, "sweep", f"{NAME}.yaml", "--executor", "ray", "--address", cluster.address)
    rows = points_of(project)
    return {
        "exit_code": code,
        "killed_after_seconds": round(killed[0] - started, 1) if killed else None,
        "seconds": round(time.monotonic() - started, 1),
        "points": {row["name"]: f"{row['status']} in {row['seconds']} s, {len(row['nodes'])} tries" for row in rows},
        "nodes": len({node for row in rows for node in row["nodes"]}),
        "lost": [row["name"] for row in rows if len(row["nodes"]) > 1],
    }


def compared(project: Path, lost: list[str]) -> dict[str, Any]:
    """Whether the sweep did what it should, and each lost point's metrics are those of the same run undisturbed."""
    rows = points_of(project)
    finished = all(row["status"] == "finished" for row in rows)
    unlike, compared_values = [], 0
    for name in lost:
        (seed,) = [row["values"]["seed"] for row in rows if row["name"] == name]
        options = ["-f", f"params/{STEM}/tiny.yaml", "-p", "stages", "[[16, 4, 6], [32, 2, 2]]"]
        vr1(project, "run", STEM, *options, f"seed={seed}", "--name", f"{name}-alone")
        ours, alone = (metrics_of(project / "outputs" / STEM / run) for run in (name, f"{name}-alone"))
        for row, other in zip(ours, alone, strict=True):
            told = {key: value for key, value in other.items() if not any(part in key for part in TIMES)}
            compared_values += len(told)
            unlike += [
                f"{name} step {other['step']} {key}: {row.get(key)} instead of {value}"
                for key, value in told.items()
                if row.get(key) != value
            ]
    manifests = [project / "outputs" / STEM / name / "manifest.json" for name in lost]
    resumed = [json.loads(path.read_text(encoding="utf-8"))["resumed_from"] for path in manifests]
    passed = finished and bool(lost) and not unlike and all(resumed)
    return {
        "resumed_from": resumed,
        "metrics_compared": compared_values,
        "unlike_undisturbed": unlike,
        "passed": passed,
    }


def points_of(project: Path) -> list[dict[str, Any]]:
    path = project / "outputs" / "sweeps" / NAME / "points.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def steps_of(project: Path, row: dict[str, Any]) -> int:
    """The step of a run's newest checkpoint."""
    found = [
        int(path.name.removeprefix("step-")) for path in (project / row["run"] / "checkpoints").glob("step-??????")
    ]
    return max(found, default=0)


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    sys.exit(main())
