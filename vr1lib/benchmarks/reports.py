"""What most benchmarks report: the share that is right, overall and in each of their groups."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from vr1lib.records import Problem


def overall_and_groups(
    problems: Sequence[Problem],
    right: Sequence[bool],
    groups: Callable[[Problem], dict[str, list[str]]],
    share: Callable[[Sequence[bool]], Any],
) -> dict[str, Any]:
    """{"overall": …, kind: {name: …}} with names in order; a problem counts once in each group that it names."""
    by: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for problem, verdict in zip(problems, right, strict=True):
        for kind, names in groups(problem).items():
            for name in dict.fromkeys(names):
                by[kind][name].append(verdict)
    shares = {kind: {name: share(named[name]) for name in sorted(named)} for kind, named in by.items()}
    return {"overall": share(list(right)), **shares}
