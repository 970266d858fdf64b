"""The first half of a step: draws and samples follow from numbers alone, useless groups are replaced within bounds,
cut completions can be kept out of the loss, and metrics are of all that was sampled."""

from dataclasses import replace

import pytest
import torch
from grpo_case import SETTINGS, graded_by, make_case, odd_bytes, problems_of, without_times

from vr1lib.models.vlm import load_vlm
from vr1lib.schedule import Schedule, Stage
from vr1lib.training import grpo, rollouts
from vr1lib.training.grpo import prepare, roll_out, train_grpo
from vr1lib.training.rollouts import Clock, harvest, problem_at

STAGE = Stage(max_completion_tokens=6, group_size=4, steps=1)
PLAIN = replace(SETTINGS, kl_coefficient=0.0)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return make_case(tmp_path_factory.mktemp("case"))


@pytest.fixture(scope="module")
def problems(case):
    return problems_of(case)


@pytest.fixture
def vlm(case):
    return load_vlm(case / "model")


def grade_with(monkeypatch, is_right):
    monkeypatch.setattr(rollouts, "grade_completion", graded_by(is_right))


def reap(vlm, problems, settings, drawn=0):
    return harvest(prepare(vlm, settings), problems, drawn, STAGE, 1, 0, Clock())


def test_problems_come_in_a_new_seeded_order_every_epoch(problems):
    def epochs(seed):
        ids = [problem_at(problems, seed, draw).id for draw in range(18)]
        return [ids[:6], ids[6:12], ids[12:]]

    first = epochs(1)
    assert first == epochs(1) != epochs(2)
    assert all(sorted(epoch) == sorted(problem.id for problem in problems) for epoch in first)
    assert first[0] != first[1]


def test_a_drawing_is_sampled_alike_alone_and_among_others(vlm, problems):
    session = prepare(vlm, PLAIN)
    together = roll_out(session, problems, range(8), STAGE)
    (alone,) = roll_out(session, problems, [7], STAGE)
    assert [row.sampled.token_ids for row in alone] == [row.sampled.token_ids for row in together[7]]
    again = next(draw for draw in range(6) if problem_at(problems, 0, draw) == problem_at(problems, 0, 7))
    assert [row.sampled.token_ids for row in together[again]] != [row.sampled.token_ids for row in alone]


def test_metrics_do_not_depend_on_how_many_rows_go_through_the_model_at_once(case, problems, monkeypatch):
    grade_with(monkeypatch, odd_bytes)

    def metrics(**changes):
        rows = []
        session = prepare(load_vlm(case / "model"), replace(SETTINGS, evaluate_every=1, **changes))
        train_grpo(session, problems, Schedule([(6, 4, 2)]), log=rows.append, evaluation_problems=problems[:3])
        return [without_times(row) for row in rows]

    few, many = metrics(rollout_rows=3, micro_batch_tokens=80, evaluation_batch_size=1), metrics(rollout_rows=64)
    for one, other in zip(few, many, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5, nan_ok=True)


def test_a_row_of_another_problem_is_an_error(vlm, problems):
    session = prepare(vlm, PLAIN)
    (group,) = roll_out(session, problems, [0], STAGE)
    mine, other = problem_at(problems, 0, 0), problem_at(problems, 0, 1)
    samples = [row.sampled for row in group]
    with pytest.raises(AssertionError, match="met"):
        rollouts.grade_group(vlm, 0, mine, vlm.encode_prompt(other), samples, PLAIN, 1, 0)


def test_advantages_compare_a_group_with_itself(vlm, problems, monkeypatch):
    grade_with(monkeypatch, odd_bytes)
    for loss, spread in [("grpo", lambda r: r.std()), ("dr_grpo", lambda r: 1.0)]:
        for group in roll_out(prepare(vlm, replace(PLAIN, loss=loss)), problems, range(4), STAGE):
            rewards = torch.tensor([row.graded.reward for row in group])
            expected = (rewards - rewards.mean()) / spread(rewards) if rewards.std() else torch.zeros(4)
            assert [row.advantage for row in group] == pytest.approx(expected.tolist(), abs=1e-5)


# --------------------------------------------------------------------------------------------------- dynamic sampling


def first_draws_are_useless(problems, count):
    """A rule by which the first `count` drawings teach nothing and all others do."""
    useless = [problem_at(problems, 0, draw).id for draw in range(count)]
    return lambda text, problem: problem.id not in useless and odd_bytes(text, problem)


def test_groups_that_agree_are_replaced_and_good_ones_kept(vlm, problems, monkeypatch):
    grade_with(monkeypatch, first_draws_are_useless(problems, 2))
    crop = reap(vlm, problems, replace(PLAIN, dynamic_sampling_refills=3))
    draws = sorted({row.draw for row in crop.kept})
    assert draws == [2, 3, 4, 5] and crop.drawn == 6
    assert crop.refills["groups/refilled"] == 2 and crop.refills["groups/refill_rounds"] == 1
    assert crop.refills["groups/refill_tokens"] == sum(row.tokens for row in crop.graded[16:])
    assert len(crop.graded) == 24  # what was sampled is told of, what was replaced too
    assert rollouts.rollout_metrics(crop.graded, 4)["groups/all_wrong"] == pytest.approx(2 / 6)


def test_refilling_ends_after_so_many_rounds_and_goes_on_with_what_there_is(vlm, problems, monkeypatch):
    grade_with(monkeypatch, odd_bytes)
    first_two = roll_out(prepare(vlm, PLAIN), problems, range(2), STAGE)
    good = next(group[0] for group in first_two if rollouts.teaches(group))
    one = good.graded.problem_id
    grade_with(monkeypatch, lambda text, problem: problem.id == one and odd_bytes(text, problem))
    crop = reap(vlm, problems, replace(PLAIN, prompts_per_step=2, dynamic_sampling_refills=2))
    assert {row.draw for row in crop.kept} == {good.draw}
    assert crop.refills["groups/refill_rounds"] == 2 and crop.drawn == 2 + 1 + 1


def test_without_a_good_group_the_step_goes_by_without_an_update(vlm, problems):
    before = {name: weight.clone() for name, weight in vlm.model.state_dict().items()}
    rows = []
    session = prepare(vlm, replace(PLAIN, dynamic_sampling_refills=1, weight_decay=0.5, kl_coefficient=0.1))
    train_grpo(session, problems, Schedule([(4, 2, 2)]), log=rows.append)
    assert all(torch.equal(weight, before[name]) for name, weight in vlm.model.state_dict().items())
    assert [(row["groups/refilled"], row["grad_norm"], row["loss"]) for row in rows[1:]] == [(4, 0, 0)] * 2
    assert rows[-1]["bad_steps"] == 0 and rows[-1]["groups/all_wrong"] == 1


def test_without_dynamic_sampling_every_group_is_learnt_from(vlm, problems, monkeypatch):
    grade_with(monkeypatch, first_draws_are_useless(problems, 2))
    crop = reap(vlm, problems, PLAIN, drawn=0)
    assert {row.draw for row in crop.kept} == {0, 1, 2, 3} and crop.drawn == 4
    assert set(crop.refills.values()) == {0}


# ------------------------------------------------------------------------------------------------------ cut completions


def test_cut_completions_have_a_reward_and_a_place_in_the_metrics_but_no_loss(vlm, problems, monkeypatch):
    grade_with(monkeypatch, odd_bytes)
    stage = Stage(max_completion_tokens=40, group_size=6, steps=1)
    session = prepare(vlm, replace(PLAIN, mask_truncated=True, temperature=1.5))
    rows = [row for group in roll_out(session, problems, range(6), stage) for row in group]
    cut = [row for row in rows if row.graded.finish == "length"]
    assert cut and len(cut) < len(rows) and any(row.advantage for row in cut)
    assert {row.has_loss for row in cut} == {False} and all(row.has_loss for row in rows if row not in cut)

    def gradient(rows):
        session.vlm.model.zero_grad()
        metrics = grpo.accumulate_gradients(session, rows, 40)
        return metrics, vlm.model.lm_head.weight.grad.clone()

    masked, of_masked = gradient(rows)
    left_out, of_left_out = gradient([row for row in rows if row.has_loss])
    assert masked == pytest.approx(left_out, rel=1e-5) and torch.allclose(of_masked, of_left_out, atol=1e-7)


def test_a_step_of_cut_completions_alone_goes_by_without_an_update(vlm, problems, monkeypatch):
    grade_with(monkeypatch, odd_bytes)
    rows = []
    session = prepare(vlm, replace(PLAIN, mask_truncated=True, weight_decay=0.5))
    before = vlm.model.lm_head.weight.clone()
    train_grpo(session, problems, Schedule([(2, 4, 1)]), log=rows.append)
    assert rows[1]["length/clipped_ratio"] == 1 and rows[1]["grad_norm"] == 0
    assert torch.equal(vlm.model.lm_head.weight, before)
