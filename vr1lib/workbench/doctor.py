"""`vr1 doctor`: what this machine can run, and which parameter files fit it.

The memory a parameter file needs is a rule of thumb of ours, from the size in the model's name: bytes per weight by
method (full training: weights, gradients and AdamW in mixed precision; LoRA and QLoRA: frozen weights in bf16 or NF4)
plus a fixed allowance for activations. It errs to the safe side and knows nothing of sequence lengths.
"""

import importlib.metadata
import importlib.util
import netrc
import os
import re
import shutil
from pathlib import Path
from typing import Any

import psutil

from vr1lib.records import RequestError
from vr1lib.workbench.params import PARAMETERS, Parameters, load_parameters, project_root

OPTIONAL = {
    "wandb": "W&B tracking",
    "bitsandbytes": "QLoRA",
    "vllm": "fast rollouts",
    "ray": "sweeps over a cluster",
    "wandb_workspaces": "W&B dashboards",
    "torchvision": "video processors of transformers; not needed",
}
BYTES_PER_WEIGHT = {"full": 16.0, "lora": 2.5, "qlora": 0.9, "inference": 2.0}
ALLOWANCE_GIB = {"full": 8, "lora": 8, "qlora": 8, "inference": 4}
SIZE_IN_NAME = re.compile(r"(?<![\d.])(\d+(?:\.\d+)?)B(?![A-Za-z0-9])", re.IGNORECASE)


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
        "parameter_files": parameter_files(root, max((gpu["vram_gib"] for gpu in gpus), default=0.0)),
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


def parameter_files(root: Path, vram_gib: float) -> list[dict[str, Any]]:
    """For each params/STEM/*.yaml: the GPU memory it needs (0: runs on a CPU) and whether this machine has it."""
    rows = []
    for path in sorted((root / "params").glob("*/*.yaml")):
        if path.parent.name not in PARAMETERS:
            continue
        row = {"file": str(path.relative_to(root)), "needs_vram_gib": None, "fits": False, "error": None}
        try:
            need = needed_vram_gib(load_parameters(path.parent.name, [path]))
            row |= {"needs_vram_gib": need, "fits": need <= vram_gib}
        except RequestError as error:
            row["error"] = str(error)
        rows.append(row)
    return rows


def needed_vram_gib(params: Parameters) -> float:
    """0 for the tiny model and for our own run folders, else by the size in the model's name (7B if it names none)."""
    model = getattr(params, "model", "tiny")
    if model == "tiny" or model.startswith("outputs/") and not SIZE_IN_NAME.search(params.run):
        return 0.0
    size = SIZE_IN_NAME.search(model) or SIZE_IN_NAME.search(params.run)
    billions = float(size[1]) if size else 7.0
    method = getattr(params, "method", "inference")
    return round(billions * 1e9 * BYTES_PER_WEIGHT[method] / 2**30 + ALLOWANCE_GIB[method], 1)


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
    for row in findings["parameter_files"]:
        need = row["needs_vram_gib"]
        state = row["error"] or (
            f"fits ({'GPU' if need else 'CPU'})" if row["fits"] else f"needs {need} GiB of GPU memory"
        )
        lines.append(f"  {row['file']:<48} {state}")
    return "\n".join(lines)


def yes(value: bool) -> str:
    return "yes" if value else "no"
