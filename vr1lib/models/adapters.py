"""Low-rank adapters over a full or 4-bit base: peft and bitsandbytes, imported only when a method asks for them.

The reference of GRPO's KL is the model that training started from. With a fresh adapter that is the adapter switched
off; with one that was loaded (reinforcement after a LoRA cold start) it is a frozen copy of the adapter as loaded, for
without it the model would be the one before the cold start.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import BitsAndBytesConfig, PreTrainedModel

POLICY, START = "default", "start"


def four_bit(compute_type: torch.dtype, unquantised: list[str]) -> BitsAndBytesConfig:
    """QLoRA's NF4 with double quantisation for the language model's linear layers.

    The modules in `unquantised`, vision tower and head, stay in `compute_type` (our choice: a small part of the memory,
    and what is seen first and said last).
    """
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_type,
        llm_int8_skip_modules=unquantised,  # matched from the start of a module's full name
    )


def keep_trainable(model: PreTrainedModel) -> None:
    """Keep bitsandbytes from repacking 4-bit weights for inference.

    On a CPU with AVX512-BF16 it repacks them at the first evaluation without gradients, in place and for good; the next
    training step would crash at a bias and pass no gradient elsewhere.
    """
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def add_adapter(model: PreTrainedModel, rank: int, alpha: float, dropout: float, linear: str) -> PeftModel:
    """A fresh adapter on the layers whose names match `linear`, zero in effect, float32 whatever the base; everything
    else is frozen."""
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=linear, task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def load_adapter(model: PreTrainedModel, folder: str, with_weights: bool = True) -> PeftModel:
    """The adapter saved in `folder`, to go on with, and a frozen copy of it as the start; or its shape alone."""
    if not with_weights:
        return get_peft_model(model, LoraConfig.from_pretrained(folder))
    model = PeftModel.from_pretrained(model, folder, adapter_name=POLICY, is_trainable=True)
    model.load_adapter(folder, adapter_name=START, is_trainable=False)
    model.set_adapter(POLICY)
    return model


def save_adapter(model: PeftModel, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
    """The policy's adapter alone, in peft's own format; from `weights` (name → whole tensor) if they are given."""
    weights = get_peft_model_state_dict(model, weights, adapter_name=POLICY, save_embedding_layers=False)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "adapter_model.safetensors")
    model.peft_config[POLICY].save_pretrained(folder)


@contextmanager
def at_start(model: PeftModel) -> Iterator[None]:
    """Inside, the model is the one that training started from."""
    if START not in model.peft_config:
        with model.disable_adapter():
            yield
        return
    model.set_adapter(START, inference_mode=True)
    try:
        yield
    finally:
        model.set_adapter(POLICY)
