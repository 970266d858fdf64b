"""Checkpoints: everything a run needs to go on, bit for bit, as if it had never stopped.

    checkpoints/step-000100/
        checkpoint.json         step, the loop's own state, optimizer options, specifications, each file's SHA-256
        model/                  what save_vlm writes: the policy as a folder to load, or its adapter
        optimizer.safetensors   AdamW's or Muon's tensors as <parameter name>.<key>
        random-0.safetensors    the generators of process 0 (Python, NumPy, torch, its GPU); one file a process

A checkpoint is written under the name `step-000100.writing`, flushed to the disk, and only then renamed: a folder
without that ending was complete once, and its checksums tell whether it still is. Tensors are safetensors and the rest
is JSON; nothing is pickled. What training leaves alone (a 4-bit base, a frozen start adapter, the reference) is not in
it: the resumed run loads its start model as the first did, and the checkpoint is laid over it.
"""

import json
import math
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy
import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import extract_model_from_parallel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from vr1lib.models.inference_copy import whole
from vr1lib.models.vlm import Vlm, save_vlm
from vr1lib.records import RequestError, file_sha256

RECORD, MODEL, OPTIMIZER, RANDOM = "checkpoint.json", "model", "optimizer.safetensors", "random-{}.safetensors"
FINISHED = re.compile(r"step-(\d{6,})")
WRITING = ".writing"


class Checkpoints:
    """A run's checkpoints: the last `keep_last` and the one of the best score (the highest) are kept.

    `extra`, called by process 0 at every save, gives more for checkpoint.json (plain JSON).
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        every: int,
        keep_last: int = 2,
        extra: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        self.folder = Path(folder)
        self.every, self.keep_last, self.extra = every, keep_last, extra

    def due(self, step: int, last_step: int) -> bool:
        return step == last_step or bool(self.every) and step % self.every == 0

    def save(
        self,
        step: int,
        vlm: Vlm,
        optimizer: torch.optim.Optimizer,
        accelerator: Accelerator,
        state: dict,
        score: float | None = None,
    ) -> Path:
        """Write the checkpoint of `step`; every process must call. `state` is the loop's own, plain JSON."""
        folder = self.folder / f"step-{step:06d}"
        trained = trained_parameters(vlm)
        weights = gathered_weights(vlm)
        moments = gathered_moments(optimizer, trained)
        generators = gathered_generators(accelerator)
        if accelerator.is_main_process:
            record = {
                "step": step,
                "score": score,
                "processes": accelerator.num_processes,
                "image_spec_sha256": vlm.image_spec.sha256,
                "prompt_spec_sha256": vlm.prompt_spec.sha256,
                "optimizer": optimizer_options(optimizer, trained),
                **self.extra(),
                "state": state,
            }
            writing = folder.with_name(folder.name + WRITING)
            shutil.rmtree(writing, ignore_errors=True)
            writing.mkdir(parents=True)
            save_vlm(vlm, writing / MODEL, weights)
            save_file(moments, writing / OPTIMIZER)
            for process, tensors in enumerate(generators):
                save_file(tensors, writing / RANDOM.format(process))
            seal(writing, record)
            shutil.rmtree(folder, ignore_errors=True)  # of a run resumed from before this step
            writing.rename(folder)
            flush(self.folder)
            self.prune(step)
        accelerator.wait_for_everyone()
        return folder

    def prune(self, step: int) -> None:
        """Delete all but the last, the best, and what isn't ours; also what a resumed run has left behind or ahead."""
        finished = finished_checkpoints(self.folder)
        past = [folder for number, folder in finished if number <= step]
        scores = {folder: score for folder in past if not math.isnan(score := score_of(folder))}
        kept = {*past[-self.keep_last :], *sorted(scores, key=scores.__getitem__)[-1:]}
        for folder in [folder for _, folder in finished if folder not in kept] + half_written(self.folder):
            shutil.rmtree(folder)


def newest_checkpoint(folder: str | Path, tell: Callable[[str], None]) -> Path | None:
    """The newest whole checkpoint of a run's checkpoints folder, every file of it checked; None if none was finished.

    Half-written, damaged and foreign folders are passed over, each with a line that says which and why. Raises
    RequestError if all are damaged: to start anew would throw away what the run has recorded.
    """
    folder = Path(folder)
    finished = finished_checkpoints(folder)
    for path in half_written(folder):
        tell(f"{path}: half-written (its run was stopped while saving); passed over")
    known = {path for _, path in finished} | set(half_written(folder))
    for path in sorted(set(folder.iterdir()) - known) if folder.is_dir() else []:
        tell(f"{path}: not a checkpoint; passed over")
    for _, path in reversed(finished):
        fault = what_is_damaged(path)
        if fault is None:
            return path
        tell(f"{path}: damaged ({fault}); passed over")
    if finished:
        raise RequestError(
            f"{folder}: every checkpoint is damaged; start a new run, or remove the folder to begin again"
        )
    return None


def read_state(folder: str | Path) -> dict:
    """A checkpoint's checkpoint.json."""
    return json.loads(Path(folder, RECORD).read_text(encoding="utf-8"))


def load_checkpoint(folder: str | Path, vlm: Vlm, optimizer: torch.optim.Optimizer, accelerator: Accelerator) -> dict:
    """Lay a checkpoint over a prepared model and optimizer and this process's generators; returns the loop's state.

    Every process must call. Raises RequestError where the checkpoint is of another run's kind.
    """
    folder = Path(folder)
    record = read_state(folder)
    ours = {
        "processes": accelerator.num_processes,
        "image_spec_sha256": vlm.image_spec.sha256,
        "prompt_spec_sha256": vlm.prompt_spec.sha256,
    }
    for key, value in ours.items():
        if record[key] != value:
            raise RequestError(
                f"{folder}: {key} is {record[key]}, this run's {value}; resume with what it was made with"
            )
    trained = trained_parameters(vlm)
    load_weights(folder / MODEL, vlm, trained)
    load_optimizer(folder, optimizer, trained, record["optimizer"])
    load_generators(folder, accelerator)
    return record["state"]


def save_trained(vlm: Vlm, folder: str | Path) -> None:
    """`save_vlm` for a model that may be sharded: every process must call, process 0 writes."""
    weights = gathered_weights(vlm)
    if PartialState().is_main_process:
        save_vlm(vlm, folder, weights)
    PartialState().wait_for_everyone()


# ----------------------------------------------------------------------------------------------------- files on a disk


def seal(folder: Path, record: dict) -> None:
    """Write checkpoint.json with every file's size and checksum, and flush all of it to the disk."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    record["files"] = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in files
    }
    text = json.dumps(record, indent=2, ensure_ascii=False)
    (folder / RECORD).write_text(text + "\n", encoding="utf-8")
    for path in (*folder.rglob("*"), folder):
        flush(path)


def flush(path: Path) -> None:
    """fsync of a file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def score_of(folder: Path) -> float:
    """A checkpoint's score; NaN where it has none or can't be read."""
    try:
        score = read_state(folder)["score"]
    except (OSError, ValueError, KeyError):
        return math.nan
    return math.nan if score is None else score


def what_is_damaged(folder: Path) -> str | None:
    """The first fault of a checkpoint, or None: every file there, of its size and checksum."""
    try:
        files = read_state(folder)["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"no readable {RECORD}"
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["bytes"]:
            return f"{name} has {path.stat().st_size} of {expected['bytes']} bytes"
        if file_sha256(path) != expected["sha256"]:
            return f"{name} has another checksum"
    return None


def finished_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(step, folder) in the order of steps."""
    matches = ((FINISHED.fullmatch(path.name), path) for path in folder.glob("step-*") if path.is_dir())
    return sorted((int(match[1]), path) for match, path in matches if match)


def half_written(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob(f"step-*{WRITING}") if FINISHED.fullmatch(path.stem))


# ------------------------------------------------------------------------------------------------------------- weights


def trained_parameters(vlm: Vlm) -> dict[str, torch.nn.Parameter]:
    """The parameters that train, by name, a tied one once; shards where the model is sharded.

    From `state_dict`, which brings parameters that a forward pass has left gathered back to their shards.
    """
    everything = extract_model_from_parallel(vlm.model).state_dict(keep_vars=True)
    names: dict[torch.nn.Parameter, str] = {}
    for name, value in everything.items():
        if value.requires_grad:
            names.setdefault(value, name)
    return {name: parameter for parameter, name in names.items()}


def gathered_weights(vlm: Vlm) -> dict[str, Tensor] | None:
    """Name → whole tensor on process 0's CPU, of the policy or its adapter; None where nothing is sharded."""
    model = extract_model_from_parallel(vlm.model)
    tensors = model.state_dict(keep_vars=True) if vlm.method == "full" else trained_parameters(vlm)
    if not any(isinstance(tensor, DTensor) for tensor in tensors.values()):
        return None
    once = {id(tensor): tensor for tensor in tensors.values()}
    gathered = {key: on_process_0(tensor) for key, tensor in once.items()}
    return {name: gathered[id(tensor)] for name, tensor in tensors.items()}


def on_process_0(tensor: Tensor) -> Tensor:
    """The whole tensor on process 0's CPU; an empty one elsewhere, where nobody needs it."""
    tensor = whole(tensor.detach())
    return tensor.cpu().contiguous() if PartialState().is_main_process else tensor.new_empty(0)


def names_in_file(vlm: Vlm, names: list[str]) -> dict[str, str]:
    """A parameter's name in the model → in the files of save_vlm."""
    if vlm.method != "full":
        from vr1lib.models.adapters import POLICY

        return {name: name.replace(f".{POLICY}.", ".") for name in names}
    from transformers.core_model_loading import revert_weight_conversion

    numbered = {name: torch.tensor(number) for number, name in enumerate(names)}
    renamed = revert_weight_conversion(extract_model_from_parallel(vlm.model), numbered)
    return {names[int(number)]: name for name, number in renamed.items()}


def load_weights(folder: Path, vlm: Vlm, trained: Mapping[str, torch.nn.Parameter]) -> None:
    files = {}
    for path in folder.glob("*.safetensors"):
        file = safe_open(path, framework="pt")
        files |= dict.fromkeys(file.keys(), file)
    in_file = names_in_file(vlm, list(trained))
    with torch.no_grad():
        for name, parameter in trained.items():
            key = in_file[name]
            value = files[key].get_tensor(key) if key in files else None
            if value is None or value.shape != parameter.shape or value.dtype != parameter.dtype:
                held = "missing" if value is None else f"{list(value.shape)} {value.dtype}"
                raise RequestError(
                    f"{folder}: {key} is {held}, the model's {list(parameter.shape)} {parameter.dtype}; "
                    "resume with the model and method it was made with"
                )
            parameter.copy_(spread(value, parameter))


def spread(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor where `like` is: on its device, and sharded as it is."""
    value = value.to(like.device)
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


# ----------------------------------------------------------------------------------------------------------- optimizer


def parts_of(optimizer: torch.optim.Optimizer) -> list[torch.optim.Optimizer]:
    """The optimizers that hold the states: behind accelerate's wrapper, and the parts of Muon with AdamW."""
    optimizer = getattr(optimizer, "optimizer", optimizer)
    return getattr(optimizer, "parts", [optimizer])


def groups_of(
    optimizer: torch.optim.Optimizer, trained: Mapping[str, torch.nn.Parameter]
) -> Iterator[tuple[torch.optim.Optimizer, dict, list[str]]]:
    """(optimizer that holds the states, group, names of its parameters) for every parameter group."""
    names = {parameter: name for name, parameter in trained.items()}
    for part in parts_of(optimizer):
        for group in part.param_groups:
            yield part, group, [names[parameter] for parameter in group["params"] if parameter in names]


def gathered_moments(optimizer: torch.optim.Optimizer, trained: Mapping[str, torch.nn.Parameter]) -> dict[str, Tensor]:
    """<parameter name>.<key> → whole tensor, on process 0's CPU."""
    return {
        f"{name}.{key}": on_process_0(value)
        for part, _, names in groups_of(optimizer, trained)
        for name in names
        for key, value in part.state.get(trained[name], {}).items()
    }


def optimizer_options(optimizer: torch.optim.Optimizer, trained: Mapping[str, torch.nn.Parameter]) -> list[dict]:
    """Each parameter group: its parameters' names, learning rate and other options."""
    return [
        {"parameters": names, "options": {key: value for key, value in group.items() if key != "params"}}
        for _, group, names in groups_of(optimizer, trained)
    ]


def load_optimizer(
    folder: Path,
    optimizer: torch.optim.Optimizer,
    trained: Mapping[str, torch.nn.Parameter],
    saved_groups: list[dict],
) -> None:
    groups = list(groups_of(optimizer, trained))
    if [names for *_, names in groups] != [group["parameters"] for group in saved_groups]:
        raise RequestError(
            f"{folder}: its optimizer trains other parameters than this run's; resume with its parameters"
        )
    moments: dict[str, dict[str, Tensor]] = {}
    for name, value in load_file(folder / OPTIMIZER).items():
        parameter_name, key = name.rsplit(".", 1)
        moments.setdefault(parameter_name, {})[key] = value
    for (part, group, names), saved in zip(groups, saved_groups, strict=True):
        for key, value in saved["options"].items():
            group[key] = tuple(value) if isinstance(value, list) else value
        steps_on_device = group.get("fused") or group.get("capturable")
        for name in names:
            parameter = trained[name]
            for key, value in moments.get(name, {}).items():
                if value.shape == parameter.shape:
                    part.state[parameter][key] = spread(value, parameter)
                else:  # AdamW's count of steps
                    part.state[parameter][key] = value.to(parameter.device) if steps_on_device else value


# ------------------------------------------------------------------------------------------------------ random numbers


def generator_state() -> dict[str, Tensor]:
    """This process's generators as tensors."""
    _, words, gauss = random.getstate()
    legacy = numpy.random.get_state(legacy=False)
    state = {
        "python": torch.tensor(words),  # [625]
        "python_gauss": torch.tensor([float("nan") if gauss is None else gauss], dtype=torch.float64),
        "numpy": torch.from_numpy(legacy["state"]["key"].astype("int64")),  # [624]
        "numpy_rest": torch.tensor([legacy["state"]["pos"], legacy["has_gauss"], legacy["gauss"]], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def gathered_generators(accelerator: Accelerator) -> list[dict[str, Tensor]]:
    """Every process's generators, by process."""
    stacked = {
        key: accelerator.gather(value[None].to(accelerator.device)).cpu() for key, value in generator_state().items()
    }
    return [
        {key: value[process].clone() for key, value in stacked.items()} for process in range(accelerator.num_processes)
    ]


def load_generators(folder: str | Path, accelerator: Accelerator) -> None:
    """This process's generators as they were when the checkpoint was saved."""
    state = load_file(Path(folder, RANDOM.format(accelerator.process_index)))
    gauss = float(state["python_gauss"])
    random.setstate((3, tuple(state["python"].tolist()), None if gauss != gauss else gauss))
    position, has_gauss, cached = state["numpy_rest"].tolist()
    words = state["numpy"].numpy().astype("uint32")
    numpy.random.set_state(("MT19937", words, int(position), int(has_gauss), cached))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
