"""How long 50_analysis takes over many completions, and how much memory: `python bench/analysis.py --rows 200000`.

Makes up three models on one benchmark (a tenth of the rows each) and two trainings (the rest), texts of 1 to 2 KB, runs
the notebook over them as `vr1 run` does, on one core, and tells each cell's seconds by the clock. W&B is off. Fails
above 60 seconds of that core (other work on the machine doesn't count) or 2 GB.
"""

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

ROOT = Path(__file__).parent.parent
MAX_SECONDS, MAX_GB = 60.0, 2.0
PICTURES = 400
GROUP_SIZE = 8
SPEC = {"image_spec": "a" * 64, "prompt_spec": "b" * 64, "reward": "hard"}
WORDS = "the bar is twice as high so we count each green cell of the third row and add what remains".split()
FAMILIES = ("chart", "counting", "length", "word")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000, metavar="N", help="completions in all (default: 200000)")
    parser.add_argument("--json", action="store_true", help="print JSON for a program")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), options.rows)
    passed = result["processor_seconds"] <= MAX_SECONDS and result["peak_rss_gb"] <= MAX_GB
    if options.json:
        print(json.dumps({**result, "passed": passed}, indent=2))
        return 0 if passed else 1
    for cell in result["cells"]:
        print(f"{cell['seconds']:8.1f} s  {cell['begins']}")
    times = f"{result['processor_seconds']:.1f} s of one core ({result['wall_seconds']:.1f} s by the clock)"
    sizes = f"{result['peak_rss_gb']:.2f} GB at most, report {result['report_mb']:.1f} MB"
    verdict = f"{'passed' if passed else 'FAILED'} (at most {MAX_SECONDS:.0f} s, {MAX_GB:.0f} GB)"
    print(f"{result['rows']:,} completions: {times}, {sizes}: {verdict}")
    return 0 if passed else 1


def measure(project: Path, rows: int) -> dict[str, Any]:
    """Make the runs in a project folder of its own and analyse them there."""
    shutil.copytree(ROOT / "notebooks", project / "notebooks")
    shutil.copytree(ROOT / "params", project / "params")
    rng = random.Random(0)
    texts = [made_up_text(rng) for _ in range(500)]
    problems = make_problems(project / "outputs/40_benchmark/images", rng, rows // 10)
    for label, right in (("base", 0.6), ("CI", 0.4), ("Vision-R1", 0.7)):
        make_model(project / "outputs/40_benchmark" / label, label, problems, right, rng, texts)
    training = (rows - 3 * len(problems)) // 2
    for name in ("ptst", "long"):
        make_training(project / "outputs/30_ptst_grpo" / name, problems, training, rng, texts)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    environment = {**os.environ, "VR1_HOME": str(project), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "vr1lib", "run", "50_analysis", "--name", "bench", "-p", "wandb_mode", "disabled"]
    started = time.monotonic()
    subprocess.run(command, cwd=project, env=environment, check=True, stdout=subprocess.DEVNULL)
    wall, used = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    run = project / "outputs/50_analysis/bench"
    book = json.loads((run / "notebook.ipynb").read_text(encoding="utf-8"))
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    cells = [{"begins": begins(cell), "seconds": cell["metadata"]["papermill"]["duration"]} for cell in code]
    return {
        "rows": 3 * len(problems) + 2 * training,
        "processor_seconds": used.ru_utime + used.ru_stime,
        "wall_seconds": wall,
        "peak_rss_gb": used.ru_maxrss * 1024 / 1e9,
        "report_mb": (run / "report.html").stat().st_size / 1e6,
        "cells": cells,
    }


def begins(cell: dict[str, Any]) -> str:
    return next((line.strip()[:70] for line in cell["source"] if line.strip() and "import" not in line), "")


def made_up_text(rng: random.Random) -> str:
    """1 to 2 KB of words, some of them reflections."""
    words = [rng.choice(WORDS) for _ in range(rng.randint(230, 460))]
    for _ in range(rng.randint(0, 4)):
        words[rng.randrange(len(words))] = rng.choice(("Wait,", "Hmm,", "Alternatively,", "check"))
    return " ".join(words)


def make_problems(folder: Path, rng: random.Random, count: int) -> list[dict[str, Any]]:
    folder.mkdir(parents=True)
    for number in range(PICTURES):
        picture = Image.new("RGB", (320, 240), "white")
        draw = ImageDraw.Draw(picture)
        for place in range(6):
            draw.rectangle([50 * place, rng.randint(20, 200), 50 * place + 40, 239], fill=rng.choice(("red", "blue")))
        picture.save(folder / f"{number}.png")
    return [
        {
            "id": f"problem-{number}",
            "images": [f"images/{number % PICTURES}.png"],
            "question": f"How high is bar {number % 6}?",
            "answer": str(number % 9),
            "choices": None,
            "source": "shapeworld",
            "split": "test",
            "meta": {"benchmark": "shapeworld", "family": FAMILIES[number % 4], "task": FAMILIES[number % 4]},
        }
        for number in range(count)
    ]


def completion(problem: dict[str, Any], right: bool, rng: random.Random, texts: list[str]) -> dict[str, Any]:
    text, cut = rng.choice(texts), rng.random() < 0.05
    answer = problem["answer"] if right else "77"
    ending = "" if cut else f" </think><answer> Final Answer:{answer} </answer>"
    return {
        "problem_id": problem["id"],
        "sample": 0,
        "step": 0,
        "stage": 0,
        "text": f"<think> {text}{ending}",
        "tokens": len(text) // 5 + rng.randint(0, 40),
        "finish": "length" if cut else "stop",
        "logprob": -1.0,
        "reward": float(right and not cut),
        "format_ok": not cut,
        "answer_ok": right and not cut,
        "extracted": None if cut else answer,
        "reason": "format: no </think>" if cut else "same text" if right else f"number: 77 ≠ {problem['answer']}",
    }


def make_model(folder: Path, label: str, problems: list, right: float, rng: random.Random, texts: list[str]) -> None:
    folder.mkdir(parents=True)
    shutil.copytree(folder.parent / "images", folder / "images")
    rows = [completion(problem, rng.random() < right, rng, texts) for problem in problems]
    write_rows(folder / "completions.jsonl", rows)
    write_rows(folder / "problems.jsonl", problems)
    row = {
        "benchmark": "shapeworld",
        **share([item["reward"] for item in rows]),
        "mean_length_tokens": sum(item["tokens"] for item in rows) / len(rows),
        "well_formed": 0.95,
        "truncated": 0.05,
        "by": {"family": {name: share([item["reward"] for item in rows[at::4]]) for at, name in enumerate(FAMILIES)}},
        "left_out": {},
        "sampling": {"temperature": 0.0, "top_p": 1.0, "max_completion_tokens": 520, "seed": 0},
        **SPEC,
    }
    scores = {"model": label, "label": label, "parameters": 7_000_000_000, "benchmarks": [row]}
    (folder / "scores.json").write_text(json.dumps(scores), encoding="utf-8")
    write_manifest(folder, "40_benchmark", [])


def share(rewards: list[float]) -> dict[str, Any]:
    mean = sum(rewards) / len(rewards)
    return {"n": len(rewards), "accuracy": mean, "low": mean - 0.01, "high": mean + 0.01}


def make_training(folder: Path, problems: list, count: int, rng: random.Random, texts: list[str]) -> None:
    """200 steps in two stages, groups of eight."""
    folder.mkdir(parents=True)
    steps = 200
    groups = max(1, count // GROUP_SIZE // steps)
    rows, metrics = [], [{"step": 0, "stage": 0, "eval/accuracy": 0.4, "eval/length_mean": 300.0}]
    for step in range(1, steps + 1):
        stage = int(step > steps // 2)
        for _ in range(groups if step < steps else (count - len(rows)) // GROUP_SIZE):
            problem = rng.choice(problems)
            for sample in range(GROUP_SIZE):
                row = completion(problem, rng.random() < 0.3 + 0.4 * step / steps, rng, texts)
                rows.append(row | {"sample": sample, "step": step, "stage": stage})
        parts = {"reward/mean": 0.3 + 0.4 * step / steps, "reward/format_ok": 0.95, "reward/answer_ok": 0.5}
        shares = {"groups/all_right": 0.1, "groups/all_wrong": 0.2, "groups/all_truncated": 0.0}
        lengths = {"length/mean": 300.0 - step / 4, "length/clipped_ratio": 0.05, "eval/accuracy": 0.4 + step / 500}
        metrics.append({"step": step, "stage": stage, **parts, **shares, **lengths})
    write_rows(folder / "completions.jsonl", rows)
    write_rows(folder / "metrics.jsonl", metrics)
    (folder / "params.yaml").write_text(f"stages: [[260, {GROUP_SIZE}, 100], [520, {GROUP_SIZE}, 100]]\n")
    write_manifest(folder, "30_ptst_grpo", [{"path": "outputs/40_benchmark/base/problems.jsonl", "kind": "dataset"}])


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def write_manifest(folder: Path, stem: str, inputs: list[dict[str, Any]]) -> None:
    manifest = {"run": folder.name, "stem": stem, "status": "finished", "started_at": folder.name, "inputs": inputs}
    (folder / "manifest.json").write_text(json.dumps({**manifest, "outputs": []}), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
