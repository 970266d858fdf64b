"""Progressive Thinking Suppression Training: how long the policy may think, stage by stage (Section 3.4).

A stage s gives every problem G_s completions of at most L_s tokens, for a number of steps. Suppression comes from
L_s: a completion cut at L_s has no closing tag, so its reward is 0 and right but long chains of thought lose to right
and short ones; the next stage lets the model think longer, with fewer samples, so the token budget G_s × L_s of a
problem stays the same: 16 × 4,096 = 8 × 8,192 = 4 × 16,384 = 65,536.

Stage 1 allows 4K tokens. Section 3.4, Figure 4 and the authors' README say 4K; Section 4.1 says 8K, which we take for a
slip: at step 0, on the same checkpoint, Figure 1 D shows 2,344 tokens on average under PTST against 3,567 under a 16K
limit, which a 4K limit explains and an 8K limit doesn't; and only 4K keeps the budget equal. The paper's model uses two
stages; Figure 1 also draws an optional third.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vr1lib.records import RequestError


class Stage(NamedTuple):
    """One stage: the most tokens a completion may have, completions per problem, optimizer steps."""

    max_completion_tokens: int
    group_size: int
    steps: int


PTST_PAPER = (Stage(4096, 16, 100), Stage(8192, 8, 100))
PTST_PAPER_THIRD_STAGE = Stage(16384, 4, 100)


@dataclass(frozen=True)
class Schedule:
    """Stages in order, given as `Stage`s or as (max_completion_tokens, group_size, steps) triples.

    Raises RequestError for no stage at all, a stage that isn't three whole numbers, or a number below 1.
    """

    stages: Sequence[Stage | Sequence[int]]

    def __post_init__(self) -> None:
        if not self.stages:
            raise RequestError("stages = []: nothing to train; give [max_completion_tokens, group_size, steps] triples")
        object.__setattr__(self, "stages", tuple(checked_stage(i, values) for i, values in enumerate(self.stages)))

    @property
    def total_steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    def stage_at(self, step: int) -> tuple[int, Stage]:
        """Index (0 is the paper's Stage 1) and stage of `step`, the number of optimizer steps taken before it."""
        if not 0 <= step < self.total_steps:
            raise ValueError(f"step {step} is outside the schedule's steps 0 … {self.total_steps - 1}")
        last_step = -1
        for index, stage in enumerate(self.stages):
            last_step += stage.steps
            if step <= last_step:
                return index, stage
        raise AssertionError("unreachable: step < total_steps")

    @staticmethod
    def token_budget(stage: Stage) -> int:
        """The most completion tokens one problem may cost in a step: group size × length."""
        return stage.group_size * stage.max_completion_tokens

    @property
    def equal_budget(self) -> bool:
        """Whether every stage spends the same token budget on a problem, as the paper's do."""
        return len({self.token_budget(stage) for stage in self.stages}) == 1


def checked_stage(index: int, values: Sequence[int]) -> Stage:
    """`values` as a Stage, or a RequestError naming the stage, the field and the value."""
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != len(Stage._fields):
        raise RequestError(f"stages[{index}] = {values!r}: give three: [max_completion_tokens, group_size, steps]")
    for field, value in zip(Stage._fields, values):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise RequestError(f"stages[{index}], {field} = {value!r}: give a whole number of at least 1")
    return Stage(*values)
