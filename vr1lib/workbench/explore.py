"""What a hand can move in the notebooks: a group of completions, PTST's stages, one row of modality bridging."""

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import yaml

from vr1lib.analysis.runs import SavedCompletion, is_number, read_completions, read_json, read_metrics
from vr1lib.data import filters
from vr1lib.data.sources import Reject
from vr1lib.data.teachers import render_prompt
from vr1lib.records import ColdRow, Problem, RequestError
from vr1lib.reward import grade
from vr1lib.schedule import Schedule
from vr1lib.workbench.widgets import Choice, Number, Values, marked, pictures_html, question_html, show

# A group of completions, and what it taught.


def show_groups(folder: Path, problems: Sequence[Problem], normalise_by_std: bool = True) -> None:
    """Pick a step and a problem of it: its completions with reward, advantage and length, the better ones first.

    `folder` is a run of 30_ptst_grpo; shown first is the earliest group with as many right as wrong completions, or the
    nearest to it.
    """
    groups = groups_of(read_completions(folder / "completions.jsonl"))
    by_id = {problem.id: problem for problem in problems}
    steps = list(dict.fromkeys(step for step, _ in groups))

    def of_step(values: Values) -> list[tuple[str, int]]:
        rows = [(place, group) for (step, place), group in groups.items() if step == values["step"]]
        return [(f"{place + 1}: {named(by_id, group)}", place) for place, group in rows]

    step, place = min(groups, key=lambda key: abs(share_right(groups[key]) - 0.5))
    controls = {
        "step": Choice("step", lambda _: [(str(step), step) for step in steps], step),
        "place": Choice("problem", of_step, place),
    }
    show(lambda step, place: group_html(groups[step, place], by_id, normalise_by_std), controls)


def groups_of(rows: Sequence[SavedCompletion]) -> dict[tuple[int, int], list[SavedCompletion]]:
    """(step, place in it) → a group of completions of one problem, which stand together, sample 0 first."""
    groups: dict[tuple[int, int], list[SavedCompletion]] = {}
    places: dict[int, int] = {}
    for row in rows:
        if row.sample == 0:
            places[row.step] = places.get(row.step, -1) + 1
        groups.setdefault((row.step, places.get(row.step, 0)), []).append(row)
    return groups


def share_right(group: Sequence[SavedCompletion]) -> float:
    return sum(row.reward == 1 for row in group) / len(group)


def named(by_id: Mapping[str, Problem], group: Sequence[SavedCompletion]) -> str:
    problem = by_id.get(group[0].problem_id)
    question = " ".join(problem.question.split())[:48] if problem else group[0].problem_id
    return f"{question} ({sum(row.reward == 1 for row in group)} of {len(group)} right)"


def group_html(group: Sequence[SavedCompletion], by_id: Mapping[str, Problem], normalise_by_std: bool) -> str:
    import torch

    from vr1lib.advantage import group_advantages

    rewards = torch.tensor([[row.reward for row in group]])
    advantages = group_advantages(rewards, normalise_by_std=normalise_by_std)[0].tolist()
    problem = by_id.get(group[0].problem_id)
    deviation = f"{rewards.std():.2f}" if len(group) > 1 else "0"
    facts = (
        f"step {group[0].step}, stage {group[0].stage + 1}: {len(group)} completions, mean reward {rewards.mean():.2f}"
    )
    facts += f", std {deviation}" + ("; all equal, so nothing is learnt here" if not any(advantages) else "")
    facts = f"<p>{facts}</p>"
    top = question_html(problem, facts) if problem else f"<p><code>{escape(group[0].problem_id)}</code></p>{facts}"
    head = "<th>reward</th><th>advantage</th><th class='words'></th><th>tokens</th><th class='words'>completion</th>"
    ranked = sorted(zip(group, advantages), key=lambda item: (-item[1], item[0].tokens))
    widest = max(map(abs, advantages)) or 1.0
    body = "".join(completion_html(row, advantage, widest) for row, advantage in ranked)
    return f"{top}<table><tr>{head}</tr>{body}</table>"


def completion_html(row: SavedCompletion, advantage: float, widest: float) -> str:
    width = f"{4 * abs(advantage) / widest:.2f}em"
    bar = f'<span class="bar{" less" if advantage < 0 else ""}" style="width: {width}"></span>' if advantage else ""
    cut = " (cut)" if row.finish == "length" else ""
    text, why = marked(row.text), "" if row.reward == 1 else f"<br><small>{escape(row.reason)}</small>"
    if len(row.text) > 240:
        text = f"<details><summary>{marked(row.text[:160])} …</summary>{text}</details>"
    return (
        f"<tr><td>{row.reward:g}</td><td>{advantage:+.2f}</td><td class='words'>{bar}</td><td>{row.tokens}{cut}</td>"
        f"<td class='words'>{text}{why}</td></tr>"
    )


# PTST's stages, their budget and time.


@dataclass(frozen=True)
class Pace:
    """What a run's steps took: completion tokens a second (sampled, graded and learnt from), its completions' lengths
    (none: not known yet; infinite: cut), and where that was seen."""

    tokens_per_second: float
    lengths: Sequence[float]
    seen_in: str

    def seconds(self, tokens: float) -> float:
        return tokens / self.tokens_per_second

    def mean_length(self, limit: int) -> float:
        """Of completions as they were then, under this limit; one that was cut is counted as going on to it."""
        return sum(min(length, limit) for length in self.lengths) / len(self.lengths) if self.lengths else limit


def newest_pace(runs: Path, model: str) -> Pace | None:
    """The pace of the newest run of this model below outputs/30_ptst_grpo: as its steps took, else as rehearsed."""
    for folder in sorted(runs.glob("*"), key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            params = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
            if params["model"] == model:
                return pace_of(folder, params)
        except (OSError, RequestError):  # no run, or one that has not come so far
            continue
    return None


def pace_of(folder: Path, params: Mapping[str, Any]) -> Pace:
    rates = [row["tokens_per_second"] for row in read_metrics(folder / "metrics.jsonl") if "tokens_per_second" in row]
    rates = sorted(rate for rate in rates if is_number(rate))
    if rates:
        rows = read_completions(folder / "completions.jsonl")
        lengths = [math.inf if row.finish == "length" else row.tokens for row in rows]
        return Pace(rates[len(rates) // 2], lengths, f"{folder.name}, {len(rates)} steps")
    told = read_json(folder / "preflight.json", "run it again")
    tokens = params["prompts_per_step"] * max(limit * group for limit, group, _ in params["stages"])
    return Pace(tokens / sum(told["seconds"].values()), (), f"the rehearsal of {folder.name}")


def show_schedule(stages: Sequence[Sequence[int]], prompts_per_step: int, pace: Pace | None) -> None:
    """Move stages, three at least (limit, group, steps; 0 steps leave one out): budget, equality, expected time."""
    rows = [tuple(stage) for stage in stages]
    while len(rows) < 3:
        rows.append((2 * rows[-1][0], max(1, rows[-1][1] // 2), 0))
    controls = {}
    for number, (limit, group, steps) in enumerate(rows, start=1):
        controls[f"limit_{number}"] = Number(f"stage {number}: tokens", limit, 1)
        controls[f"group_{number}"] = Number("group", group, 1)
        controls[f"steps_{number}"] = Number("steps", steps)

    def view(**values: int) -> str:
        chosen = zip(*([iter(values.values())] * 3))
        return schedule_html([stage for stage in chosen if stage[2]], prompts_per_step, pace)

    show(view, controls, columns=3)


def schedule_html(stages: Sequence[tuple[int, int, int]], prompts_per_step: int, pace: Pace | None) -> str:
    if not stages:
        return "<p>No stage has any steps.</p>"
    schedule = Schedule(stages)
    budgets = [schedule.token_budget(stage) for stage in schedule.stages]
    body, at_most, expected = "", 0.0, 0.0
    for number, (stage, budget) in enumerate(zip(schedule.stages, budgets), start=1):
        bar = f'<span class="bar" style="width: {16 * budget / max(budgets):.2f}em"></span>'
        tokens = stage.steps * prompts_per_step * budget
        times = "<td>–</td><td>–</td>"
        if pace:
            longest, likely = pace.seconds(tokens), pace.seconds(tokens) * pace.mean_length(stage[0]) / stage[0]
            at_most, expected = at_most + longest, expected + likely
            times = f"<td>{in_minutes(likely) if pace.lengths else '–'}</td><td>{in_minutes(longest)}</td>"
        body += (
            f"<tr><td>{number}</td><td>{stage.max_completion_tokens:,} × {stage.group_size}</td><td>{budget:,}</td>"
            f"<td class='words'>{bar}</td><td>{stage.steps}</td><td>{tokens:,}</td>{times}</tr>"
        )
    equal = "equal in every stage, as in the paper" if schedule.equal_budget else "not equal"
    if len(budgets) > 1 and not schedule.equal_budget:
        equal += f": the last stage's is {budgets[-1] / budgets[0]:.2g} times the first's"
    said = "time: not known before a run of this model; run this cell again after it"
    if pace:
        about = f"about {in_minutes(expected)}, " if pace.lengths else ""
        said = f"time: {about}at most {in_minutes(at_most)}, at {pace.tokens_per_second:,.0f} tokens/s"
        said += f" ({escape(pace.seen_in)}; longer chains are slower)"
    head = "stage|tokens × group|budget|<!-- -->|steps|tokens at most|about|at most".split("|")
    names = "".join(f"<th>{name}</th>" for name in head)
    return f"<table><tr>{names}</tr>{body}</table><p>Token budget of a problem: <b>{equal}</b>.<br>{said}</p>"


def in_minutes(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 10:
        return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


# One row of modality bridging.

BRIDGE = ("problem", "pseudo-CoT", "description", "reasoning", "filters", "row")
FELL_AT = {"pseudo_cot": 1, "description": 2, "reasoning": 3, "answer": 4, "rules": 4, "response": 5}
MOST_ROWS = 40  # to choose from


def show_bridging(
    rows: Sequence[ColdRow], rejects: Sequence[Reject], problems: Sequence[Problem], show_gold: bool, first: ColdRow
) -> None:
    """Step through the bridging of one picture, or of a problem that fell by the wayside; at first all of `first`."""
    by_id = {problem.id: problem for problem in [*rows, *problems]}
    fallen = [reject for reject in rejects if reject.id in by_id and reject.step in FELL_AT]
    items: list[ColdRow | Reject] = [first, *(row for row in rows[:MOST_ROWS] if row is not first)]
    items += fallen[: MOST_ROWS // 2]
    names = []
    for number, item in enumerate(items, start=1):
        question = " ".join(by_id[item.id].question.split())[:48]
        names.append(f"{number}: {question} ({f'fell: {item.reason}' if isinstance(item, Reject) else 'kept'})")
    controls = {
        "item": Choice("problem", lambda _: [(name, place) for place, name in enumerate(names)], 0),
        "step": Choice("step", lambda _: [(name, place) for place, name in enumerate(BRIDGE)], 0, buttons=True),
    }

    def view(item: int, step: int) -> str:
        chosen = items[item]
        if isinstance(chosen, Reject):
            return fallen_html(chosen, by_id[chosen.id], step)
        return bridge_html(chosen, step, show_gold)

    everything = "<hr>".join(flow_html(step) + bridge_html(first, step, show_gold) for step in range(len(BRIDGE)))
    show(view, controls, columns=1, plain=everything)


def flow_html(step: int) -> str:
    steps = (f'<span class="step{" now" if place == step else ""}">{name}</span>' for place, name in enumerate(BRIDGE))
    return f"<p>{' → '.join(steps)}</p>"


def bridge_html(row: ColdRow, step: int, show_gold: bool) -> str:
    """What a kept row was at this step: who wrote it, what he was shown, and the text."""
    if step == 0:
        return question_html(row) + "<p>A text-only reasoner cannot see this.</p>"
    if step == 4:
        return verdict_html(row)
    if step == 5:
        return question_html(row) + f"<p>What the model learns to say:</p><pre>{marked(row.response)}</pre>"
    purpose = ("pseudo_cot", "description", "reasoning")[step - 1]
    writer = next((call.model for call in row.calls if call.purpose == purpose), "the data set")
    seen = pictures_html(row) if step < 3 else "<i>no picture</i>"
    given = {
        "pseudo_cot": {},
        "description": {"pseudo_cot": row.pseudo_cot},
        "reasoning": {"description": row.description},
    }
    prompt = render_prompt(purpose, row, show_gold=show_gold, **given[purpose])
    return (
        f"<p>{escape(writer)} is shown {seen}</p><details><summary>and this prompt</summary><pre>{escape(prompt)}</pre>"
        f"</details><p>and writes:</p><pre>{marked(getattr(row, purpose))}</pre>"
    )


def verdict_html(row: ColdRow) -> str:
    replaced = filters.replace_description_words(row.reasoning)
    answer = grade(row.response, row.answer, row.choices).extracted
    words = difflib.SequenceMatcher(a=row.reasoning.split(" "), b=replaced.split(" "), autojunk=False)
    new, changes = replaced.split(" "), 0
    parts = []
    for kind, _, _, start, end in words.get_opcodes():
        text = escape(" ".join(new[start:end]))
        changes += kind != "equal"
        parts.append(text if kind == "equal" else f"<ins>{text}</ins>")
    return (
        f"<p>✓ the description does not state the gold<br>✓ final answer <b>{escape(answer)}</b>, gold "
        f"<b>{escape(row.answer)}</b>: right<br>✓ whole, no loop, no other language, consistent with its answer<br>"
        f"words that gave the description away, exchanged in {changes} places (marked):</p><pre>{' '.join(parts)}</pre>"
    )


def fallen_html(reject: Reject, problem: Problem, step: int) -> str:
    fell = FELL_AT[reject.step]
    if step < fell:
        return question_html(problem) if step == 0 else "<p>✓ passed; the texts of a rejected row are not kept.</p>"
    if step > fell:
        return "<p>It did not come so far.</p>"
    return f"{question_html(problem)}<p>✘ <b>{escape(reject.reason)}</b></p><pre>{escape(reject.detail)}</pre>"
