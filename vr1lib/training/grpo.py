"""PTST-GRPO: one loop, one run, one optimizer (Section 3.4).

    stage → problems → completions → hard reward → advantages → clipped loss with KL → step

Stages change group size and length limit between two steps; nothing else restarts. The reference of the KL term is the
cold-started model in every stage (our choice: the paper doesn't say); under LoRA it is the policy with its adapter off,
under full fine-tuning a frozen copy, and with a zero coefficient there is none. Zero, CI, Long and PTST differ by
parameters alone. Ids travel with every row and are asserted where rows meet their problems.

What a step samples and counts is in rollouts.py, model, reference and optimizer in session.py. Here: the loop, and the
update. Every process runs the same loop over its share of the step's prompts. Sums are over all processes' tokens and
rows, so that losses, metrics and weights don't depend on how many processes there are.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, NoReturn

import torch
from accelerate.utils import gather_object
from torch import Tensor
from tqdm.auto import tqdm

from vr1lib.answers import grade_answer
from vr1lib.data.sources import Reject
from vr1lib.loss import LOSSES, importance_weights
from vr1lib.models.inference_copy import whole
from vr1lib.models.rollout_local import inference_mode_of
from vr1lib.models.rollout_vllm import SamplerLost
from vr1lib.models.vlm import Vlm
from vr1lib.records import Graded, Problem
from vr1lib.schedule import Schedule
from vr1lib.training.bad_steps import dump_bad_step
from vr1lib.training.checkpoint import Checkpoints, load_checkpoint
from vr1lib.training.logprobs import completion_logprobs, completion_mask
from vr1lib.training.processes import SEEING, TrainingStopped, memory_metrics, sums_over_processes
from vr1lib.training.rollouts import (
    Clock,
    Rollout,
    answer_held_out,
    evaluation_metrics,
    harvest,
    roll_out,
    rollout_metrics,
)
from vr1lib.training.session import GrpoSettings, Session, prepare

__all__ = ["GrpoSettings", "Session", "prepare", "roll_out", "train_grpo", "update_policy", "usable_problems"]

SCORED_STEPS = 10  # a checkpoint without an evaluation is judged by the reward over so many steps; our choice
SUMS = ("loss", "kl", "clip/low", "clip/high", "entropy", "logprob_gap", "rollout/corrected_ratio")


@dataclass
class Progress:
    """Where a run is: what a checkpoint has to remember beside weights, optimizer and generators."""

    step: int = 0
    stage: int = 0
    drawn: int = 0  # problems drawn: the cursor in the data
    bad_steps: int = 0
    bad_in_a_row: int = 0
    seconds: float = 0.0
    rewards: list[float] = field(default_factory=list)  # of the last steps


def train_grpo(
    session: Session,
    problems: Sequence[Problem],
    schedule: Schedule,
    *,
    log: Callable[[dict], None],
    log_completions: Callable[[list[Graded], dict[str, Problem]], None] = lambda graded, problems: None,
    log_evaluation: Callable[[list[Graded]], None] = lambda graded: None,
    evaluation_problems: Sequence[Problem] = (),
    checkpoints: Checkpoints | None = None,
    resume_from: Path | None = None,
    dump_folder: Path | None = None,
) -> None:
    """Train the session's policy in place; every process must call, the first one logs for all.

    `log` gets one dictionary a step; keys are explained in docs/metrics.md. `log_evaluation` gets the graded answers to
    `evaluation_problems` before the first step, every `evaluate_every` steps and at the end. `resume_from` is a
    checkpoint to go on from, bit for bit on the CPU. A step whose loss or gradient is NaN or Inf is skipped and left in
    `dump_folder` to be looked at; raises TrainingStopped after `max_bad_steps` of them in a row.
    """
    settings, accelerator, optimizer = session.settings, session.accelerator, session.optimizer
    by_id = {problem.id: problem for problem in [*problems, *evaluation_problems]}

    def evaluate(step: int, stage_index: int) -> dict:
        due = settings.evaluate_every and (step % settings.evaluate_every == 0 or step == schedule.total_steps)
        if not (due and evaluation_problems):
            return {}
        graded = answer_held_out(session, evaluation_problems, schedule, step, stage_index)
        if accelerator.is_main_process:
            log_evaluation(graded)
        return evaluation_metrics(graded)

    if resume_from:
        progress = Progress(**load_checkpoint(resume_from, session.vlm, optimizer, accelerator))
    else:
        progress = Progress()
        metrics = {"step": 0, "stage": 0, "seconds": 0.0, **evaluate(0, 0)}
        if accelerator.is_main_process:
            log(metrics)
    started = time.perf_counter() - progress.seconds
    steps = range(progress.step, schedule.total_steps)
    bar = {"total": schedule.total_steps, "initial": progress.step, "disable": not accelerator.is_main_process}
    for step in tqdm(steps, desc="PTST-GRPO", unit="step", **bar):
        stage_index, stage = schedule.stage_at(step)
        clock = Clock()
        try:
            session.update_sampler(step)
            crop = harvest(session, problems, progress.drawn, stage, step + 1, stage_index, clock)
        except SamplerLost as error:
            stop_with_checkpoint(session, progress, checkpoints, error)
        learning_rate = settings.learning_rate * min(1.0, (step + 1) / max(1, settings.warmup_steps))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        update = update_policy(session, crop.kept, stage.max_completion_tokens, crop.spare)
        clock.lap("time/update")

        bad, lost = not is_sound(update), None
        progress.step, progress.stage, progress.drawn = step + 1, stage_index, crop.drawn
        progress.bad_steps += bad
        progress.bad_in_a_row = progress.bad_in_a_row + 1 if bad else 0
        metrics = {
            "step": step + 1,
            "stage": stage_index,
            "seconds": time.perf_counter() - started,
            **rollout_metrics(crop.graded, stage.group_size),
            **crop.refills,
            **update,
            "bad_steps": progress.bad_steps,
            "learning_rate": learning_rate,
            **clock.laps,
            "tokens_per_second": crop.tokens / sum(clock.laps.values()),
            **memory_metrics(),
        }
        try:
            metrics |= evaluate(step + 1, stage_index)
        except SamplerLost as error:
            lost = error
        if accelerator.is_main_process:
            log(metrics)
            log_completions(crop.graded, by_id)
        if bad:
            handle_bad_step(session, crop.kept, metrics, progress, dump_folder)
        progress.rewards = [*progress.rewards, metrics["reward/mean"]][-SCORED_STEPS:]
        progress.seconds = time.perf_counter() - started
        if lost:
            stop_with_checkpoint(session, progress, checkpoints, lost)
        if checkpoints and checkpoints.due(step + 1, schedule.total_steps):
            score = metrics.get("eval/accuracy", sum(progress.rewards) / len(progress.rewards))
            checkpoints.save(step + 1, session.vlm, optimizer, accelerator, asdict(progress), score)
    session.vlm.model.eval()


def stop_with_checkpoint(
    session: Session, progress: Progress, checkpoints: Checkpoints | None, error: SamplerLost
) -> NoReturn:
    """Keep what is done, between two steps, and stop."""
    told = f"rollout servers lost before step {progress.step + 1}: {error}"
    if not checkpoints or progress.step == 0:
        raise TrainingStopped(f"{told}; no step is done that could be gone on from: start again")
    score = sum(progress.rewards) / len(progress.rewards)
    checkpoints.save(progress.step, session.vlm, session.optimizer, session.accelerator, asdict(progress), score)
    raise TrainingStopped(f"{told}; go on from step {progress.step} with --resume")


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


# ---------------------------------------------------------------------------------------------------- the policy update


def update_policy(
    session: Session, rollouts: Sequence[Rollout], max_completion_tokens: int, spare: Rollout | None = None
) -> dict[str, float]:
    """One pass over the step's rollouts in `updates_per_step` optimizer steps; returns its loss metrics.

    `rollouts` are this process's; there may be none if there is a `spare` one. At the first loss or gradient that is
    NaN or Inf the pass ends: weights and optimizer stay as they are, and the gradients are left to be looked at.
    """
    settings, optimizer = session.settings, session.optimizer
    parts = settings.updates_per_step
    if session.reference is not None:
        add_reference_logprobs(session, rollouts, spare)
    if session.servers and parts > 1:
        recompute_logprobs(session, session.vlm.model, rollouts, spare, "old_logprobs")
    totals = dict.fromkeys([*SUMS, "grad_norm"], 0.0)
    for part in range(parts):
        rows = [row for row in rollouts if (row.draw + row.graded.sample) % parts == part]
        metrics = accumulate_gradients(session, rows, max_completion_tokens, spare or rollouts[0])
        parameters = [parameter for parameter in session.vlm.model.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters])
        metrics["grad_norm"] = float(whole(norm))
        for name, value in metrics.items():
            totals[name] += value / parts
        if not is_sound(metrics):
            break
        torch.nn.utils.clip_grads_with_norm_(parameters, settings.max_gradient_norm, norm)
        optimizer.step()
        optimizer.zero_grad()
    return totals


def handle_bad_step(
    session: Session, rollouts: Sequence[Rollout], metrics: dict, progress: Progress, dump_folder: Path | None
) -> None:
    """Dump the step that was skipped and forget its gradients; TrainingStopped if it was one too many in a row."""
    fault = f"step {progress.step}: loss {metrics['loss']}, gradient norm {metrics['grad_norm']}: step skipped"
    if dump_folder:
        folder = dump_folder / f"step-{progress.step:06d}"
        dump_bad_step(folder, session.vlm.model, session.accelerator, *laid_out(rollouts), metrics)
        fault += f", dumped to {folder}"
    session.optimizer.zero_grad()
    if progress.bad_in_a_row == session.settings.max_bad_steps:
        raise TrainingStopped(f"{fault}; {progress.bad_in_a_row} such steps in a row")
    if session.accelerator.is_main_process:
        tqdm.write(fault)


def laid_out(rollouts: Sequence[Rollout]) -> tuple[list[dict], dict[str, Tensor]]:
    """The rows of a bad step to be looked at (problem, text, reward, advantage, log-probabilities in figures), and
    their token ids and log-probabilities as <row>.<name> [tokens]."""
    rows = [{**row.graded.model_dump(), "advantage": row.advantage, "draw": row.draw} for row in rollouts]
    tensors = {}
    for number, (row, told) in enumerate(zip(rollouts, rows)):
        tensors[f"{number}.token_ids"] = torch.tensor(row.sampled.token_ids)
        named = {
            "sampled_logprobs": torch.tensor(row.sampled.logprobs),
            "policy_logprobs": row.policy_logprobs,
            "reference_logprobs": row.reference_logprobs,
        }
        for name, values in named.items():
            if values is not None:
                tensors[f"{number}.{name}"] = values
                told[name] = figures_of(values)
    return rows, tensors


def figures_of(values: Tensor) -> dict[str, float]:
    finite = values[values.isfinite()]
    numbers = {"min": finite.min(), "mean": finite.mean(), "max": finite.max()} if len(finite) else {}
    return {"not_finite": len(values) - len(finite), **{name: float(number) for name, number in numbers.items()}}


def is_sound(metrics: dict[str, float]) -> bool:
    return math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"])


def accumulate_gradients(
    session: Session, rollouts: Sequence[Rollout], max_completion_tokens: int, spare: Rollout | None = None
) -> dict[str, float]:
    """Loss and gradients of one update's rows, in micro-batches; weights stay as they are. Returns its loss metrics.

    If no row of any process has a loss there is no gradient either, and an optimizer step would change nothing.
    """
    settings, accelerator, vlm = session.settings, session.accelerator, session.vlm
    with_loss = [row for row in rollouts if row.has_loss]
    counts = torch.tensor([sum(len(row.sampled.token_ids) for row in with_loss), len(rollouts)])
    total_tokens, total_rows = sums_over_processes(counts, accelerator)
    on_policy = settings.updates_per_step == 1  # the policy that sampled is the one updated: its log-probs are the old
    batches = equal_micro_batches(session, with_loss, spare or rollouts[0])
    sums = torch.zeros(len(SUMS), dtype=torch.float64, device=accelerator.device)
    for number, rows in enumerate(batches, start=1):
        with gradients_held_back(session) if number < len(batches) else nullcontext():
            completions = [row.sampled.token_ids for row in rows]
            logprobs, entropies = completion_logprobs(
                vlm, vlm.model, [row.prompt for row in rows], completions, settings.temperature
            )
            mask = (completion_mask(completions) & torch.tensor([[row.has_loss] for row in rows])).to(logprobs.device)
            sampled = padded([torch.tensor(row.sampled.logprobs) for row in rows]).to(logprobs.device)
            old = logprobs.detach() if on_policy else sampled
            if rows[0].old_logprobs is not None:
                old = padded([row.old_logprobs for row in rows]).to(logprobs.device)
            advantages = torch.tensor([row.advantage for row in rows], device=logprobs.device)
            corrected = torch.zeros_like(mask)
            if session.servers and settings.rollout_correction_gap is not None:
                weights = importance_weights(
                    old, sampled, mask, settings.rollout_correction_gap, settings.rollout_correction_cap
                )
                advantages, corrected = advantages[:, None] * weights, weights != 1
            output = LOSSES[settings.loss].function(
                logprobs,
                old,
                advantages,
                mask,
                padded([row.reference_logprobs for row in rows]).to(logprobs.device) if session.reference else None,
                clip_low=settings.own_or_published("clip_low"),
                clip_high=settings.own_or_published("clip_high"),
                kl_coefficient=settings.kl_coefficient,
                max_completion_tokens=max_completion_tokens,
                total_tokens=total_tokens,
                total_rows=total_rows,
            )
            accelerator.backward(output.loss * accelerator.num_processes)  # gradients are averaged over processes
        for row, values in zip(rows, logprobs.detach().cpu()):
            row.policy_logprobs = values[: len(row.sampled.token_ids)]
        gap = (logprobs.detach() - sampled).abs().masked_fill(~mask, 0.0).sum() / total_tokens
        entropy = entropies.detach().masked_fill(~mask, 0.0).sum() / total_tokens
        corrected = (corrected & mask).sum() / total_tokens
        shares = (output.loss, output.kl, output.clip_low_fraction, output.clip_high_fraction, entropy, gap, corrected)
        sums += torch.stack([share.detach().double() for share in shares])
    return dict(zip(SUMS, sums_over_processes(sums, accelerator)))


def gradients_held_back(session: Session) -> AbstractContextManager:
    """Under DDP gradients need to meet only once an update; shards meet each time, or they would be held whole."""
    held_back = session.settings.sharding == "none"
    return session.accelerator.no_sync(session.vlm.model) if held_back else nullcontext()


def add_reference_logprobs(session: Session, rollouts: Sequence[Rollout], spare: Rollout | None = None) -> None:
    """Give each row the log-probabilities that the model as training started has for it."""
    with session.reference() as model:
        recompute_logprobs(session, model, rollouts, spare, "reference_logprobs")


def recompute_logprobs(
    session: Session,
    model: torch.nn.Module,
    rollouts: Sequence[Rollout],
    spare: Rollout | None,
    name: Literal["reference_logprobs", "old_logprobs"],
) -> None:
    """Give each row the log-probabilities that `model` has for it."""
    with_loss = [row for row in rollouts if row.has_loss]
    with inference_mode_of(model), torch.no_grad():
        for rows in equal_micro_batches(session, with_loss, spare or rollouts[0]):
            prompts, completions = [row.prompt for row in rows], [row.sampled.token_ids for row in rows]
            logprobs, _ = completion_logprobs(session.vlm, model, prompts, completions, session.settings.temperature)
            for row, values in zip(rows, logprobs.cpu()):
                setattr(row, name, values[: len(row.sampled.token_ids)])


def padded(values: Sequence[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(values), batch_first=True)


def equal_micro_batches(session: Session, rollouts: Sequence[Rollout], spare: Rollout) -> list[list[Rollout]]:
    """This process's micro-batches, as many as any process has: sharded weights and gradients meet in every pass.

    A process with fewer goes on with the spare row, which has no loss there.
    """
    several_groups = session.vlm.family.can_pack
    batches = list(micro_batches(rollouts, session.settings.micro_batch_tokens, several_groups))
    most = max(gather_object([len(batches)]))
    batches += [[without_loss(spare)]] * (most - len(batches))
    return batches if session.settings.sharding == "none" else with_pictures(session, batches, spare)


def with_pictures(session: Session, batches: list[list[Rollout]], spare: Rollout) -> list[list[Rollout]]:
    """Micro-batches in which sharded weights that rows without pictures leave out get a gradient nonetheless.

    Gradients of shards meet in one message, whose size all processes have to agree on. So if weights that see are
    trained, each batch without a picture gets a row that has one, without a loss, if any process has such a row.
    """
    seeing = [weight for name, weight in session.vlm.model.named_parameters() if SEEING.search(name)]
    blind = [not any(row.prompt.picture_inputs for row in rows) for rows in batches]
    if not any(weight.requires_grad for weight in seeing) or not any(gather_object([any(blind)])):
        return batches
    own = next((row for rows in [*batches, [spare]] for row in rows if row.prompt.picture_inputs), None)
    pictured = next((row for row in gather_object([own]) if row is not None), None)
    if pictured is None:
        return batches
    return [rows + [without_loss(pictured)] * needed for rows, needed in zip(batches, blind)]


def without_loss(row: Rollout) -> Rollout:
    nothing = torch.zeros(len(row.sampled.token_ids))
    return replace(row, has_loss=False, policy_logprobs=None, reference_logprobs=nothing)


def micro_batches(rollouts: Sequence[Rollout], max_tokens: int, several_groups: bool = True) -> Iterator[list[Rollout]]:
    """Rows group by group, each batch at most `max_tokens` tokens with every prompt counted once (a longer row goes
    alone). A group is divided only if it doesn't fit a batch of its own."""
    groups: dict[int, list[Rollout]] = {}
    for row in rollouts:
        groups.setdefault(id(row.prompt), []).append(row)
    batch: list[Rollout] = []
    tokens = 0
    for rows in groups.values():
        whole = len(rows[0].prompt) + sum(len(row.sampled.token_ids) for row in rows)
        if batch and (not several_groups or tokens + whole > max_tokens):
            yield batch
            batch, tokens = [], 0
        tokens += len(rows[0].prompt)
        for row in sorted(rows, key=lambda row: len(row.sampled.token_ids)):
            length = len(row.sampled.token_ids)
            if batch and tokens + length > max_tokens:
                yield batch
                batch, tokens = [], len(row.prompt)
            batch.append(row)
            tokens += length
    if batch:
        yield batch
