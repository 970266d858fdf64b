"""The ablation board: what the start model and the schedule are worth, at an equal budget of tokens.

From the runs of a sweep over start model × schedule × seed (params/sweeps/ablation_shapeworld.yaml). An arm is one
start under one schedule, over all its seeds; step 0 of the runs is the start models themselves, base and CI. All arms
answer the same held-out problems under the same limit. Two spreads are kept apart: intervals resample problems (a
problem counts by its mean over the seeds), and each seed's own accuracy stands beside them. Differences are paired by
problem.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vr1lib.analysis.formats import Cell, Column, Row, Table, to_markdown, with_interval, write_table
from vr1lib.analysis.runs import SavedCompletion, load_training_run, read_completions
from vr1lib.analysis.statistics import Interval, accuracy_interval, paired_difference
from vr1lib.analysis.tables import paper_value
from vr1lib.records import RequestError

STEM = "30_ptst_grpo"
SWEPT = {"model", "stages", "seed"}
STARTS = {"00_base_model": "base", "20_cold_sft": "CI"}  # by the notebook that made the start model
ARMS = {  # start, schedule → the paper's name, or ours
    ("base", "none"): "base",
    ("base", "short"): "Zero",
    ("base", "PTST"): "Zero+PTST",
    ("base", "Long"): "base+Long",
    ("CI", "none"): "CI",
    ("CI", "short"): "CI+short",
    ("CI", "Long"): "Long",
    ("CI", "PTST"): "Vision-R1",
}
LATER = {"Zero+PTST": 51.8, "CI+short": 54.3}  # arXiv v4's ablation of PTST, second-hand (facts, end of section E)
PAIRS = [  # each against what it is to be compared with
    ("CI", "base"),
    ("Vision-R1", "CI"),
    ("Vision-R1", "Long"),
    ("Vision-R1", "CI+short"),
    ("Long", "CI"),
    ("Zero", "base"),
    ("Zero+PTST", "Zero"),
    ("Vision-R1", "Zero"),
]


@dataclass(frozen=True)
class Evaluated:
    """One run's answers at one step. `right`: problem → right or not."""

    seed: int
    right: dict[str, bool]
    mean_length_tokens: float
    truncated: float
    tokens_sampled: int | None = None


def is_ablation(sweep_folder: str | Path) -> bool:
    """Whether a sweep's points are the arms of an ablation: runs of 30_ptst_grpo over starts and schedules."""
    points = read_points(Path(sweep_folder))
    swept = {key for key in points[0]["values"] if len({json.dumps(point["values"][key]) for point in points}) > 1}
    return {"model", "stages"} <= swept <= SWEPT and all(f"/{STEM}/" in point["run"] for point in points)


def read_points(folder: Path) -> list[dict[str, Any]]:
    path = folder / "points.jsonl"
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise RequestError(f"{path}: cannot be read ({error}); give the folder of a sweep (vr1 sweep FILE)") from None


# ---------------------------------------------------------------------------------------------------------- the board


def board_rows(sweep_folder: str | Path) -> list[dict[str, Any]]:
    """One row an arm, in the order of ARMS.

    Keys: arm, start, schedule, n (problems), accuracy, low, high (shares; interval over problems), seeds (a list of
    {seed, accuracy, mean_length_tokens}), mean_length_tokens, truncated (share), tokens_sampled (mean of the seeds'
    runs) and token_budget (None at step 0), right (seed → problem → right or not), missing (all points of the sweep
    that have not finished). Raises RequestError if none has.
    """
    folder = Path(sweep_folder)
    root = folder.resolve().parent.parent.parent  # of outputs/sweeps/NAME
    points = read_points(folder)
    limits = [stage[0] for point in points for stage in point["values"]["stages"]]
    arms: dict[tuple[str, str], list[Evaluated]] = {}
    made: dict[tuple[str, str], dict[str, Any]] = {}
    for point in points:
        start, stages = start_of(point["values"]["model"]), point["values"]["stages"]
        key = (start, schedule_of(stages, limits))
        told = made.setdefault(key, {"schedule": in_figures(stages), "token_budget": None})
        if point["status"] != "finished":
            continue
        run = root / point["run"]
        params = yaml.safe_load((run / "params.yaml").read_text(encoding="utf-8"))
        told["token_budget"] = params["prompts_per_step"] * sum(
            length * group * steps for length, group, steps in stages
        )
        answers = read_completions(run / "evaluation.jsonl")
        last = max(row.step for row in answers)
        before = evaluated([row for row in answers if row.step == 0], params["seed"])
        after = evaluated([row for row in answers if row.step == last], params["seed"], tokens_sampled(run, params))
        arms.setdefault(key, []).append(after)
        starts = arms.setdefault((start, "none"), [])
        starts += [] if any(each.seed == before.seed for each in starts) else [before]  # the same under each schedule
        made.setdefault((start, "none"), {"schedule": "step 0", "token_budget": None})
    if not arms:
        raise RequestError(f"{folder}: no point has finished; vr1 sweep {folder}/sweep.yaml --resume")
    order = [*ARMS, *(key for key in made if key not in ARMS)]
    missing = [point["name"] for point in points if point["status"] != "finished"]
    return [{**row_of(key, arms[key], made[key]), "missing": missing} for key in order if key in arms]


def start_of(model: str) -> str:
    """base or CI, by the notebook that made the model; another model by its path."""
    return next((name for stem, name in STARTS.items() if f"{stem}/" in model), model)


def schedule_of(stages: Sequence[Sequence[int]], limits: Sequence[int]) -> str:
    """PTST: more than one stage; Long: the longest limit of the sweep throughout; short: a shorter one throughout."""
    if len(stages) > 1:
        return "PTST"
    return "Long" if min(limits) < stages[0][0] == max(limits) else "short"


def in_figures(stages: Sequence[Sequence[int]]) -> str:
    return " → ".join(f"{length} × {group}" for length, group, _ in stages)


def evaluated(answers: Sequence[SavedCompletion], seed: int, sampled: int | None = None) -> Evaluated:
    right = {row.problem_id: row.answer_ok for row in answers}
    length = sum(row.tokens for row in answers) / len(answers)
    cut = sum(row.finish == "length" for row in answers) / len(answers)
    return Evaluated(seed, right, length, cut, sampled)


def tokens_sampled(run: Path, params: Mapping[str, Any]) -> int:
    """Completion tokens that a run has really sampled to learn from, from its metrics."""
    total = 0.0
    for row in load_training_run("", run).metrics:
        if row["step"] > 0:
            prompts = params["prompts_per_step"] + row.get("groups/refilled", 0)
            total += row["length/mean"] * prompts * params["stages"][row["stage"]][1]
    return round(total)


def row_of(key: tuple[str, str], seeds: Sequence[Evaluated], told: Mapping[str, Any]) -> dict[str, Any]:
    seeds = sorted(seeds, key=lambda each: each.seed)
    right = {each.seed: each.right for each in seeds}
    shares = shares_of(right)
    interval = accuracy_interval(shares.values())
    sampled = [each.tokens_sampled for each in seeds]
    return {
        "arm": ARMS.get(key, "+".join(key)),
        "start": key[0],
        **told,
        "n": interval.n,
        "accuracy": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "seeds": [
            {
                "seed": each.seed,
                "accuracy": mean([each.right[problem] for problem in shares]),
                "mean_length_tokens": each.mean_length_tokens,
            }
            for each in seeds
        ],
        "mean_length_tokens": mean([each.mean_length_tokens for each in seeds]),
        "truncated": mean([each.truncated for each in seeds]),
        "tokens_sampled": None if None in sampled else round(mean(sampled)),
        "right": right,
    }


def shares_of(right: Mapping[int, Mapping[str, bool]]) -> dict[str, float]:
    """Problem → share of the seeds that have it right, of the problems that all seeds answered."""
    first, *others = right.values()
    shared = [problem for problem in first if all(problem in other for other in others)]
    return {problem: mean([by_problem[problem] for by_problem in right.values()]) for problem in shared}


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# ------------------------------------------------------------------------------------------------------ what it says


def in_words(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The board in sentences: each pair of arms with its interval, then lengths, tokens, and what to keep in mind."""
    by_arm = {row["arm"]: row for row in rows}
    said = [pair_in_words(by_arm[one], by_arm[other]) for one, other in PAIRS if one in by_arm and other in by_arm]
    longest, shortest = (pick(rows, key=lambda row: row["mean_length_tokens"]) for pick in (max, min))
    said.append(
        f"Answers are longest from {longest['arm']} ({longest['mean_length_tokens']:.0f} tokens, "
        f"{100 * longest['truncated']:.0f} % cut) and shortest from {shortest['arm']} "
        f"({shortest['mean_length_tokens']:.0f} tokens, {100 * shortest['truncated']:.0f} % cut)."
    )
    trained = [row for row in rows if row["tokens_sampled"]]
    budgets = {row["token_budget"] for row in trained}
    if len(budgets) == 1:
        least, most = (pick(trained, key=lambda row: row["tokens_sampled"]) for pick in (min, max))
        said.append(
            f"Every run may sample the same {budgets.pop():,} tokens (group × longest completion × prompts × steps); "
            f"it did sample {least['tokens_sampled']:,} ({least['arm']}) to {most['tokens_sampled']:,} ({most['arm']})."
        )
    elif budgets:
        said.append(
            "Budgets are not equal: " + ", ".join(f"{row['arm']} {row['token_budget']:,}" for row in trained) + "."
        )
    if rows[0]["missing"]:
        said.append(f"Not finished, and not counted: {', '.join(rows[0]['missing'])}.")
    counts = [len(row["seeds"]) for row in rows]
    said.append(
        f"Intervals resample the {rows[0]['n']} problems; {min(counts)} seeds an arm are too few for an interval over "
        "training runs, so each seed is shown. All arms have the hard reward (our choice), where the paper's Zero had "
        "format and result 1:1; the paper's numbers are of a 7B model on three benchmarks: compare signs, not sizes."
    )
    return said


def pair_in_words(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """`one` against `other`: the paired difference, by seed, and whether the paper has it the same way round."""
    difference, by_seed = difference_of(one, other)
    name, against = one["arm"], other["arm"]
    interval = f"{in_points(difference.low)} to {in_points(difference.high)}"
    seeds = ", ".join(map(in_points, by_seed))
    ours = direction(difference, by_seed)
    if ours == 0:
        why = "the interval holds 0" if not difference.excludes_zero else "the seeds disagree"
        said = (
            f"{name} and {against}: undecided, {why}: {in_points(difference.mean)} points ({interval}; by seed {seeds})"
        )
    else:
        side = "above" if ours > 0 else "below"
        said = f"{name} is {side} {against} by {abs(100 * difference.mean):.1f} points ({interval}; by seed {seeds})"
    theirs = [paper_accuracy(arm) for arm in (name, against)]
    if None in theirs:
        return f"{said}."
    gap = theirs[0] - theirs[1]
    source = ", second-hand from v4" if {name, against} & set(LATER) else ""
    paper = f"in the paper {gap:+.1f} ({theirs[0]} against {theirs[1]}{source})"
    verdict = "" if ours == 0 else ", the same way" if ours * gap > 0 else ", the other way round"
    return f"{said}; {paper}{verdict}."


def in_points(share: float) -> str:
    """A difference of shares in percentage points, with its sign; what rounds to nothing is +0.0."""
    return f"{round(100 * share, 1) + 0.0:+.1f}"


def difference_of(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[Interval, list[float]]:
    """Accuracy of `one` minus `other` over the problems both answered, and the same seed by seed."""
    mine, others = shares_of(one["right"]), shares_of(other["right"])
    shared = [problem for problem in mine if problem in others]
    difference = paired_difference([others[problem] for problem in shared], [mine[problem] for problem in shared])
    by_seed = [
        mean([right[problem] - other["right"][seed][problem] for problem in shared])
        for seed, right in one["right"].items()
        if seed in other["right"]
    ]
    return difference, by_seed


def direction(difference: Interval, by_seed: Sequence[float]) -> int:
    """1 above, -1 below, 0 undecided: the interval holds 0, or a seed says the contrary."""
    sign = 1 if difference.mean > 0 else -1
    return sign if difference.excludes_zero and all(value * sign >= 0 for value in by_seed) else 0


def paper_accuracy(arm: str) -> float | None:
    """In percent: Table 4 (base: Table 1), or the later version's."""
    return LATER.get(arm) or paper_value(arm)[1]


def board_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The board as a table in the paper's manner: the best accuracy bold, theirs beside ours."""
    columns = [
        Column("Arm", number=False),
        Column("Start", number=False),
        Column("Schedule", "tokens × group", number=False),
        Column("Right", "%"),
        Column("By seed", "%"),
        Column("Length", "tokens"),
        Column("Cut", "%"),
        Column("Sampled", "tokens"),
        Column("Paper", "%", marks=("a",)),
    ]
    best = max(row["accuracy"] for row in rows)
    body = []
    for row in rows:
        theirs = paper_accuracy(row["arm"])
        accuracy = with_interval(*(100 * row[key] for key in ("accuracy", "low", "high")))
        body.append(
            Row(
                (
                    Cell(row["arm"]),
                    Cell(row["start"]),
                    Cell(row["schedule"]),
                    Cell(accuracy, bold=row["accuracy"] == best),
                    Cell(" ".join(f"{100 * seed['accuracy']:.1f}" for seed in row["seeds"])),
                    Cell(f"{row['mean_length_tokens']:.0f}"),
                    Cell(f"{100 * row['truncated']:.0f}"),
                    Cell(f"{row['tokens_sampled']:,}" if row["tokens_sampled"] else ""),
                    Cell("" if theirs is None else f"{theirs:.1f}", marks=("b",) if row["arm"] in LATER else ()),
                ),
                section="from the base model" if row["start"] == "base" else "from the cold-started model",
            )
        )
    notes = {
        "a": "Table 4; base: Table 1. Mean of MathVista, MathVerse and MM-Math, 7B.",
        "b": "arXiv v4's ablation of PTST, second-hand.",
    }
    return Table(f"Ablation at equal token budget, {rows[0]['n']} held-out problems", columns, body, notes=notes)


def write_board(sweep_folder: str | Path) -> str:
    """board.{md,csv,tex,png,svg} in the sweep's folder; returns board.md's text."""
    from vr1lib.analysis.model_figures import ablation_board  # matplotlib

    folder = Path(sweep_folder)
    rows = board_rows(folder)
    table = board_table(rows)
    write_table(folder, "board", table)
    text = to_markdown(table) + "\n" + "\n".join(f"- {sentence}" for sentence in in_words(rows)) + "\n"
    (folder / "board.md").write_text(text, encoding="utf-8")
    figure = ablation_board(rows)
    for ending in ("png", "svg"):
        figure.savefig(folder / f"board.{ending}", dpi=150)
    return text
