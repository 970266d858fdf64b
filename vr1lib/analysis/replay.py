"""Saved completions graded again under another reward or protocol: what would change, before any GPU time is spent.

A replay reads again what was said; it asks nobody anew. So `authors` here is their reading of an answer without their
five tries for the format. Advantages are those of Section 3.4 in the groups that the rewards stood in; a group whose
rewards are all equal teaches nothing, so what a grader changes for training is which groups teach, and which way.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from vr1lib.analysis.completions import Saved, benchmark_of, load_saved
from vr1lib.analysis.runs import AnyGraded
from vr1lib.answers import grade_answer
from vr1lib.benchmarks.catalogue import BENCHMARKS
from vr1lib.benchmarks.extraction import Wanted
from vr1lib.benchmarks.predictions import Prediction
from vr1lib.benchmarks.scoring import Protocol, verdict
from vr1lib.records import Problem, RequestError
from vr1lib.reward import RewardKind, grade

TAIL_CHARACTERS = 160  # of a changed completion's text; the answer stands at the end
SHOWN_ROWS = 10  # changed completions printed; --out and --json hold all
VALUES = (  # where the grader's reasons name values, and what is left of them
    (r"^number: .* ([=≠]) .*", r"number: … \1 …"),
    (r"^(text|unreadable|value): not .*", r"\1: not …"),
    (r"^option .*? (is .*|gold .*)", "option …"),
    (r"names no option, gold .*", "names no option"),
)


@dataclass(frozen=True)
class Regraded:
    """One completion's reward before and after, and why each."""

    before: float
    after: float
    reason_before: str
    reason_after: str
    read_as: str | None

    @property
    def changed(self) -> bool:
        return self.before != self.after


def replay(
    saved: Saved, *, reward: RewardKind | None = None, protocol: Protocol | None = None, described: str = ""
) -> dict[str, Any]:
    """What another reward or protocol makes of saved completions. Neither given: today's grader under the hard reward.

    Rewards are as the grader gives them (0 to 1), shares 0 to 1. Raises RequestError where a problem is missing or both
    are given.
    """
    if reward and protocol:
        raise RequestError("replay: --reward and --protocol are two ways to grade; give one of them")
    saved.require_all_problems()
    reward = reward or "hard"
    regraded = [regrade(row, saved.problems[row.problem_id], reward, protocol) for row in saved.graded]
    pairs = list(zip(saved.graded, regraded))
    by_stage: dict[int, list[tuple[AnyGraded, Regraded]]] = defaultdict(list)
    for row, again in pairs:
        by_stage[row.stage].append((row, again))
    stages = [{"stage": stage + 1, **difference(rows)} for stage, rows in sorted(by_stage.items())]
    return {
        "completions": str(saved.path),
        "grader": grader_name(reward, protocol),
        "before": described,
        **difference(pairs),
        "by_stage": stages if len(stages) > 1 else [],
        "moves": moves(regraded),
        "changed_rows": [
            changed_row(row, again, saved.problems[row.problem_id]) for row, again in pairs if again.changed
        ],
    }


def regrade(row: AnyGraded, problem: Problem, reward: RewardKind, protocol: Protocol | None) -> Regraded:
    """One completion under a protocol, or without one under a reward."""
    if protocol is None:
        again = grade(row.text, problem.answer, problem.choices, reward)
        return Regraded(row.reward, again.reward, row.reason, again.reason, again.extracted)
    name = benchmark_of(problem)
    said = verdict(BENCHMARKS[name] if name else OF_NO_BENCHMARK, problem, Prediction(row.text, None, False), protocol)
    read_as = None if said.answer is None else str(said.answer)
    return Regraded(
        row.reward, float(said.right), row.reason, f"{said.source}, {'right' if said.right else 'wrong'}", read_as
    )


def wanted(problem: Problem) -> Wanted:
    """What a problem of no benchmark asks for, told from its gold (our choice)."""
    if problem.choices:
        return Wanted("option", tuple(problem.choices))
    try:
        float(problem.answer)
    except ValueError:
        return Wanted("text")
    return Wanted("float")


OF_NO_BENCHMARK = SimpleNamespace(  # our grader over what the extraction rules find
    wanted=wanted,
    is_right=lambda extraction, problem: grade_answer(str(extraction), problem.answer, problem.choices).ok,
)


# ------------------------------------------------------------------------------------------------------ what it changes


def difference(pairs: Sequence[tuple[AnyGraded, Regraded]]) -> dict[str, Any]:
    """Counts, mean rewards, and what it means for training."""
    count = max(1, len(pairs))
    return {
        "n": len(pairs),
        "unchanged": sum(not again.changed for _, again in pairs),
        "higher": sum(again.after > again.before for _, again in pairs),
        "lower": sum(again.after < again.before for _, again in pairs),
        "mean_reward_before": sum(again.before for _, again in pairs) / count,
        "mean_reward_after": sum(again.after for _, again in pairs) / count,
        "groups": group_changes(pairs),
    }


def group_changes(pairs: Sequence[tuple[AnyGraded, Regraded]]) -> dict[str, Any] | None:
    """How many groups teach before and after, and the share of their completions whose advantage changes its sign or
    side. None without a group of two."""
    import torch

    from vr1lib.advantage import group_advantages

    by_size: dict[int, list[list[Regraded]]] = defaultdict(list)
    for group in groups_of(pairs):
        by_size[len(group)].append(group)
    by_size.pop(1, None)
    if not by_size:
        return None
    counts: Counter[str] = Counter()
    for groups in by_size.values():
        before, after = (
            group_advantages(torch.tensor([[getattr(again, side) for again in group] for group in groups])).sign()
            for side in ("before", "after")
        )  # [groups, group_size]
        taught, teaches = before.any(dim=1), after.any(dim=1)
        counts += Counter(
            groups=len(groups),
            completions=before.numel(),
            teaching_before=int(taught.sum()),
            teaching_after=int(teaches.sum()),
            begin_to_teach=int((~taught & teaches).sum()),
            stop_teaching=int((taught & ~teaches).sum()),
            sign_changed=int((before != after).sum()),
            sign_reversed=int((before * after < 0).sum()),
        )
    keys = "groups teaching_before teaching_after begin_to_teach stop_teaching".split()
    shares = {f"{key}_share": counts[key] / counts["completions"] for key in ("sign_changed", "sign_reversed")}
    return {key: counts[key] for key in keys} | shares


def groups_of(pairs: Iterable[tuple[AnyGraded, Regraded]]) -> list[list[Regraded]]:
    """Completions of one problem in one step, in the order of the file."""
    groups: dict[tuple[int, int, str], list[Regraded]] = defaultdict(list)
    for row, again in pairs:
        groups[row.stage, row.step, row.problem_id].append(again)
    return list(groups.values())


def moves(regraded: Iterable[Regraded]) -> list[dict[str, Any]]:
    """How many completions went from which reward to which, and for which reasons, most frequent first."""
    reasons: dict[tuple[float, float], Counter[str]] = defaultdict(Counter)
    for again in regraded:
        if again.changed:
            kinds = [kind_of(reason) for reason in (again.reason_before, again.reason_after)]
            reasons[again.before, again.after][" → ".join(kinds)] += 1
    ordered = sorted(reasons.items(), key=lambda item: -item[1].total())
    return [
        {"from": before, "to": after, "count": counts.total(), "reasons": dict(counts.most_common())}
        for (before, after), counts in ordered
    ]


def kind_of(reason: str) -> str:
    """A grader's reason without the values it compared: `number: 2 ≠ 3` → `number: … ≠ …`."""
    for pattern, kind in VALUES:
        reason = re.sub(pattern, kind, reason, flags=re.DOTALL)
    return reason


def changed_row(row: AnyGraded, again: Regraded, problem: Problem) -> dict[str, Any]:
    place = {"problem_id": row.problem_id, "stage": row.stage, "step": row.step, "sample": row.sample}
    return place | asdict(again) | {"gold": problem.answer, "tail": row.text[-TAIL_CHARACTERS:]}


# ------------------------------------------------------------------------------------------------------------- command


def replay_command(
    run: str | Path,
    *,
    reward: RewardKind | None = None,
    protocol: Protocol | None = None,
    problems: str | None = None,
    out: str | None = None,
    as_json: bool = False,
) -> int:
    """`vr1 replay`: prints a summary or the JSON, writes the JSON with every changed completion into `out`."""
    saved = load_saved(run, problems)
    own = own_grader(Path(run))
    if protocol is None and reward is None:
        reward, protocol = own.get("reward"), own.get("protocol")
    result = replay(saved, reward=reward, protocol=protocol, described=grader_name(**own))
    content = json.dumps(result, indent=2, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()
    if out:
        try:
            Path(out).write_text(content + "\n", encoding="utf-8")
        except OSError as error:
            raise RequestError(f"--out {out}: cannot be written ({error.strerror}); give a file in a folder") from None
    print(content if as_json else in_words(result))
    return 0


def own_grader(run: Path) -> dict[str, Any]:
    """What a run was graded by: a benchmark's by the strict protocol, a training's by the reward of its parameters."""
    if (run / "scores.json").is_file():
        return {"protocol": "strict"}
    parameters = run / "params.yaml"
    values = yaml.safe_load(parameters.read_text(encoding="utf-8")) if parameters.is_file() else None
    return {"reward": (values or {}).get("reward", "hard")}


def grader_name(reward: RewardKind | None = None, protocol: Protocol | None = None) -> str:
    return f"protocol {protocol}" if protocol else f"reward {reward}"


def in_words(result: dict[str, Any]) -> str:
    """The summary: counts, moves and reasons, groups, stages, and the first changed completions."""
    lines = [f"{result['completions']}: {result['n']:,} completions, {result['before']} → {result['grader']}"]
    lines += difference_lines(result, "")
    for move in result["moves"]:
        lines.append(f"{move['count']:8,}  {move['from']:g} → {move['to']:g}")
        lines += [f"{count:12,}  {reason}" for reason, count in list(move["reasons"].items())[:5]]
    for stage in result["by_stage"]:
        lines += [f"stage {stage['stage']}: {stage['n']:,} completions", *difference_lines(stage, "  ")]
    shown = result["changed_rows"][:SHOWN_ROWS]
    if shown:
        lines.append(f"the first {len(shown)} of {len(result['changed_rows']):,} that change (--out FILE holds all):")
    for row in shown:
        where = f"{row['problem_id']}, step {row['step']}, sample {row['sample']}"
        lines.append(
            f"  {where}: {row['before']:g} → {row['after']:g}, gold {row['gold']!r}, read as {row['read_as']!r}"
        )
        lines.append(f"    … {' '.join(row['tail'].split())}")
    return "\n".join(lines)


def difference_lines(part: dict[str, Any], indent: str) -> list[str]:
    lines = [
        f"{indent}mean reward {part['mean_reward_before']:.4f} → {part['mean_reward_after']:.4f}; "
        f"{part['unchanged']:,} unchanged, {part['higher']:,} higher, {part['lower']:,} lower"
    ]
    if groups := part["groups"]:
        lines.append(
            f"{indent}groups that teach {groups['teaching_before']:,} → {groups['teaching_after']:,} of "
            f"{groups['groups']:,} ({groups['begin_to_teach']:,} begin, {groups['stop_teaching']:,} stop); advantage "
            f"of another sign: {100 * groups['sign_changed_share']:.2f} % of completions, reversed "
            f"{100 * groups['sign_reversed_share']:.2f} %"
        )
    return lines
