"""The clipped loss, its KL and its normalisations against numbers worked by hand; micro-batches against full."""

import math

import pytest
import torch

from vr1lib.loss import grpo_loss, k3_kl, token_logprobs

LOG_2 = math.log(2.0)


def log(rows: list[list[float]]) -> torch.Tensor:
    """Ratios as log-probabilities against an old policy of log-probability 0."""
    return torch.tensor(rows).log()


def loss_of(ratios: list[list[float]], advantages: list[float], mask: list[list[int]] | None = None, **settings):
    logprobs = log(ratios)
    mask = torch.ones_like(logprobs) if mask is None else torch.tensor(mask)
    return grpo_loss(logprobs, torch.zeros_like(logprobs), torch.tensor(advantages), mask, **settings)


def test_loss_is_minus_ratio_times_advantage_inside_the_bounds():
    # −(1.1 · 2 + 0.9 · 2) / 2 = −2
    assert loss_of([[1.1, 0.9]], [2.0]).loss.item() == pytest.approx(-2.0)


def test_good_tokens_gain_nothing_above_the_upper_bound():
    output = loss_of([[1.5, 1.0, 0.5, 1.0]], [1.0])  # min(1.5, 1.2) + 1 + min(0.5, 0.8) + 1 = 3.7
    assert output.loss.item() == pytest.approx(-3.7 / 4)
    assert output.clip_high_fraction.item() == pytest.approx(1 / 4)
    assert output.clip_low_fraction.item() == 0


def test_bad_tokens_gain_nothing_below_the_lower_bound():
    output = loss_of([[1.5, 1.0, 0.5, 1.0]], [-1.0])  # max(1.5, 1.2) + 1 + max(0.5, 0.8) + 1 = 4.3
    assert output.loss.item() == pytest.approx(4.3 / 4)
    assert output.clip_low_fraction.item() == pytest.approx(1 / 4)
    assert output.clip_high_fraction.item() == 0


def test_clip_higher_raises_the_upper_bound_alone():
    assert loss_of([[1.5]], [1.0], clip_high=0.28).loss.item() == pytest.approx(-1.28)
    assert loss_of([[0.5]], [-1.0], clip_high=0.28).loss.item() == pytest.approx(0.8)


def test_clipped_tokens_have_no_gradient():
    logprobs = log([[1.5, 1.1], [0.5, 0.9]]).requires_grad_()
    grpo_loss(logprobs, torch.zeros(2, 2), torch.tensor([1.0, -1.0]), torch.ones(2, 2)).loss.backward()
    # d(ρ A)/d(log π) = ρ A where not clipped, over four tokens
    expected = torch.tensor([[0.0, -1.1 / 4], [0.0, 0.9 / 4]])
    assert torch.allclose(logprobs.grad, expected)


def test_first_step_has_loss_zero_but_a_gradient():
    logprobs = torch.tensor([[-1.0, -2.0], [-3.0, -0.5]], requires_grad=True)
    output = grpo_loss(logprobs, logprobs.detach(), torch.tensor([0.7, -0.7]), torch.ones(2, 2))
    output.loss.backward()
    assert output.loss.item() == pytest.approx(0.0)
    assert torch.allclose(logprobs.grad, torch.tensor([[-0.175, -0.175], [0.175, 0.175]]))


def test_k3_kl_by_hand():
    # π_ref / π_θ = 2: 2 − log 2 − 1; = 1/2: 1/2 + log 2 − 1; = 1: 0
    policy, reference = torch.tensor([0.0, 0.0, -3.0]), torch.tensor([LOG_2, -LOG_2, -3.0])
    assert k3_kl(policy, reference).tolist() == pytest.approx([1 - LOG_2, LOG_2 - 0.5, 0.0])


def test_k3_kl_averages_to_the_true_divergence():
    policy, reference = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.5, 0.3, 0.2])
    estimate = (policy * k3_kl(policy.log(), reference.log())).sum()
    assert estimate.item() == pytest.approx((policy * (policy / reference).log()).sum().item(), rel=1e-5)


def test_kl_is_weighted_and_reported_per_token():
    logprobs = torch.zeros(1, 2)
    reference = torch.tensor([[LOG_2, 0.0]])
    output = grpo_loss(logprobs, logprobs, torch.tensor([0.0]), torch.ones(1, 2), reference, kl_coefficient=0.1)
    assert output.kl.item() == pytest.approx((1 - LOG_2) / 2)
    assert output.loss.item() == pytest.approx(0.1 * (1 - LOG_2) / 2)


def test_far_off_policies_give_a_finite_loss():
    logprobs = torch.tensor([[-300.0, 0.0]], requires_grad=True)
    far_off = torch.tensor([[0.0, -300.0]])
    output = grpo_loss(logprobs, far_off, -torch.ones(1), torch.ones(1, 2), far_off)
    output.loss.backward()
    assert torch.isfinite(output.loss)
    assert torch.isfinite(logprobs.grad).all()


def test_token_mean_sequence_mean_and_constant_differ_by_their_denominators():
    # row 1: one token of advantage 3; row 2: three tokens of advantage −1; every ratio 1
    ratios, advantages, mask = [[1.0] * 3] * 2, [3.0, -1.0], [[1, 0, 0], [1, 1, 1]]
    assert loss_of(ratios, advantages, mask).loss.item() == pytest.approx(-(3 - 3) / 4)
    assert loss_of(ratios, advantages, mask, normalisation="sequence_mean").loss.item() == pytest.approx(-(3 - 1) / 2)
    constant = loss_of(ratios, [3.0, -2.0], mask, normalisation="constant", max_completion_tokens=6)
    assert constant.loss.item() == pytest.approx(-(3 - 6) / (2 * 6))


def test_constant_normalisation_asks_for_its_constant():
    with pytest.raises(ValueError, match="max_completion_tokens"):
        loss_of([[1.0]], [1.0], normalisation="constant")


def test_sequence_ratio_is_equation_one():
    # ρ = 1.1 · 1.05 = 1.155 for row 1 (its padding not counted), 1.5 · 1.2 = 1.8 → clipped to 1.2 for row 2
    output = loss_of(
        [[1.1, 1.05, 9.0], [1.5, 1.2, 1.0]],
        [1.0, 2.0],
        [[1, 1, 0], [1, 1, 1]],
        ratio_level="sequence",
        normalisation="sequence_mean",
    )
    assert output.loss.item() == pytest.approx(-(1.155 + 2 * 1.2) / 2)
    assert output.clip_high_fraction.item() == pytest.approx(3 / 5)


def test_geometric_sequence_ratio_is_the_root_over_its_tokens():
    # (1.21 · 1.0)^(1/2) = 1.1
    output = loss_of([[1.21, 1.0]], [1.0], ratio_level="sequence_geometric", normalisation="sequence_mean")
    assert output.loss.item() == pytest.approx(-1.1)


@pytest.mark.parametrize("ratio_level", ["token", "sequence", "sequence_geometric"])
def test_what_stands_outside_the_mask_has_no_influence(ratio_level):
    mask = torch.tensor([[1, 1, 0]])
    clean = torch.tensor([[-1.0, -2.0, 0.0]], requires_grad=True)
    dirty = torch.tensor([[-1.0, -2.0, math.nan]], requires_grad=True)
    old, reference = torch.tensor([[-1.1, -2.1, 0.0]]), torch.tensor([[-1.2, -1.9, 0.0]])
    wild = torch.tensor([[0.0, 0.0, -math.inf]])
    outputs = [
        grpo_loss(logprobs, old + noise, torch.ones(1), mask, reference + noise, ratio_level=ratio_level)
        for logprobs, noise in ((clean, torch.zeros(1, 3)), (dirty, wild))
    ]
    for output in outputs:
        output.loss.backward()
    assert outputs[0].loss.item() == outputs[1].loss.item()
    assert torch.equal(clean.grad, dirty.grad)


@pytest.mark.parametrize("normalisation", ["token_mean", "sequence_mean", "constant"])
def test_empty_mask_gives_loss_zero_and_zero_gradient(normalisation):
    logprobs = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    output = grpo_loss(
        logprobs,
        torch.zeros(1, 2),
        torch.ones(1),
        torch.zeros(1, 2),
        torch.zeros(1, 2),
        normalisation=normalisation,
        max_completion_tokens=2,
    )
    output.loss.backward()
    assert output.loss.item() == 0
    assert output.kl.item() == 0
    assert logprobs.grad.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("normalisation", ["token_mean", "sequence_mean", "constant"])
@pytest.mark.parametrize("ratio_level", ["token", "sequence", "sequence_geometric"])
def test_micro_batches_add_up_to_the_full_batch(normalisation, ratio_level):
    generator = torch.Generator().manual_seed(0)
    logprobs, old, reference = (-torch.rand(7, 5, generator=generator) for _ in range(3))
    advantages = torch.randn(7, generator=generator)
    mask = torch.arange(5) < torch.tensor([[5], [1], [3], [2], [5], [4], [0]])
    settings = {"normalisation": normalisation, "ratio_level": ratio_level, "max_completion_tokens": 5}

    logprobs.requires_grad_()
    full = grpo_loss(logprobs, old, advantages, mask, reference, **settings)
    full.loss.backward()
    gradient, logprobs.grad = logprobs.grad, None
    parts = []
    for rows in (slice(0, 2), slice(2, 6), slice(6, 7)):
        part = grpo_loss(
            logprobs[rows], old[rows], advantages[rows], mask[rows], reference[rows],
            total_tokens=int(mask.sum()), total_rows=7, **settings,
        )  # fmt: skip
        part.loss.backward()
        parts.append(part)
    assert torch.allclose(logprobs.grad, gradient, atol=1e-7)
    for name in ("loss", "kl", "clip_low_fraction", "clip_high_fraction"):
        assert sum(getattr(part, name).item() for part in parts) == pytest.approx(getattr(full, name).item(), abs=1e-6)


def test_half_precision_log_probabilities_are_computed_in_float32():
    logprobs = torch.tensor([[-1.0, -2.0]], dtype=torch.bfloat16)
    assert grpo_loss(logprobs, logprobs, torch.ones(1), torch.ones(1, 2), logprobs).loss.dtype == torch.float32


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


def test_chunks_change_neither_values_nor_gradients():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 7, 11, generator=generator)
    ids = torch.randint(0, 11, (2, 7), generator=generator)
    results = []
    for chunk_tokens in (3, 100):
        leaf = logits.clone().requires_grad_()
        logprobs, entropies = token_logprobs(leaf, ids, temperature=0.7, chunk_tokens=chunk_tokens)
        (logprobs * torch.arange(7)).sum().backward()
        results.append((logprobs, entropies, leaf.grad))
        assert not entropies.requires_grad
    for whole, chunked in zip(*results):
        assert torch.allclose(whole, chunked, atol=1e-6)
