"""A step whose loss or gradient was NaN or Inf, laid out to be looked at: step-000012/ beside the other bad steps.

step.json             the step's metrics, and the norm of every weight's gradient
rows-0.json           the rows of process 0, as fine-tuning or GRPO has them
rows-0.safetensors    their tensors, as <row>.<name>
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import extract_model_from_parallel
from safetensors.torch import save_file
from torch import Tensor

from vr1lib.models.inference_copy import whole


def dump_bad_step(
    folder: Path,
    model: torch.nn.Module,
    accelerator: Accelerator,
    rows: Sequence[Mapping[str, Any]],
    tensors: Mapping[str, Tensor],
    metrics: Mapping[str, float],
) -> None:
    """Write the step's folder; every process must call and writes its own rows, before the gradients are forgotten."""
    folder.mkdir(parents=True, exist_ok=True)
    process = accelerator.process_index
    write_json(folder / f"rows-{process}.json", rows)
    save_file(
        {name: values.cpu().contiguous() for name, values in tensors.items()}, folder / f"rows-{process}.safetensors"
    )
    gradients = {
        name: float(whole(torch.linalg.vector_norm(weight.grad)))
        for name, weight in extract_model_from_parallel(model).named_parameters()
        if weight.grad is not None
    }
    if accelerator.is_main_process:
        write_json(folder / "step.json", {"metrics": dict(metrics), "gradient_norms": gradients})


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(written_out(value), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def written_out(value: object) -> object:
    """JSON knows no NaN and no Inf: they are written as text."""
    if isinstance(value, dict):
        return {key: written_out(part) for key, part in value.items()}
    if isinstance(value, list):
        return [written_out(part) for part in value]
    return str(value) if isinstance(value, float) and value - value != 0 else value
