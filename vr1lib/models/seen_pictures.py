"""A picture goes through a frozen vision tower once in a step: sampler, reference and policy see the same features.

Kept with the encoded prompt, as long as that lives. A tower that trains is asked every time, and so is that of
Llama-3.2-Vision, whose features transformers gives no hold on.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any
from weakref import WeakKeyDictionary

import torch

from vr1lib.models.families import inner_model
from vr1lib.models.vlm import EncodedPrompt, Vlm

_seen: WeakKeyDictionary[EncodedPrompt, dict[Any, Any]] = WeakKeyDictionary()  # prompt → kind of number → features


@contextmanager
def seen_once(vlm: Vlm, model: torch.nn.Module, prompts: Sequence[EncodedPrompt]) -> Iterator[None]:
    """Inside, `model` takes the features of these prompts' pictures, in this order, from where they were kept, and
    keeps them where they weren't. `vlm` has the policy, whose tower must be frozen for that."""
    pictured = [prompt for prompt in prompts if prompt.image_grid_thw is not None]
    inner = inner_model(model)
    tower = getattr(inner_model(vlm.model), "visual", None)
    if tower is None or not pictured or any(weight.requires_grad for weight in tower.parameters()):
        yield
        return
    # what is computed in another number type has other features
    kind = next(inner.visual.parameters()).dtype, torch.is_autocast_enabled(vlm.device.type)
    look = inner.get_image_features

    def look_or_remember(*arguments, **options):
        known = [_seen.get(prompt, {}).get(kind) for prompt in pictured]
        if all(features is not None for features in known):
            return joined(known)
        output = look(*arguments, **options)
        ends = list(accumulate(len(prompt.image_grid_thw) for prompt in pictured))
        for prompt, start, end in zip(pictured, [0, *ends], ends):
            _seen.setdefault(prompt, {})[kind] = part_of(output, slice(start, end))
        return output

    inner.get_image_features = look_or_remember
    try:
        yield
    finally:
        del inner.get_image_features


def part_of(output: Any, pictures: slice) -> Any:
    """The tower's output for some of its pictures (Qwen3-VL's has features of inner layers too)."""
    parts = {"pooler_output": output.pooler_output[pictures]}
    if "deepstack_features" in output:
        parts["deepstack_features"] = [layer[pictures] for layer in output.deepstack_features]
    return type(output)(**parts)


def joined(outputs: Sequence[Any]) -> Any:
    parts = {"pooler_output": sum((output.pooler_output for output in outputs), ())}
    if "deepstack_features" in outputs[0]:
        layers = zip(*(output.deepstack_features for output in outputs), strict=True)
        parts["deepstack_features"] = [sum(layer, ()) for layer in layers]
    return type(outputs[0])(**parts)
