"""The clipped policy loss of GRPO with its KL term (Section 3.4, Equations 1 and 2), and the log-probs it needs.

Per completion token, with ratio ρ = π_θ / π_old, advantage A and r = π_ref / π_θ:

    loss = − min(ρ A, clip(ρ, 1 − clip_low, 1 + clip_high) A) + kl_coefficient · (r − log r − 1)

The paper: clip 0.2 on both sides, kl_coefficient 0.01. Its Equation 1 writes ρ for the whole sequence and no token
average; the framework it was run on works per token, and so do we by default (our choice). The relatives are settings:

    what                ratio_level            normalisation    else
    GRPO (default)      token                  token_mean
    Equation 1          sequence               sequence_mean
    GSPO                sequence_geometric     sequence_mean    clip 3e-4 / 4e-4
    Dr. GRPO            token                  constant         advantages without the std
    DAPO                token                  token_mean       clip_high 0.28, kl_coefficient 0

The loss of a step is near 0 at its start whatever the rewards are: ρ is 1 and the advantages of a group add up to 0.
Its gradient is not 0; look at the reward, the KL and the gradient norm instead.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

EXPONENT_LIMIT = 20.0  # as in verl and EasyR1: exp of a log-ratio beyond ±20 would overflow or drown every other token

RatioLevel = Literal["token", "sequence", "sequence_geometric"]
Normalisation = Literal["token_mean", "sequence_mean", "constant"]


@dataclass(frozen=True)
class LossOutput:
    """Scalars: `loss` to call backward on; the rest detached means over completion tokens.

    `kl` is the k3 estimate of KL(π_θ ‖ π_ref) (0 without a reference); `clip_low_fraction` and `clip_high_fraction` are
    the shares of tokens that the lower and the upper bound cut off from the gradient.
    """

    loss: Tensor
    kl: Tensor
    clip_low_fraction: Tensor
    clip_high_fraction: Tensor


def grpo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    reference_logprobs: Tensor | None = None,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    kl_coefficient: float = 0.01,
    ratio_level: RatioLevel = "token",
    normalisation: Normalisation = "token_mean",
    max_completion_tokens: int | None = None,
    total_tokens: int | None = None,
    total_rows: int | None = None,
) -> LossOutput:
    """The loss of some rows (completions) of a step.

    logprobs, old_logprobs, reference_logprobs: [rows, tokens], of the policy (with gradient), of the policy that
    sampled, of the reference (None: no KL). advantages: [rows]. mask: [rows, tokens], true on the completion's
    tokens; what stands elsewhere, NaN even, has no influence. Computed in float32.

    normalisation: "token_mean" divides the sum over tokens by `total_tokens`; "sequence_mean" the sum of the rows'
    means by `total_rows`; "constant" the sum over tokens by total_rows × max_completion_tokens. The totals are the
    step's: give them when its rows come in several micro-batches, whose losses, gradients and metrics then add up to
    the full batch's; None counts these rows alone. A step without a single completion token has loss 0.
    """
    mask = mask.bool()
    row_tokens = mask.sum(dim=1, keepdim=True)  # [rows, 1]
    total_tokens = int(row_tokens.sum()) if total_tokens is None else total_tokens
    total_rows = mask.shape[0] if total_rows is None else total_rows
    logprobs = logprobs.float().masked_fill(~mask, 0.0)
    advantages = advantages.float()[:, None].expand_as(logprobs)  # [rows, tokens]

    log_ratio = logprobs - old_logprobs.detach().float().masked_fill(~mask, 0.0)
    if ratio_level != "token":
        log_ratio = log_ratio.sum(dim=1, keepdim=True)
        if ratio_level == "sequence_geometric":
            log_ratio = log_ratio / row_tokens.clamp(min=1)
        log_ratio = log_ratio.expand_as(logprobs)
    ratio = bounded_exp(log_ratio)
    clipped_ratio = ratio.clamp(1 - clip_low, 1 + clip_high)
    token_loss = -torch.minimum(ratio * advantages, clipped_ratio * advantages)

    token_kl = torch.zeros_like(logprobs)
    if reference_logprobs is not None:
        token_kl = k3_kl(logprobs, reference_logprobs.detach().float().masked_fill(~mask, 0.0))
        token_loss = token_loss + kl_coefficient * token_kl

    if normalisation == "token_mean":
        weights = mask / max(total_tokens, 1)
    elif normalisation == "sequence_mean":
        weights = mask / row_tokens.clamp(min=1) / max(total_rows, 1)
    elif max_completion_tokens is not None:
        weights = mask / (max(total_rows, 1) * max_completion_tokens)
    else:
        raise ValueError("normalisation 'constant' needs max_completion_tokens")

    def token_mean(values: Tensor) -> Tensor:
        return (values.detach() * mask).sum() / max(total_tokens, 1)

    return LossOutput(
        loss=(token_loss * weights).sum(),
        kl=token_mean(token_kl),
        clip_low_fraction=token_mean((ratio < 1 - clip_low) & (advantages < 0)),
        clip_high_fraction=token_mean((ratio > 1 + clip_high) & (advantages > 0)),
    )


def k3_kl(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """r − log r − 1 with r = π_ref / π_θ (Equation 2): elementwise, never negative, 0 where both agree."""
    log_ratio = (reference_logprobs - logprobs).clamp(-EXPONENT_LIMIT, EXPONENT_LIMIT)
    return log_ratio.exp() - log_ratio - 1


def bounded_exp(log_ratio: Tensor) -> Tensor:
    return log_ratio.clamp(-EXPONENT_LIMIT, EXPONENT_LIMIT).exp()


def token_logprobs(
    logits: Tensor, ids: Tensor, temperature: float = 1.0, chunk_tokens: int = 128
) -> tuple[Tensor, Tensor]:
    """Log-probabilities (with gradient) and entropies (without), both float32 [rows, tokens], nats.

    logits: [rows, tokens, vocabulary], where logits[:, t] predicts ids[:, t]; ids: [rows, tokens]. `temperature` is the
    one the ids were sampled with. The float32 copy exists for `chunk_tokens` positions at a time, in the backward pass
    too, where it is computed again: at a vocabulary of 152K it would otherwise be larger than the model's activations.
    """
    pieces = []
    for chunk_logits, chunk_ids in zip(logits.split(chunk_tokens, dim=1), ids.split(chunk_tokens, dim=1)):
        if chunk_logits.requires_grad:
            piece = checkpoint(
                chunk_logprobs, chunk_logits, chunk_ids, temperature, use_reentrant=False, preserve_rng_state=False
            )
        else:
            piece = chunk_logprobs(chunk_logits, chunk_ids, temperature)
        pieces.append(piece)
    logprobs, entropies = zip(*pieces)
    return torch.cat(logprobs, dim=1), torch.cat(entropies, dim=1)


def chunk_logprobs(logits: Tensor, ids: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    all_logprobs = (logits.float() / temperature).log_softmax(dim=-1)  # [rows, chunk, vocabulary]
    logprobs = all_logprobs.gather(-1, ids[..., None]).squeeze(-1)
    with torch.no_grad():
        # entr(p) = −p log p and 0 at p = 0: a banned token's logit of −inf adds nothing instead of NaN
        entropies = torch.special.entr(all_logprobs.exp()).sum(dim=-1)
    return logprobs, entropies
