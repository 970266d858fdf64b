"""The benchmarks, by name. Each is a module of one interface:

NAME                           what it is called in parameters, tables and files
problems(data)                 every problem of the published files, without looking at pictures: for scoring
load(data, data_root, panels)  the problems that can be shown, and every other row with the reason: for answering
query(problem)                 the official question text
groups(problem)                the groups a problem counts in: {"task": ["…"], "skill": ["…", "…"]}
wanted(problem)                the kind of answer that it asks for
is_right(extraction, problem)  the benchmark's own rule on an extracted answer
report(problems, right, share) its table of scores; `share` makes a row of verdicts
headline(scores)               the rows of that table that a reader looks for first

and, where it has them, `own_form(response)` (the answer in the benchmark's own form, None if there is none),
`is_strictly_right` (a rule with a tolerance, used in the place of our grader) and `normalise`.
"""

from types import ModuleType

from vr1lib.benchmarks import (
    chartqa,
    dynamath,
    hallusionbench,
    mathverse,
    mathvision,
    mathvista,
    mme,
    mmmath,
    mmstar,
    shapeworld,
    wemath,
)
from vr1lib.records import Problem, RequestError

BENCHMARKS: dict[str, ModuleType] = {
    module.NAME: module
    for module in (
        mathvista,
        mathverse,
        mmmath,
        dynamath,
        mmstar,
        chartqa,
        mme,
        hallusionbench,
        mathvision,
        wemath,
        shapeworld,
    )
}


def module_of(benchmark: str) -> ModuleType:
    """The module of a benchmark. Raises RequestError for an unknown name."""
    if benchmark not in BENCHMARKS:
        raise RequestError(f"benchmark {benchmark!r} is unknown; known are {', '.join(BENCHMARKS)}")
    return BENCHMARKS[benchmark]


def official_problem(module: ModuleType, problem: Problem) -> Problem:
    """The problem as the benchmark's own runner asks it: the official text, which holds the options, is its question.

    For the prompt alone: a completion is graded against the problem itself, whose options our grader needs.
    """
    return problem.model_copy(update={"question": module.query(problem), "choices": None})
