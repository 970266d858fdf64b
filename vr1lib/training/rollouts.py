"""The first half of a GRPO step: which problems are drawn, what the policy says to them, what that is worth.

Every drawing of a problem has a number, counted from the run's start: it gives the problem (a new seeded order every
epoch) and, with the run's seed, the chance in its samples. So a step's completions follow from how many problems were
drawn before it and from the weights alone, whatever the number of processes or of rows sampled at once.

Each process samples its share of the groups; rewards and completions are then brought together, and every process
counts the same metrics from all of them. With dynamic sampling (DAPO) groups whose rewards are all equal, which teach
nothing, are replaced by newly drawn ones, in a bounded number of rounds (our choice: an unbounded one never ends on a
model that is always wrong). Metrics and records are of all that was sampled, so that the reward stays the policy's, not
the filter's.
"""

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain

import torch
from accelerate.utils import gather_object
from torch import Tensor

from vr1lib.advantage import group_advantages
from vr1lib.models.rollout_local import Sampled, complete, sample, seed_of, to_completion
from vr1lib.models.vlm import EncodedPrompt, Vlm
from vr1lib.records import Graded, Problem
from vr1lib.reward import grade_completion
from vr1lib.schedule import Schedule, Stage
from vr1lib.training.session import GrpoSettings, Session


@dataclass
class Rollout:
    """A sampled completion on its way from sampler to loss; prompt and verdict carry their problem's id."""

    draw: int  # number of the drawing
    prompt: EncodedPrompt
    sampled: Sampled
    graded: Graded
    advantage: float = 0.0
    has_loss: bool = True
    old_logprobs: Tensor | None = None  # [tokens], the trainer's own before the step's first update; None: as sampled
    policy_logprobs: Tensor | None = None  # [tokens], as recomputed for the update
    reference_logprobs: Tensor | None = None  # [tokens]


@dataclass
class Harvest:
    """What the sampling of a step has brought.

    `kept`: this process's rollouts to learn from, whole groups; `spare` a row that stands in where there is none.
    `graded`: all completions of all processes, group by group.
    """

    kept: list[Rollout]
    spare: Rollout
    graded: list[Graded]
    drawn: int  # problems drawn since the run's start
    refills: dict[str, float]

    @property
    def tokens(self) -> int:
        return sum(row.tokens for row in self.graded)


class Clock:
    """Seconds by name: a lap is the time since the last one."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = self.laps.get(name, 0.0) + now - self.last
        self.last = now


# ---------------------------------------------------------------------------------------------------------- the drawing


def problem_at(problems: Sequence[Problem], seed: int, draw: int) -> Problem:
    """The problem of a drawing: all of them once in a new seeded order, and again, for ever."""
    epoch, place = divmod(draw, len(problems))
    return problems[epoch_order(len(problems), seed, epoch)[place]]


@lru_cache(maxsize=2)
def epoch_order(count: int, seed: int, epoch: int) -> tuple[int, ...]:
    return tuple(random.Random(seed_of(seed, epoch)).sample(range(count), count))


# ------------------------------------------------------------------------------------------------------- the harvesting


def harvest(
    session: Session, problems: Sequence[Problem], drawn: int, stage: Stage, step: int, stage_index: int, clock: Clock
) -> Harvest:
    """Sample and grade a step's groups over all processes, after `drawn` problems; every process must call.

    A process fills the places of its own groups that taught nothing; how many rounds that takes is agreed upon.
    """
    settings, accelerator = session.settings, session.accelerator
    processes, process = accelerator.num_processes, accelerator.process_index
    missing = [settings.prompts_per_step // processes] * processes  # groups still to sample, by process
    groups: list[list[Rollout]] = []
    rounds, first_tokens, first_drawn = 0, 0, drawn
    while True:
        start = drawn + sum(missing[:process])
        ours = range(start, start + missing[process])
        groups += session.agreed(
            partial(roll_out, session, problems, ours, stage, step=step, stage_index=stage_index, clock=clock)
        )
        drawn += sum(missing)
        if rounds == 0:
            first_tokens = sum(len(row.sampled.token_ids) for group in groups for row in group)
        if rounds == settings.dynamic_sampling_refills:
            break
        short = settings.prompts_per_step // processes - sum(teaches(group) for group in groups)
        missing = gather_object([short])
        clock.lap("time/rollout")
        if not any(missing):
            break
        rounds += 1
    rows = [row for group in groups for row in group]
    everywhere = gather_object([(row.draw, row.graded) for row in rows])
    clock.lap("time/rollout")
    graded = [each for _, each in sorted(everywhere, key=lambda item: (item[0], item[1].sample))]
    all_first_tokens = sum(gather_object([first_tokens]))
    refills = {
        "groups/refilled": drawn - first_drawn - settings.prompts_per_step,
        "groups/refill_rounds": rounds,
        "groups/refill_tokens": sum(row.tokens for row in graded) - all_first_tokens,
    }
    kept = [group for group in groups if teaches(group)] if settings.dynamic_sampling_refills else groups
    return Harvest([row for group in kept for row in group], rows[0], graded, drawn, refills)


def roll_out(
    session: Session,
    problems: Sequence[Problem],
    draws: Sequence[int],
    stage: Stage,
    *,
    step: int = 0,
    stage_index: int = 0,
    clock: Clock | None = None,
) -> list[list[Rollout]]:
    """One graded group with its advantages for each of these drawings, in this process alone."""
    settings, clock = session.settings, clock or Clock()
    drawn = [problem_at(problems, settings.seed, draw) for draw in draws]
    prompts = [session.vlm.encode_prompt(problem) for problem in drawn]
    how = {
        "group_size": stage.group_size,
        "max_completion_tokens": stage.max_completion_tokens,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "top_k": settings.top_k,
    }
    if session.servers:
        samples = session.servers.sample(drawn, prompts, **how)
    else:
        seeds = [seed_of(settings.seed, draw) for draw in draws]
        samples = sample(session.sampler, prompts, **how, seeds=seeds, rows_at_once=settings.rollout_rows)
    groups = []
    for draw, problem, prompt, group in zip(draws, drawn, prompts, samples, strict=True):
        clock.lap("time/rollout")
        groups.append(grade_group(session.vlm, draw, problem, prompt, group, settings, step, stage_index))
        clock.lap("time/reward")
    return groups


def grade_group(
    vlm: Vlm,
    draw: int,
    problem: Problem,
    prompt: EncodedPrompt,
    samples: Sequence[Sampled],
    settings: GrpoSettings,
    step: int,
    stage_index: int,
) -> list[Rollout]:
    """The samples of one problem as graded rollouts, compared with each other."""
    group = []
    for number, sampled in enumerate(samples):
        graded = grade_completion(
            to_completion(vlm, problem, sampled, number, step, stage_index), problem, settings.reward
        )
        assert prompt.problem_id == graded.problem_id, f"prompt of {prompt.problem_id} met {graded.problem_id}"
        counts = not (settings.mask_truncated and sampled.finish == "length")
        group.append(Rollout(draw, prompt, sampled, graded, has_loss=counts))
    rewards = torch.tensor([[row.graded.reward for row in group]])
    advantages = group_advantages(rewards, normalise_by_std=settings.own_or_published("normalise_by_std"))
    for row, advantage in zip(group, advantages[0].tolist(), strict=True):
        row.advantage = advantage
    return group


def teaches(group: Sequence[Rollout]) -> bool:
    """Whether a group's rewards differ."""
    return len({row.graded.reward for row in group}) > 1


# ---------------------------------------------------------------------------------------------------------- the figures


def rollout_metrics(graded: Sequence[Graded], group_size: int) -> dict[str, float]:
    """Rewards, lengths and the shares of groups that teach nothing, of completions that come group by group."""
    rewards = torch.tensor([row.reward for row in graded]).view(-1, group_size)
    truncated = torch.tensor([row.finish == "length" for row in graded]).view(-1, group_size)
    return {
        "reward/mean": mean([row.reward for row in graded]),
        "reward/format_ok": mean([row.format_ok for row in graded]),
        "reward/answer_ok": mean([row.answer_ok for row in graded]),
        "groups/all_right": float((rewards == 1).all(dim=1).float().mean()),
        "groups/all_wrong": float((rewards == 0).all(dim=1).float().mean()),
        "groups/all_truncated": float(truncated.all(dim=1).float().mean()),
        "length/mean": mean([row.tokens for row in graded]),
        "length/right_mean": mean([row.tokens for row in graded if row.answer_ok]),
        "length/wrong_mean": mean([row.tokens for row in graded if not row.answer_ok]),
        "length/clipped_ratio": float(truncated.float().mean()),
    }


def answer_held_out(
    session: Session, problems: Sequence[Problem], schedule: Schedule, step: int, stage_index: int
) -> list[Graded]:
    """Graded answers to problems never trained on, in their order, under one limit (the longest stage's, if none is
    set) and with the same chance throughout, so that two evaluations differ by the policy alone. Every process must
    call, and answers its share."""
    settings, accelerator = session.settings, session.accelerator
    longest = max(stage.max_completion_tokens for stage in schedule.stages)
    session.update_sampler(step)
    share = range(accelerator.process_index, len(problems), accelerator.num_processes)
    own = [problems[place] for place in share]
    how = {
        "max_completion_tokens": settings.evaluation_max_completion_tokens or longest,
        "temperature": settings.evaluation_temperature,
        "top_p": settings.evaluation_top_p,
    }
    if session.servers:
        prompts = [session.vlm.encode_prompt(problem) for problem in own]
        groups = session.agreed(lambda: list(session.servers.sample(own, prompts, group_size=1, **how)))
        completions = [to_completion(session.vlm, *pair, 0, step, stage_index) for pair in zip(own, chain(*groups))]
    else:
        completions = complete(
            session.sampler, own, **how, batch_size=settings.evaluation_batch_size, seed=settings.seed, step=step,
            stage=stage_index,
        )  # fmt: skip
    graded = [(place, grade_completion(row, problems[place])) for place, row in zip(share, completions, strict=True)]
    return [row for _, row in sorted(gather_object(graded), key=lambda item: item[0])]


def evaluation_metrics(graded: Sequence[Graded]) -> dict[str, float]:
    """Accuracy and length of an evaluation."""
    return {
        "eval/accuracy": mean([row.answer_ok for row in graded]),
        "eval/length_mean": mean([row.tokens for row in graded]),
        "eval/n": len(graded),
    }


def mean(values: Sequence[float]) -> float:
    """The mean; NaN of nothing."""
    return sum(values) / len(values) if values else math.nan
