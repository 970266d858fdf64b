"""We-Math testmini (We-Math/We-Math): school geometry and measurement in one, two or three steps, options A to E.

The paper trains its RL on We-Math (Section 4.1) and does not report it; here it is a held-out check, so rows that
were trained on must be excluded. Scored: plain accuracy by step and by knowledge concept.
"""

from pathlib import Path

from vr1lib.data import sources
from vr1lib.records import Problem

NAME = "wemath"


def load(
    data: str | Path | None = None, data_root: str | Path | None = None, panels: str | Path | None = None
) -> sources.Loaded:
    """The rows of `data_root`/wemath; `data` and `panels` are other benchmarks' matter."""
    return sources.load(NAME, data_root)


def groups(problem: Problem) -> dict[str, list[str]]:
    """By step ("2steps_1" is the first step of a problem with two) and by knowledge concept."""
    return {"task": [problem.meta["task"]], "skill": problem.meta["skills"]}
