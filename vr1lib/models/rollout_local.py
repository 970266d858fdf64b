"""Sampling from the training model itself: every prompt read once, its cache shared by the group.

Each prompt's pictures and text are encoded once, the key-value cache is repeated for the group's samples, and rows that
have ended leave the batch, so that cost follows the tokens made. Vision tokens are never sampled: a policy that writes
an image-pad token crashes the next forward. Log-probabilities are kept as sampled, of the distribution after
temperature and ban but before top-p, which is the one the trainer recomputes (our choice; the paper names neither).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from vr1lib.models.vlm import EncodedPrompt, Vlm, collate_prompts
from vr1lib.records import Completion, Problem

COMPACT_BELOW = 0.75  # rows leave the batch once a quarter of it has ended (our choice: copying the cache has a price)


@dataclass(frozen=True)
class Sampled:
    """One sample: its tokens with the end token if it stopped by itself, and each token's log-probability [tokens]."""

    token_ids: list[int]
    logprobs: list[float]
    finish: str  # "stop" | "length"


@torch.no_grad()
def sample(
    vlm: Vlm,
    prompts: list[EncodedPrompt],
    *,
    group_size: int,
    max_completion_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[list[Sampled]]:
    """`group_size` samples for each prompt; temperature 0 is greedy. `progress` is told how many rows have just
    ended."""
    model = vlm.model
    with inference_mode_of(model):
        batch = collate_prompts(prompts, vlm.pad_token_id)
        batch = {key: value.to(vlm.device) for key, value in batch.items() if value is not None}
        output = model(**batch, use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        cache.batch_repeat_interleave(group_size)
        logits = output.logits[:, -1].repeat_interleave(group_size, dim=0)  # [rows, vocabulary]
        attention_mask = batch["attention_mask"].repeat_interleave(group_size, dim=0)
        next_position = next_positions(model, batch).repeat_interleave(group_size)  # [rows]
        return _decode(
            vlm, cache, logits, attention_mask, next_position, group_size, max_completion_tokens, temperature, top_p,
            generator, progress,
        )  # fmt: skip


def _decode(
    vlm,
    cache,
    logits,
    attention_mask,
    next_position,
    group_size,
    max_completion_tokens,
    temperature,
    top_p,
    generator,
    progress,
) -> list[list[Sampled]]:
    rows = logits.shape[0]
    device = logits.device
    tokens = torch.full((rows, max_completion_tokens), vlm.pad_token_id, dtype=torch.long, device=device)
    logprobs = torch.zeros(rows, max_completion_tokens, device=device)
    lengths = torch.full((rows,), max_completion_tokens, dtype=torch.long, device=device)
    banned = torch.tensor(vlm.vision_token_ids, device=device)
    ends = torch.tensor(vlm.eos_token_ids, device=device)
    index = torch.arange(rows, device=device)  # which row each line of the batch belongs to
    stopped = torch.zeros(rows, dtype=torch.bool, device=device)
    for step in range(max_completion_tokens):
        chosen, chosen_logprobs = choose(logits, banned, temperature, top_p, generator)
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
            cache.batch_select_indices(keep)
            index, chosen = index[keep], chosen[keep]
            attention_mask, next_position = attention_mask[keep], next_position[keep]
        attention_mask = torch.cat([attention_mask, attention_mask.new_ones(len(index), 1)], dim=1)
        position_ids = (next_position + step).view(1, -1, 1).expand(3, -1, -1)
        output = vlm.model(
            input_ids=chosen.unsqueeze(1),
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        logits = output.logits[:, -1]
    if progress:
        progress(int((~stopped).sum()))
    samples = [
        Sampled(
            tokens[row, : lengths[row]].tolist(),
            logprobs[row, : lengths[row]].tolist(),
            "stop" if stopped[row] else "length",
        )
        for row in range(rows)
    ]
    return [samples[start : start + group_size] for start in range(0, rows, group_size)]


def choose(
    logits: Tensor, banned: Tensor, temperature: float, top_p: float, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """One token for each row and its log-probability: logits [rows, vocabulary] → ([rows], [rows])."""
    logits = logits.float().index_fill(1, banned, float("-inf"))
    if temperature > 0:
        logits = logits / temperature
    logprobs = torch.log_softmax(logits, dim=-1)
    if temperature == 0:
        chosen = logprobs.argmax(dim=-1)
    else:
        probabilities = logprobs.exp()
        if top_p < 1:
            ordered, order = probabilities.sort(dim=-1, descending=True)
            outside = ordered.cumsum(dim=-1) - ordered >= top_p
            probabilities = torch.zeros_like(probabilities).scatter(1, order, ordered.masked_fill(outside, 0.0))
        chosen = torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
    return chosen, logprobs.gather(1, chosen.unsqueeze(1)).squeeze(1)


def next_positions(model, batch: dict[str, Tensor]) -> Tensor:
    """The rotary position that follows each prompt [rows]: a picture of h×w tokens advances it by max(h, w) only.

    With pictures the model counts each row's own tokens; a batch without any it counts from the padding on.
    """
    mask = batch["attention_mask"]
    deltas = getattr(base_model(model), "rope_deltas", None) if "image_grid_thw" in batch else None
    if deltas is None:
        return torch.full_like(mask[:, 0], mask.shape[1])
    return mask.sum(dim=1) + deltas.view(-1).to(mask.device)


def base_model(model):
    """The transformers model (with `rope_deltas`) under whatever wraps it."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    return model.model


@contextmanager
def inference_mode_of(model) -> Iterator[None]:
    """Evaluation mode for the sampling only."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def complete(
    vlm: Vlm,
    problems: list[Problem],
    *,
    max_completion_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    samples: int = 1,
    batch_size: int = 64,
    generator: torch.Generator | None = None,
    step: int = 0,
    stage: int = 0,
    progress: Callable[[int], None] | None = None,
) -> list[Completion]:
    """Completions of problems, `batch_size` rows at a time, in the problems' order (samples of a problem together)."""
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
            generator=generator,
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
    )
