"""Before step 1: the worst step of a run rehearsed, so that nothing is found out after an hour.

First the memory model (`memory`) is held against what this process may use; then the longest prompt of the data is
sampled from and learnt from at full length, with as many rows at once as the run will have. The key-value cache is not
filled by thousands of decode steps but lengthened to its full size at once, and a few tokens are decoded before and
after; one micro-batch stands for all of a step. So a rehearsal costs less than a step, and the times told from it are
an upper bound: in training most completions end by themselves. Out of memory, foreseen or met, is one line with the
part and the values that would fit.

A rehearsal leaves no trace: the optimizer doesn't step (the memory of its moments is held meanwhile), gradients are
dropped, modes and every random state are put back: training is bit for bit the same with and without it.
"""

import os
import random
import resource
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import extract_model_from_parallel
from torch import Tensor
from torch.distributed.tensor import DTensor

from vr1lib.answers import grade_answer
from vr1lib.models.decoding import Reading, read_prompts
from vr1lib.models.rollout_local import Sampled, inference_mode_of
from vr1lib.models.vlm import EncodedPrompt, Vlm
from vr1lib.records import Problem, RequestError
from vr1lib.schedule import Schedule, Stage
from vr1lib.training.grpo import accumulate_gradients, add_reference_logprobs
from vr1lib.training.memory import (
    CUDA_CONTEXT,
    GIB,
    GrpoPlan,
    Plan,
    SftPlan,
    out_of_memory,
    shape_of,
    shortfall,
)
from vr1lib.training.rollouts import grade_group
from vr1lib.training.session import Session

if TYPE_CHECKING:  # transformers' Trainer takes two seconds to import
    from vr1lib.training.sft import SftTrainer

SHOWN_PROMPTS = 3
TIMED_TOKENS = 2  # decoded at a completion's beginning and at its end, each time after one that warms up
WATCH_SECONDS = 0.005  # between two looks at a CPU process's memory
NO_MEMORY = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of memory")


@dataclass(frozen=True)
class PartTold:
    """A part of one process's memory: the model of it beside what the rehearsal saw (None: not seen by itself)."""

    name: str
    phase: str
    estimated_gib: float
    measured_gib: float | None
    lowered_by: tuple[str, ...]


@dataclass(frozen=True)
class Preflight:
    """What a rehearsal found. Memory is that of one process, `seconds` are those of the longest step, by phase."""

    model: str
    device: str
    processes: int
    parameters: int
    trained: int
    parts: list[PartTold]
    estimated_gib: float
    measured_gib: float
    limit_gib: float
    longest_prompt: dict[str, Any]  # id, tokens
    seconds: dict[str, float]
    eta_seconds: float
    steps: int
    golds: dict[str, int]  # "right": how many the grader takes from themselves, of "all"
    prompts: list[dict[str, Any]]  # the first ones: id, text, images, answer

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For a terminal."""

        def row(name: str, phase: str, estimated: float, measured: float | None) -> str:
            return f"  {name:<24} {phase:<8} {in_words(estimated):>8} {in_words(measured):>8}"

        where = self.device + (f" × {self.processes} processes" if self.processes > 1 else "")
        steps = ", ".join(f"{phase} {duration(seconds)}" for phase, seconds in self.seconds.items())
        return [
            f"preflight: {self.model}, {self.parameters:,} parameters, {self.trained:,} trained, on {where}",
            f"  {'memory, GiB':<24} {'when':<8} {'estimate':>8} {'measured':>8}",
            *(row(part.name, part.phase, part.estimated_gib, part.measured_gib) for part in self.parts),
            row("peak", "", self.estimated_gib, self.measured_gib) + f"  of {in_words(self.limit_gib)}",
            f"  longest prompt: {self.longest_prompt['id']}, {self.longest_prompt['tokens']} tokens",
            f"  the longest step: {steps}",
            f"  all {self.steps} steps: at most {duration(self.eta_seconds)}, if every row were at full length; "
            "evaluation and checkpoints come on top",
            f"  golds: {self.golds['right']} of {self.golds['all']} grade themselves right",
            *(f"  prompt {shown['id']}: {shown['text']!r} {', '.join(shown['images'])}" for shown in self.prompts),
        ]


def in_words(gib: float | None) -> str:
    return "–" if gib is None else f"{gib:.1f}" if gib >= 10 else f"{gib:.4f}"


def duration(seconds: float) -> str:
    """`0.25 s`, `3 min 20 s`, `7 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


# ------------------------------------------------------------------------------------------------------- the rehearsals


def preflight_grpo(session: Session, problems: Sequence[Problem], schedule: Schedule) -> Preflight:
    """Rehearse the longest step of a GRPO run on a prepared session; every process must call.

    Raises RequestError, one line with the part and the values that would fit, where memory doesn't suffice.
    """
    vlm, settings = session.vlm, session.settings
    problem = max(problems, key=vlm.count_prompt_tokens)
    prompt = vlm.encode_prompt(problem)
    plan = GrpoPlan(
        **plan_values(vlm, session.accelerator, settings.sharding, settings.bfloat16, problem, prompt),
        stages=tuple(schedule.stages),
        prompts_per_step=settings.prompts_per_step,
        rollout_rows=settings.rollout_rows,
        micro_batch_tokens=settings.micro_batch_tokens,
        kl_coefficient=settings.kl_coefficient,
        rollout="vllm" if session.servers else "local",
    )
    copies = {"inference copy": session.sampler.model}
    if session.reference and vlm.method == "full":
        with session.reference() as reference:
            copies["reference copy"] = reference
    guard = Guard(plan, vlm, session.accelerator, session.optimizer, copies)
    most_cached = max(schedule.stages, key=lambda stage: plan.rows_at_once(stage) * stage.max_completion_tokens)
    widest = max(schedule.stages, key=lambda stage: stage.max_completion_tokens)
    with guard.untouched():
        with guard.watched("rollout"):
            session.fill_sampler()
            if session.servers is None:
                reading_seconds, token_seconds, guard.seen["KV cache"] = rehearse_sampling(
                    session, plan, prompt, most_cached
                )
        with guard.watched("update"):
            reward_seconds, row_seconds = rehearse_update(session, plan, problem, prompt, widest)
            guard.see_gradients()

    def seconds(stage: Stage) -> dict[str, float]:
        """Of one step, every row taken for as long as the widest stage's."""
        prompts = -(-plan.prompts_per_step // plan.processes)
        whole_groups = -(-prompts // plan.prompts_at_once(stage))
        pieces = whole_groups * -(-stage.group_size // min(plan.rollout_rows, stage.group_size))
        sampling = {}
        if session.servers is None:
            sampling = {"rollout": pieces * (reading_seconds + stage.max_completion_tokens * token_seconds)}
        return {
            **sampling,
            "reward": plan.rows(stage) * reward_seconds,
            "update": plan.rows(stage) * row_seconds,
        }

    of_steps = [(stage.steps, seconds(stage)) for stage in schedule.stages]
    return guard.report(
        problems,
        longest=prompt,
        seconds=max((each for _, each in of_steps), key=lambda each: sum(each.values())),
        eta_seconds=sum(steps * sum(each.values()) for steps, each in of_steps),
        steps=schedule.total_steps,
    )


def rehearse_sampling(
    session: Session, plan: GrpoPlan, prompt: EncodedPrompt, stage: Stage
) -> tuple[float, float, int]:
    """Sample as many rows at once as the run will, up to full length: seconds to read their prompts, seconds a token
    (the mean of a completion's beginning and end), bytes of the full cache."""
    sampler, prompts = session.sampler, plan.prompts_at_once(stage)
    with inference_mode_of(sampler.model), torch.no_grad():
        started = now(sampler.device)
        logits, reading = read_prompts(sampler, [prompt] * prompts, plan.rows_at_once(stage) // prompts)
        reading_seconds = now(sampler.device) - started
        tokens = logits.argmax(dim=1)
        at_first = seconds_a_token(reading, tokens)
        reading.lengthen(stage.max_completion_tokens - 2 * (TIMED_TOKENS + 1))
        at_last = seconds_a_token(reading, tokens)
    return reading_seconds, (at_first + at_last) / 2, reading.nbytes


def seconds_a_token(reading: Reading, tokens: Tensor) -> float:
    """Mean seconds to read a token of every row [rows]."""
    reading.read(tokens)
    started = now(tokens.device)
    for _ in range(TIMED_TOKENS):
        reading.read(tokens)
    return (now(tokens.device) - started) / TIMED_TOKENS


def rehearse_update(
    session: Session, plan: GrpoPlan, problem: Problem, prompt: EncodedPrompt, stage: Stage
) -> tuple[float, float]:
    """Grade and learn from one micro-batch of the widest rows: seconds a row for each. Gradients stay."""
    vlm = session.vlm
    groups, rows = plan.micro_batch(len(prompt), stage)
    tokens = [vlm.end_of_turn_id] * stage.max_completion_tokens
    samples = [Sampled(tokens, [0.0] * len(tokens), "stop")] * (rows // groups)
    started = now(vlm.device)
    rollouts = [
        row
        for number in range(groups)
        for row in grade_group(vlm, number, problem, replace(prompt), samples, session.settings, 0, 0)
    ]
    graded = now(vlm.device)
    if session.reference:
        add_reference_logprobs(session, rollouts, None)
    accumulate_gradients(session, rollouts, stage.max_completion_tokens)
    return (graded - started) / rows, (now(vlm.device) - graded) / rows


def preflight_sft(trainer: "SftTrainer") -> Preflight:
    """Rehearse the longest micro-batch of a supervised training (its `on_ready`); every process must call.

    Raises RequestError, one line with the part and the values that would fit, where memory doesn't suffice.
    """
    vlm, order, rows = trainer.vlm, trainer.order, trainer.train_dataset.rows
    by_length = sorted(range(len(rows)), key=rows.lengths.__getitem__)
    problem = rows.rows[by_length[-1]][0]
    longest = rows[by_length[-1]]
    values = plan_values(vlm, trainer.accelerator, trainer.sharding, trainer.bfloat16, problem, longest)
    micro_batches = -(-order.order.batch_size // (order.micro_batch_size * order.processes))
    plan = SftPlan(
        **values,
        batch_size=order.order.batch_size,
        micro_batch_size=order.micro_batch_size,
        max_tokens=len(longest),
        packing=trainer.train_dataset.packing,
    )
    guard = Guard(plan, vlm, trainer.accelerator, trainer.optimizer, {})
    with guard.untouched(), guard.watched("update"):
        batch = trainer.train_dataset[by_length[-order.micro_batch_size :]]
        started = now(vlm.device)
        trainer.training_step(trainer.model_wrapped, [batch], torch.tensor(batch.answer_tokens, device=vlm.device))
        seconds = micro_batches * (now(vlm.device) - started)
        guard.see_gradients()
    steps = trainer.state.max_steps - trainer.state.global_step
    return guard.report(
        [problem for problem, _ in rows.rows],
        longest=longest,
        seconds={"update": seconds},
        eta_seconds=steps * seconds,
        steps=steps,
    )


def plan_values(
    vlm: Vlm, accelerator: Accelerator, sharding: str, bfloat16: bool, problem: Problem, prompt: EncodedPrompt
) -> dict[str, Any]:
    """What every plan says, read off the model itself and its longest prompt."""
    model = extract_model_from_parallel(vlm.model)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    spec, tokens = vlm.image_spec, vlm.image_spec.tokens_of(prompt.picture_inputs)
    weights = {parameter.dtype for name, parameter in model.named_parameters() if "lora_" not in name}
    values = {
        "method": vlm.method,
        "dtype": "bfloat16" if bfloat16 or torch.bfloat16 in weights else "float32",
        "train_vision": any(
            parameter.requires_grad
            for module in vlm.family.vision_modules
            for parameter in getattr(base.model, module).parameters()
        ),
        "gradient_checkpointing": base.is_activation_checkpointing,
        "processes": accelerator.num_processes,
        "sharding": sharding,
        "pictures": len(problem.images),
        "text_tokens": len(prompt) - tokens,
        "cuda": vlm.device.type == "cuda",
    }
    if vlm.method != "full":
        values["lora_rank"] = model.peft_config["default"].r
    if hasattr(spec, "max_pixels"):
        largest = tokens * spec.token_side**2 // max(1, len(problem.images))
        values |= {"max_pixels": spec.max_pixels, "largest_picture": largest}
    return values


# --------------------------------------------------------------------------------------------------------- the guarding


class Guard:
    """Holds a plan against the memory of this process, watches the rehearsal, and reports.

    Raises RequestError at once where the estimate is above what the process may use.
    """

    def __init__(
        self,
        plan: Plan,
        vlm: Vlm,
        accelerator: Accelerator,
        optimizer: torch.optim.Optimizer,
        copies: dict[str, torch.nn.Module],
    ) -> None:
        self.plan, self.vlm, self.accelerator = plan, vlm, accelerator
        self.shape = shape_of(extract_model_from_parallel(vlm.model).config, "the model")
        self.estimate = plan.estimate(self.shape)
        policy = list(vlm.model.named_parameters())
        self.seen: dict[str, int] = {
            "weights": sum(bytes_of(parameter) for name, parameter in policy if "lora_" not in name),
            "adapter": sum(bytes_of(parameter) for name, parameter in policy if "lora_" in name),
        }
        own = {id(parameter) for _, parameter in policy}
        for name, model in copies.items():
            self.seen[name] = sum(bytes_of(each) for each in model.parameters() if id(each) not in own)
        self.held = sum(self.seen.values())
        to_come = 0 if optimizer.state else sum(part.bytes for part in self.estimate.parts if part.name == "optimizer")
        self.to_come = to_come  # AdamW's moments come with step 1
        self.peaks: dict[str, int] = {}
        room = room_on_gpu(vlm.device) if plan.cuda else room_on_cpu() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        self.limit = int(accelerator.gather(torch.tensor([self.held + room], device=accelerator.device)).min())
        if line := shortfall(plan, self.shape, self.limit):
            raise RequestError(f"preflight: {line}")

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """What is done inside leaves modes, gradients and random states as they were."""
        model = self.vlm.model
        modes = {module: module.training for module in model.modules()}
        model.train()
        generators = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
        of_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode
            model.zero_grad(set_to_none=True)
            random.setstate(generators[0])
            numpy.random.set_state(generators[1])
            torch.set_rng_state(generators[2])
            torch.cuda.set_rng_state_all(of_gpus)

    @contextmanager
    def watched(self, phase: str) -> Iterator[None]:
        """Inside, the peak of memory is taken down; out of memory is told in one line, with values that would fit."""
        try:
            moments = torch.empty(self.to_come, dtype=torch.uint8, device=self.vlm.device)
            with PeakMemory(self.vlm.device) as peak:
                yield
            self.peaks[phase] = peak.bytes if self.plan.cuda else self.held + moments.nbytes + peak.bytes
        except (torch.OutOfMemoryError, MemoryError):
            raise RequestError(self.out_of_memory(phase)) from None
        except RuntimeError as error:
            if not any(sign in str(error) for sign in NO_MEMORY):
                raise
            raise RequestError(self.out_of_memory(phase)) from None

    def out_of_memory(self, phase: str) -> str:
        return f"preflight: {out_of_memory(self.plan, self.shape, self.limit, phase)}"

    def see_gradients(self) -> None:
        gradients = [parameter.grad for parameter in self.vlm.model.parameters() if parameter.grad is not None]
        self.seen["gradients"] = sum(map(bytes_of, gradients))

    def report(self, problems: Sequence[Problem], longest: EncodedPrompt, **times: Any) -> Preflight:
        model = extract_model_from_parallel(self.vlm.model)
        right = sum(grade_answer(each.answer, each.answer, each.choices).ok for each in problems)
        return Preflight(
            model=Path(self.vlm.base or model.config.name_or_path).name,
            device=torch.cuda.get_device_name(self.vlm.device) if self.plan.cuda else "CPU",
            processes=self.accelerator.num_processes,
            parameters=self.shape.parameters,
            trained=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
            parts=[
                PartTold(
                    part.name,
                    part.phase,
                    part.bytes / GIB,
                    self.seen[part.name] / GIB if part.name in self.seen and part.phase != "loading" else None,
                    part.lowered_by,
                )
                for part in self.estimate.parts
            ],
            estimated_gib=self.estimate.bytes / GIB,
            measured_gib=max(self.peaks.values()) / GIB,
            limit_gib=self.limit / GIB,
            longest_prompt={"id": longest.problem_id, "tokens": len(longest)},
            golds={"right": right, "all": len(problems)},
            prompts=[shown(self.vlm, problem) for problem in problems[:SHOWN_PROMPTS]],
            **times,
        )


def shown(vlm: Vlm, problem: Problem) -> dict[str, Any]:
    """A problem as the model sees it: the prompt's text, its image tokens counted, and the pictures' files."""
    text = ""
    ids = vlm.encode_prompt(problem).input_ids.tolist()
    for of_picture, run in groupby(ids, key=lambda token: token == vlm.image_token_id):
        run = list(run)
        text += vlm.tokenizer.decode(run[:1]) + f"×{len(run)}" if of_picture else vlm.tokenizer.decode(run)
    return {
        "id": problem.id,
        "text": text,
        "images": [os.path.relpath(image) for image in problem.images],
        "answer": problem.answer,
    }


def now(device: torch.device) -> float:
    """Seconds, once all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def bytes_of(tensor: Tensor) -> int:
    """The bytes of this process's part of a tensor, 4-bit scales included."""
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    state = getattr(tensor, "quant_state", None)
    return local.nbytes + (state.absmax.nbytes + state.state2.absmax.nbytes if state is not None else 0)


def room_on_gpu(device: torch.device) -> int:
    """Bytes that this process may still take, with what its allocator has set aside and its context already has."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device) + CUDA_CONTEXT


def room_on_cpu() -> int:
    """Bytes that this process may still take: of the machine, of its control group, of its own limit."""
    rooms = [psutil.virtual_memory().available, *control_group_rooms()]
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most != resource.RLIM_INFINITY:
        rooms.append(most - psutil.Process().memory_info().vms)
    return max(0, min(rooms))


def control_group_rooms(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Iterable[int]:
    """What Linux control groups (containers, Slurm) leave of their limits, files that can be given up not counted."""
    names = [line.split(":", 2)[2] for line in own.read_text().splitlines()] if own.exists() else []
    for name in {"/", *names}:
        for folder, limit, used in (
            (groups / name.lstrip("/"), "memory.max", "memory.current"),
            (groups / "memory" / name.lstrip("/"), "memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            if not (folder / limit).is_file() or (most := (folder / limit).read_text().strip()) == "max":
                continue
            files = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            yield int(most) - int((folder / used).read_text()) + int(files.get("inactive_file", 0))


class PeakMemory:
    """The most memory inside a `with`: of a GPU all that is allocated, of a CPU process what it grew by."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.bytes = device, 0

    def __enter__(self) -> "PeakMemory":
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return self
        self.process, self.ended = psutil.Process(), threading.Event()
        self.before = self.process.memory_info().rss
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self

    def watch(self) -> None:
        while not self.ended.wait(WATCH_SECONDS):
            self.bytes = max(self.bytes, self.process.memory_info().rss - self.before)

    def __exit__(self, *_) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device) + CUDA_CONTEXT
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        self.ended.set()
        self.thread.join()
