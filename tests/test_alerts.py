"""Alerts come when something begins to go wrong, once, and not before."""

import math
from pathlib import Path

import pytest

from vr1lib.workbench.alerts import CLIPPED_RATIO, COLLAPSE_FROM, COLLAPSE_SHARE, WINDOW, Watch


def kinds(rows):
    """(step, kind) of the alerts that rows of metrics raise, in order."""
    watch = Watch()
    return [(alert.step, alert.kind) for step, row in enumerate(rows, 1) for alert in watch.see({"step": step, **row})]


def clipped(*ratios, stage=0):
    return [{"length/clipped_ratio": ratio, "stage": stage} for ratio in ratios]


def rewards(*means):
    return [{"reward/mean": mean} for mean in means]


def test_completions_cut_for_a_whole_window_raise_one_alert():
    assert kinds(clipped(*[0.95] * (WINDOW + 3))) == [(WINDOW, "clipped")]


def test_suppression_that_works_raises_none():
    """The demo's first steps: high at first, falling within a few."""
    assert kinds(clipped(0.95, 0.95, 0.9, 0.8, 0.5, 0.2, 0.1, 0.0)) == []


def test_alert_comes_again_only_after_it_has_been_over():
    rows = clipped(*[1.0] * 5, *[0.0] * 5, *[1.0] * 5)
    assert kinds(rows) == [(5, "clipped"), (15, "clipped")]


def test_new_stage_begins_a_new_window():
    assert kinds(clipped(*[1.0] * 4) + clipped(*[1.0] * 4, stage=1)) == []
    assert kinds(clipped(*[1.0] * 4) + clipped(*[1.0] * 5, stage=1)) == [(9, "clipped")]


def test_reward_at_less_than_half_its_best_is_a_collapse():
    assert kinds(rewards(*[0.6] * 5, *[0.31] * 6)) == []
    assert kinds(rewards(*[0.6] * 5, *[0.2] * 6)) == [(9, "collapse")]  # four of 0.2 and one of 0.6: 0.28 < 0.3


def test_reward_that_never_rose_cannot_collapse():
    assert kinds(rewards(*[0.09] * 5, *[0.0] * 10)) == []


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
@pytest.mark.parametrize("key", ["loss", "grad_norm", "kl", "reward/mean"])
def test_numbers_that_are_not_finite_raise_an_alert_each_time(key, value):
    assert kinds([{key: 1.0}, {key: value}, {key: value}]) == [(2, "bad_step"), (3, "bad_step")]


def test_skipped_steps_are_told_by_their_count():
    watch = Watch()
    (alert,) = watch.see({"step": 7, "loss": 0.1, "bad_steps": 1})
    assert (alert.level, alert.step) == ("ERROR", 7) and "1 bad steps so far" in alert.text
    assert watch.see({"step": 8, "loss": 0.1, "bad_steps": 1}) == []


def test_mean_length_of_nothing_is_no_bad_step():
    assert kinds([{"length/right_mean": None, "loss": 0.0}]) == []


def test_every_alert_and_its_threshold_is_explained():
    page = (Path(__file__).parent.parent / "docs" / "dashboards.md").read_text(encoding="utf-8")
    rows = {"clipped": clipped(*[1.0] * 5), "collapse": rewards(*[0.6] * 5, *[0.0] * 5), "bad_step": [{"loss": None}]}
    for kind, metrics in rows.items():
        watch = Watch()
        alerts = [alert for step, row in enumerate(metrics) for alert in watch.see({"step": step, **row})]
        assert [alert.kind for alert in alerts] == [kind] and f"| {alerts[0].title} |" in page
    assert f"≥ {CLIPPED_RATIO} on average over {WINDOW} steps" in page and f"≥ {COLLAPSE_FROM}" in page
    assert COLLAPSE_SHARE == 0.5 and "below half of the best" in page
