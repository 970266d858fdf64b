"""What notebook, papermill and tracking cost: a GRPO step beside the same step without them, and the way to the first.

    make demo && python bench/overhead.py [--steps 12] [--rounds 2] [--json]

The same training, seeded alike, goes by turns through `vr1 run 30_ptst_grpo` (papermill, run folder, W&B offline) and
through the library alone, in a process of its own, with a log that keeps nothing. A step's seconds are the median over
the steps after the first of all rounds. The first step begins when the row of step 0 is written, just before it; the
model's loading is taken off. Fails above 3 % or 8 s. Beside other work both figures mean nothing.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
MAX_SHARE, MAX_SECONDS = 0.03, 8.0
ALONE = "--alone"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print JSON for a program")
    parser.add_argument(ALONE, metavar="PARAMS.yaml", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        print(json.dumps(train_alone(Path(options.alone))))
        return 0
    if not (ROOT / "outputs/20_cold_sft/demo/model").is_dir():
        print("overhead: not measured; run `make demo` first, whose cold-started model it trains")
        return 0
    result = measure(options.steps, options.rounds)
    passed = result["share"] <= MAX_SHARE and result["to_first_step_seconds"] <= MAX_SECONDS
    if options.json:
        print(json.dumps({**result, "passed": passed}, indent=2))
    else:
        print(
            f"a GRPO step: {result['notebook_step_seconds']:.3f} s in the notebook, "
            f"{result['alone_step_seconds']:.3f} s without it: {100 * result['share']:+.1f} % "
            f"(at most {100 * MAX_SHARE:.0f} %)\n"
            f"from the command to the first step: {result['to_first_step_seconds']:.1f} s without the "
            f"{result['loading_seconds']:.1f} s of loading the model (at most {MAX_SECONDS:.0f} s)"
        )
    return 0 if passed else 1


def measure(steps: int, rounds: int) -> dict[str, Any]:
    notebook, alone, starts, loading = [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        for name in ("notebooks", "params"):
            shutil.copytree(ROOT / name, project / name)
        for _ in range(rounds):
            seconds, start = run_notebook(project, steps)
            notebook += seconds
            starts.append(start)
            command = [sys.executable, __file__, ALONE, str(project / "outputs/30_ptst_grpo/overhead/params.yaml")]
            done = subprocess.run(command, cwd=ROOT, env=quiet(project), capture_output=True, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            alone += found["seconds"]
            loading.append(found["loading_seconds"])
    ours, bare = statistics.median(notebook), statistics.median(alone)
    return {
        "steps": len(notebook),
        "notebook_step_seconds": ours,
        "alone_step_seconds": bare,
        "share": ours / bare - 1,
        "to_first_step_seconds": statistics.median(starts) - statistics.median(loading),
        "loading_seconds": statistics.median(loading),
    }


def quiet(project: Path) -> dict[str, str]:
    more = {"VR1_HOME": str(project), "WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1", "GOMP_SPINCOUNT": "1000"}
    return {**os.environ, **more, "PYTHONPATH": str(ROOT)}


def run_notebook(project: Path, steps: int) -> tuple[list[float], float]:
    """Seconds of each step but the first, and from the command to the first."""
    values = {
        "stages": f"[[52, 16, {steps}]]",
        "evaluation": "null",
        "checkpoint_every": "null",
        "model": str(ROOT / "outputs/20_cold_sft/demo/model"),
        "problems": str(ROOT / "outputs/10_data_building/demo/rl.jsonl"),
    }
    command = [sys.executable, "-m", "vr1lib", "run", "30_ptst_grpo", "-f", "params/30_ptst_grpo/demo.yaml"]
    command += ["--name", "overhead", *(part for key, value in values.items() for part in ("-p", key, value))]
    metrics = project / "outputs/30_ptst_grpo/overhead/metrics.jsonl"
    metrics.unlink(missing_ok=True)
    started = time.perf_counter()
    running = subprocess.Popen(command, cwd=project, env=quiet(project), stdout=subprocess.DEVNULL)
    while running.poll() is None and not (metrics.is_file() and metrics.stat().st_size):
        time.sleep(0.02)
    start = time.perf_counter() - started
    if running.wait():
        sys.exit("overhead: the notebook failed; see its own message above")
    return step_seconds([json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]), start


def step_seconds(rows: list[dict[str, Any]]) -> list[float]:
    times = [row["seconds"] for row in rows if row["step"] > 0]
    return [later - earlier for earlier, later in zip(times, times[1:])]


def train_alone(parameters: Path) -> dict[str, Any]:
    """The training of a run's params.yaml by the library alone."""
    from vr1lib.schedule import Schedule
    from vr1lib.training import grpo
    from vr1lib.workbench.jobs import grpo_settings, load_policy, load_problems
    from vr1lib.workbench.params import load_parameters

    params = load_parameters("30_ptst_grpo", [parameters])
    with tempfile.TemporaryDirectory() as folder:
        problems = load_problems(params, Path(folder)).problems
        started = time.perf_counter()
        vlm = load_policy(params, Path(folder))
        loading_seconds = time.perf_counter() - started
    rows: list[dict[str, Any]] = []
    schedule = Schedule([tuple(stage) for stage in params.stages])
    problems, _ = grpo.usable_problems(vlm, problems)
    grpo.train_grpo(grpo.prepare(vlm, grpo_settings(params)), problems, schedule, log=rows.append)
    return {"seconds": step_seconds(rows), "loading_seconds": loading_seconds}


if __name__ == "__main__":
    sys.exit(main())
