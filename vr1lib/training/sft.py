"""Supervised fine-tuning: the cold start that gives Vision-R1-CI (Section 3.3.2), and any other "say it like this".

Loss is the mean cross-entropy of the assistant's tokens, over the whole step whatever its micro-batches and processes;
prompts and pictures have none, and rows longer than `max_tokens` are left out and counted, never cut.
`transformers.Trainer` does the stepping; rows are encoded, cached, ordered and put together here.

The authors' cold start (their LLaMA-Factory configuration): full fine-tuning in bf16, 2 epochs, learning rate 5e-6,
cosine after 5 % warm-up, at most 16,384 tokens, 32 rows a step, no weight decay, vision tower frozen. AdamW and a
gradient norm of at most 1 are that framework's defaults. Our choices: the head computes logits from the first answer
token on only; and the rows of a step are sorted by length before they are cut into micro-batches, which halves the
padding and changes no loss. (Whole steps of like length would: their token means weigh short rows more, and the model
learns to doubt less.)

A step is the same over one process or several: where its rows do not go round, a process learns from a row without
labels. A step whose loss or gradient is not a number leaves weights and optimizer alone; it is counted and dumped.
"""

import hashlib
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm.auto import tqdm
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from vr1lib.data import sources
from vr1lib.data.sources import Reject
from vr1lib.models.inference_copy import whole
from vr1lib.models.vlm import IGNORED_LABEL, EncodedRow, Vlm, collate_rows
from vr1lib.records import Problem, RequestError
from vr1lib.training.bad_steps import dump_bad_step
from vr1lib.training.checkpoint import Checkpoints, load_checkpoint, load_generators, read_state
from vr1lib.training.optimizers import MuonWithAdamW
from vr1lib.training.packing import check_packable, collate_packed, pack
from vr1lib.training.processes import (
    Sharding,
    TrainingStopped,
    memory_metrics,
    shard_on_any_device,
    sharding_plugin,
    sums_over_processes,
)

MICRO_BATCH = 8  # rows at once where nothing is said; our choice
LOGITS_AT_ONCE = 2**26  # logits in float32 at once, 256 MiB; our choice


@dataclass
class SftResult:
    """What a training did, from its first step on even where it was resumed.

    `loss` is the mean of the last tenth of the steps' `losses`, nats an answer token, bad steps aside.
    """

    steps: int = 0
    epochs: float = 0.0
    rows: int = 0
    loss: float = float("nan")
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    bad_steps: int = 0
    rejects: list[Reject] = field(default_factory=list)


def load_rows(
    data: str | Path, data_root: str | Path | None = None, limit: int | None = None
) -> tuple[list[tuple[Problem, str]], list[Reject]]:
    """Rows to train on, (problem, response), and those of the source that could not be read.

    `data` is a JSONL of ColdRow, or a source: by name, found below `data_root`, a folder or a hub id. Vision-R1-cold,
    LLaVA-CoT and Mulberry bring their responses; of another source it is the bare gold answer, a baseline without CoT.
    """
    source = sources.locate(data, data_root).source
    if source is None or source.response is not None:
        loaded = sources.load_cold(data, data_root, limit=limit)
        return loaded.rows, loaded.rejects
    loaded = sources.load(data, data_root, limit=limit)
    rows = [(problem, f"<answer> Final Answer:{problem.answer} </answer>") for problem in loaded.problems]
    return rows, loaded.rejects


def train_sft(
    vlm: Vlm,
    rows: Sequence[tuple[Problem, str]],
    *,
    log: Callable[[dict], None],
    output_dir: str | Path,
    epochs: float = 2.0,
    steps: int | None = None,
    batch_size: int = 32,
    micro_batch_size: int | None = None,
    optimizer: Literal["adamw", "muon"] = "adamw",
    learning_rate: float = 5e-6,
    warmup_ratio: float = 0.05,
    weight_decay: float = 0.0,
    max_gradient_norm: float = 1.0,
    max_tokens: int = 16384,
    bfloat16: bool = False,
    cache_gib: float = 2.0,
    packing: bool = False,
    sharding: Sharding = "none",
    checkpoints: Checkpoints | None = None,
    resume_from: Path | None = None,
    max_bad_steps: int = 3,
    dump_folder: Path | None = None,
    on_ready: Callable[["SftTrainer"], None] | None = None,
    seed: int = 0,
) -> SftResult:
    """Train `vlm` in place on (problem, response) rows; `log` gets one dictionary a step, explained in docs/metrics.md.

    `steps`, if given, replaces `epochs`. `batch_size` rows make a step over all processes; `micro_batch_size` of them
    (None: 8, or what divides the batch) go through the model at once; with `packing` so many tokens as these have at
    their longest, in one line without padding. `bfloat16` computes in bf16 over the weights' own type. Encoded rows are
    kept in memory up to `cache_gib` and made anew beyond.

    Every process calls this; `log` is called in process 0 only. `resume_from` is a checkpoint of the same run: its
    steps are not repeated, and those that follow are what they would have been. A step with NaN or Inf in loss or
    gradient is skipped and written to `dump_folder`; `max_bad_steps` in a row raise TrainingStopped. `on_ready` gets
    the trainer, all prepared, before the first step.

    Raises RequestError if no row is left, the batch can't be divided, or the checkpoint is of other rows.
    """
    arguments = TrainingArguments(
        output_dir=str(output_dir),
        num_train_epochs=epochs,
        max_steps=steps or -1,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=warmup_ratio,  # a number below 1 is a share of all steps
        weight_decay=weight_decay,
        max_grad_norm=0.0,  # SftTrainer clips, and looks first
        use_cpu=vlm.device.type == "cpu",
        seed=seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        use_cache=True,  # Trainer writes this into the model's configuration; our batches go without a cache themselves
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # one process drives one GPU; else Trainer would wrap it in DataParallel
    processes = arguments.world_size
    micro_batch_size = micro_batch_size or math.gcd(max(1, batch_size // processes), MICRO_BATCH)
    if batch_size % (micro_batch_size * processes):
        raise RequestError(
            f"batch_size = {batch_size} is no multiple of micro_batch_size = {micro_batch_size} × "
            f"{processes} processes; change one of them"
        )
    if packing:
        check_packable(vlm)
    dataset = RowDataset(vlm, rows, max_tokens, cache_gib, show=arguments.process_index == 0)
    filler = without_labels(dataset) if processes > 1 else None
    arguments.ddp_find_unused_parameters = filler is None or not filler.picture_inputs
    order = RowOrder(dataset.lengths, batch_size, seed)
    trainer = SftTrainer(
        vlm,
        MicroBatches(dataset, vlm, packing, filler),
        StepOrder(order, micro_batch_size, packing, processes, arguments.process_index),
        max_gradient_norm=max_gradient_norm,
        bfloat16=bfloat16,
        sharding=sharding,
        checkpoints=checkpoints,
        resume_from=resume_from,
        dump_folder=dump_folder,
        args=arguments,
        optimizers=(MuonWithAdamW(vlm.model, learning_rate, weight_decay) if optimizer == "muon" else None, None),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(StepReporter(trainer, log, max_bad_steps, on_ready))
    trainer.train()
    vlm.model.eval()
    broken = {index: reject for part in gather_object([dataset.broken]) for index, reject in part.items()}
    progress = trainer.progress
    tail = [loss for loss in progress.losses[-max(1, len(progress.losses) // 10) :] if math.isfinite(loss)]
    return SftResult(
        steps=trainer.state.global_step,
        epochs=float(trainer.state.epoch or 0.0),
        rows=len(dataset) - len(broken),
        loss=sum(tail) / len(tail) if tail else math.nan,
        losses=progress.losses,
        seconds=progress.seconds,
        bad_steps=progress.bad_steps,
        rejects=[*dataset.rejects, *broken.values()],
    )


# ------------------------------------------------------------------------------------------------------------ the rows


class RowDataset(Dataset):
    """Encoded rows by index. Rows too long, or whose pictures can't be read, are in `rejects`, with reasons.

    Every row's length is known before training starts: from its encoding while the cache has room, from the sizes of
    its pictures beyond. A row whose picture turns out broken only when its turn comes is in `broken`, and replaced by
    the next row.
    """

    def __init__(
        self, vlm: Vlm, rows: Sequence[tuple[Problem, str]], max_tokens: int, cache_gib: float, show: bool = True
    ) -> None:
        self.vlm = vlm
        self.room = cache_gib * 2**30
        self.rows: list[tuple[Problem, str]] = []
        self.lengths: list[int] = []
        self.cache: dict[int, EncodedRow] = {}
        self.rejects: list[Reject] = []
        self.broken: dict[int, Reject] = {}
        for problem, response in tqdm(rows, desc="Encoding rows", unit="row", disable=not show):
            try:
                encoded = vlm.encode_row(problem, response) if self.room > 0 else None
                length = len(encoded) if encoded else count_tokens(vlm, problem, response)
            except RequestError as error:
                self.rejects.append(reject(problem, "picture unreadable", str(error)))
                continue
            if length > max_tokens:
                self.rejects.append(reject(problem, "too long", f"{length} tokens > max_tokens {max_tokens}"))
                continue
            if encoded:
                self.keep(len(self.rows), encoded)
            self.rows.append((problem, response))
            self.lengths.append(length)
        if not self.rows:
            reasons = ", ".join(f"{n} × {reason}" for reason, n in Counter(r.reason for r in self.rejects).items())
            raise RequestError(f"no row to train on: {len(rows)} given, left out: {reasons or 'none'}; give other data")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> EncodedRow:
        if index >= len(self):
            raise IndexError(index)
        for candidate in (*range(index, len(self)), *range(index)):
            if candidate in self.cache:
                return self.cache[candidate]
            if candidate in self.broken:
                continue
            problem, response = self.rows[candidate]
            try:
                return self.vlm.encode_row(problem, response)
            except RequestError as error:
                self.broken[candidate] = reject(problem, "picture unreadable", str(error))
        raise RequestError("no row to train on is left: every picture turned out unreadable; check the data's folder")

    def keep(self, index: int, encoded: EncodedRow) -> None:
        tensors = (encoded.input_ids, encoded.labels, *encoded.token_inputs.values(), *encoded.picture_inputs.values())
        size = sum(tensor.nbytes for tensor in tensors)
        if size <= self.room:
            self.cache[index] = encoded
        self.room -= size


def reject(problem: Problem, reason: str, detail: str) -> Reject:
    return Reject(id=problem.id, reason=reason, detail=detail, source=problem.source, step="cold_sft")


def count_tokens(vlm: Vlm, problem: Problem, response: str) -> int:
    """The length of the encoded row, pixels unread: prompt, response and `<|im_end|>`."""
    return vlm.count_prompt_tokens(problem) + len(vlm.tokenizer(response, add_special_tokens=False)["input_ids"]) + 1


def without_labels(dataset: RowDataset) -> EncodedRow:
    """The shortest row, if possible with a picture, to go through the model without being learnt."""
    indices = range(len(dataset))
    pictured = [index for index in indices if dataset.rows[index][0].images]
    row = dataset[min(pictured or indices, key=dataset.lengths.__getitem__)]
    return replace(row, labels=torch.full_like(row.labels, IGNORED_LABEL))


class RowOrder(Sampler[int]):
    """Row indices of an epoch: a seeded shuffle, new every epoch, each row once.

    The shuffle alone decides which rows share a step; within a step they stand by length, so that its micro-batches
    hold rows of like length.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int):
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        order = list(range(len(self.lengths)))
        random.Random(f"{self.seed}/{self.epoch}").shuffle(order)
        for start in range(0, len(order), self.batch_size):
            yield from sorted(order[start : start + self.batch_size], key=self.lengths.__getitem__)


class StepOrder(Sampler[list[list[int]]]):
    """The steps of an epoch, each as this process's micro-batches of row indices.

    Every process has as many micro-batches in a step, some of them empty where its rows do not go round. Packed, a
    micro-batch is a line of at most so many tokens as `micro_batch_size` of the longest rows have.
    """

    def __init__(
        self, order: RowOrder, micro_batch_size: int, packing: bool = False, processes: int = 1, process: int = 0
    ) -> None:
        self.order, self.micro_batch_size, self.packing = order, micro_batch_size, packing
        self.processes, self.process = processes, process

    def __len__(self) -> int:
        return math.ceil(len(self.order) / self.order.batch_size)

    def __iter__(self) -> Iterator[list[list[int]]]:
        indices = list(self.order)
        for start in range(0, len(indices), self.order.batch_size):
            step = indices[start : start + self.order.batch_size]
            micro_batches = self.cut(step)
            micro_batches += [[]] * (-len(micro_batches) % self.processes)
            yield micro_batches[self.process :: self.processes]

    def cut(self, step: list[int]) -> list[list[int]]:
        size, lengths = self.micro_batch_size, self.order.lengths
        if not self.packing:
            return [step[at : at + size] for at in range(0, len(step), size)]
        lines = pack([lengths[row] for row in step], capacity=size * max(lengths))
        return [[step[place] for place in line] for line in lines]

    def passes(self, steps: int) -> float:
        """Passes over the rows after so many steps, counted in unpacked micro-batches."""
        epochs, in_epoch = divmod(steps, len(self))
        seen = in_epoch * self.order.batch_size // self.micro_batch_size
        return epochs + seen / math.ceil(len(self.order) / self.micro_batch_size)

    @property
    def fingerprint(self) -> str:
        """Equal for two runs whose steps have the same rows, as far as lengths can tell."""
        order = self.order
        return hashlib.sha256(f"{order.lengths} {order.batch_size} {order.seed}".encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """Rows for the model at once; the numbers are of rows that are learnt."""

    inputs: dict
    problem_ids: list[str]
    tokens: int
    answer_tokens: int


class MicroBatches(Dataset):
    """Micro-batches by their rows' indices.

    With a `filler` (among several processes) no micro-batch is empty, and none goes without a picture where others
    have one: every process then passes through the same layers, as sharding and averaged gradients need.
    """

    def __init__(self, rows: RowDataset, vlm: Vlm, packing: bool = False, filler: EncodedRow | None = None) -> None:
        self.rows, self.vlm, self.packing, self.filler = rows, vlm, packing, filler

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: list[int]) -> MicroBatch:
        learnt = [self.rows[index] for index in indices]
        rows = learnt
        if self.filler and not any(row.picture_inputs for row in rows) and (self.filler.picture_inputs or not rows):
            rows = [*learnt, self.filler]
        return MicroBatch(
            inputs=collate_for_loss(rows, self.vlm, self.packing),
            problem_ids=[row.problem_id for row in learnt],
            tokens=sum(len(row) for row in learnt),
            answer_tokens=sum(int((row.labels != IGNORED_LABEL).sum()) for row in learnt),
        )


def collate_for_loss(rows: Sequence[EncodedRow], vlm: Vlm, packing: bool = False) -> dict:
    """A batch for the model: no cache, and logits from the last prompt token common to all rows on."""
    batch = collate_packed(rows, vlm) if packing else collate_rows(rows, vlm.pad_token_id)
    width = batch["input_ids"].shape[1]
    learnt = (batch["labels"] != IGNORED_LABEL).any(dim=0).nonzero()
    first_answer = int(learnt[0]) if len(learnt) else width - 1
    return {**batch, "use_cache": False, "logits_to_keep": width - first_answer + 1}


# ------------------------------------------------------------------------------------------------------------ the loss


def assistant_loss(output, labels: Tensor, num_items_in_batch: Tensor | int) -> Tensor:
    """Cross-entropy of the assistant's tokens, float32, over this micro-batch, divided by the step's count.

    output.logits: [rows, kept, vocabulary], the last `kept` positions; labels: [rows, tokens], -100 on what isn't
    learnt. The float32 copy exists for some positions at a time, in the backward pass too, where it is made again.
    """
    logits = output.logits[:, :-1]
    targets = labels[:, labels.shape[1] - logits.shape[1] :]
    positions = max(1, LOGITS_AT_ONCE // (logits.shape[0] * logits.shape[2]))
    chunks = list(zip(logits.split(positions, dim=1), targets.split(positions, dim=1)))
    if len(chunks) == 1 or not logits.requires_grad:
        total = sum(summed_loss(*chunk) for chunk in chunks)
    else:
        total = sum(checkpoint(summed_loss, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks)
    return total / num_items_in_batch


def summed_loss(logits: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED_LABEL, reduction="sum"
    )


# -------------------------------------------------------------------------------------------------------- the stepping


@dataclass
class Progress:
    """What a run knows of itself beside its weights; each checkpoint holds it."""

    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    bad_steps: int = 0
    bad_steps_in_a_row: int = 0


class SftTrainer(Trainer):
    """Trainer with our steps, our checkpoints and our way to spread a model over processes.

    It is given whole steps and cuts them itself (training_step), so that a step may have any number of micro-batches.
    """

    def __init__(
        self,
        vlm: Vlm,
        micro_batches: MicroBatches,
        order: StepOrder,
        *,
        max_gradient_norm: float,
        bfloat16: bool,
        sharding: Sharding,
        checkpoints: Checkpoints | None,
        resume_from: Path | None,
        dump_folder: Path | None,
        **arguments,
    ) -> None:
        self.vlm, self.order, self.progress = vlm, order, Progress()
        self.max_gradient_norm, self.bfloat16, self.sharding = max_gradient_norm, bfloat16, sharding
        self.checkpoints, self.resume_from, self.dump_folder = checkpoints, resume_from, dump_folder
        super().__init__(model=vlm.model, train_dataset=micro_batches, compute_loss_func=assistant_loss, **arguments)

    # ---- the steps

    def get_train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_dataset, batch_sampler=self.order, collate_fn=list)

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device) -> tuple[list, Tensor]:
        """One step: its micro-batches, and the number of answer tokens over all processes."""
        started = time.perf_counter()
        step = next(epoch_iterator)
        counts = [
            sum(len(batch.problem_ids) for batch in step),
            sum(batch.tokens for batch in step),
            sum(batch.inputs["input_ids"].numel() for batch in step),
            sum(batch.answer_tokens for batch in step),
        ]
        counts = self.accelerator.reduce(torch.tensor(counts, dtype=torch.float64, device=device), "sum").tolist()
        self.fetched = dict(zip(("rows", "tokens", "places", "answer_tokens"), counts))
        self.fetched["seconds"] = time.perf_counter() - started
        return [step], torch.tensor(self.fetched["answer_tokens"], device=device)

    def training_step(self, model, inputs: list[MicroBatch], num_items_in_batch: Tensor | None = None) -> Tensor:
        """Forward and backward of this process's micro-batches.

        Averaged gradients meet those of the other processes in the last one only; shards meet each time, or they would
        be held whole.
        """
        self.step_batches, self.step_losses = inputs, []
        total = torch.zeros((), device=self.args.device)
        for number, batch in enumerate(inputs, start=1):
            alone = number < len(inputs) and not self.is_fsdp_enabled
            with self.accelerator.no_sync(model) if alone else nullcontext():
                loss = super().training_step(model, batch.inputs, num_items_in_batch)
            self.step_losses.append(loss)
            total += loss
        return total

    def compute_loss_context_manager(self) -> AbstractContextManager:
        """bf16 here and not through accelerate, whose wrapper gives back a float32 copy of all logits."""
        if self.bfloat16 and not self.is_fsdp_enabled:
            return torch.autocast(self.args.device.type, torch.bfloat16)
        return nullcontext()

    def _get_grad_norm(self, model, grad_norm=None) -> float:
        """The gradient's norm, clipped after. Where it or the loss is no number, the step is to change nothing."""
        parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters])
        (total,) = sums_over_processes(self._tr_loss.reshape(1), self.accelerator)
        loss = total / self.accelerator.num_processes
        figure = float(whole(norm))
        if math.isfinite(figure) and math.isfinite(loss):
            self.progress.bad_steps_in_a_row = 0
            if self.max_gradient_norm:
                torch.nn.utils.clip_grads_with_norm_(parameters, self.max_gradient_norm, norm)
            return figure
        self.progress.bad_steps += 1
        self.progress.bad_steps_in_a_row += 1
        step = self.state.global_step + 1
        if self.dump_folder:
            self.dump_step(self.dump_folder / f"step-{step:06d}", {"step": step, "loss": loss, "grad_norm": figure})
        model.zero_grad(set_to_none=True)  # an optimizer passes over parameters without a gradient
        return figure

    def dump_step(self, folder: Path, metrics: dict) -> None:
        """Leave a bad step to be looked at: what each process put in, its losses, and every gradient's norm."""
        rows = [
            {"problem_ids": batch.problem_ids, "loss": float(loss)}
            for batch, loss in zip(self.step_batches, self.step_losses, strict=True)
        ]
        tensors = {
            f"{number}.{name}": value
            for number, batch in enumerate(self.step_batches)
            for name, value in batch.inputs.items()
            if isinstance(value, Tensor)
        }
        dump_bad_step(folder, self.vlm.model, self.accelerator, rows, tensors, metrics)

    def floating_point_ops(self, inputs: list[MicroBatch]) -> int:
        return 0  # nobody reads it, and counting the parameters anew at every step takes time

    # ---- the processes

    def _build_accelerator_args(self, **kwargs) -> dict:
        if self.sharding == "fsdp2":
            kwargs["fsdp_plugin"] = sharding_plugin(self.model, self.bfloat16)
        return super()._build_accelerator_args(**kwargs)

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        if self.sharding == "fsdp2":
            shard_on_any_device(self.accelerator, sharding_plugin(self.model, self.bfloat16))
            self.is_fsdp_enabled = True

    # ---- the checkpoints

    def _save_checkpoint(self, model, trial) -> None:
        state = {
            "rows": self.order.fingerprint,
            "schedule": self.lr_scheduler.state_dict(),
            "progress": asdict(self.progress),
        }
        self.checkpoints.save(self.state.global_step, self.vlm, self.optimizer, self.accelerator, state)

    def _inner_training_loop(self, **arguments):
        return super()._inner_training_loop(**{**arguments, "resume_from_checkpoint": self.resume_from})

    def _init_training_state(
        self, max_steps: int, steps_per_epoch: int, epochs: int, resume_from_checkpoint, trial
    ) -> tuple[int, int]:
        """(whole epochs trained, steps trained in the one under way)."""
        super()._init_training_state(max_steps, steps_per_epoch, epochs, resume_from_checkpoint, trial)
        if resume_from_checkpoint is None:
            return 0, 0
        self.state.global_step = read_state(resume_from_checkpoint)["step"]
        self.state.epoch = self.order.passes(self.state.global_step)
        if self.state.global_step >= max_steps:
            return epochs, 0  # nothing is left to do
        return divmod(self.state.global_step, steps_per_epoch)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None) -> None:
        """Weights come with the optimizer, below, once both are prepared."""

    def _load_optimizer_and_scheduler(self, checkpoint) -> None:
        if checkpoint is None:
            return
        state = load_checkpoint(checkpoint, self.vlm, self.optimizer, self.accelerator)
        if state["rows"] != self.order.fingerprint:
            raise RequestError(f"{checkpoint}: made from other rows, batch_size or seed; resume with the same ones")
        self.lr_scheduler.load_state_dict(state["schedule"])
        self.progress = Progress(**state["progress"])

    def _load_rng_state(self, checkpoint) -> None:
        """Called when the first step's rows are there: to fetch them takes a random number."""
        load_generators(checkpoint, self.accelerator)


class StepReporter(TrainerCallback):
    """What happens around each optimizer step: a log call, a tick of the progress bar, the word to save or to stop."""

    def __init__(
        self,
        trainer: SftTrainer,
        log: Callable[[dict], None],
        max_bad_steps: int,
        on_ready: Callable[[SftTrainer], None] | None,
    ) -> None:
        self.trainer, self.log, self.max_bad_steps, self.on_ready = trainer, log, max_bad_steps, on_ready

    def on_train_begin(self, arguments, state, control, **_) -> None:
        if self.on_ready:
            self.on_ready(self.trainer)
        self.step_started = time.perf_counter()
        self.started = self.step_started - self.trainer.progress.seconds
        self.bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc="SFT",
            unit="step",
            disable=not state.is_world_process_zero,
        )

    def on_epoch_begin(self, arguments, state, control, **_) -> None:
        self.trainer.order.order.set_epoch(state.global_step // len(self.trainer.order))

    def on_step_end(self, arguments, state, control, **_) -> None:
        state.epoch = self.trainer.order.passes(state.global_step)
        checkpoints = self.trainer.checkpoints
        control.should_save = checkpoints is not None and checkpoints.due(state.global_step, state.max_steps)

    def on_log(self, arguments, state, control, logs: dict, **_) -> None:
        if "grad_norm" not in logs:  # Trainer's closing summary
            return
        now = time.perf_counter()
        fetched, progress, step_seconds = self.trainer.fetched, self.trainer.progress, now - self.step_started
        self.step_started = now
        self.trainer._tr_loss.zero_()  # Trainer subtracts it from itself, which keeps a NaN
        progress.losses.append(logs["loss"])
        progress.seconds = now - self.started
        self.bar.update()
        self.bar.set_postfix(loss=f"{logs['loss']:.3f}", refresh=False)
        if state.is_world_process_zero:
            self.log(
                {
                    "step": state.global_step,
                    "epoch": state.epoch,
                    "seconds": progress.seconds,
                    "loss": logs["loss"],
                    "learning_rate": logs["learning_rate"],
                    "grad_norm": logs["grad_norm"],
                    "bad_steps": progress.bad_steps,
                    "length/mean": fetched["answer_tokens"] / fetched["rows"],
                    "padding_ratio": 1 - fetched["tokens"] / fetched["places"],
                    "time/data": fetched["seconds"],
                    "time/update": step_seconds - fetched["seconds"],
                    "tokens_per_second": fetched["answer_tokens"] / step_seconds,
                    **memory_metrics(),
                }
            )
        if progress.bad_steps_in_a_row >= self.max_bad_steps:
            dumped = f"; {self.trainer.dump_folder} holds their rows" if self.trainer.dump_folder else ""
            raise TrainingStopped(
                f"step {state.global_step}: loss or gradient was NaN or Inf in {progress.bad_steps_in_a_row} steps "
                f"in a row{dumped}; lower learning_rate, or look at those rows"
            )

    def on_train_end(self, arguments, state, control, **_) -> None:
        self.bar.close()
