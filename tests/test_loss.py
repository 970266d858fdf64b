"""Every named loss against numbers worked by hand, its gradient against its closed form; micro-batches against full."""

import math
from typing import get_args

import pytest
import torch

from vr1lib.loss import EXPONENT_LIMIT, LOSSES, LossName, LossOutput, dapo_loss, k3, token_logprobs

LOG_2 = math.log(2.0)
ALL = pytest.mark.parametrize("name", LOSSES)
PER_TOKEN = pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo"])


def loss_of(
    name: str,
    ratios: list[list[float]],  # π_θ / π_old; the old policy's log-probabilities are 0
    advantages: list[float],
    mask: list[list[int]] | None = None,
    reference: list[list[float]] | None = None,  # π_ref / π_old
    **settings,
) -> LossOutput:
    logprobs = torch.tensor(ratios).log()
    mask = torch.ones_like(logprobs) if mask is None else torch.tensor(mask)
    reference = None if reference is None else torch.tensor(reference).log()
    return call(name, logprobs, torch.zeros_like(logprobs), torch.tensor(advantages), mask, reference, **settings)


def call(name: str, *tensors, **settings) -> LossOutput:
    """The loss with its published bounds, no KL, and a limit of 5 tokens, unless told otherwise."""
    loss = LOSSES[name]
    published = {"clip_low": loss.clip_low, "clip_high": loss.clip_high}
    return loss.function(*tensors, **{"kl_coefficient": 0.0, "max_completion_tokens": 5, **published, **settings})


# ----------------------------------------------------------------------------------------------- each loss, by hand


def test_published_defaults():
    assert {name: (loss.clip_low, loss.clip_high, loss.normalise_by_std) for name, loss in LOSSES.items()} == {
        "grpo": (0.2, 0.2, True),
        "equation_1": (0.2, 0.2, True),
        "gspo": (3e-4, 4e-4, True),
        "dr_grpo": (0.2, 0.2, False),
        "dapo": (0.2, 0.28, True),
    }
    assert tuple(LOSSES) == get_args(LossName)


# one completion of two tokens and advantage 1, one of three tokens and advantage −2; every ratio unlike every other
RATIOS, ADVANTAGES, MASK = [[1.1, 1.5, 9.0], [0.9, 0.5, 1.3]], [1.0, -2.0], [[1, 1, 0], [1, 1, 1]]
# −min(ρ, clip ρ) = −1.1 and −1.2, +2 max(ρ, clip ρ) = 1.8, 1.6 and 2.6: together −2.3 + 6 = 3.7
# π_ref / π_θ = 2 at the first token of each completion and 1 elsewhere: k3 = 1 − log 2 there, 0 elsewhere
REFERENCE = [[2.2, 1.5, 1.0], [1.8, 0.5, 1.3]]


def test_grpo_is_the_mean_over_all_tokens():
    output = loss_of("grpo", RATIOS, ADVANTAGES, MASK)
    assert output.loss.item() == pytest.approx(3.7 / 5)
    assert output.clip_high_fraction.item() == pytest.approx(1 / 5)  # 1.5
    assert output.clip_low_fraction.item() == pytest.approx(1 / 5)  # 0.5
    output = loss_of("grpo", RATIOS, ADVANTAGES, MASK, REFERENCE, kl_coefficient=0.1)
    assert output.loss.item() == pytest.approx((3.7 + 0.1 * 2 * (1 - LOG_2)) / 5)
    assert output.kl.item() == pytest.approx(2 * (1 - LOG_2) / 5)


def test_dapo_is_the_mean_over_all_tokens_under_a_raised_upper_bound():
    # the upper bound is 1.28 instead of 1.2: −1.1 − 1.28 + 6 = 3.62
    output = loss_of("dapo", RATIOS, ADVANTAGES, MASK)
    assert output.loss.item() == pytest.approx(3.62 / 5)
    assert output.clip_high_fraction.item() == output.clip_low_fraction.item() == pytest.approx(1 / 5)
    assert loss_of("dapo", [[1.27]], [1.0]).clip_high_fraction.item() == 0
    output = loss_of("dapo", RATIOS, ADVANTAGES, MASK, REFERENCE, kl_coefficient=0.1)
    assert output.loss.item() == pytest.approx((3.62 + 0.1 * 2 * (1 - LOG_2)) / 5)


def test_dr_grpo_divides_by_the_tokens_that_could_have_been():
    # two completions of at most 7 tokens, whatever their lengths are
    output = loss_of("dr_grpo", RATIOS, ADVANTAGES, MASK, max_completion_tokens=7)
    assert output.loss.item() == pytest.approx(3.7 / 14)
    assert output.clip_low_fraction.item() == pytest.approx(1 / 5)  # metrics stay means over the tokens there are
    output = loss_of("dr_grpo", RATIOS, ADVANTAGES, MASK, REFERENCE, kl_coefficient=0.1, max_completion_tokens=7)
    assert output.loss.item() == pytest.approx((3.7 + 0.1 * 2 * (1 - LOG_2)) / 14)


def test_equation_1_has_the_ratio_and_the_kl_of_whole_completions():
    # ρ = 1.1 · 1.5 = 1.65 → 1.2; 0.9 · 0.5 · 1.3 = 0.585 → max(0.585, 0.8) · 2 = 1.6; no token average
    output = loss_of("equation_1", RATIOS, ADVANTAGES, MASK)
    assert output.loss.item() == pytest.approx((-1.2 + 1.6) / 2)
    assert output.clip_high_fraction.item() == pytest.approx(2 / 5)  # both tokens of the first
    assert output.clip_low_fraction.item() == pytest.approx(3 / 5)
    # π_ref / π_θ of each whole completion is 2 · 1 (· 1): KL 1 − log 2 for each
    output = loss_of("equation_1", RATIOS, ADVANTAGES, MASK, REFERENCE, kl_coefficient=0.1)
    assert output.loss.item() == pytest.approx((0.4 + 0.1 * 2 * (1 - LOG_2)) / 2)
    assert output.kl.item() == pytest.approx(2 * (1 - LOG_2) / 5)  # the metric stays a token's
    # two tokens of π_ref / π_θ = 2: the completion's is 4, its KL 4 − log 4 − 1 and not 2 (1 − log 2)
    output = loss_of("equation_1", [[1.0, 1.0]], [0.0], None, [[2.0, 2.0]], kl_coefficient=1.0)
    assert output.loss.item() == pytest.approx(3 - 2 * LOG_2)


def test_gspo_has_the_geometric_mean_of_a_completions_ratios():
    # inside wide bounds: (1.21 · 1)^(1/2) = 1.1 and (0.9 · 0.9 · 0.9)^(1/3) = 0.9, the padding's 9 not counted
    ratios, wide = [[1.21, 1.0, 9.0], [0.9, 0.9, 0.9]], {"clip_low": 0.2, "clip_high": 0.2}
    output = loss_of("gspo", ratios, ADVANTAGES, MASK, **wide)
    assert output.loss.item() == pytest.approx((-1.1 + 1.8) / 2)
    assert output.clip_low_fraction.item() == output.clip_high_fraction.item() == 0
    # its own bounds: −1.0004 + 2 · 0.9997
    output = loss_of("gspo", ratios, ADVANTAGES, MASK)
    assert output.loss.item() == pytest.approx((-1.0004 + 1.9994) / 2)
    assert output.clip_high_fraction.item() == pytest.approx(2 / 5)
    assert output.clip_low_fraction.item() == pytest.approx(3 / 5)
    # the KL is a mean over each completion's tokens: (1 − log 2) / 2 and (1 − log 2) / 3
    reference = [[2.42, 1.0, 1.0], [1.8, 0.9, 0.9]]
    output = loss_of("gspo", ratios, ADVANTAGES, MASK, reference, kl_coefficient=0.1, **wide)
    assert output.loss.item() == pytest.approx((0.7 + 0.1 * (1 - LOG_2) * (1 / 2 + 1 / 3)) / 2)


# ------------------------------------------------------------------------------------------------ what all have alike


@ALL
def test_bounds_cut_off_what_would_still_gain_and_nothing_else(name):
    """One token, so that token and completion are the same."""
    for ratio, advantage, bounded, low, high in [
        (1.1, 1.0, 1.1, 0, 0),
        (1.5, 1.0, 1.25, 0, 1),  # a good token gains nothing above the upper bound
        (0.5, 1.0, 0.5, 0, 0),
        (0.5, -1.0, 0.9, 1, 0),  # a bad one nothing below the lower
        (1.5, -1.0, 1.5, 0, 0),
    ]:
        output = loss_of(name, [[ratio]], [advantage], clip_low=0.1, clip_high=0.25, max_completion_tokens=1)
        assert output.loss.item() == pytest.approx(-bounded * advantage)
        assert (output.clip_low_fraction.item(), output.clip_high_fraction.item()) == (low, high)


RATIO_OF = {
    "token": lambda log_ratio, mask: log_ratio,
    "completion": lambda log_ratio, mask: (log_ratio * mask).sum(1, keepdim=True),
    "geometric": lambda log_ratio, mask: (log_ratio * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True),
}


@pytest.mark.parametrize(
    ("name", "level", "tokens_share", "kl_level"),
    [
        # d loss / d log π of a token inside the bounds, and the share of its row's tokens in it
        ("grpo", "token", lambda mask: 1 / mask.sum(), "token"),
        ("dapo", "token", lambda mask: 1 / mask.sum(), "token"),
        ("dr_grpo", "token", lambda mask: torch.tensor(1 / (3 * 5)), "token"),
        ("equation_1", "completion", lambda mask: torch.tensor(1 / 3), "completion"),
        ("gspo", "geometric", lambda mask: 1 / mask.sum(1, keepdim=True) / 3, "token"),
    ],
)
def test_gradient_is_its_closed_form(name, level, tokens_share, kl_level):
    """d/d log π of −ρ A is −ρ A where no bound cuts; of the KL r − log r − 1 it is 1 − r."""
    generator = torch.Generator().manual_seed(0)
    logprobs, old, reference = (-1 - 0.3 * torch.rand(3, 5, generator=generator) for _ in range(3))
    mask = torch.arange(5) < torch.tensor([[5], [2], [3]])
    advantages, low, high, coefficient = torch.tensor([1.0, -1.0, 0.5]), 0.02, 0.03, 0.2
    logprobs.requires_grad_()
    settings = {"clip_low": low, "clip_high": high, "kl_coefficient": coefficient}
    output = call(name, logprobs, old, advantages, mask, reference, **settings)
    output.loss.backward()
    with torch.no_grad():
        ratio = RATIO_OF[level](logprobs - old, mask).exp()
        good = advantages[:, None] > 0
        cut = (good & (ratio > 1 + high)) | (~good & (ratio < 1 - low))
        reference_ratio = RATIO_OF[kl_level](reference - logprobs, mask).exp()
        expected = torch.where(cut, 0.0, -ratio * advantages[:, None]) + coefficient * (1 - reference_ratio)
        expected = expected * mask * tokens_share(mask)
        assert 0 < (cut & mask).sum() < mask.sum()  # both kinds are there
    assert torch.allclose(logprobs.grad, expected, rtol=1e-4, atol=1e-7)


@PER_TOKEN
def test_clipped_tokens_have_no_gradient(name):
    logprobs = torch.tensor([[1.5, 1.1], [0.5, 0.9]]).log().requires_grad_()
    call(name, logprobs, torch.zeros(2, 2), torch.tensor([1.0, -1.0]), torch.ones(2, 2)).loss.backward()
    assert (logprobs.grad == 0).tolist() == [[True, False], [True, False]]


@ALL
def test_first_step_has_loss_zero_but_a_gradient(name):
    logprobs = torch.tensor([[-1.0, -2.0], [-3.0, -0.5]], requires_grad=True)
    output = call(name, logprobs, logprobs.detach(), torch.tensor([0.7, -0.7]), torch.ones(2, 2))
    output.loss.backward()
    assert output.loss.item() == pytest.approx(0.0)
    assert (logprobs.grad[0] < 0).all() and (logprobs.grad[1] > 0).all()


@ALL
def test_what_stands_outside_the_mask_has_no_influence(name):
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    clean = torch.tensor([[-1.0, -2.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    outside = torch.zeros(2, 3).masked_fill(mask == 0, math.nan)
    dirty = (clean + outside).detach().requires_grad_()
    old, reference = torch.tensor([[-1.1, -2.1, 0.0]] * 2), torch.tensor([[-1.2, -1.9, 0.0]] * 2)
    wild = torch.zeros(2, 3).masked_fill(mask == 0, -math.inf)
    outputs = [
        call(name, logprobs, old + noise, torch.ones(2), mask, reference + noise, kl_coefficient=0.1)
        for logprobs, noise in ((clean, torch.zeros(2, 3)), (dirty, wild))
    ]
    for output in outputs:
        output.loss.backward()
    assert outputs[0] == outputs[1]
    assert torch.isfinite(clean.grad).all() and torch.equal(clean.grad, dirty.grad)
    assert (clean.grad[mask == 0] == 0).all() and (clean.grad[mask == 1] != 0).all()


@ALL
def test_a_row_masked_as_a_whole_adds_exactly_zero(name):
    mask = torch.tensor([[1, 1], [0, 0]])
    logprobs, old, reference = torch.tensor([[-1.0, -2.0]] * 2), torch.zeros(2, 2), torch.full((2, 2), -3.0)
    settings = {"kl_coefficient": 0.1, "total_tokens": 2, "total_rows": 2}
    both = call(name, logprobs, old, torch.tensor([1.0, 5.0]), mask, reference, **settings)
    alone = call(name, logprobs[:1], old[:1], torch.ones(1), mask[:1], reference[:1], **settings)
    assert both == alone


@ALL
def test_empty_mask_gives_loss_zero_and_zero_gradient(name):
    logprobs = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    zeros = torch.zeros(1, 2)
    output = call(name, logprobs, zeros, torch.ones(1), zeros, zeros, kl_coefficient=0.1)
    output.loss.backward()
    assert output.loss.item() == output.kl.item() == output.clip_low_fraction.item() == 0
    assert logprobs.grad.tolist() == [[0.0, 0.0]]


@ALL
def test_micro_batches_add_up_to_the_full_batch(name):
    generator = torch.Generator().manual_seed(0)
    logprobs, old, reference = (-torch.rand(7, 5, generator=generator) for _ in range(3))
    advantages = torch.randn(7, generator=generator)
    mask = torch.arange(5) < torch.tensor([[5], [1], [3], [2], [5], [4], [0]])

    logprobs.requires_grad_()
    full = call(name, logprobs, old, advantages, mask, reference, kl_coefficient=0.1)
    full.loss.backward()
    gradient, logprobs.grad = logprobs.grad, None
    parts = []
    for rows in (slice(0, 2), slice(2, 6), slice(6, 7)):
        part = call(
            name, logprobs[rows], old[rows], advantages[rows], mask[rows], reference[rows],
            kl_coefficient=0.1, total_tokens=int(mask.sum()), total_rows=7,
        )  # fmt: skip
        part.loss.backward()
        parts.append(part)
    assert gradient.abs().max() > 0.01
    assert torch.allclose(logprobs.grad, gradient, atol=1e-7)
    for key in ("loss", "kl", "clip_low_fraction", "clip_high_fraction"):
        assert getattr(full, key).item() != 0
        assert sum(getattr(part, key).item() for part in parts) == pytest.approx(getattr(full, key).item(), abs=1e-6)


@ALL
@pytest.mark.parametrize("far", [300.0, -300.0])
def test_far_off_policies_give_finite_numbers(name, far):
    logprobs = torch.tensor([[-300.0, -300.0]], requires_grad=True)
    output = call(name, logprobs, logprobs.detach() - far, -torch.ones(1), torch.ones(1, 2), logprobs.detach() - far,
                  kl_coefficient=0.1)  # fmt: skip
    output.loss.backward()
    assert torch.isfinite(output.loss)
    assert torch.isfinite(logprobs.grad).all()


@ALL
def test_half_precision_log_probabilities_are_computed_in_float32(name):
    logprobs, old = torch.tensor([[[-1.0, -2.0]], [[-1.015625, -2.03125]]], dtype=torch.bfloat16)
    half, single = (
        call(name, *(values.to(dtype) for values in (logprobs, old)), torch.ones(1), torch.ones(1, 2), old.to(dtype),
             kl_coefficient=0.1, clip_low=0.5, clip_high=0.5)
        for dtype in (torch.bfloat16, torch.float32)
    )  # fmt: skip
    assert half.loss.dtype == torch.float32 and half == single


def test_old_and_reference_log_probabilities_get_no_gradient():
    old, reference = torch.zeros(1, 2, requires_grad=True), torch.ones(1, 2, requires_grad=True)
    logprobs = torch.zeros(1, 2, requires_grad=True)
    dapo_loss(
        logprobs, old, torch.ones(1), torch.ones(1, 2), reference, clip_low=0.2, clip_high=0.28, kl_coefficient=0.1
    ).loss.backward()
    assert old.grad is None and reference.grad is None and logprobs.grad is not None


# ------------------------------------------------------------------------------------------------------------- the KL


def test_k3_by_hand():
    # π_ref / π_θ = 2: 2 − log 2 − 1; = 1/2: 1/2 + log 2 − 1; = 1: 0
    assert k3(torch.tensor([LOG_2, -LOG_2, 0.0])).tolist() == pytest.approx([1 - LOG_2, LOG_2 - 0.5, 0.0])


def test_k3_averages_to_the_true_divergence():
    policy, reference = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.5, 0.3, 0.2])
    estimate = (policy * k3((reference / policy).log())).sum()
    assert estimate.item() == pytest.approx((policy * (policy / reference).log()).sum().item(), rel=1e-5)


def test_k3_pulls_back_from_below_however_far_and_is_bounded_above():
    log_ratio = torch.tensor([-100.0, 100.0], requires_grad=True)
    k3(log_ratio).sum().backward()
    assert log_ratio.grad.tolist() == [-1.0, 0.0]
    assert k3(torch.tensor(100.0)).item() == pytest.approx(math.exp(EXPONENT_LIMIT))


# ------------------------------------------------------------------------------------------------------ the log-probs


def test_token_logprobs_by_hand():
    # logits log 1, log 3 → probabilities 1/4, 3/4; at temperature ½ they count squared: 1/10, 9/10
    logits, ids = torch.tensor([[[0.0, math.log(3.0)]] * 2]), torch.tensor([[0, 1]])
    logprobs, entropies = token_logprobs(logits, ids)
    assert logprobs[0].tolist() == pytest.approx([math.log(1 / 4), math.log(3 / 4)])
    assert entropies[0].tolist() == pytest.approx([-(0.25 * math.log(0.25) + 0.75 * math.log(0.75))] * 2)
    assert token_logprobs(logits, ids, temperature=0.5)[0][0].tolist() == pytest.approx([math.log(0.1), math.log(0.9)])


def test_banned_tokens_leave_the_entropy_a_number():
    logprobs, entropies = token_logprobs(torch.tensor([[[0.0, 0.0, -math.inf]]]), torch.tensor([[1]]))
    assert logprobs.item() == pytest.approx(-LOG_2)
    assert entropies.item() == pytest.approx(LOG_2)


def test_log_probabilities_have_a_gradient_and_entropies_none():
    # d log p_i / d logit_j = (1 at i) − p_j
    logits = torch.tensor([0.0, math.log(3.0)], requires_grad=True)
    logprobs, entropies = token_logprobs(logits, torch.tensor(0))
    logprobs.backward()
    assert logits.grad.tolist() == pytest.approx([3 / 4, -3 / 4])
    assert not entropies.requires_grad
