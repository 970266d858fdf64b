"""A step whose loss or gradient was NaN or Inf, laid out to be looked at: step-000012/ beside the other bad steps.

step.json                 the step's metrics, and the norm of every weight's gradient
rows-0.json               the rows of process 0: problem, text, reward, advantage, log-probabilities in figures
rows-0.safetensors        the same rows' token ids and log-probabilities, as <row>.<name> [tokens]
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from accelerate.utils import extract_model_from_parallel
from safetensors.torch import save_file
from torch import Tensor

from vr1lib.training.processes import whole
from vr1lib.training.rollouts import Rollout
from vr1lib.training.session import Session


def dump_bad_step(folder: Path, session: Session, rollouts: Sequence[Rollout], metrics: Mapping[str, float]) -> None:
    """Write the step's folder; every process must call and writes its own rows, before the gradients are forgotten."""
    folder.mkdir(parents=True, exist_ok=True)
    process = session.accelerator.process_index
    rows = [{**row.graded.model_dump(), "advantage": row.advantage, "draw": row.draw} for row in rollouts]
    tensors = {}
    for number, (row, told) in enumerate(zip(rollouts, rows)):
        named = {
            "token_ids": torch.tensor(row.sampled.token_ids),
            "sampled_logprobs": torch.tensor(row.sampled.logprobs),
            "policy_logprobs": row.policy_logprobs,
            "reference_logprobs": row.reference_logprobs,
        }
        for name, values in named.items():
            if values is not None:
                tensors[f"{number}.{name}"] = values.cpu().contiguous()
                if name != "token_ids":
                    told[name] = figures_of(values)
    write_json(folder / f"rows-{process}.json", rows)
    save_file(tensors, folder / f"rows-{process}.safetensors")
    gradients = {
        name: float(whole(torch.linalg.vector_norm(weight.grad)))
        for name, weight in extract_model_from_parallel(session.vlm.model).named_parameters()
        if weight.grad is not None
    }
    if session.accelerator.is_main_process:
        write_json(folder / "step.json", {"metrics": dict(metrics), "gradient_norms": gradients})


def figures_of(values: Tensor) -> dict[str, float]:
    finite = values[values.isfinite()]
    numbers = {"min": finite.min(), "mean": finite.mean(), "max": finite.max()} if len(finite) else {}
    return {"not_finite": len(values) - len(finite), **{name: float(number) for name, number in numbers.items()}}


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(written_out(value), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def written_out(value: object) -> object:
    """JSON knows no NaN and no Inf: they are written as text."""
    if isinstance(value, dict):
        return {key: written_out(part) for key, part in value.items()}
    if isinstance(value, list):
        return [written_out(part) for part in value]
    return str(value) if isinstance(value, float) and value - value != 0 else value
