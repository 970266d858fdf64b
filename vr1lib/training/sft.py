"""Supervised fine-tuning: the cold start that gives Vision-R1-CI (Section 3.3.2), and any other "say it like this".

Loss is the mean cross-entropy of the assistant's tokens, over the whole step whatever its micro-batches; prompts and
pictures have none, and rows longer than `max_tokens` are left out and counted, never cut. `transformers.Trainer` does
the stepping; rows are encoded, cached, ordered and put together here.

The authors' cold start (their LLaMA-Factory configuration): full fine-tuning in bf16, 2 epochs, learning rate 5e-6,
cosine after 5 % warm-up, at most 16,384 tokens, 32 rows a step, no weight decay, vision tower frozen. AdamW and a
gradient norm of at most 1 are that framework's defaults. Our choices: the head computes logits from the first answer
token on only; and the rows of a step are sorted by length before they are cut into micro-batches, which halves the
padding and changes no loss. (Whole steps of like length would: their token means weigh short rows more, and the model
learns to doubt less.)
"""

import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal

from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset, Sampler
from tqdm.auto import tqdm
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from vr1lib.data import sources
from vr1lib.data.sources import Reject
from vr1lib.models.vlm import IGNORED_LABEL, EncodedRow, Vlm, collate_rows
from vr1lib.records import ColdRow, Problem, RequestError, read_jsonl
from vr1lib.training.grpo import memory_metrics
from vr1lib.training.optimizers import MuonWithAdamW

MICRO_BATCH = 8  # rows at once where nothing is said; our choice


@dataclass
class SftResult:
    """What a training did. `loss` is the mean of the last tenth of the steps' `losses`, nats an answer token."""

    steps: int = 0
    epochs: float = 0.0
    rows: int = 0
    loss: float = float("nan")
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    rejects: list[Reject] = field(default_factory=list)


def load_rows(
    data: str | Path, data_root: str | Path | None = None, limit: int | None = None
) -> tuple[list[tuple[Problem, str]], list[Reject]]:
    """Rows to train on, (problem, response), and those of the source that could not be read.

    `data` is a JSONL of ColdRow, or a source by name, found below `data_root`. A source has no chain of thought: its
    response is the bare gold answer: a baseline without CoT.
    """
    if Path(data).suffix == ".jsonl":
        rows = [(row, row.response) for row in islice(read_jsonl(data, ColdRow), limit)]
        return rows, []
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
    seed: int = 0,
) -> SftResult:
    """Train `vlm` in place on (problem, response) rows; `log` gets one dictionary a step, explained in docs/metrics.md.

    `steps`, if given, replaces `epochs`. `batch_size` rows make a step over all processes; `micro_batch_size` of them
    (None: 8, or what divides the batch) go through the model at once. `bfloat16` computes in bf16 over the weights'
    own type. Encoded rows are kept in memory up to `cache_gib` and made anew beyond. Raises RequestError if no row is
    left or the batch can't be divided.
    """
    dataset = RowDataset(vlm, rows, max_tokens, cache_gib)
    arguments = TrainingArguments(
        output_dir=str(output_dir),
        num_train_epochs=epochs,
        max_steps=steps or -1,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=warmup_ratio,  # a number below 1 is a share of all steps
        weight_decay=weight_decay,
        max_grad_norm=max_gradient_norm,
        bf16=bfloat16,
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
    arguments.per_device_train_batch_size = micro_batch_size
    arguments.gradient_accumulation_steps = batch_size // (micro_batch_size * processes)
    order = RowOrder(dataset.lengths, batch_size, seed)
    trainer = SftTrainer(
        model=vlm.model,
        args=arguments,
        train_dataset=dataset,
        data_collator=lambda batch: collate_for_loss(batch, vlm.pad_token_id),
        compute_loss_func=assistant_loss,
        optimizers=(MuonWithAdamW(vlm.model, learning_rate, weight_decay) if optimizer == "muon" else None, None),
    )
    trainer.row_order = order
    trainer.remove_callback(PrinterCallback)
    reporter = StepReporter(trainer, log)
    trainer.add_callback(reporter)
    trainer.train()
    vlm.model.eval()
    losses = reporter.losses
    tail = losses[-max(1, len(losses) // 10) :]
    return SftResult(
        steps=trainer.state.global_step,
        epochs=float(trainer.state.epoch or 0.0),
        rows=len(dataset) - len(dataset.broken),
        loss=sum(tail) / len(tail),
        losses=losses,
        seconds=time.perf_counter() - reporter.started,
        rejects=dataset.rejects,
    )


# ------------------------------------------------------------------------------------------------------------ the rows


class RowDataset(Dataset):
    """Encoded rows by index. Rows too long, or whose pictures can't be read, are in `rejects`, with reasons.

    Every row's length is known before training starts: from its encoding while the cache has room, from the sizes of
    its pictures beyond. A picture that turns out broken only when it is read is replaced by the next row, and
    counted.
    """

    def __init__(self, vlm: Vlm, rows: Sequence[tuple[Problem, str]], max_tokens: int, cache_gib: float):
        self.vlm = vlm
        self.room = cache_gib * 2**30
        self.rows: list[tuple[Problem, str]] = []
        self.lengths: list[int] = []
        self.cache: dict[int, EncodedRow] = {}
        self.rejects: list[Reject] = []
        self.broken: set[int] = set()  # rows whose picture could not be read when its turn came
        for problem, response in tqdm(rows, desc="Encoding rows", unit="row"):
            try:
                encoded = vlm.encode_row(problem, response) if self.room > 0 else None
                length = len(encoded) if encoded else count_tokens(vlm, problem, response)
            except RequestError as error:
                self.reject(problem, "picture unreadable", str(error))
                continue
            if length > max_tokens:
                self.reject(problem, "too long", f"{length} tokens > max_tokens {max_tokens}")
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
                self.broken.add(candidate)
                self.reject(problem, "picture unreadable", str(error))
        raise RequestError("no row to train on is left: every picture turned out unreadable; check the data's folder")

    def keep(self, index: int, encoded: EncodedRow) -> None:
        tensors = (encoded.input_ids, encoded.mm_token_type_ids, encoded.labels, encoded.pixel_values)
        size = sum(tensor.nbytes for tensor in tensors if tensor is not None)
        if size <= self.room:
            self.cache[index] = encoded
        self.room -= size

    def reject(self, problem: Problem, reason: str, detail: str) -> None:
        self.rejects.append(Reject(id=problem.id, reason=reason, detail=detail, source=problem.source, step="cold_sft"))


def count_tokens(vlm: Vlm, problem: Problem, response: str) -> int:
    """The length of the encoded row, pixels unread: prompt, response and `<|im_end|>`."""
    return vlm.count_prompt_tokens(problem) + len(vlm.tokenizer(response, add_special_tokens=False)["input_ids"]) + 1


class RowOrder(Sampler[int]):
    """Row indices of an epoch: a seeded shuffle, new every epoch, each row once.

    The shuffle alone decides which rows share a step; within a step they stand by length, so that its micro-batches
    hold rows of like length.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int):
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader when an epoch begins."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        order = list(range(len(self.lengths)))
        random.Random(f"{self.seed}/{self.epoch}").shuffle(order)
        for start in range(0, len(order), self.batch_size):
            yield from sorted(order[start : start + self.batch_size], key=self.lengths.__getitem__)


# ------------------------------------------------------------------------------------------------------------ the loss


def collate_for_loss(rows: Sequence[EncodedRow], pad_token_id: int) -> dict:
    """A batch for the model: no cache, and logits from the last prompt token common to all rows on."""
    batch = collate_rows(rows, pad_token_id)
    first_answer = min(int((row.labels != IGNORED_LABEL).nonzero()[0]) for row in rows)
    return {**batch, "use_cache": False, "logits_to_keep": batch["input_ids"].shape[1] - first_answer + 1}


def assistant_loss(output, labels: Tensor, num_items_in_batch: Tensor | int) -> Tensor:
    """Cross-entropy of the assistant's tokens, float32, over this micro-batch, divided by the step's count.

    output.logits: [rows, kept, vocabulary], the last `kept` positions; labels: [rows, tokens], -100 on what isn't
    learnt.
    """
    logits = output.logits[:, :-1].float()
    targets = labels[:, labels.shape[1] - logits.shape[1] :]
    total = functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED_LABEL, reduction="sum"
    )
    return total / num_items_in_batch


class SftTrainer(Trainer):
    """Trainer with our order of rows; it also measures what it fetches for each step."""

    row_order: RowOrder
    fetched: dict[str, float]

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> RowOrder:
        return self.row_order

    def get_batch_samples(self, *arguments) -> tuple[list, Tensor | int | None]:
        started = time.perf_counter()
        batches, answer_tokens = super().get_batch_samples(*arguments)
        self.fetched = {
            "rows": sum(len(batch["input_ids"]) for batch in batches),
            "tokens": sum(int(batch["attention_mask"].sum()) for batch in batches),
            "places": sum(batch["attention_mask"].numel() for batch in batches),
            "answer_tokens": sum(int((batch["labels"] != IGNORED_LABEL).sum()) for batch in batches),
            "seconds": time.perf_counter() - started,
        }
        return batches, answer_tokens

    def floating_point_ops(self, inputs: dict) -> int:
        return 0  # nobody reads it, and counting the parameters anew at every step takes time


class StepReporter(TrainerCallback):
    """One log call and one tick of the progress bar for each optimizer step."""

    def __init__(self, trainer: SftTrainer, log: Callable[[dict], None]):
        self.trainer, self.log = trainer, log
        self.losses: list[float] = []

    def on_train_begin(self, arguments, state, control, **_) -> None:
        self.started = self.step_started = time.perf_counter()
        self.bar = tqdm(total=state.max_steps, desc="SFT", unit="step", disable=not state.is_world_process_zero)

    def on_log(self, arguments, state, control, logs: dict, **_) -> None:
        if "grad_norm" not in logs:  # Trainer's closing summary
            return
        now = time.perf_counter()
        fetched, step_seconds = self.trainer.fetched, now - self.step_started
        self.step_started = now
        self.losses.append(logs["loss"])
        self.bar.update()
        self.bar.set_postfix(loss=f"{logs['loss']:.3f}", refresh=False)
        if not state.is_world_process_zero:
            return
        self.log(
            {
                "step": state.global_step,
                "epoch": state.epoch,
                "seconds": now - self.started,
                "loss": logs["loss"],
                "learning_rate": logs["learning_rate"],
                "grad_norm": logs["grad_norm"],
                "length/mean": fetched["answer_tokens"] / fetched["rows"],
                "padding_ratio": 1 - fetched["tokens"] / fetched["places"],
                "time/data": fetched["seconds"],
                "time/update": step_seconds - fetched["seconds"],
                "tokens_per_second": fetched["answer_tokens"] / step_seconds,
                **memory_metrics(),
            }
        )

    def on_train_end(self, arguments, state, control, **_) -> None:
        self.bar.close()
