"""What the two training notebooks train: their parameters unpacked into the library's plain calls.

`train` runs a job in this process, or in many through torchrun's agent (`agent`); each of those is a `worker` that
loads what the notebook loaded and runs the same job. A job rehearses (preflight), trains, keeps checkpoints, and leaves
model/ in the run folder; what it has to tell is printed by process 0.
"""

import json
import random
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch

from vr1lib.data import shapeworld, sources
from vr1lib.data.sources import Loaded, Reject
from vr1lib.models.images import read_image_spec
from vr1lib.models.rollout_vllm import VllmSampler, write_served
from vr1lib.models.tiny import build_tiny_vlm
from vr1lib.models.vlm import Vlm, load_vlm
from vr1lib.prompts import ZERO_SYSTEM_PROMPT, PromptSpec
from vr1lib.records import Problem, RequestError, read_jsonl, write_jsonl
from vr1lib.schedule import Schedule
from vr1lib.training import grpo
from vr1lib.training.checkpoint import Checkpoints, finished_checkpoints, save_trained
from vr1lib.training.preflight import Preflight, preflight_grpo, preflight_sft
from vr1lib.workbench.params import ColdSftParameters, PtstGrpoParameters, TrainingParameters
from vr1lib.workbench.record import Record
from vr1lib.workbench.tracking import Run, say, shown

begun: WeakSet[Run] = WeakSet()  # runs of this kernel whose training has begun

Row = tuple[Problem, str]  # a problem and the response to learn


# What goes in: from parameters, and the same in every process.


def load_rows(params: ColdSftParameters, folder: Path) -> tuple[list[Row], list[Reject]]:
    """The cold-start rows, and those of the source that could not be read. ShapeWorld's are drawn into `folder`."""
    if params.data != "shapeworld":
        from vr1lib.training import sft  # with transformers' Trainer: two seconds that 30 doesn't need

        return sft.load_rows(params.data, params.data_root, params.limit)
    rng = random.Random(params.seed)
    problems = shapeworld.make_problems(folder, "cold", params.limit or 200, params.seed)
    return [(each, shapeworld.assemble(shapeworld.write_reasoning(each, rng), each.answer)) for each in problems], []


def load_problems(params: PtstGrpoParameters, folder: Path) -> Loaded:
    """The RL problems and what of the source could not be read. Pictures that are drawn or cut go into `folder`."""
    if params.problems == "shapeworld":
        return Loaded(shapeworld.make_problems(folder, "rl", params.limit or 200, params.seed))
    return sources.load(params.problems, params.data_root, limit=params.limit, panels=folder / "images")


def load_held_out(params: TrainingParameters) -> list[Problem]:
    """The problems to measure on, if any were given."""
    return list(read_jsonl(params.evaluation, Problem))[: params.evaluation_limit] if params.evaluation else []


def load_policy(params: TrainingParameters, folder: Path, texts: Sequence[str] = (), device: str = "auto") -> Vlm:
    """The model that training starts from; `tiny` is built in `folder` from the words of `texts`, untrained.

    Full fine-tuning keeps float32 weights whatever the computation: at a learning rate of 5e-6 most updates are too
    small for a bf16 weight to move at all.
    """
    path = params.model
    if path == "tiny":
        path = str(folder / "untrained")
        if not Path(path, "config.json").exists():
            build_tiny_vlm(path, params.seed, texts)
    torch.manual_seed(params.seed)  # a fresh adapter's first weights, in every process the same
    zero = getattr(params, "system_prompt", "none") == "zero"
    pixels = (params.min_pixels, params.max_pixels)
    return load_vlm(
        path,
        method=params.method,
        lora_rank=params.lora_rank,
        lora_alpha=params.lora_alpha,
        lora_dropout=params.lora_dropout,
        train_vision=params.train_vision,
        dtype="float32" if params.method == "full" else params.dtype,
        gradient_checkpointing=params.gradient_checkpointing,
        image_spec=read_image_spec(path, *pixels) if any(pixels) else None,
        prompt_spec=PromptSpec(system=ZERO_SYSTEM_PROMPT) if zero else None,
        accept_other_spec=zero,
        device=device,
    )


def many(params: TrainingParameters) -> bool:
    """Whether training leaves the kernel for processes of its own."""
    return params.processes * params.nodes > 1


# The jobs.


def train(run: Run, vlm: Vlm, *data: Any) -> None:
    """Train in this kernel with what the notebook has loaded, or in many processes that load it again.

    Interrupted, it says how to go on, and lets go of the memory that the traceback would hold. A run trains once: its
    policy is no longer the one it starts from. Raises RequestError the second time.
    """
    if run in begun:
        raise RequestError(
            f"{shown(run.folder)}: its training has begun already; run all cells again, with resume = True to go on "
            "from its newest checkpoint, without it for a new run"
        )
    begun.add(run)
    try:
        start(run, vlm, *data)
    except KeyboardInterrupt as error:
        traceback.clear_frames(error.__traceback__)
        kept = finished_checkpoints(run.folder / "checkpoints")
        found = f"its newest checkpoint is step {kept[-1][0]}" if kept else "it has no checkpoint (checkpoint_every)"
        say(f"{shown(run.folder)}: interrupted; {found}. To go on, set resume = True and run all cells again")
        raise


def start(run: Run, vlm: Vlm, *data: Any) -> None:
    if many(run.params):
        from vr1lib.workbench.agent import run_processes

        problems = [each for part in data for each in part if isinstance(each, Problem)]
        run_processes(run, {problem.id: problem for problem in problems})
    else:
        JOBS[run.stem](run.params, run.folder, vlm, *data, record=run, resume_from=run.resume_from)


def cold_sft(
    params: ColdSftParameters,
    folder: Path,
    vlm: Vlm,
    rows: Sequence[Row],
    *,
    record: Run | Record,
    resume_from: Path | None,
) -> None:
    """20_cold_sft's training. Leaves model/, training.json (rows, steps, epochs, seconds, loss) and its rejects."""
    from vr1lib.training import sft

    result = sft.train_sft(
        vlm,
        rows,
        log=record.log,
        output_dir=folder / "trainer",
        epochs=params.epochs,
        steps=params.steps,
        batch_size=params.batch_size,
        micro_batch_size=params.micro_batch_size,
        learning_rate=params.learning_rate,
        warmup_ratio=params.warmup_ratio,
        weight_decay=params.weight_decay,
        max_gradient_norm=params.max_gradient_norm,
        max_tokens=params.max_tokens,
        bfloat16=params.dtype == "bfloat16",
        packing=params.packing,
        sharding=params.sharding,
        checkpoints=checkpoints_of(params, folder, record),
        resume_from=resume_from,
        max_bad_steps=params.max_bad_steps,
        dump_folder=folder / "bad_steps",
        on_ready=(lambda trainer: tell(preflight_sft(trainer), folder)) if params.preflight else None,
        seed=params.seed,
    )
    save_trained(vlm, folder / "model")
    if first_process():
        write_jsonl(folder / "rejects.jsonl", result.rejects, append=True)  # to those of the source
        numbers = {key: value for key, value in asdict(result).items() if key not in ("losses", "rejects")}
        (folder / "training.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")


def ptst_grpo(
    params: PtstGrpoParameters,
    folder: Path,
    vlm: Vlm,
    problems: Sequence[Problem],
    held_out: Sequence[Problem],
    *,
    record: Run | Record,
    resume_from: Path | None,
) -> None:
    """30_ptst_grpo's training. Leaves model/, and evaluation_problems.jsonl with pictures if any are held out."""
    schedule = Schedule([tuple(stage) for stage in params.stages])
    session = grpo.prepare(vlm, grpo_settings(params))
    if params.rollout == "vllm":
        session.servers = rollout_servers(session.sampler, params, folder)
    if params.preflight:
        tell(preflight_grpo(session, problems, schedule), folder)
    if held_out and first_process():
        write_jsonl(folder / "evaluation_problems.jsonl", sources.gather_pictures(held_out, folder))
    grpo.train_grpo(
        session,
        problems,
        schedule,
        log=record.log,
        log_completions=record.log_completions,
        log_evaluation=record.log_evaluation,
        evaluation_problems=held_out,
        checkpoints=checkpoints_of(params, folder, record),
        resume_from=resume_from,
        dump_folder=folder / "bad_steps",
    )
    save_trained(session.vlm, folder / "model")


JOBS = {"20_cold_sft": cold_sft, "30_ptst_grpo": ptst_grpo}


def grpo_settings(params: PtstGrpoParameters) -> grpo.GrpoSettings:
    """The loop's settings: the parameters of the same name."""
    names = grpo.GrpoSettings.__dataclass_fields__.keys() & type(params).model_fields.keys()
    bfloat16 = params.method == "full" and params.dtype == "bfloat16"
    return grpo.GrpoSettings(**{name: getattr(params, name) for name in names}, bfloat16=bfloat16)


def rollout_servers(vlm: Vlm, params: PtstGrpoParameters, folder: Path) -> VllmSampler:
    """The servers to sample from. Process 0 writes what they have to serve, if the model's own folder will not do."""
    from accelerate import PartialState

    shared = Path(params.rollout_folder) if params.rollout_folder else folder / "rollout"
    if first_process():
        served = write_served(vlm, shared) or vlm.base or params.model
        print(f"rollouts: {', '.join(params.rollout_endpoints)}, to be serving {served}", flush=True)
    PartialState().wait_for_everyone()
    return VllmSampler(vlm, params.rollout_endpoints, shared, params.rollout_wait_seconds)


def checkpoints_of(params: TrainingParameters, folder: Path, record: Run | Record) -> Checkpoints | None:
    if params.checkpoint_every is None:
        return None
    return Checkpoints(
        folder / "checkpoints",
        every=params.checkpoint_every,
        keep_last=params.checkpoints_kept,
        extra=partial(where_the_record_is, folder, record),
    )


def where_the_record_is(folder: Path, record: Run | Record) -> dict[str, Any]:
    """What a checkpoint has to remember of the run folder to go on with it."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    record = record.record if isinstance(record, Run) else record
    return {"wandb_run_id": manifest["wandb"]["run_id"], "recorded": record.sizes()}


def tell(preflight: Preflight, folder: Path) -> None:
    if first_process():
        print(*preflight.lines(), sep="\n", flush=True)
        text = json.dumps(preflight.to_dict(), indent=2, ensure_ascii=False)
        (folder / "preflight.json").write_text(text + "\n", encoding="utf-8")


def first_process() -> bool:
    from accelerate import PartialState

    return PartialState().is_main_process
