"""What parts of one score must have in common, and finished shards put together.

generation.json in a run folder says how its answers came about. A run that goes on must have the same there, and so
must the shards of one benchmark, whose answers together then give the scores of the whole, as if made in one run.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vr1lib.benchmarks.generation import Answers
from vr1lib.benchmarks.predictions import shortened
from vr1lib.benchmarks.protocol import Sampling, content_sha256
from vr1lib.records import Completion, Graded, Problem, RequestError, read_jsonl

FILE = "generation.json"


@dataclass(frozen=True)
class Conditions:
    """How answers came about. `model` is the sha256 of its folder, or its name on the hub; specs are sha256."""

    model: str
    generated_by: str
    sampling: Sampling
    samples: int
    tries: int
    control: str
    prompt: str
    image_spec: str
    prompt_spec: str
    judge: Mapping[str, Any] | None = None

    def of_rows(self) -> dict[str, Any]:
        """What `protocol.score` puts into every row."""
        names = ("sampling", "image_spec", "prompt_spec", "control", "prompt", "generated_by")
        return {name: getattr(self, name) for name in names}


def agree(folder: Path, conditions: Conditions) -> None:
    """Write generation.json, or hold the one that is there against `conditions`.

    Raises RequestError naming the first that differs.
    """
    path = folder / FILE
    if path.exists():
        compare(path, conditions)
    else:
        path.write_text(json.dumps(asdict(conditions), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def compare(path: Path, conditions: Conditions) -> None:
    there = read_conditions(path)
    for key, value in asdict(conditions).items():
        if there.get(key) != value:
            raise RequestError(
                f"{path}: {key} = {there.get(key)!r}, here it is {value!r}; answers made in different ways are no one "
                "score: set it back, or start a new run"
            )


def read_conditions(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(f"{path}: cannot be read ({error}); give the folder of a 40_benchmark run") from None


def made_by(folder: str | Path) -> str:
    """`generated_by` of a shard. Raises RequestError if the folder holds none."""
    return read_conditions(Path(folder) / FILE)["generated_by"]


def from_shards(folders: Sequence[str | Path], problems: Sequence[Problem], conditions: Conditions) -> Answers:
    """The answers of finished shard runs, in the order of `problems`, as one run would have made them.

    Raises RequestError for a shard made in another way or of other problems, and naming problems that no shard or more
    than one has answered.
    """
    wanted = {problem.id: problem for problem in problems}
    graded: dict[str, list[Graded]] = {}
    retries: dict[str, list[Completion]] = defaultdict(list)
    homes: dict[str, list[str]] = defaultdict(list)
    for folder in map(Path, folders):
        if not (folder / "scores.json").is_file():
            raise RequestError(f"shards_of: {folder}: not finished (no scores.json); finish it, or leave it out")
        compare(folder / FILE, conditions)
        for problem in read_jsonl(folder / "problems.jsonl", Problem):
            homes[problem.id].append(str(folder))
            if problem.id in wanted and not same(problem, wanted[problem.id]):
                raise RequestError(f"shards_of: {folder}: {problem.id} is another problem there; give the same data")
        for row in read_jsonl(folder / "completions.jsonl", Graded):
            graded.setdefault(row.problem_id, []).append(row)
        if (folder / "retries.jsonl").is_file():
            for row in read_jsonl(folder / "retries.jsonl", Completion):
                retries[row.problem_id].append(row)
    faults = {
        "answered by no shard": [name for name in wanted if name not in homes],
        "answered by more than one": [name for name in wanted if len(homes.get(name, ())) > 1],
        "not to be answered here": [name for name in homes if name not in wanted],
        "without all their samples": [
            name for name in wanted if len(homes.get(name, ())) == 1 and len(graded.get(name, ())) != conditions.samples
        ],
    }
    if said := [f"{len(names)} {what} ({shortened(names)})" for what, names in faults.items() if names]:
        raise RequestError(f"shards_of: of {len(wanted)} problems {'; '.join(said)}; give each shard once, and all")
    return Answers(
        [row for name in wanted for row in graded[name]],
        sorted((row for name in wanted for row in retries[name]), key=lambda row: row.step),
    )


def same(problem: Problem, other: Problem) -> bool:
    """Whether two are the same problem: words, options, gold and pictures."""
    return (problem.choices, problem.answer, content_sha256(problem)) == (
        other.choices,
        other.answer,
        content_sha256(other),
    )
