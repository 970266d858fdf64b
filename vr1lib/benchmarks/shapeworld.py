"""ShapeWorld's held-out problems: the test.jsonl that 10_data_building wrote, or any file of Problems.

Not in the paper: the embedded default, its families lined up with MathVista's tasks and skills.
"""

from collections.abc import Sequence
from pathlib import Path

from vr1lib.data import sources
from vr1lib.data.shapeworld import FAMILIES, make_problems
from vr1lib.records import Problem, RequestError, write_jsonl

NAME = "shapeworld"


def load(
    data: str | Path | None = None, data_root: str | Path | None = None, panels: str | Path | None = None
) -> sources.Loaded:
    """The problems of the JSONL file `data`."""
    if data is None:
        raise RequestError("benchmark shapeworld needs 'data', the path of a problems .jsonl file; give it")
    if Path(data).suffix != ".jsonl":
        raise RequestError(f"data = {str(data)!r}: benchmark shapeworld reads a file that ends in .jsonl; give one")
    return sources.load(data)


def draw(folder: str | Path, count: int, seed: int, families: Sequence[str] = tuple(FAMILIES)) -> Path:
    """Draw `count` problems of the test split, which no training split shares, into `folder`; returns their file."""
    path = Path(folder) / "drawn.jsonl"
    write_jsonl(path, make_problems(folder, "test", count, seed, families))
    return path


def groups(problem: Problem) -> dict[str, list[str]]:
    """By family, task and skill, as far as the row says."""
    meta = problem.meta
    named = {"family": [meta.get("family")], "task": [meta.get("task")], "skill": meta.get("skills", [])}
    if scene := meta.get("scene"):
        named["grid"] = [f"{len(scene['grid'])}×{len(scene['grid'][0])}"]
    return {kind: [str(name) for name in names if name] for kind, names in named.items()}
