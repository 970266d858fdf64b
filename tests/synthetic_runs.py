"""Run folders made up for tests: real ShapeWorld pictures and questions, invented completions and curves."""

import json
import random
from pathlib import Path

from vr1lib.analysis.runs import ScoredModel
from vr1lib.analysis.statistics import accuracy_interval
from vr1lib.benchmarks.protocol import Sampling, Selection, score
from vr1lib.data.shapeworld import make_problems
from vr1lib.records import Completion, Graded, Problem, write_jsonl
from vr1lib.reward import grade_completion


def synthetic_problems(folder: Path, count: int) -> list[Problem]:
    problems = make_problems(folder, "test", count)
    for problem in problems:
        problem.meta["benchmark"] = "shapeworld"
    return problems


def completion_of(problem: Problem, right: bool, passes: int, finish: str = "stop") -> Graded:
    """A completion of `passes` passes, 15 tokens each, that ends in the gold or not."""
    thought = " Wait, let me check. ".join(["There are some."] * passes)
    answer = problem.answer if right else "99"
    text = f"<think> {thought} </think><answer> {answer} </answer>" if finish == "stop" else f"<think> {thought}"
    return grade_completion(
        Completion(
            problem_id=problem.id, sample=0, step=0, stage=0, text=text, tokens=15 * passes, finish=finish, logprob=-1.0
        ),
        problem,
    )


def model_of(label, problems, right, lengths=1, benchmark=lambda index: "shapeworld", **row):
    """A model that answers problem i rightly iff right[i], in `lengths` (or lengths[i]) passes of 15 tokens; right[i]
    may be a list, one verdict a sample."""
    copies = {}
    graded = []
    for index, (problem, verdicts) in enumerate(zip(problems, right)):
        meta = {**problem.meta, "benchmark": benchmark(index)}
        copies[problem.id] = problem.model_copy(update={"meta": meta})
        passes = lengths if isinstance(lengths, int) else lengths[index]
        for sample, is_right in enumerate(verdicts if isinstance(verdicts, list) else [verdicts]):
            graded.append(completion_of(problem, is_right, passes).model_copy(update={"sample": sample}))
    names = sorted({problem.meta["benchmark"] for problem in copies.values()})
    sampling = {"temperature": 0.0, "max_completion_tokens": 128}
    same = {"n": len(copies), "sampling": sampling, "image_spec": "a", "prompt_spec": "b", "left_out": {}, **row}
    return ScoredModel(
        label, f"runs/{label}", {"benchmarks": [{"benchmark": name, **same} for name in names]}, copies, graded
    )


def write_benchmark_run(
    folder: Path,
    label: str,
    problems: list[Problem],
    *,
    right: float,
    passes: int,
    overthinks: bool = False,
    seed: int = 0,
) -> Path:
    """A folder as 40_benchmark leaves it: about `right` of the answers right, fewer the longer if it overthinks."""
    rng = random.Random(f"{label}/{seed}")
    (folder / "images").mkdir(parents=True)
    copies = []
    for problem in problems:
        picture = Path(problem.images[0])
        (folder / "images" / picture.name).write_bytes(picture.read_bytes())
        copies.append(problem.model_copy(update={"images": [str(folder / "images" / picture.name)]}))
    graded = []
    for problem in copies:
        length = rng.randint(1, passes)
        chance = right * (1.6 - 1.2 * length / passes) if overthinks else right
        cut = overthinks and length == passes and rng.random() < 0.5
        graded.append(completion_of(problem, rng.random() < chance, length, "length" if cut else "stop"))
    sampling = Sampling(temperature=0.0, top_p=1.0, max_completion_tokens=128, seed=0)
    row = score(
        Selection("shapeworld", copies, []),
        graded,
        accuracy_interval,
        sampling=sampling,
        image_spec="a" * 64,
        prompt_spec="b" * 64,
    )
    scores = {"model": f"models/{label}", "label": label, "parameters": 1_100_000, "benchmarks": [row]}
    write_jsonl(folder / "problems.jsonl", copies)
    write_jsonl(folder / "completions.jsonl", graded)
    (folder / "scores.json").write_text(json.dumps(scores))
    write_manifest(folder, "40_benchmark")
    return folder


def write_training_run(folder: Path, stages: list[list[int]], seed: int = 0) -> Path:
    """A folder as 30_ptst_grpo leaves it: length falls in stage 1 and grows in stage 2, reward and accuracy rise."""
    rng = random.Random(seed)
    folder.mkdir(parents=True)
    rows = [{"step": 0, "stage": 0, "seconds": 0.0, "eval/accuracy": 0.32, "eval/length_mean": 71.0, "eval/n": 100}]
    total = sum(steps for _, _, steps in stages)
    first = stages[0][2]
    for step in range(1, total + 1):
        stage = 0 if step <= first else 1
        length = 70 - 30 * step / first if stage == 0 else 40 + 10 * (step - first) / (total - first)
        row = {"step": step, "stage": stage, "seconds": 2.0 * step, "loss": rng.gauss(0, 0.01), "kl": None}
        row |= {"length/mean": length + rng.gauss(0, 1), "reward/mean": 0.3 + 0.5 * step / total + rng.gauss(0, 0.02)}
        if step % 5 == 0 or step == total:
            row |= {"eval/accuracy": 0.32 + 0.5 * step / total, "eval/length_mean": length, "eval/n": 100}
        rows.append(row)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "params.yaml").write_text(f"run: demo\nstages: {json.dumps(stages)}\n")
    write_manifest(folder, "30_ptst_grpo")
    return folder


def write_manifest(folder: Path, stem: str) -> None:
    manifest = {
        "run": folder.name,
        "stem": stem,
        "status": "finished",
        "started_at": "2026-11-21T10:00:00+00:00",
        "finished_at": "2026-11-21T10:01:00+00:00",
        "seed": 0,
        "git": {"commit": "0123456", "dirty": False},
        "hardware": {"cpu": "two cores"},
        "versions": {"torch": "2.13.0"},
        "inputs": [{"path": "outputs/10_data_building/demo/test.jsonl", "sha256": "c" * 64, "kind": "dataset"}],
        "outputs": [{"path": "completions.jsonl", "sha256": "d" * 64, "kind": "completions"}],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
