"""Group-relative advantages against numbers worked by hand, and their invariances."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vr1lib.advantage import group_advantages

groups_of_rewards = st.integers(2, 8).flatmap(
    lambda size: st.lists(st.lists(st.integers(-20, 20), min_size=size, max_size=size), min_size=1, max_size=4)
)


def test_one_right_of_four_by_hand():
    # mean 1/4; squared deviations 9/16 + 3/16 = 3/4; unbiased variance 1/4; std 1/2; (1 − 1/4) / (1/2) = 3/2
    advantages = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), epsilon=0.0)
    assert advantages.tolist() == [[1.5, -0.5, -0.5, -0.5]]


def test_rewards_may_be_whole_numbers():
    assert group_advantages(torch.tensor([[1, 0, 0, 0]]), epsilon=0.0).tolist() == [[1.5, -0.5, -0.5, -0.5]]


def test_epsilon_is_added_to_the_std():
    advantages = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), epsilon=0.5)
    assert advantages.tolist() == [[0.75, -0.25, -0.25, -0.25]]


def test_std_is_unbiased():
    # two rewards 0 and 1: deviations ±1/2, variance (1/4 + 1/4) / 1, std √½; the biased std ½ would give ±1
    advantages = group_advantages(torch.tensor([[0.0, 1.0]]), epsilon=0.0)
    assert advantages[0].tolist() == pytest.approx([-math.sqrt(0.5), math.sqrt(0.5)])


def test_without_std_only_the_mean_is_taken_off():
    advantages = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), normalise_by_std=False)
    assert advantages.tolist() == [[0.75, -0.25, -0.25, -0.25]]


@pytest.mark.parametrize("normalise_by_std", [True, False])
@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1e6 / 3])
def test_group_of_equal_rewards_has_zero_advantage(value, normalise_by_std):
    rewards = torch.tensor([[value] * 3, [0.0, 1.0, 0.0]])
    advantages = group_advantages(rewards, epsilon=0.0, normalise_by_std=normalise_by_std)
    assert advantages[0].tolist() == [0.0, 0.0, 0.0]
    assert advantages[1].abs().min() > 0


def test_group_of_one_has_zero_advantage():
    assert group_advantages(torch.tensor([[1.0], [0.0]])).tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize("rewards", [torch.tensor([1.0, 0.0]), torch.zeros(2, 0), torch.tensor([[1.0, math.nan]])])
def test_rewards_of_wrong_shape_or_value_are_refused(rewards):
    with pytest.raises(ValueError, match="rewards must be"):
        group_advantages(rewards)


@given(groups_of_rewards, st.booleans())
def test_advantages_of_a_group_add_up_to_zero(rewards, normalise_by_std):
    advantages = group_advantages(torch.tensor(rewards).float(), normalise_by_std=normalise_by_std)
    assert torch.allclose(advantages.sum(dim=1), torch.zeros(len(rewards)), atol=1e-4)


@given(groups_of_rewards, st.randoms(use_true_random=False))
def test_reordering_a_group_reorders_its_advantages(rewards, random):
    order = list(range(len(rewards[0])))
    random.shuffle(order)
    rewards = torch.tensor(rewards).float()
    assert torch.allclose(group_advantages(rewards[:, order]), group_advantages(rewards)[:, order], atol=1e-6)


@given(groups_of_rewards, st.floats(0.01, 100), st.integers(-50, 50))
def test_scaling_and_shifting_rewards_changes_nothing(rewards, scale, shift):
    rewards = torch.tensor(rewards).double()
    changed = group_advantages(rewards * scale + shift)
    varied = (rewards != rewards[:, :1]).any(dim=1)  # equal rewards may come apart by rounding when scaled and shifted
    assert torch.allclose(changed[varied], group_advantages(rewards)[varied], atol=1e-3)


@given(groups_of_rewards)
def test_groups_do_not_see_each_other(rewards):
    rewards = torch.tensor(rewards).float()
    alone = torch.cat([group_advantages(row[None]) for row in rewards])
    assert torch.equal(group_advantages(rewards), alone)
