"""`vr1 doctor`: what this machine can run, and which parameter files fit it.

The memory a parameter file needs is training's own estimate (`vr1lib.training.memory`), part by part, made without
weights and without a GPU. A model that is not on this machine is known by its published shape; one that a run has yet
to make, by that run's own parameter file. Pictures are taken as large as max_pixels lets them be.
"""

import importlib.metadata
import importlib.util
import netrc
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from typing import Any

import psutil
from transformers import AutoConfig

from vr1lib.models.images import ImageSpec, read_image_spec
from vr1lib.models.vlm import read_spec_file
from vr1lib.records import RequestError
from vr1lib.schedule import Schedule
from vr1lib.training.memory import (
    GIB,
    PUBLISHED,
    AnswerPlan,
    GrpoPlan,
    Plan,
    SftPlan,
    Shape,
    in_gib,
    published_shape,
    shape_of,
    shortfall,
)
from vr1lib.workbench.params import PARAMETERS, Parameters, load_parameters, project_root

OPTIONAL = {
    "wandb": "W&B tracking",
    "bitsandbytes": "QLoRA",
    "vllm": "fast rollouts",
    "ray": "sweeps over a cluster",
    "wandb_workspaces": "W&B dashboards",
    "torchvision": "video processors of transformers; not needed",
}
MADE_BY = re.compile(r"outputs/(\w+)/([^/]+)/model/?")
SIZE_IN_NAME = re.compile(r"(?<![\d.])(\d+(?:\.\d+)?)B(?![A-Za-z0-9])", re.IGNORECASE)
CARDS_GIB = {24: 23.5, 40: 39.4, 48: 47.4, 80: 79.2, 141: 139.8}  # what the driver shows of a card sold as so many GB
CPU_PARAMETERS = 50_000_000  # up to here a CPU trains it in minutes; our choice
PROMPT_TEXT_TOKENS = 512  # a question with its choices; our allowance


def examine() -> dict[str, Any]:
    """Everything the command shows, as plain values."""
    root = project_root()
    gpus = cuda_gpus()
    return {
        "torch": importlib.metadata.version("torch"),
        "gpus": gpus,
        "cpu_cores": os.cpu_count(),
        "memory_gib": gib(psutil.virtual_memory().total),
        "memory_free_gib": gib(psutil.virtual_memory().available),
        "disk_free_gib": gib(shutil.disk_usage(root).free),
        "optional": {name: importlib.util.find_spec(name) is not None for name in OPTIONAL},
        "wandb_login": wandb_login(),
        "parameter_files": parameter_files(root, max((gpu["vram_gib"] for gpu in gpus), default=0.0), len(gpus)),
    }


def cuda_gpus() -> list[dict[str, Any]]:
    import torch

    if not torch.cuda.is_available():
        return []
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    bf16 = torch.cuda.is_bf16_supported()
    return [{"name": gpu.name, "vram_gib": gib(gpu.total_memory), "bf16": bf16} for gpu in found]


def wandb_login() -> bool:
    """Whether W&B would find credentials: WANDB_API_KEY or a netrc entry. The key itself is not looked at."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return any("wandb" in host for host in netrc.netrc().hosts)
    except (OSError, netrc.NetrcParseError):
        return False


def parameter_files(root: Path, vram_gib: float, gpus: int) -> list[dict[str, Any]]:
    """For each params/STEM/*.yaml: the memory it needs on each GPU (0: runs on a CPU) and whether this machine has it.

    `cards` are the sizes, in GB, of the cards that have room for it.
    """
    rows = []
    for path in sorted((root / "params").glob("*/*.yaml")):
        if path.parent.name not in PARAMETERS:
            continue
        row = {"file": str(path.relative_to(root)), "fits": False, "needs_vram_gib": None, "error": None}
        try:
            params = load_parameters(path.parent.name, [path])
            planned = plan_of(params, root)
            need = gib(planned[0].estimate(planned[1]).bytes) if planned else 0.0
            processes = getattr(params, "processes", 1)
            row |= {
                "needs_vram_gib": need,
                "processes": processes,
                "nodes": getattr(params, "nodes", 1),
                "cards": [size for size, room in CARDS_GIB.items() if need <= room],
                "fits": not need or need <= vram_gib and processes <= gpus,
            }
        except RequestError as error:
            row["error"] = str(error)
        rows.append(row)
    return rows


def plan_of(params: Parameters, root: Path) -> tuple[Plan, Shape] | None:
    """What a parameter file asks of which model; None where it runs on a CPU (the tiny model, data and figures)."""
    shape, max_pixels = model_of(params, root)
    kinds = {"20_cold_sft": SftPlan, "30_ptst_grpo": GrpoPlan, "40_benchmark": AnswerPlan}
    kind = next((kinds[stem] for stem in kinds if type(params) is PARAMETERS[stem]), None)
    if shape is None or kind is None or getattr(params, "endpoints", None):
        return None
    maker = maker_of(params, root) if kind is AnswerPlan else None  # an adapter answers over the base it was trained on
    values = {name: getattr(maker, name) for name in ("method", "lora_rank") if hasattr(maker, name)}
    values |= {field.name: getattr(params, field.name) for field in fields(kind) if hasattr(params, field.name)}
    values |= {
        "max_pixels": params.max_pixels or max_pixels,
        "processes": getattr(params, "processes", 1) * getattr(params, "nodes", 1),
        "text_tokens": PROMPT_TEXT_TOKENS,
    }
    if "stages" in values:
        values["stages"] = Schedule(values["stages"]).stages
    return kind(**values), shape


def model_of(params: Parameters, root: Path) -> tuple[Shape | None, int]:
    """The shape of the model that a parameter file names, and the largest picture it was trained on; None: tiny.

    Looked for in this order: a folder here; the parameter file of the run that will make it; a published name; the size
    in the names, 7B where they tell none.
    """
    model = getattr(params, "model", "tiny")
    folder = root / model
    if model == "tiny":
        return None, 0
    own = read_spec_file(str(folder))
    base = Path(own["base"]) if own and own["base"] else folder
    if (base / "config.json").is_file():
        shape = shape_of_folder(base)
        spec = read_image_spec(folder)
        largest = spec.max_pixels if isinstance(spec, ImageSpec) else ImageSpec().max_pixels  # tiles: any size is one
        return None if shape.parameters < CPU_PARAMETERS else shape, largest
    made_by = MADE_BY.fullmatch(model)
    if maker := maker_of(params, root):
        shape, max_pixels = model_of(maker, root)
        return shape, getattr(maker, "max_pixels", None) or max_pixels
    names = f"{base} {model} {params.run}"
    if made_by and not SIZE_IN_NAME.search(names):
        return None, 0
    return published_shape(published_name(names)), ImageSpec().max_pixels


def maker_of(params: Parameters, root: Path) -> Parameters | None:
    """The parameters that lie ready for the run that will make this one's model."""
    made_by = MADE_BY.fullmatch(getattr(params, "model", ""))
    if made_by and (file := root / "params" / made_by[1] / f"{made_by[2]}.yaml").is_file() and made_by[1] in PARAMETERS:
        return load_parameters(made_by[1], [file])
    return None


def published_name(names: str) -> str:
    """The published model that the names speak of: by its name, else Qwen2.5-VL by its size, the next one up."""
    for name in PUBLISHED:
        if name.lower() in names.lower():
            return name
    size = SIZE_IN_NAME.search(names)
    billions = float(size[1]) if size else 7.0
    ours = {float(name.split("-")[-1][:-1]): name for name in PUBLISHED if name.startswith("Qwen2.5-VL")}
    return ours[min((each for each in ours if each >= billions), default=max(ours))]


@cache
def shape_of_folder(folder: Path) -> Shape:
    return shape_of(AutoConfig.from_pretrained(folder), str(folder))


def examine_file(file: str | Path, overrides: Iterable[tuple[str, str]] = ()) -> dict[str, Any]:
    """What `vr1 doctor -f FILE [-p KEY VALUE]` shows: the memory of one GPU part by part.

    `for_less` has the values that would fit, for each card that is too small.
    """
    stem = Path(file).resolve().parent.name
    params = load_parameters(stem, [file], overrides)
    planned = plan_of(params, project_root())
    if planned is None:
        return {"file": str(file), "model": None}
    plan, shape = planned
    estimate = plan.estimate(shape)
    need = gib(estimate.bytes)
    return {
        "file": str(file),
        "model": shape.name,
        "parameters": shape.parameters,
        "trained": plan.trainable(shape),
        "gpus": plan.processes,
        "parts": [asdict(part) for part in estimate.parts],
        "peak_gib": need,
        "peak_phase": estimate.worst_phase,
        "cards": [size for size, room in CARDS_GIB.items() if need <= room],
        "for_less": {size: shortfall(plan, shape, int(room * GIB)) for size, room in CARDS_GIB.items() if need > room},
    }


def file_in_words(findings: dict[str, Any]) -> str:
    """`examine_file`'s findings as one page."""
    if findings["model"] is None:
        return f"{findings['file']}: runs on a CPU"
    gpus = f"each of {findings['gpus']} GPUs" if findings["gpus"] > 1 else "one GPU"
    return "\n".join(
        [
            f"{findings['file']}: {findings['model']}, {findings['parameters']:,} parameters, "
            f"{findings['trained']:,} trained",
            *(f"  {part['phase']:<8} {part['name']:<24} {in_gib(part['bytes']):>8} GiB" for part in findings["parts"]),
            f"peak on {gpus}: {findings['peak_gib']} GiB, in the {findings['peak_phase']} (estimate; not measured)",
            f"room for it: {cards_in_words(findings['cards'])}",
            *(f"on {size} GB: {line}" for size, line in findings["for_less"].items()),
        ]
    )


def cards_in_words(cards: list[int]) -> str:
    return f"{', '.join(map(str, cards))} GB" if cards else "no card that we know of"


def gib(count: int) -> float:
    return round(count / 2**30, 1)


def in_words(findings: dict[str, Any]) -> str:
    """The findings as one page."""
    gpus = [f"{gpu['name']}, {gpu['vram_gib']} GiB, bf16 {yes(gpu['bf16'])}" for gpu in findings["gpus"]]
    lines = [
        f"torch        {findings['torch']}",
        *(f"GPU          {gpu}" for gpu in gpus or ["none: the tiny model runs on the CPU, real ones need a GPU"]),
        f"CPU          {findings['cpu_cores']} cores",
        f"memory       {findings['memory_gib']} GiB, {findings['memory_free_gib']} free",
        f"disk         {findings['disk_free_gib']} GiB free here",
        f"W&B login    {yes(findings['wandb_login'])} (only wandb_mode: online needs it)",
        *(f"{name:<16} {yes(there):<4} {OPTIONAL[name]}" for name, there in findings["optional"].items()),
        "",
        "parameter files",
    ]
    lines += [f"  {row['file']:<48} {row['error'] or need_in_words(row)}" for row in findings["parameter_files"]]
    return "\n".join(lines)


def need_in_words(row: dict[str, Any]) -> str:
    """What a parameter file needs: `fits (CPU)`, or `2 GPUs × 31.5 GiB: 40, 48, 80, 141 GB`."""
    if not row["needs_vram_gib"]:
        return "fits (CPU)"
    gpus, nodes = row["processes"], row["nodes"]
    count = (f"{nodes} machines × " if nodes > 1 else "") + (f"{gpus} GPUs × " if gpus > 1 else "")
    return f"{count}{row['needs_vram_gib']} GiB: {'fits' if row['fits'] else 'takes'} {cards_in_words(row['cards'])}"


def yes(value: bool) -> str:
    return "yes" if value else "no"
