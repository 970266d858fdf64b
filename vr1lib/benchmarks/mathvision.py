"""MathVision (MATH-V) test: competition problems of five levels and sixteen subjects, letters and values as golds.

The paper trains its RL on MathVision (Section 4.1) and does not report it; here it is a held-out check, so rows that
were trained on must be excluded. Scored: plain accuracy by level, by subject, and by kind of answer.
"""

from pathlib import Path

from vr1lib.data import sources
from vr1lib.records import Problem

NAME = "mathvision"


def load(
    data: str | Path | None = None, data_root: str | Path | None = None, panels: str | Path | None = None
) -> sources.Loaded:
    """The rows of `data_root`/mathvision, stacked pictures cut into the folder `panels` if one is given."""
    return sources.load(NAME, data_root, panels=panels)


def groups(problem: Problem) -> dict[str, list[str]]:
    """By level (1 easiest to 5), subject, and kind of answer."""
    kind = "options" if problem.choices or problem.answer in tuple("ABCDE") else "free answer"
    return {"level": [str(problem.meta["level"])], "skill": problem.meta["skills"], "answer": [kind]}
