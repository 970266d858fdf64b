"""Sampling from a model in this process: every prompt read once, its cache shared by the group.

Each prompt's pictures and text are encoded once, and its keys and values are there once for all of its samples
(`decoding.py`). Rows that have ended leave the batch and waiting ones enter, so that cost follows the tokens made.
Vision tokens are never sampled: a policy that writes an image-pad token crashes the next forward. Log-probabilities are
kept as sampled, of the distribution after temperature and ban but before top-k and top-p, which is the one the trainer
recomputes (our choice; the paper names neither).

Chance has no state: token t of a sample comes from the t-th number of a stream that its prompt's seed and its own
number begin. So it is the same beside any other rows, however many are sampled at once, in whatever process, and after
a resume (our choice; a generator shared by the batch would tie every row to all others).
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy
import torch
from torch import Tensor

from vr1lib.models.decoding import Reading, SharedReading, read_prompts
from vr1lib.models.vlm import EncodedPrompt, Vlm
from vr1lib.records import Completion, Problem

COMPACT_BELOW = 0.75  # rows leave and enter once a quarter of the batch has ended (our choice: copying has a price)


@dataclass(frozen=True)
class Sampled:
    """One sample: its tokens with the end token if it stopped by itself, and each token's log-probability [tokens]."""

    token_ids: list[int]
    logprobs: list[float]
    finish: str  # "stop" | "length"
    version: int | None = None  # updates behind the weights that sampled, as a server says; None: this process's own


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
    top_k: int = 0,
    seeds: Sequence[int],
    rows_at_once: int = 64,
    progress: Callable[[int], None] | None = None,
) -> list[list[Sampled]]:
    """`group_size` samples for each prompt, whose own seed decides them; temperature 0 is greedy, top-k 0 is all.

    At most `rows_at_once` samples are in memory with their caches. When a quarter of them have ended and the next
    prompt's fit in, they enter; a larger group is sampled in pieces, and its prompt read once for each. `progress` is
    told how many rows have just ended.
    """
    if len(seeds) != len(prompts):
        raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts")
    samples: list[list[Sampled | None]] = [[None] * group_size for _ in prompts]
    waiting = deque(
        (index, range(first, min(first + rows_at_once, group_size)))
        for index in range(len(prompts))
        for first in range(0, group_size, rows_at_once)
    )
    batch = Batch(vlm, max_completion_tokens, partial(choose, temperature=temperature, top_p=top_p, top_k=top_k))
    with inference_mode_of(vlm.model):
        while waiting or batch.rows:
            if entering := whose_turn(waiting, rows_at_once, batch):
                batch.enter([(prompts[index], seeds[index], index, numbers) for index, numbers in entering])
            with torch.inference_mode():
                ended = batch.step()
            for index, number, sampled in ended:
                samples[index][number] = sampled
            if progress and ended:
                progress(len(ended))
    return samples


def whose_turn(waiting: deque[tuple[int, range]], rows_at_once: int, batch: "Batch") -> list[tuple[int, range]]:
    """The prompts that enter now, taken from those that wait: index and numbers of samples, as many for each."""
    free = rows_at_once - len(batch.rows)
    if batch.rows and (not batch.takes_more or free < (1 - COMPACT_BELOW) * rows_at_once):
        return []
    entering = []
    while waiting and len(waiting[0][1]) <= free:
        entering.append(waiting.popleft())
        free -= len(entering[-1][1])
    return entering


def uniforms(seed: int, number: int, count: int) -> Tensor:
    """The numbers in [0, 1) that decide sample `number` of a prompt, one a token: float64 [count]."""
    return torch.from_numpy(numpy.random.default_rng([seed, number]).random(count))


@dataclass
class Row:
    """A sample in the making: its prompt's index and its own number."""

    index: int
    number: int


class Batch:
    """The rows being sampled, which enter and leave. A line of it goes on for nothing from its end until it is removed.

    `choose`: (logits [lines, vocabulary], banned, chances=[lines]) → tokens and log-probabilities [lines].
    """

    def __init__(self, vlm: Vlm, max_completion_tokens: int, choose: Callable[..., tuple[Tensor, Tensor]]) -> None:
        self.vlm, self.max_completion_tokens, self.choose = vlm, max_completion_tokens, choose
        self.banned = torch.tensor(vlm.vision_token_ids, dtype=torch.long, device=vlm.device)
        self.ends = torch.tensor(vlm.eos_token_ids, device=vlm.device)
        self.reading: Reading | None = None
        self.rows: dict[int, Row] = {}  # line → the row that is on it

    @property
    def takes_more(self) -> bool:
        """Whether others may enter beside the rows that are here."""
        return isinstance(self.reading, SharedReading)

    def enter(self, groups: list[tuple[EncodedPrompt, int, int, range]]) -> None:
        """Rows of new prompts, as many each: (prompt, its seed, its index, the numbers of its samples)."""
        limit, device = self.max_completion_tokens, self.vlm.device
        rows = [Row(index, number) for _, _, index, numbers in groups for number in numbers]
        chances = torch.stack([uniforms(seed, number, limit) for _, seed, _, numbers in groups for number in numbers])
        logits, reading = read_prompts(self.vlm, [prompt for prompt, *_ in groups], len(groups[0][3]))
        tokens = torch.full((len(rows), limit), self.vlm.pad_token_id, dtype=torch.long, device=device)
        new = {
            "logits": logits,
            "chances": chances.to(device),
            "tokens": tokens,
            "logprobs": torch.zeros(len(rows), limit, device=device),
            "made": torch.zeros(len(rows), dtype=torch.long, device=device),
        }
        self.remove_ended()
        if not self.rows:
            self.reading, self.lines = reading, new
        else:
            self.reading.enter(reading)
            self.lines = {name: torch.cat([value, new[name]]) for name, value in self.lines.items()}
        self.rows |= dict(enumerate(rows, start=len(self.rows)))

    def step(self) -> list[tuple[int, int, Sampled]]:
        """One more token for every row: index, number and sample of those that ended with it."""
        lines = self.lines
        chances = lines["chances"].gather(1, lines["made"][:, None])[:, 0]
        chosen, logprobs = self.choose(lines["logits"], self.banned, chances=chances)
        chosen = torch.where(logprobs.isnan(), self.ends[0], chosen)  # a broken model's row ends; the loss shows it
        lines["tokens"].scatter_(1, lines["made"][:, None], chosen[:, None])
        lines["logprobs"].scatter_(1, lines["made"][:, None], logprobs[:, None])
        stopped = torch.isin(chosen, self.ends)
        full = lines["made"] + 1 == self.max_completion_tokens
        ended = [line for line in (stopped | full).nonzero()[:, 0].tolist() if line in self.rows]
        samples = []
        for line in ended:
            row, made = self.rows.pop(line), int(lines["made"][line]) + 1
            told = (lines[name][line, :made].tolist() for name in ("tokens", "logprobs"))
            samples.append((row.index, row.number, Sampled(*told, "stop" if stopped[line] else "length")))
        lines["made"] = (lines["made"] + 1).clamp(max=self.max_completion_tokens - 1)
        if self.rows:
            if len(self.rows) < COMPACT_BELOW * len(chosen):
                chosen = chosen[self.remove_ended()]
            self.lines["logits"] = self.reading.read(chosen)
        return samples

    def remove_ended(self) -> Tensor:
        """Only lines with a row stay; their numbers as they were."""
        kept = torch.tensor(sorted(self.rows), dtype=torch.long, device=self.vlm.device)
        if self.rows and len(kept) < len(self.reading):
            self.reading.keep(kept)
            self.lines = {name: value[kept] for name, value in self.lines.items()}
            self.rows = dict(enumerate(self.rows[line] for line in kept.tolist()))
        return kept


def choose(
    logits: Tensor, banned: Tensor, temperature: float, top_p: float, chances: Tensor, top_k: int = 0
) -> tuple[Tensor, Tensor]:
    """One token for each row and its log-probability: logits [rows, vocabulary] → ([rows], [rows]).

    Of all tokens, the `top_k` likeliest (0: all), and of those the likeliest that reach `top_p`, are chosen from. The
    token is the one at which the summed probabilities pass the row's chance in [0, 1): chances [rows]. The sum is
    in double precision, for in single it would miss the rarest tokens of a large vocabulary.
    """
    logits = logits.float().index_fill(1, banned, float("-inf"))
    if temperature not in (0, 1):
        logits = logits / temperature
    logprobs = torch.log_softmax(logits, dim=-1)
    if temperature == 0:
        chosen = logprobs.argmax(dim=-1)
    else:
        probabilities = logprobs.exp()
        if top_p < 1 or top_k:
            ordered, order = probabilities.double().sort(dim=-1, descending=True)
            if top_k:
                ordered[:, top_k:] = 0.0
            outside = ordered.cumsum(dim=-1) - ordered >= top_p * ordered.sum(dim=-1, keepdim=True)
            probabilities = torch.zeros_like(ordered).scatter(1, order, ordered.masked_fill(outside, 0.0))
        summed = probabilities.cumsum(dim=-1, dtype=torch.float64)
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
    top_k: int = 0,
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
    groups = sample(
        vlm,
        EncodedInTurn(vlm, problems),
        group_size=samples,
        max_completion_tokens=max_completion_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seeds=[seed_of(seed, problem.id) for problem in problems],
        rows_at_once=batch_size,
        progress=progress,
    )
    return [
        to_completion(vlm, problem, sampled, number, step, stage)
        for problem, group in zip(problems, groups, strict=True)
        for number, sampled in enumerate(group)
    ]


@dataclass(frozen=True)
class EncodedInTurn(Sequence):
    """The prompts of problems, each encoded when it is asked for: pictures of a whole benchmark don't fit in memory."""

    vlm: Vlm
    problems: Sequence[Problem]

    def __len__(self) -> int:
        return len(self.problems)

    def __getitem__(self, place: int) -> EncodedPrompt:
        return self.vlm.encode_prompt(self.problems[place])


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
