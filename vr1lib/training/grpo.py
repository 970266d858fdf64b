"""PTST-GRPO: one loop, one run, one optimizer (Section 3.4).

    stage → problems → completions → hard reward → advantages → clipped loss with KL → step

Stages change group size and length limit between two steps; nothing else restarts. The reference of the KL term is the
cold-started model in every stage (our choice: the paper doesn't say); under LoRA it is the policy with its adapter off,
under full fine-tuning a frozen copy, and with a zero coefficient there is none. Zero, CI, Long and PTST differ by
parameters alone. Ids travel with every row and are asserted where rows meet their problems.
"""

import copy
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import psutil
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm

from vr1lib.advantage import group_advantages
from vr1lib.answers import grade_answer
from vr1lib.data.sources import Reject
from vr1lib.loss import LossOutput, Normalisation, RatioLevel, grpo_loss, token_logprobs
from vr1lib.models.rollout_local import Sampled, complete, sample, to_completion
from vr1lib.models.vlm import EncodedPrompt, Vlm, collate_prompts
from vr1lib.records import Graded, Problem
from vr1lib.reward import grade_completion
from vr1lib.schedule import Schedule


@dataclass(frozen=True)
class GrpoSettings:
    """What the loop needs beside the schedule. Sources are given with each notebook parameter of the same name."""

    prompts_per_step: int = 16
    updates_per_step: int = 1
    learning_rate: float = 1e-6
    warmup_steps: int = 0
    weight_decay: float = 0.01
    max_gradient_norm: float = 1.0
    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_coefficient: float = 0.01
    ratio_level: RatioLevel = "token"
    normalisation: Normalisation = "token_mean"
    normalise_by_std: bool = True
    reward: Literal["hard", "format_plus_result"] = "hard"
    temperature: float = 1.0
    top_p: float = 1.0
    micro_batch_tokens: int = 16384
    evaluate_every: int = 0
    evaluation_temperature: float = 0.6
    evaluation_top_p: float = 0.95
    evaluation_batch_size: int = 64
    seed: int = 0


@dataclass
class Rollout:
    """A sampled completion on its way from sampler to loss; prompt and verdict carry their problem's id."""

    prompt: EncodedPrompt
    sampled: Sampled
    graded: Graded
    advantage: float = 0.0
    reference_logprobs: Tensor | None = None  # [tokens]


def train_grpo(
    vlm: Vlm,
    problems: Sequence[Problem],
    schedule: Schedule,
    settings: GrpoSettings,
    *,
    log: Callable[[dict], None],
    log_completions: Callable[[list[Graded], dict[str, Problem]], None] = lambda graded, problems: None,
    evaluation_problems: Sequence[Problem] = (),
) -> None:
    """Train the policy in place. `log` gets one dictionary a step; keys are explained in docs/metrics.md."""
    accelerator = Accelerator()
    parameters = [parameter for parameter in vlm.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    reference = frozen_reference(vlm) if settings.kl_coefficient > 0 else None
    vlm.model, optimizer = accelerator.prepare(vlm.model, optimizer)
    vlm.model.train()  # gradient checkpointing works in training mode only; the sampler leaves it for its own time
    generator = torch.Generator(device=vlm.device).manual_seed(settings.seed)
    stream = shuffled_epochs(problems, settings.seed)
    by_id = {problem.id: problem for problem in [*problems, *evaluation_problems]}

    def evaluate(step: int, stage: int) -> dict:
        if not (evaluation_problems and settings.evaluate_every):
            return {}
        if step % settings.evaluate_every and step != schedule.total_steps:
            return {}
        return evaluation_metrics(vlm, evaluation_problems, schedule, settings, step, stage)

    log({"step": 0, "stage": 0, "seconds": 0.0, **evaluate(0, 0)})
    started = time.perf_counter()
    for step in tqdm(range(schedule.total_steps), desc="PTST-GRPO", unit="step"):
        stage_index, stage = schedule.stage_at(step)
        clock = Clock()
        batch = [next(stream) for _ in range(settings.prompts_per_step)]
        prompts = [vlm.encode_prompt(problem) for problem in batch]
        groups = sample(
            vlm,
            prompts,
            group_size=stage.group_size,
            max_completion_tokens=stage.max_completion_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            generator=generator,
        )
        clock.lap("time/rollout")
        rollouts = grade_groups(vlm, batch, prompts, groups, settings.reward, step + 1, stage_index)
        clock.lap("time/reward")
        rewards = torch.tensor([r.graded.reward for r in rollouts]).view(len(batch), stage.group_size)
        advantages = group_advantages(rewards, normalise_by_std=settings.normalise_by_std).flatten()
        for rollout, advantage in zip(rollouts, advantages.tolist(), strict=True):
            rollout.advantage = advantage
        optimizer.param_groups[0]["lr"] = settings.learning_rate * min(1.0, (step + 1) / max(1, settings.warmup_steps))
        update = update_policy(vlm, rollouts, optimizer, accelerator, reference, settings, stage.max_completion_tokens)
        clock.lap("time/update")
        tokens = sum(len(rollout.sampled.token_ids) for rollout in rollouts)
        metrics = {
            "step": step + 1,
            "stage": stage_index,
            "seconds": time.perf_counter() - started,
            **rollout_metrics(rollouts, rewards),
            **update,
            "learning_rate": optimizer.param_groups[0]["lr"],
            **clock.laps,
            "tokens_per_second": tokens / sum(clock.laps.values()),
            **memory_metrics(),
            **evaluate(step + 1, stage_index),
        }
        log(metrics)
        log_completions([rollout.graded for rollout in rollouts], by_id)
    vlm.model.eval()


# ------------------------------------------------------------------------------------------------ from samples to rows


def grade_groups(
    vlm: Vlm,
    batch: Sequence[Problem],
    prompts: Sequence[EncodedPrompt],
    groups: Sequence[Sequence[Sampled]],
    reward: str,
    step: int,
    stage: int,
) -> list[Rollout]:
    """Samples of every group as graded rollouts, in group order."""
    rollouts = []
    for problem, prompt, group in zip(batch, prompts, groups, strict=True):
        for number, sampled in enumerate(group):
            completion = to_completion(vlm, problem, sampled, number, step, stage)
            graded = grade_completion(completion, problem, reward)
            assert prompt.problem_id == graded.problem_id, f"prompt of {prompt.problem_id} met {graded.problem_id}"
            rollouts.append(Rollout(prompt, sampled, graded))
    return rollouts


def usable_problems(vlm: Vlm, problems: Sequence[Problem]) -> tuple[list[Problem], list[Reject]]:
    """Problems that this model can be shown and whose gold our grader accepts from itself; the rest with reasons."""
    usable, rejects = [], []
    for problem in tqdm(problems, desc="Checking problems", unit="problem", mininterval=2):
        verdict = grade_answer(problem.answer, problem.answer, problem.choices)
        if not verdict.ok:
            fault = ("gold does not grade itself", f"{problem.answer!r}: {verdict.reason}")
        elif detail := vlm.why_not_shown(problem):
            fault = ("cannot be shown", detail)
        else:
            usable.append(problem)
            continue
        rejects.append(Reject(id=problem.id, reason=fault[0], detail=fault[1], source=problem.source, step="grpo"))
    return usable, rejects


def shuffled_epochs(problems: Sequence[Problem], seed: int) -> Iterator[Problem]:
    """The problems for ever, in a new seeded order every epoch."""
    order = list(range(len(problems)))
    rng = random.Random(seed)
    while True:
        rng.shuffle(order)
        for index in order:
            yield problems[index]


# ---------------------------------------------------------------------------------------------------- the policy update


def update_policy(
    vlm: Vlm,
    rollouts: list[Rollout],
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    reference: Callable | None,
    settings: GrpoSettings,
    max_completion_tokens: int,
) -> dict[str, float]:
    """One pass over the rollouts in `updates_per_step` optimizer steps; returns the step's loss metrics."""
    parts = [rollouts[start :: settings.updates_per_step] for start in range(settings.updates_per_step)]
    on_policy = len(parts) == 1  # the policy that sampled is the one updated: its own log-probs are the old ones
    totals: dict[str, float] = {}
    if reference is not None:
        with reference() as model, torch.no_grad():
            for rows in micro_batches(rollouts, settings.micro_batch_tokens):
                logprobs, _ = completion_logprobs(vlm, model, rows, settings.temperature)
                for row, values in zip(rows, logprobs):
                    row.reference_logprobs = values[: len(row.sampled.token_ids)].cpu()
    for part in parts:
        part_tokens = sum(len(rollout.sampled.token_ids) for rollout in part)
        for rows in micro_batches(part, settings.micro_batch_tokens):
            logprobs, entropies = completion_logprobs(vlm, vlm.model, rows, settings.temperature)
            mask = completion_mask(rows).to(logprobs.device)
            old = padded([torch.tensor(row.sampled.logprobs) for row in rows]).to(logprobs.device)
            output = grpo_loss(
                logprobs,
                logprobs.detach() if on_policy else old,
                torch.tensor([row.advantage for row in rows], device=logprobs.device),
                mask,
                padded([row.reference_logprobs for row in rows]).to(logprobs.device) if reference else None,
                clip_low=settings.clip_low,
                clip_high=settings.clip_high,
                kl_coefficient=settings.kl_coefficient,
                ratio_level=settings.ratio_level,
                normalisation=settings.normalisation,
                max_completion_tokens=max_completion_tokens,
                total_tokens=part_tokens,
                total_rows=len(part),
            )
            accelerator.backward(output.loss)
            gap = ((logprobs.detach() - old).abs() * mask).sum() / part_tokens
            entropy = (entropies * mask).sum() / part_tokens
            add_metrics(totals, output, entropy, gap, len(parts))
        norm = accelerator.clip_grad_norm_(vlm.model.parameters(), settings.max_gradient_norm)
        totals["grad_norm"] = totals.get("grad_norm", 0.0) + float(norm) / len(parts)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return totals


def add_metrics(totals: dict[str, float], output: LossOutput, entropy: Tensor, gap: Tensor, parts: int) -> None:
    """Add a micro-batch's share of the step's means."""
    values = {
        "loss": output.loss.detach(),
        "kl": output.kl,
        "clip/low": output.clip_low_fraction,
        "clip/high": output.clip_high_fraction,
        "entropy": entropy,
        "logprob_gap": gap,
    }
    for key, value in values.items():
        totals[key] = totals.get(key, 0.0) + float(value) / parts


def completion_logprobs(vlm: Vlm, model, rows: list[Rollout], temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies [rows, tokens] of the rows' completions under `model`, as the sampler has them.

    Prompts are padded on the left and completions on the right: completion token t of every row is in one column.
    """
    prompts = collate_prompts([row.prompt for row in rows], vlm.pad_token_id)
    ids = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(row.sampled.token_ids) for row in rows], batch_first=True, padding_value=vlm.pad_token_id
    )  # [rows, tokens]
    mask = completion_mask(rows)
    batch = {
        **prompts,
        "input_ids": torch.cat([prompts["input_ids"], ids], dim=1),
        "attention_mask": torch.cat([prompts["attention_mask"], mask.to(prompts["attention_mask"].dtype)], dim=1),
        "mm_token_type_ids": torch.cat([prompts["mm_token_type_ids"], torch.zeros_like(ids)], dim=1),
    }
    batch = {key: value.to(vlm.device) for key, value in batch.items() if value is not None}
    logits = model(**batch, use_cache=False, logits_to_keep=ids.shape[1] + 1).logits[:, :-1]
    banned = torch.tensor(vlm.vision_token_ids, device=logits.device)
    logits = logits.index_fill(2, banned, float("-inf"))
    return token_logprobs(logits, ids.to(logits.device), temperature or 1.0)


def completion_mask(rows: Sequence[Rollout]) -> Tensor:
    """[rows, tokens], true on each row's own completion tokens."""
    lengths = torch.tensor([len(row.sampled.token_ids) for row in rows])
    return torch.arange(int(lengths.max()))[None, :] < lengths[:, None]


def padded(values: Sequence[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(values), batch_first=True)


def micro_batches(rollouts: Sequence[Rollout], max_tokens: int) -> Iterator[list[Rollout]]:
    """Rows of like length together, each batch at most `max_tokens` padded tokens (a longer row goes alone)."""

    def length(row: Rollout) -> tuple[int, int]:
        return len(row.sampled.token_ids), len(row.prompt.input_ids)

    batch: list[Rollout] = []
    widest = 0
    for row in sorted(rollouts, key=length):
        width = max(widest, sum(length(row)))
        if batch and width * (len(batch) + 1) > max_tokens:
            yield batch
            batch, width = [], sum(length(row))
        batch.append(row)
        widest = width
    if batch:
        yield batch


def frozen_reference(vlm: Vlm) -> Callable:
    """A context that gives the reference model: the adapter switched off, or a frozen copy of the policy as it
    starts."""
    if vlm.method != "full":

        @contextmanager
        def adapter_off() -> Iterator:
            with vlm.reference():
                yield vlm.model

        return adapter_off
    frozen = copy.deepcopy(vlm.model).eval().requires_grad_(False)
    return lambda: nullcontext(frozen)


# ------------------------------------------------------------------------------------------------------------- metrics


def rollout_metrics(rollouts: Sequence[Rollout], rewards: Tensor) -> dict[str, float]:
    """Rewards, lengths and the shares of groups that teach nothing; rewards [groups, group_size]."""
    graded = [rollout.graded for rollout in rollouts]
    right = [row.tokens for row in graded if row.answer_ok]
    wrong = [row.tokens for row in graded if not row.answer_ok]
    truncated = torch.tensor([row.finish == "length" for row in graded]).view_as(rewards)
    return {
        "reward/mean": float(rewards.mean()),
        "reward/format_ok": mean([row.format_ok for row in graded]),
        "reward/answer_ok": mean([row.answer_ok for row in graded]),
        "groups/all_right": float((rewards == 1).all(dim=1).float().mean()),
        "groups/all_wrong": float((rewards == 0).all(dim=1).float().mean()),
        "groups/all_truncated": float(truncated.all(dim=1).float().mean()),
        "length/mean": mean([row.tokens for row in graded]),
        "length/right_mean": mean(right),
        "length/wrong_mean": mean(wrong),
        "length/clipped_ratio": float(truncated.float().mean()),
    }


def evaluation_metrics(
    vlm: Vlm, problems: Sequence[Problem], schedule: Schedule, settings: GrpoSettings, step: int, stage: int
) -> dict[str, float]:
    """Accuracy and length on problems never trained on, under the longest stage's limit and with the same seed
    throughout, so that two evaluations differ by the policy alone."""
    limit = max(stage.max_completion_tokens for stage in schedule.stages)
    completions = complete(
        vlm,
        list(problems),
        max_completion_tokens=limit,
        temperature=settings.evaluation_temperature,
        top_p=settings.evaluation_top_p,
        batch_size=settings.evaluation_batch_size,
        generator=torch.Generator(device=vlm.device).manual_seed(settings.seed),
        step=step,
        stage=stage,
    )
    graded = [grade_completion(completion, problem) for completion, problem in zip(completions, problems, strict=True)]
    return {
        "eval/accuracy": mean([row.answer_ok for row in graded]),
        "eval/length_mean": mean([row.tokens for row in graded]),
        "eval/n": len(graded),
    }


def memory_metrics() -> dict[str, float]:
    """Resident memory of this process and peak GPU memory, GiB."""
    metrics = {"memory/rss_gib": psutil.Process().memory_info().rss / 2**30}
    if torch.cuda.is_available():
        metrics["memory/vram_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return metrics


def mean(values: Sequence[float]) -> float:
    """The mean; NaN of nothing."""
    return sum(values) / len(values) if values else math.nan


class Clock:
    """Seconds between laps, by name."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = now - self.last
        self.last = now
