"""The clipped policy losses by name, with the KL term of Section 3.4, and the log-probs they need.

Each compares the policy π_θ with the one that sampled, π_old, and weighs by the advantage A of the completion:

    surrogate = − min(ρ A, clip(ρ, 1 − clip_low, 1 + clip_high) A)        KL = r − log r − 1 with r = π_ref / π_θ

They differ in what ρ is the ratio of, in what the sum is divided by, and in their published defaults (`LOSSES`):

    name          ρ = π_θ / π_old of          divided by                                 clip          advantage
    grpo          a token                     the step's tokens                          0.2           (r − mean) / std
    equation_1    a completion                the step's completions                     0.2           (r − mean) / std
    gspo          a completion, geometric     the step's completions                     3e-4, 4e-4    (r − mean) / std
                  mean over its tokens
    dr_grpo       a token                     completions × max_completion_tokens        0.2           r − mean
    dapo          a token                     the step's tokens                          0.2, 0.28     (r − mean) / std

The paper has clip 0.2 on both sides and KL coefficient 0.01. Its Equation 1 writes ρ, and its Equation 2 the KL, of
whole completions without a token average; the framework it was run on works per token, so our default is `grpo`. GSPO,
Dr. GRPO and DAPO were published without a KL term; here each takes a coefficient. More, and how these compare with
TRL's: docs/losses.md.

The loss of a step is near 0 at its start whatever the rewards are: ρ is 1 and the advantages of a group add up to 0.
Its gradient is not 0; look at the reward, the KL and the gradient norm instead.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

EXPONENT_LIMIT = 20.0  # as in verl and EasyR1: the exp of a larger log-ratio would overflow or drown every other token

LossName = Literal["grpo", "equation_1", "gspo", "dr_grpo", "dapo"]


@dataclass(frozen=True)
class LossOutput:
    """Scalars: `loss` to call backward on; the rest detached means over completion tokens.

    `kl` is the k3 estimate of KL(π_θ ‖ π_ref) of a token (0 without a reference); `clip_low_fraction` and
    `clip_high_fraction` are the shares of tokens that the lower and the upper bound cut off from the gradient: all of a
    completion's where the ratio is the completion's.
    """

    loss: Tensor
    kl: Tensor
    clip_low_fraction: Tensor
    clip_high_fraction: Tensor


# Every loss is that of some rows (completions) of a step and takes the same arguments:
#
# logprobs, old_logprobs, reference_logprobs: [rows, tokens], of the policy (with gradient), of the policy that sampled,
# of the reference (None: no KL). advantages: [rows], for the losses by token also [rows, tokens]. mask: [rows, tokens],
# true on the tokens that count; what stands elsewhere, NaN even, has no influence, and a row without such a token adds
# 0. Computed in float32.
#
# total_tokens, total_rows: the step's. Give them when its rows come in several micro-batches, whose losses, gradients
# and metrics then add up to the full batch's; None counts these rows alone. A step without any token has loss 0.


def grpo_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, reference_logprobs: Tensor | None = None,
    *, clip_low: float, clip_high: float, kl_coefficient: float,
    max_completion_tokens: int | None = None, total_tokens: int | None = None, total_rows: int | None = None,
) -> LossOutput:  # fmt: skip
    """GRPO as verl and EasyR1 run it: a ratio for each token, and every token of the step weighs the same."""
    rows = Rows.of(logprobs, old_logprobs, advantages, mask, reference_logprobs, total_tokens, total_rows)
    surrogate = clipped_surrogate(rows.log_ratio, rows.advantages, clip_low, clip_high)
    token_loss = surrogate.loss + kl_coefficient * rows.token_kl
    return rows.output((token_loss * rows.mask).sum() / rows.total_tokens, surrogate)


def equation_1_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, reference_logprobs: Tensor | None = None,
    *, clip_low: float, clip_high: float, kl_coefficient: float,
    max_completion_tokens: int | None = None, total_tokens: int | None = None, total_rows: int | None = None,
) -> LossOutput:  # fmt: skip
    """Equations 1 and 2 to the letter: ratio and KL of whole completions, and a mean over completions alone.

    A ratio of whole completions is a product over their tokens: long ones leave the bounds after hardly any change.
    """
    rows = Rows.of(logprobs, old_logprobs, advantages, mask, reference_logprobs, total_tokens, total_rows)
    surrogate = clipped_surrogate(rows.sum(rows.log_ratio), rows.advantages, clip_low, clip_high)
    row_loss = surrogate.loss + kl_coefficient * k3(rows.sum(rows.log_reference_ratio))
    return rows.output((row_loss * rows.mask.any(dim=1, keepdim=True)).sum() / rows.total_rows, surrogate)


def gspo_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, reference_logprobs: Tensor | None = None,
    *, clip_low: float, clip_high: float, kl_coefficient: float,
    max_completion_tokens: int | None = None, total_tokens: int | None = None, total_rows: int | None = None,
) -> LossOutput:  # fmt: skip
    """GSPO (arXiv 2507.18071): a ratio for each completion, the geometric mean of its tokens' ratios.

    Completions weigh the same. Its KL term, which GSPO leaves out, is the mean over the completion's tokens.
    """
    rows = Rows.of(logprobs, old_logprobs, advantages, mask, reference_logprobs, total_tokens, total_rows)
    surrogate = clipped_surrogate(rows.mean(rows.log_ratio), rows.advantages, clip_low, clip_high)
    row_loss = surrogate.loss + kl_coefficient * rows.mean(rows.token_kl)
    return rows.output((row_loss * rows.mask.any(dim=1, keepdim=True)).sum() / rows.total_rows, surrogate)


def dr_grpo_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, reference_logprobs: Tensor | None = None,
    *, clip_low: float, clip_high: float, kl_coefficient: float,
    max_completion_tokens: int, total_tokens: int | None = None, total_rows: int | None = None,
) -> LossOutput:  # fmt: skip
    """Dr. GRPO (arXiv 2503.20783): as grpo, but divided by a constant, the tokens that the step could have had.

    So a token weighs the same in every step, and neither long nor short completions are favoured.
    """
    rows = Rows.of(logprobs, old_logprobs, advantages, mask, reference_logprobs, total_tokens, total_rows)
    surrogate = clipped_surrogate(rows.log_ratio, rows.advantages, clip_low, clip_high)
    token_loss = surrogate.loss + kl_coefficient * rows.token_kl
    return rows.output((token_loss * rows.mask).sum() / (rows.total_rows * max_completion_tokens), surrogate)


def dapo_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, reference_logprobs: Tensor | None = None,
    *, clip_low: float, clip_high: float, kl_coefficient: float,
    max_completion_tokens: int | None = None, total_tokens: int | None = None, total_rows: int | None = None,
) -> LossOutput:  # fmt: skip
    """DAPO (arXiv 2503.14476): every token of the step weighs the same, under a raised upper bound (`LOSSES`).

    Its other parts, dynamic sampling and the mask on truncated completions, are the loop's. The formula is grpo's, and
    stands here again so that each can be read alone.
    """
    rows = Rows.of(logprobs, old_logprobs, advantages, mask, reference_logprobs, total_tokens, total_rows)
    surrogate = clipped_surrogate(rows.log_ratio, rows.advantages, clip_low, clip_high)
    token_loss = surrogate.loss + kl_coefficient * rows.token_kl
    return rows.output((token_loss * rows.mask).sum() / rows.total_tokens, surrogate)


@dataclass(frozen=True)
class Loss:
    """A loss with its published bounds, and whether its advantages are divided by their group's std."""

    function: Callable[..., LossOutput]
    clip_low: float = 0.2
    clip_high: float = 0.2
    normalise_by_std: bool = True


LOSSES: dict[LossName, Loss] = {
    "grpo": Loss(grpo_loss),
    "equation_1": Loss(equation_1_loss),
    "gspo": Loss(gspo_loss, clip_low=3e-4, clip_high=4e-4),
    "dr_grpo": Loss(dr_grpo_loss, normalise_by_std=False),
    "dapo": Loss(dapo_loss, clip_high=0.28),
}


# --------------------------------------------------------------------------------------------- what the losses are of


@dataclass(frozen=True)
class Rows:
    """Some rows of a step, in float32 and 0 outside the mask, with the step's totals (at least 1)."""

    mask: Tensor  # [rows, tokens] bool
    advantages: Tensor  # [rows, 1], or [rows, tokens] where importance weights are in them
    log_ratio: Tensor  # [rows, tokens] log π_θ / π_old
    log_reference_ratio: Tensor  # [rows, tokens] log π_ref / π_θ; 0 without a reference
    total_tokens: int
    total_rows: int

    @classmethod
    def of(
        cls,
        logprobs: Tensor,
        old_logprobs: Tensor,
        advantages: Tensor,
        mask: Tensor,
        reference_logprobs: Tensor | None,
        total_tokens: int | None,
        total_rows: int | None,
    ) -> "Rows":
        mask = mask.bool()
        reference_logprobs = logprobs if reference_logprobs is None else reference_logprobs.detach()
        policy, old, reference = (
            values.float().masked_fill(~mask, 0.0) for values in (logprobs, old_logprobs.detach(), reference_logprobs)
        )
        return cls(
            mask,
            advantages.float().view(len(mask), -1),
            policy - old,
            reference - policy,
            max(1, int(mask.sum()) if total_tokens is None else total_tokens),
            max(1, len(mask) if total_rows is None else total_rows),
        )

    @property
    def token_kl(self) -> Tensor:
        return k3(self.log_reference_ratio)  # [rows, tokens]

    def sum(self, values: Tensor) -> Tensor:
        """[rows, tokens] → [rows, 1]"""
        return (values * self.mask).sum(dim=1, keepdim=True)

    def mean(self, values: Tensor) -> Tensor:
        """[rows, tokens] → [rows, 1]; 0 for a row without tokens."""
        return self.sum(values) / self.mask.sum(dim=1, keepdim=True).clamp(min=1)

    def output(self, loss: Tensor, surrogate: "Surrogate") -> LossOutput:
        kl, below, above = (
            (values.detach() * self.mask).sum() / self.total_tokens
            for values in (self.token_kl, surrogate.below, surrogate.above)
        )
        return LossOutput(loss, kl, below, above)


@dataclass(frozen=True)
class Surrogate:
    """The clipped surrogate, and where a bound cuts it off from the gradient; [rows, tokens] or [rows, 1]."""

    loss: Tensor
    below: Tensor
    above: Tensor


def clipped_surrogate(log_ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> Surrogate:
    ratio = log_ratio.clamp(max=EXPONENT_LIMIT).exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    return Surrogate(
        loss=-torch.minimum(ratio * advantages, clipped * advantages),
        below=(ratio < 1 - clip_low) & (advantages < 0),
        above=(ratio > 1 + clip_high) & (advantages > 0),
    )


def importance_weights(
    policy_logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor, gap: float, cap: float
) -> Tensor:
    """What makes up for a sampler that is not quite the policy, [rows, tokens] (truncated importance sampling).

    A row whose log-probabilities differ by more than `gap` nats in the mean over its tokens is weighed by each token's
    π_θ / π_sampler, at most `cap`; any other row by 1 (our choice: equal numbers would only add noise). All arguments
    are [rows, tokens].
    """
    difference = (policy_logprobs.detach() - sampler_logprobs).float().masked_fill(~mask, 0.0)
    means = difference.abs().sum(dim=1) / mask.sum(dim=1).clamp(min=1)
    return torch.where((means > gap)[:, None], difference.clamp(max=EXPONENT_LIMIT).exp().clamp(max=cap), 1.0)


def k3(log_ratio: Tensor) -> Tensor:
    """r − log r − 1 with r = π_ref / π_θ (Equation 2): elementwise, never negative, 0 where both agree."""
    log_ratio = log_ratio.clamp(max=EXPONENT_LIMIT)
    return torch.expm1(log_ratio) - log_ratio  # exact near 0 too


# ----------------------------------------------------------------------------------------------------- the log-probs


def token_logprobs(logits: Tensor, ids: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probabilities (with gradient) and entropies (without) of `ids`, both float32 of ids' shape, nats.

    logits: [..., vocabulary], where logits[..., t, :] predicts ids[..., t]. `temperature` is the one the ids were
    sampled with. A token whose logit is −inf is banned: it takes no probability.
    """
    all_logprobs = (logits.float() / temperature).log_softmax(dim=-1)  # [..., vocabulary]
    logprobs = all_logprobs.gather(-1, ids[..., None]).squeeze(-1)
    with torch.no_grad():
        # entr(p) = −p log p and 0 at p = 0: a banned token adds nothing instead of NaN
        entropies = torch.special.entr(all_logprobs.exp()).sum(dim=-1)
    return logprobs, entropies
