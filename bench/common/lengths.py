"""Completions of given lengths, for whoever samples: ours by chance, transformers' by a logits processor."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from vr1lib.models import rollout_local
from vr1lib.models.vlm import Vlm

SPREAD = 0.8  # standard deviation of a length's logarithm, about that of a policy in training; our choice


def spread_lengths(count: int, limit: int, seed: int) -> list[int]:
    """Log-normal lengths with mean `limit` / 4, at least 2 and at most `limit`."""
    dice = random.Random(seed)
    middle = math.log(limit / 4) - SPREAD**2 / 2
    return [min(limit, max(2, round(dice.lognormvariate(middle, SPREAD)))) for _ in range(count)]


@contextmanager
def ours_ending_at(sampler: Vlm, length_of: Callable[[int, int], int]) -> Iterator[None]:
    """Inside, `sampler`'s sample `number` under `seed` has length_of(seed, number) tokens.

    The end token is the last of those that may be sampled: a chance near 1 picks it, and a chance below 0.98 does not.
    """
    uniforms, ends = rollout_local.uniforms, sampler.eos_token_ids
    vocabulary = sampler.model.config.get_text_config().vocab_size
    sampler.eos_token_ids = (max(set(range(vocabulary)) - set(sampler.vision_token_ids)),)

    def chances(seed: int, number: int, count: int) -> Tensor:
        values, length = 0.98 * uniforms(seed, number, count), length_of(seed, number)
        if length < count:
            values[length - 1] = 1 - 2**-50
        return values

    rollout_local.uniforms = chances
    try:
        yield
    finally:
        rollout_local.uniforms, sampler.eos_token_ids = uniforms, ends


class EndsAt(LogitsProcessor):
    """Each row of a `generate` ends at its length, and not before."""

    def __init__(self, lengths: Sequence[int], limit: int, ends: Sequence[int]) -> None:
        self.lengths, self.limit, self.ends, self.made = torch.tensor(lengths), limit, list(ends), 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.made += 1
        ended = (self.lengths == self.made) & (self.made < self.limit)
        scores[:, self.ends] = float("-inf")
        scores[ended, self.ends[0]] = 1e4
        return scores


def theirs_ending_at(lengths: Sequence[int], limit: int, ends: Sequence[int]) -> LogitsProcessorList:
    """For `generate`'s `logits_processor`."""
    return LogitsProcessorList([EndsAt(lengths, limit, ends)])
