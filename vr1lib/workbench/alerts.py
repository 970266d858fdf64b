"""What a run's metrics say that a person should look at now: completions cut, reward gone, numbers not finite.

Thresholds are our choice; docs/dashboards.md explains them. The first two kinds are raised when they begin, and again
only after they have been over; a bad step is raised each time.
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

WINDOW = 5  # steps that a mean is taken over
CLIPPED_RATIO = 0.9  # of a window's completions cut at the limit
COLLAPSE_SHARE = 0.5  # of the best window's reward, where that was at least COLLAPSE_FROM
COLLAPSE_FROM = 0.1
FINITE = ("loss", "grad_norm", "kl", "reward/mean")  # keys that are numbers in every sound step


@dataclass(frozen=True)
class Alert:
    step: int
    kind: Literal["clipped", "collapse", "bad_step"]
    level: Literal["WARN", "ERROR"]
    title: str
    text: str


class Watch:
    """Sees a run's metrics in order and says what has begun to go wrong."""

    def __init__(self) -> None:
        self.clipped: deque[float] = deque(maxlen=WINDOW)
        self.rewards: deque[float] = deque(maxlen=WINDOW)
        self.best_reward = 0.0  # of any window so far
        self.stage: Any = None
        self.bad_steps = 0
        self.going_on: set[str] = set()

    def see(self, row: Mapping[str, Any]) -> list[Alert]:
        """The alerts that this row of metrics begins."""
        stage = row.get("stage", self.stage)
        if stage != self.stage:  # another limit, another group size: what was cut before says nothing
            self.stage = stage
            self.clipped.clear()
            self.rewards.clear()
        found = [self.see_clipped(row), self.see_collapse(row), self.see_bad_step(row)]
        return [Alert(row["step"], *alert) for alert in found if alert is not None]

    def see_clipped(self, row: Mapping[str, Any]) -> tuple[Any, ...] | None:
        if not is_number(row.get("length/clipped_ratio")):
            return None
        self.clipped.append(row["length/clipped_ratio"])
        mean = sum(self.clipped) / len(self.clipped)
        if not self.begins("clipped", len(self.clipped) == WINDOW and mean >= CLIPPED_RATIO):
            return None
        text = (
            f"{100 * mean:.0f} % of the completions of the last {WINDOW} steps were cut at the stage's limit, so with "
            "reward 0: a longer first stage, or a model that answers shorter"
        )
        return "clipped", "WARN", "most completions are cut", text

    def see_collapse(self, row: Mapping[str, Any]) -> tuple[Any, ...] | None:
        if not is_number(row.get("reward/mean")):
            return None
        self.rewards.append(row["reward/mean"])
        mean = sum(self.rewards) / len(self.rewards)
        whole = len(self.rewards) == WINDOW
        fallen = whole and self.best_reward >= COLLAPSE_FROM and mean < COLLAPSE_SHARE * self.best_reward
        self.best_reward = max(self.best_reward, mean if whole else 0.0)
        if not self.begins("collapse", fallen):
            return None
        text = (
            f"mean reward of the last {WINDOW} steps is {mean:.3f}, after {self.best_reward:.3f} at best: see "
            "entropy, kl and reward/format_ok; from the last good checkpoint with a lower learning rate, or with "
            "kl_coefficient above 0"
        )
        return "collapse", "WARN", "reward has collapsed", text

    def see_bad_step(self, row: Mapping[str, Any]) -> tuple[Any, ...] | None:
        """A skipped step is counted by training itself, a number that is not finite seen here."""
        counted = row.get("bad_steps", self.bad_steps)
        strange = [key for key in FINITE if key in row and not is_number(row[key])]
        rose, self.bad_steps = counted > self.bad_steps, counted
        if not rose and not strange:
            return None
        what = f"not finite: {', '.join(strange)}; " if strange else ""
        text = f"{what}{counted} bad steps so far, skipped and dumped to bad_steps/"
        return "bad_step", "ERROR", "a step was not finite", text

    def begins(self, kind: str, now: bool) -> bool:
        before = kind in self.going_on
        (self.going_on.add if now else self.going_on.discard)(kind)
        return now and not before


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
