import numpy as np
import pytest
from drawn import overlapping

from vr1lib.analysis import training_figures
from vr1lib.analysis.runs import TrainingRun
from vr1lib.records import Graded


def row(step, stage=0, tokens=10, right=True, text="", problem="p", sample=0):
    return Graded(
        problem_id=problem,
        sample=sample,
        step=step,
        stage=stage,
        text=text,
        tokens=tokens,
        finish="stop",
        logprob=-1.0,
        reward=float(right),
        format_ok=True,
        answer_ok=right,
        extracted=None,
        reason="",
    )


def run_of(*stages, label="PTST", **metrics):
    """A run with a metric row for each step; stages are numbers of steps."""
    rows, step = [{"step": 0, "stage": 0}], 0
    for stage, steps in enumerate(stages):
        for _ in range(steps):
            step += 1
            rows.append({"step": step, "stage": stage, **metrics})
    return TrainingRun(label, "runs/x", rows, [[64 * 2**stage, 16, steps] for stage, steps in enumerate(stages)])


METRICS = {
    "reward/mean": 0.5,
    "reward/format_ok": 0.9,
    "reward/answer_ok": 0.5,
    "groups/all_right": 0.25,
    "groups/all_wrong": 0.375,
    "groups/all_truncated": 0.125,
    "length/clipped_ratio": 0.1,
}


def test_groups_are_stacked_to_one():
    _, groups, _ = training_figures.reward_parts(run_of(3, 2, **METRICS)).axes
    stack = {band.get_label(): band.get_paths()[0].get_extents() for band in groups.collections}
    edges = {name: (round(box.y0, 3), round(box.y1, 3)) for name, box in stack.items()}
    assert edges == {
        "all cut at the limit": (0, 0.125),
        "all wrong, not all cut": (0.125, 0.375),
        "mixed: something to learn": (0.375, 0.75),
        "all right: no advantage": (0.75, 1),
    }
    assert {(box.x0, box.x1) for box in stack.values()} == {(0.5, 5.5)}


def test_reward_lies_beside_its_parts_and_stages_are_named_once():
    rewards, _, cut = training_figures.reward_parts(run_of(3, 2, **METRICS)).axes
    drawn = {line.get_label(): line.get_ydata()[0] for line in rewards.lines if len(line.get_xdata()) == 5}
    assert drawn == {"well-formed": 0.9, "answer right": 0.5, "mean reward": 0.5}
    assert [text.get_text() for text in rewards.texts] == ["stage 1: 64 tokens × 16", "stage 2:\n128 tokens × 16"]
    assert not cut.texts


def test_groups_that_were_not_logged_are_said():
    _, groups, _ = training_figures.reward_parts(run_of(3, **{"reward/mean": 0.5})).axes
    assert [text.get_text() for text in groups.texts] == ["not logged in this run"]


def test_words_are_counted_for_each_step_in_fifty_completions():
    graded = [row(1, text="Wait, wait! Waiting."), row(1, text="Hmm."), row(2, text="Check"), row(2, text="-")]
    (axes,) = training_figures.words_over_time(run_of(2), graded).axes
    rates = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert rates["Wait"] == [50, 0] and rates["Hmm"] == [25, 0] and rates["Check"] == [0, 25]
    assert list(axes.lines[0].get_xdata()) == [1, 2]


def test_long_runs_are_drawn_in_means_of_several_steps():
    graded = [row(step, text="Wait" if step % 2 else "") for step in range(1, 101)]
    (axes,) = training_figures.words_over_time(run_of(100), graded).axes
    line = next(line for line in axes.lines if line.get_label() == "Wait")
    assert list(line.get_ydata()) == [25] * 50 and list(line.get_xdata())[:2] == [1.5, 3.5]
    assert axes.get_xlabel() == "step (a point is the mean of 2 steps)"


def test_held_out_answers_show_the_first_evaluation_and_the_last_of_each_stage():
    run = run_of(10, 10)
    graded = [row(step, problem=f"p{step}") for step in (0, 5, 10, 15, 20)]
    moments = training_figures.moments(run, graded)
    assert {name: [item.step for item in rows] for name, rows in moments.items()} == {
        "start": [0],
        "end of stage 1": [10],
        "end of stage 2": [20],
    }


def test_sampled_completions_show_the_first_and_last_fifth_of_stages():
    graded = [row(step) for step in range(1, 21)]
    moments = training_figures.moments(run_of(10, 10), graded)
    assert {name: [item.step for item in rows] for name, rows in moments.items()} == {
        "start": [1, 2],
        "end of stage 1": [9, 10],
        "end of stage 2": [19, 20],
    }


def test_length_against_accuracy_at_each_moment():
    graded = [
        row(0, tokens=10 * (number % 2) + 10, right=number % 2 == 0, problem=f"p{number}") for number in range(20)
    ]
    graded += [row(10, tokens=10, problem=f"p{number}") for number in range(20)]
    curves, counts = training_figures.accuracy_by_length_and_stage(run_of(10), graded).axes
    heights = [np.array(line.get_ydata(), float)[[0, -1]] for line in curves.lines if line.get_marker() in "os"]
    np.testing.assert_equal(heights, [[100, 0], [100, np.nan]])
    names = [label.get_text().replace("\u00a0", " ") for label in counts.get_yticklabels()]
    assert names == ["start (mean 15 tokens)", "end of stage 1\n(mean 10 tokens)"]


@pytest.mark.parametrize("stages", [(50,), (20, 10), (20, 3, 40)])
def test_no_text_lies_over_another(stages):
    run = run_of(*stages, label="our own model with a third stage and a name that is far too long", **METRICS)
    last = sum(stages)
    graded = [row(1 + number % last, tokens=7 * (number % 150), text="Wait", sample=number) for number in range(600)]
    held_out = [*graded, *(row(0, tokens=number, problem=f"p{number}") for number in range(100))]
    for figure in (
        training_figures.reward_parts(run),
        training_figures.words_over_time(run, graded),
        training_figures.accuracy_by_length_and_stage(run, graded),
        training_figures.accuracy_by_length_and_stage(run, held_out),
    ):
        assert overlapping(figure) == []


def test_nothing_to_draw_is_said():
    empty = TrainingRun("empty", "runs/x", [], [])
    for figure, why in (
        (training_figures.reward_parts(empty), "empty logged no reward"),
        (training_figures.words_over_time(empty, []), "empty kept no completions"),
        (training_figures.accuracy_by_length_and_stage(empty, []), "empty kept no completions"),
    ):
        assert [text.get_text() for text in figure.axes[0].texts] == [why]
