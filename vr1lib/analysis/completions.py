"""Saved completions of any run with the problems they answer: what the browser shows and the replay grades again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vr1lib.analysis.runs import AnyGraded, read_completions, read_json
from vr1lib.benchmarks.catalogue import BENCHMARKS
from vr1lib.records import Problem, RequestError, read_jsonl


@dataclass
class Saved:
    """The graded completions of one file, in its order, and their problems by id, as far as they were found."""

    path: Path
    graded: Sequence[AnyGraded]
    problems: dict[str, Problem]

    def require_all_problems(self) -> None:
        """Raises RequestError where a completion's problem was not found."""
        missing = sorted({row.problem_id for row in self.graded} - self.problems.keys())
        if missing:
            raise RequestError(
                f"{self.path}: {len(missing)} of its problems are not found, such as {missing[0]!r}; "
                "give the file that holds them with --problems"
            )


def load_saved(path: str | Path, problems: str | Path | None = None) -> Saved:
    """The completions of a run folder (its completions.jsonl) or of a JSONL file of Graded rows.

    `problems` is the file that holds their problems; without it a run's own file and the files it read are searched.
    """
    path = Path(path)
    file = path / "completions.jsonl" if path.is_dir() else path
    graded = read_completions(file)
    wanted = {row.problem_id for row in graded}
    if problems is not None:
        found = {problem.id: problem for problem in read_jsonl(problems, Problem) if problem.id in wanted}
        return Saved(file, graded, found)
    manifest = file.parent / "manifest.json"
    described = read_json(manifest, "mend or remove it") if manifest.is_file() else {}
    return Saved(file, graded, find_problems(file.parent, described, wanted))


def find_problems(folder: Path, manifest: Mapping[str, Any], wanted: set[str]) -> dict[str, Problem]:
    """The wanted problems from the run's own files or those it read, as far as they are still there."""
    root = folder.resolve().parent.parent.parent
    files = [folder / "problems.jsonl", folder / "evaluation_problems.jsonl"]
    files += [root / entry["path"] for entry in manifest.get("inputs") or [] if str(entry["path"]).endswith(".jsonl")]
    found: dict[str, Problem] = {}
    for file in files:
        if file.is_file() and wanted - found.keys():
            try:
                found |= {problem.id: problem for problem in read_jsonl(file, Problem) if problem.id in wanted}
            except RequestError:
                continue  # an input of another kind, such as cold-start rows
    return found


def benchmark_of(problem: Problem) -> str | None:
    """The benchmark whose rules a problem follows, None for a problem of none."""
    name = problem.meta.get("benchmark", problem.source)
    return name if name in BENCHMARKS else None
