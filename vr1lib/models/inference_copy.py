"""A whole copy of a model in the precision it computes in: to sample from, or to hold still as a reference.

Sampling from the training model itself is free where it can be: float32, LoRA and QLoRA in one process or under DDP.
Elsewhere every token would pay for a step's worth of traffic: a sharded model gathers all its weights in each forward
pass, and one that computes in bf16 over float32 weights casts them all. So a copy is filled once a step instead.

What it costs each process: 2 bytes a parameter in bf16, 4 in float32, for as long as training runs (Qwen2.5-VL-7B in
bf16: 16.6 GB). Filling it passes the weights that train over the network, as many bytes each, one parameter at a time,
so that only the largest is there twice (7B: 545 million numbers, 1.1 GB). Sampling straight from shards would pass all
of them for every token.
"""

import copy

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor
from torch.distributed.tensor import DTensor


def whole_copy(model: torch.nn.Module, number_type: torch.dtype | None = None) -> torch.nn.Module:
    """A frozen copy of a model that isn't sharded (yet), for evaluation; None keeps each weight's own number type.

    Tied weights stay tied, hooks stay, and at no time are there more numbers than model and copy.
    """
    weights = {
        id(weight): torch.nn.Parameter(weight.detach().to(number_type or weight.dtype, copy=True), requires_grad=False)
        for weight in model.parameters()
    }
    return copy.deepcopy(model, weights).eval()  # deepcopy takes what is already there from its second argument


@torch.no_grad()
def fill(copied: torch.nn.Module, model: torch.nn.Module) -> None:
    """Give the copy the weights that `model`, prepared in the meantime, has now. Every process must call."""
    targets = dict(copied.named_parameters(remove_duplicate=False))
    for name, weight in extract_model_from_parallel(model).state_dict(keep_vars=True).items():
        if weight.requires_grad:
            cast = weight.detach().to(targets[name].dtype)  # before it is gathered: half the traffic in bf16
            targets[name].copy_(whole(cast))


def whole(tensor: Tensor) -> Tensor:
    """A parameter's full value: a shard is gathered (every process must call), anything else is itself."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
