"""Sampling from a model in this process: every prompt read once, its cache shared by the group.

Each prompt's pictures and text are encoded once, the key-value cache is repeated for the group's samples, and rows that
have ended leave the batch, so that cost follows the tokens made. Vision tokens are never sampled: a policy that writes
an image-pad token crashes the next forward. Log-probabilities are kept as sampled, of the distribution after
temperature and ban but before top-p, which is the one the trainer recomputes (our choice; the paper names neither).

Chance has no state: token t of a sample comes from the t-th number of a stream that its prompt's seed and its own
number begin. So it is the same beside any other rows, however many are sampled at once, in whatever process, and after
a resume (our choice; a generator shared by the batch would tie every row to all others).
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor
from transformers import Cache

from vr1lib.models.vlm import EncodedPrompt, Vlm, collate_prompts
from vr1lib.records import Completion, Problem

COMPACT_BELOW = 0.75  # rows leave the batch once a quarter of it has ended (our choice: copying the cache has a price)


@dataclass(frozen=True)
class Sampled:
    """One sample: its tokens with the end token if it stopped by itself, and each token's log-probability [tokens]."""

    token_ids: list[int]
    logprobs: list[float]
    finish: str  # "stop" | "length"
    version: int | None = None  # updates behind the weights that sampled, as a server says; None: this process's own


@dataclass
class Reading:
    """What the model has read of the rows in the batch."""

    cache: Cache
    attention_mask: Tensor  # [rows, tokens]
    state: dict[str, Tensor]  # what the model's family needs for the next token, rows first
    steps: int = 0  # tokens read since the prompt

    def keep(self, rows: Tensor) -> None:
        """Only `rows` (indices) stay."""
        self.cache.batch_select_indices(rows)
        self.attention_mask = self.attention_mask[rows]
        self.state = {name: value[rows] for name, value in self.state.items()}


def seed_of(*parts: int | str) -> int:
    """A seed that every part has a say in."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8])


@torch.no_grad()
def sample(
    vlm: Vlm,
    prompts: Sequence[EncodedPrompt],
    *,
    group_size: int,
    max_completion_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seeds: Sequence[int],
    rows_at_once: int = 64,
    progress: Callable[[int], None] | None = None,
) -> list[list[Sampled]]:
    """`group_size` samples for each prompt, whose own seed decides them; temperature 0 is greedy.

    At most `rows_at_once` samples are in memory with their caches; a larger group is sampled in pieces, and its prompt
    read once for each. `progress` is told how many rows have just ended.
    """
    if len(seeds) != len(prompts):
        raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts")
    groups: list[list[Sampled]] = [[] for _ in prompts]
    prompts_at_once = max(1, rows_at_once // group_size)
    with inference_mode_of(vlm.model):
        for start in range(0, len(prompts), prompts_at_once):
            here = range(start, min(start + prompts_at_once, len(prompts)))
            for first in range(0, group_size, rows_at_once):
                numbers = range(first, min(first + rows_at_once, group_size))
                chances = torch.stack(
                    [uniforms(seeds[index], number, max_completion_tokens) for index in here for number in numbers]
                )
                logits, reading = read_prompts(vlm, [prompts[index] for index in here], len(numbers))
                samples = decode(vlm, logits, reading, chances, temperature, top_p, progress)
                for place, index in enumerate(here):
                    groups[index] += samples[place * len(numbers) : (place + 1) * len(numbers)]
    return groups


def uniforms(seed: int, number: int, count: int) -> Tensor:
    """The numbers in [0, 1) that decide sample `number` of a prompt, one a token: float64 [count]."""
    return torch.from_numpy(numpy.random.default_rng([seed, number]).random(count))


def read_prompts(vlm: Vlm, prompts: Sequence[EncodedPrompt], group_size: int) -> tuple[Tensor, Reading]:
    """Read each prompt once, for `group_size` rows: the logits of their first token [rows, vocabulary]."""
    batch = collate_prompts(prompts, vlm.pad_token_id)
    batch = {name: value.to(vlm.device) for name, value in batch.items()}
    output = vlm.model(**batch, use_cache=True, logits_to_keep=1)
    output.past_key_values.batch_repeat_interleave(group_size)

    def repeated(value: Tensor) -> Tensor:
        return value.repeat_interleave(group_size, dim=0)

    state = {name: repeated(value) for name, value in vlm.family.decode_state(vlm.model, batch).items()}
    return repeated(output.logits[:, -1]), Reading(output.past_key_values, repeated(batch["attention_mask"]), state)


def read_token(vlm: Vlm, reading: Reading, tokens: Tensor) -> Tensor:
    """Read one more token of every row [rows]: the logits of the next one [rows, vocabulary]."""
    mask = reading.attention_mask
    reading.attention_mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    output = vlm.model(
        input_ids=tokens.unsqueeze(1),
        attention_mask=reading.attention_mask,
        past_key_values=reading.cache,
        use_cache=True,
        **vlm.family.decode_inputs(reading.state, reading.steps),
    )
    reading.steps += 1
    return output.logits[:, -1]


def decode(
    vlm: Vlm,
    logits: Tensor,
    reading: Reading,
    chances: Tensor,
    temperature: float,
    top_p: float,
    progress: Callable[[int], None] | None = None,
) -> list[Sampled]:
    """One sample for each row, from its prompt's last logits [rows, vocabulary] and its chances [rows, tokens]."""
    rows, max_completion_tokens = chances.shape
    device = logits.device
    chances = chances.to(device)
    tokens = torch.full((rows, max_completion_tokens), vlm.pad_token_id, dtype=torch.long, device=device)
    logprobs = torch.zeros(rows, max_completion_tokens, device=device)
    lengths = torch.full((rows,), max_completion_tokens, dtype=torch.long, device=device)
    banned = torch.tensor(vlm.vision_token_ids, dtype=torch.long, device=device)
    ends = torch.tensor(vlm.eos_token_ids, device=device)
    index = torch.arange(rows, device=device)  # which row each line of the batch belongs to
    stopped = torch.zeros(rows, dtype=torch.bool, device=device)
    for step in range(max_completion_tokens):
        chosen, chosen_logprobs = choose(logits, banned, temperature, top_p, chances[index, step])
        chosen = torch.where(chosen_logprobs.isnan(), ends[0], chosen)  # a broken model's row ends; the loss shows it
        running = ~stopped[index]
        tokens[index[running], step] = chosen[running]
        logprobs[index[running], step] = chosen_logprobs[running]
        ended = running & torch.isin(chosen, ends)
        stopped[index[ended]] = True
        lengths[index[ended]] = step + 1
        if progress and ended.any():
            progress(int(ended.sum()))
        running &= ~ended
        alive = int(running.sum())
        if alive == 0 or step + 1 == max_completion_tokens:
            break
        if alive < COMPACT_BELOW * len(index):
            keep = running.nonzero().squeeze(1)
            reading.keep(keep)
            index, chosen = index[keep], chosen[keep]
        logits = read_token(vlm, reading, chosen)
    if progress:
        progress(int((~stopped).sum()))
    return [
        Sampled(
            tokens[row, : lengths[row]].tolist(),
            logprobs[row, : lengths[row]].tolist(),
            "stop" if stopped[row] else "length",
        )
        for row in range(rows)
    ]


def choose(logits: Tensor, banned: Tensor, temperature: float, top_p: float, chances: Tensor) -> tuple[Tensor, Tensor]:
    """One token for each row and its log-probability: logits [rows, vocabulary] → ([rows], [rows]).

    The token is the one at which the summed probabilities pass the row's chance in [0, 1): chances [rows]. The sum is
    in double precision, for in single it would miss the rarest tokens of a large vocabulary.
    """
    logits = logits.float().index_fill(1, banned, float("-inf"))
    if temperature > 0:
        logits = logits / temperature
    logprobs = torch.log_softmax(logits, dim=-1)
    if temperature == 0:
        chosen = logprobs.argmax(dim=-1)
    else:
        probabilities = logprobs.double().exp()
        if top_p < 1:
            ordered, order = probabilities.sort(dim=-1, descending=True)
            outside = ordered.cumsum(dim=-1) - ordered >= top_p
            probabilities = torch.zeros_like(probabilities).scatter(1, order, ordered.masked_fill(outside, 0.0))
        summed = probabilities.cumsum(dim=-1)
        chosen = torch.searchsorted(summed, chances[:, None] * summed[:, -1:], right=True).squeeze(1)
        chosen = chosen.clamp(max=logits.shape[1] - 1)  # where the sum is not a number
    return chosen, logprobs.gather(1, chosen.unsqueeze(1)).squeeze(1)


@contextmanager
def inference_mode_of(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode for the sampling only."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def complete(
    vlm: Vlm,
    problems: Sequence[Problem],
    *,
    max_completion_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    samples: int = 1,
    batch_size: int = 64,
    seed: int = 0,
    step: int = 0,
    stage: int = 0,
    progress: Callable[[int], None] | None = None,
) -> list[Completion]:
    """Completions of problems, `batch_size` rows at a time, in the problems' order (samples of a problem together).

    `seed` and a problem's id decide its samples, whatever other problems there are.
    """
    completions: list[Completion] = []
    for start in range(0, len(problems), max(1, batch_size // samples)):
        chunk = problems[start : start + max(1, batch_size // samples)]
        groups = sample(
            vlm,
            [vlm.encode_prompt(problem) for problem in chunk],
            group_size=samples,
            max_completion_tokens=max_completion_tokens,
            temperature=temperature,
            top_p=top_p,
            seeds=[seed_of(seed, problem.id) for problem in chunk],
            rows_at_once=batch_size,
            progress=progress,
        )
        for problem, group in zip(chunk, groups, strict=True):
            completions += [
                to_completion(vlm, problem, sampled, number, step, stage) for number, sampled in enumerate(group)
            ]
    return completions


def to_completion(vlm: Vlm, problem: Problem, sampled: Sampled, number: int, step: int, stage: int) -> Completion:
    """The record of one sample: its text without the end token; any other special token stays and fails the format."""
    ids = sampled.token_ids[:-1] if sampled.finish == "stop" else sampled.token_ids
    text = vlm.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return Completion(
        problem_id=problem.id,
        sample=number,
        step=step,
        stage=stage,
        text=text,
        tokens=len(sampled.token_ids),
        finish=sampled.finish,
        logprob=sum(sampled.logprobs),
        version=sampled.version,
    )
