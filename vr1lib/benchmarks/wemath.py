"""We-Math testmini (We-Math/We-Math): school geometry and measurement in one, two or three steps, options A to E.

The paper trains its RL on We-Math (Section 4.1) and does not report it; here it is a held-out check, so rows that
were trained on must be excluded. A problem of two or three steps comes whole ("multi") and step by step. We-Math's own
four-dimensional metric (arXiv 2407.01284, Section 3) asks of each such problem whether its steps and the whole were
right:

IK  insufficient knowledge      the whole wrong, a step wrong
IG  inadequate generalisation   the whole wrong, every step right
CM  complete mastery            the whole right, every step right; loose: at least one step right
RM  rote memorisation           the whole right, a step wrong; loose: every step wrong

IK, IG, CM are shares of the problems, RM is the published share RM / (CM + RM), and the score is CM + IG / 2. Official
extraction: the first character behind the last "Answer", without <, >, :, . and blanks, if it is one of A to H.
Predictions are named "2steps_8-2steps_1": ID and key.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vr1lib.benchmarks.extraction import Wanted, answer_block
from vr1lib.benchmarks.files import load_source, source_problems
from vr1lib.data import sources
from vr1lib.prompts import OPTION_LETTERS
from vr1lib.records import Problem

NAME = "wemath"
WHOLE = "multi"
STEPS = {"two-step": "2steps_multi", "three-step": "3steps_multi"}  # one-step are the single steps of both
_QUERY = """Now, we require you to solve a multiple-choice math question. Please briefly describe your thought process \
and provide the final answer(option).
Question: {question}
Option: {option}
Regarding the format, please answer following the template below, and be sure to include two <> symbols:
<Thought process>: <<your thought process>> <Answer>: <<your option>>"""


def problems(data: str | Path) -> list[Problem]:
    """Every problem of the folder that holds testmini.json, of the file itself, or of the hub's id."""
    return [_named(problem) for problem in source_problems(NAME, data)]


def load(
    data: str | Path | None = None, data_root: str | Path | None = None, panels: str | Path | None = None
) -> sources.Loaded:
    """The problems that can be shown, and every other row with the reason: of `data`, or of `data_root`/wemath."""
    loaded = load_source(NAME, data, data_root, panels)
    loaded.problems = [_named(problem) for problem in loaded.problems]
    return loaded


def _named(problem: Problem) -> Problem:
    problem.meta["id"] = problem.id.removeprefix("wemath-")
    return problem


def query(problem: Problem) -> str:
    """The official text; its options stand in one line, as in the data but for blanks."""
    options = "; ".join(f"{letter}. {choice}" for letter, choice in zip(OPTION_LETTERS, problem.choices or []))
    return _QUERY.format(question=problem.question, option=options)


def groups(problem: Problem) -> dict[str, list[str]]:
    """By step ("2steps_1" is the first step of a problem with two) and by knowledge concept."""
    return {"task": [problem.meta["task"]], "skill": problem.meta["skills"]}


def wanted(problem: Problem) -> Wanted:
    return Wanted("option", tuple(problem.choices or ()), problem.question)


def own_form(response: str) -> str | None:
    """The letter by the official extraction; None leaves a response with our answer block to the rules."""
    if answer_block(response):
        return None
    said = re.sub(r"[><:.]", "", response.rpartition("Answer")[2].strip()).strip()
    return said[0] if said and said[0] in "ABCDEFGH" else ""


def normalise(extraction: Any, problem: Problem) -> str:
    """The letter that an extraction names: "b", "(B)" and "B. 62.8" are B."""
    found = re.match(r"\W*([A-H])(?![^\W\d_])", str(extraction).strip(), re.IGNORECASE)
    return found[1].upper() if found else ""


def is_right(extraction: Any, problem: Problem) -> bool:
    return normalise(extraction, problem) == problem.answer


# -------------------------------------------------------------------------------------------------------------- scores


def report(
    problems: Sequence[Problem], right: Sequence[bool], share: Callable[[Sequence[bool]], Any]
) -> dict[str, Any]:
    """Overall, by number of steps, by step, by knowledge concept of the single steps, and the four dimensions."""
    task: dict[str, list[bool]] = defaultdict(list)
    skill: dict[str, list[bool]] = defaultdict(list)
    whole: dict[str, bool] = {}
    steps: dict[str, dict[str, bool]] = defaultdict(dict)
    for problem, verdict in zip(problems, right, strict=True):
        step, group = problem.meta["task"], problem.meta["group"]
        task[step].append(verdict)
        if step.endswith(WHOLE):
            whole[group] = verdict
        else:
            steps[group][step] = verdict
            skill[problem.meta["skills"][0]].append(verdict)
    single = [verdict for step, verdicts in task.items() if not step.endswith(WHOLE) for verdict in verdicts]
    complete = {group for group in whole if len(steps[group]) == _step_count(group)}
    return {
        "overall": share(list(right)),
        "steps": {"one-step": share(single)} | {name: share(task.get(step, [])) for name, step in STEPS.items()},
        "task": {name: share(task[name]) for name in sorted(task)},
        "skill": {name: share(skill[name]) for name in sorted(skill)},
        **{
            reading: dimensions([(list(steps[group].values()), whole[group]) for group in sorted(complete)], reading)
            for reading in ("strict", "loose")
        },
        "problems_without_all_their_steps": sorted((whole.keys() | steps.keys()) - complete),
    }


def _step_count(group: str) -> int:
    """Of "wemath-3steps_165": 3."""
    found = re.search(r"(\d+)steps", group)
    return int(found[1]) if found else 0


def dimensions(verdicts: Sequence[tuple[Sequence[bool], bool]], reading: str) -> dict[str, Any]:
    """The four dimensions of problems given as (verdicts on the steps, verdict on the whole); "strict" or "loose"."""
    known = all if reading == "strict" else any
    counts: Counter[str] = Counter()
    for steps, whole in verdicts:
        if whole:
            counts["CM" if known(steps) else "RM"] += 1
        else:
            counts["IG" if all(steps) else "IK"] += 1
    total = len(verdicts)
    rows = {name: _share(counts[name], total) for name in ("IK", "IG", "CM")}
    rows["RM"] = _share(counts["RM"], counts["CM"] + counts["RM"])
    return {"score": (counts["CM"] + counts["IG"] / 2) / total if total else None, **rows}


def _share(correct: int, total: int) -> dict[str, Any]:
    return {"accuracy": correct / total if total else None, "correct": correct, "total": total}


def headline(scores: dict[str, Any]) -> dict[str, Any]:
    lines = {"overall": scores["overall"], **scores["steps"]}
    for reading in ("strict", "loose"):
        lines[f"score ({reading})"] = None if scores[reading]["score"] is None else 100 * scores[reading]["score"]
        lines |= {f"{name} ({reading})": scores[reading][name] for name in ("IK", "IG", "CM", "RM")}
    return {name: row for name, row in lines.items() if row is not None}
