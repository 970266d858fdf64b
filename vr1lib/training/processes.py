"""Many processes, by accelerate: which one speaks, how the model is spread, how numbers are added up.

One process per GPU (per torchrun rank; gloo ranks on a CPU). "none": every process holds the whole model and gradients
are averaged (DDP). "fsdp2": weights, gradients and optimizer are sharded over the processes by `fully_shard`, a decoder
layer at a time. What only some batches pass through (the vision tower, cross-attention layers) is gathered with the
root, for every process, or processes whose pictures differ would wait for each other for ever (our choice; for 7B that
is 2.3 GB in bf16 that every process holds during a step). accelerate switches sharding on for accelerators only; over
gloo it works as well, which is how it is tested, so here it is switched on there too.
"""

import os
import re
from typing import Literal

import psutil
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch import Tensor
from torch.distributed.fsdp import MixedPrecisionPolicy

from vr1lib.records import RequestError

Sharding = Literal["none", "fsdp2"]
SEEING = re.compile(r"vis(ual|ion)|cross_attn|multi_modal")  # parameters that a batch without pictures leaves alone


def accelerator_for(model: torch.nn.Module, sharding: Sharding, bfloat16: bool = False) -> Accelerator:
    """This process's Accelerator for `model`, not prepared yet. `bfloat16` computes in bf16 over float32 weights."""
    plugin = sharding_plugin(model, bfloat16) if sharding == "fsdp2" else None
    if "WORLD_SIZE" not in os.environ:
        AcceleratorState._reset_state(reset_partial_state=True)  # a kernel may train again, in another number type
    seeing = [parameter for name, parameter in model.named_parameters() if SEEING.search(name)]
    unused = any(parameter.requires_grad for parameter in seeing)
    accelerator = Accelerator(
        cpu=next(model.parameters()).device.type == "cpu",
        mixed_precision="bf16" if bfloat16 else "no",
        fsdp_plugin=plugin,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=unused)],  # a batch without pictures
    )
    if plugin is not None:
        shard_on_any_device(accelerator, plugin)
    return accelerator


def sharding_plugin(model: torch.nn.Module, bfloat16: bool = False) -> FullyShardedDataParallelPlugin:
    """FSDP2 with one shard unit per decoder layer that every batch passes through; gradients are added up in float32.

    Raises RequestError within a single process.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:  # the launcher's word: accelerate has not been asked yet
        raise RequestError("sharding = 'fsdp2' in one process: nothing to share; set processes, or sharding: none")
    layers = [name for name in model._no_split_modules if "Vision" not in name and "Cross" not in name]
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        reshard_after_forward=True,
        mixed_precision_policy=MixedPrecisionPolicy(torch.bfloat16, torch.float32) if bfloat16 else None,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=layers,
    )


def shard_on_any_device(accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin) -> None:
    if accelerator.state.distributed_type == DistributedType.MULTI_CPU:
        accelerator.state.fsdp_plugin = plugin
        for state in (accelerator.state, PartialState()):
            state.distributed_type = DistributedType.FSDP


def sums_over_processes(values: Tensor, accelerator: Accelerator) -> list[float]:
    """The sums of some numbers over all processes, in double precision."""
    return accelerator.reduce(values.detach().double().to(accelerator.device), "sum").tolist()


def memory_metrics() -> dict[str, float]:
    """Resident memory of this process and peak GPU memory, GiB."""
    metrics = {"memory/rss_gib": psutil.Process().memory_info().rss / 2**30}
    if torch.cuda.is_available():
        metrics["memory/vram_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return metrics


class TrainingStopped(RuntimeError):
    """Training cannot go on (too many bad steps in a row); the message is one line and says where to look."""
