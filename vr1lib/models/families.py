"""What differs between model families, each in one description chosen by `model_type` in config.json.

Qwen2-VL, Qwen2.5-VL and Qwen3-VL speak ChatML and put one token into the prompt for each merged block of patches;
Llama-3.2-Vision (mllama, the paper's second base) speaks Llama-3's headers, puts one `<|image|>` for a whole picture
and looks at it through cross-attention layers. (Its own template refuses a system turn beside a picture; ours renders
both.) Everything else in the workbench asks the description.

Marks ("<|im_start|>{role}\\n") are written here as text and split at their special tokens; a user's text never is.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.models.mllama.processing_mllama import (
    convert_sparse_cross_attention_mask_to_dense,
    get_cross_attention_token_mask,
)

from vr1lib.models.images import ImageSpec, TileSpec
from vr1lib.records import RequestError

Inputs = dict[str, Tensor]  # model inputs by name

SPECIAL_TOKEN = re.compile(r"(<\|\w+\|>)")
LANGUAGE_LINEAR = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


@dataclass(frozen=True)
class Family:
    """A model family. Marks are text with special tokens in it; modules are named from `model.model` on."""

    name: str
    processor_class: str  # in preprocessor_config.json, for transformers and servers
    prompt_start: str
    turn_start: str  # {role} stands for system, user or assistant
    turn_end: str
    picture: str  # what stands for a picture; the image token in it is repeated as often as the picture has tokens
    video: str | None  # the same for a video, in the chat template only; None: the family has none
    vision_tokens: tuple[str, ...]  # never sampled: the next forward pass would miss their features
    image_spec: type
    vision_modules: tuple[str, ...]  # tower and projector: frozen unless asked for, never in 4 bits
    vision_linear: str  # regular expression: linear layers that "language+vision" adapts too
    token_inputs: Callable[[Tensor, int, Inputs], Inputs]  # (ids [tokens], image id, pictures) → inputs [tokens, …]
    decode_state: Callable[[torch.nn.Module, Inputs], Inputs]  # (model, batch it just read) → state [rows, …]
    decode_inputs: Callable[[Inputs, int], Inputs]  # (state, decode steps before) → one step's inputs
    positions: Callable[[torch.nn.Module, Any], Tensor]  # (model, prompt) → [3, 1, tokens] or [1, tokens]
    in_one_line: Callable[[Sequence[Inputs], Sequence[Inputs]], tuple[Inputs, Inputs]]  # token inputs, picture inputs
    can_pack: bool  # several rows in one line, told apart by their positions; and a group's rows share one cache
    prepare: Callable[[torch.nn.Module], None] = lambda model: None  # once, on every model built from a folder

    @property
    def end_of_turn(self) -> str:
        return split_marks(self.turn_end)[0]

    @property
    def chat_template(self) -> str:
        """The rendering as a Jinja template, so that a server renders what was trained on."""
        video = "{% elif part['type'] == 'video' or 'video' in part %}" + self.video if self.video else ""
        return (
            f"{self.prompt_start}{{% for message in messages %}}"
            + self.turn_start.format(role="{{ message['role'] }}")
            + "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
            "{% for part in message['content'] %}"
            "{% if part['type'] == 'image' or 'image' in part or 'image_url' in part %}"
            + self.picture
            + video
            + "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
            + self.turn_end
            + "{% endfor %}{% if add_generation_prompt %}"
            + self.turn_start.format(role="assistant")
            + "{% endif %}"
        )

    def lora_linear(self, targets: str) -> str:
        """Regular expression of the linear layers that an adapter on `targets` sits on."""
        return LANGUAGE_LINEAR if targets == "language" else f"{LANGUAGE_LINEAR}|{self.vision_linear}"

    @property
    def unquantised(self) -> list[str]:
        """Modules that stay out of 4 bits, by the start of their full names: tower, projector, head."""
        return [*(f"model.{module}" for module in self.vision_modules), "lm_head"]


def split_marks(marks: str) -> list[str]:
    """Special tokens and the plain text between them, in order."""
    return [piece for piece in SPECIAL_TOKEN.split(marks) if piece]


# ------------------------------------------------------------------------------------------------------------ Qwen-VL


def image_token_types(input_ids: Tensor, image_token_id: int, pictures: Inputs) -> Inputs:
    """1 on image tokens, 0 elsewhere: from it the model counts its rotary positions."""
    return {"mm_token_type_ids": (input_ids == image_token_id).long()}


def next_positions(model: torch.nn.Module, batch: Inputs) -> Tensor:
    """The rotary position that follows each prompt [rows]: a picture of h×w tokens advances it by max(h, w) only.

    With pictures the model counts each row's own tokens; a batch without any it counts from the padding on.
    """
    mask = batch["attention_mask"]
    deltas = inner_model(model).rope_deltas if "image_grid_thw" in batch else None
    if deltas is None:
        return torch.full_like(mask[:, 0], mask.shape[1])
    return mask.sum(dim=1) + deltas.view(-1).to(mask.device)


def inner_model(model: torch.nn.Module) -> torch.nn.Module:
    """The transformers model without head (it keeps `rope_deltas`) under whatever wraps it."""
    model = extract_model_from_parallel(model)
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    return model.model


def rotary_positions(model: torch.nn.Module, prompt: Any) -> Tensor:
    """Time, height and width of a prompt's tokens as the model counts them for it alone: [3, 1, tokens]."""
    positions, _ = inner_model(model).get_rope_index(
        prompt.input_ids[None], mm_token_type_ids=prompt.mm_token_type_ids[None], image_grid_thw=prompt.image_grid_thw
    )
    return positions


def one_after_another(token_inputs: Sequence[Inputs], picture_inputs: Sequence[Inputs]) -> tuple[Inputs, Inputs]:
    """The inputs of rows that stand in one line; each token knows its picture from the order they come in."""
    seeing = [inputs for inputs in picture_inputs if inputs]
    return (
        {name: torch.cat([inputs[name] for inputs in token_inputs]) for name in token_inputs[0]},
        {name: torch.cat([inputs[name] for inputs in seeing]) for name in next(iter(seeing), {})},
    )


def rotary_state(model: torch.nn.Module, batch: Inputs) -> Inputs:
    return {"next_position": next_positions(model, batch)}


def rotary_inputs(state: Inputs, step: int) -> Inputs:
    """Time, height and width advance together after the prompt: position_ids [3, rows, 1]."""
    return {"position_ids": (state["next_position"] + step).view(1, -1, 1).expand(3, -1, -1)}


# -------------------------------------------------------------------------------------------------- Llama-3.2-Vision


def cross_attention_mask(input_ids: Tensor, image_token_id: int, pictures: Inputs) -> Inputs:
    """Which tiles of which pictures each token sees [tokens, images, tiles], as published: those of the picture, or of
    the pictures standing together, that came last before it."""
    tiles = pictures["aspect_ratio_mask"]  # [1, images, tiles]
    mask = convert_sparse_cross_attention_mask_to_dense(
        [get_cross_attention_token_mask(input_ids.tolist(), image_token_id)],
        num_tiles=tiles.sum(dim=2).tolist(),
        max_num_tiles=tiles.shape[2],
        length=len(input_ids),
    )
    return {"cross_attention_mask": torch.from_numpy(mask[0])}


def last_seen(model: torch.nn.Module, batch: Inputs) -> Inputs:
    """What the last token of each prompt sees. Positions the model counts itself, from the padding on."""
    return {name: batch[name][:, -1:] for name in ["cross_attention_mask"] if name in batch}


def places(model: torch.nn.Module, prompt: Any) -> Tensor:
    """[1, tokens]: 0, 1, 2, …"""
    return torch.arange(len(prompt.input_ids))[None]


def each_sees_its_own(token_inputs: Sequence[Inputs], picture_inputs: Sequence[Inputs]) -> tuple[Inputs, Inputs]:
    """The inputs of rows that stand in one line: one list of all their pictures, of which each row sees its own."""
    masks = [inputs["cross_attention_mask"] for inputs in token_inputs]  # [tokens, images, tiles]
    images = [inputs["aspect_ratio_ids"].shape[1] for inputs in picture_inputs]
    rows, first = [], 0
    for mask, count in zip(masks, images, strict=True):
        tiles = max(mask.shape[2] for mask in masks)
        row = mask.new_zeros(len(mask), sum(images), tiles)
        row[:, first : first + count, : mask.shape[2]] = mask[:, :count]
        rows.append(row)
        first += count
    pictures = {name: torch.cat([inputs[name] for inputs in picture_inputs], dim=1) for name in picture_inputs[0]}
    return {"cross_attention_mask": torch.cat(rows)}, pictures


def blind_text_before_pictures(model: torch.nn.Module) -> None:
    """A token that sees no picture gets nothing from cross-attention, as in Meta's own code and in vLLM.

    transformers masks only what the layer's second half adds (its issue 39379), so such a token would get the mean of
    all pictures and all padding in the batch, and a row would score differently beside another row.
    """
    for layer in inner_model(model).language_model.layers:
        if hasattr(layer, "cross_attn"):
            layer.register_forward_pre_hook(hand_mask_over, with_kwargs=True)
            layer.cross_attn.register_forward_hook(mask_attention)


def hand_mask_over(layer: torch.nn.Module, arguments: tuple, inputs: dict) -> None:
    layer.cross_attn.tokens_that_see = inputs["full_text_row_masked_out_mask"]  # [rows, 1, tokens, 1], or None for all


def mask_attention(attention: torch.nn.Module, arguments: tuple, output: tuple) -> tuple:
    hidden_states, weights = output  # [rows, tokens, hidden size]
    seeing = attention.tokens_that_see
    return hidden_states if seeing is None else hidden_states * seeing[:, 0], weights


# ------------------------------------------------------------------------------------------------------- the families

CHATML = {
    "prompt_start": "",
    "turn_start": "<|im_start|>{role}\n",
    "turn_end": "<|im_end|>\n",
    "picture": "<|vision_start|><|image_pad|><|vision_end|>",
    "video": "<|vision_start|><|video_pad|><|vision_end|>",
    "vision_tokens": ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
    "image_spec": ImageSpec,
    "vision_modules": ("visual",),
    "token_inputs": image_token_types,
    "decode_state": rotary_state,
    "decode_inputs": rotary_inputs,
    "positions": rotary_positions,
    "in_one_line": one_after_another,
    "can_pack": True,
}

FAMILIES: dict[str, Family] = {
    "qwen2_vl": Family(
        name="Qwen2-VL",
        processor_class="Qwen2VLProcessor",
        vision_linear=r".*visual\.(blocks|merger).*\.(qkv|proj|fc1|fc2|mlp\.[02])",
        **CHATML,
    ),
    "qwen2_5_vl": Family(
        name="Qwen2.5-VL",
        processor_class="Qwen2_5_VLProcessor",
        vision_linear=r".*visual\.(blocks|merger).*\.(qkv|proj|gate_proj|up_proj|down_proj|mlp\.[02])",
        **CHATML,
    ),
    "qwen3_vl": Family(
        name="Qwen3-VL",
        processor_class="Qwen3VLProcessor",
        vision_linear=r".*visual\.(blocks|merger|deepstack_merger_list).*\.(qkv|proj|linear_fc1|linear_fc2)",
        **CHATML,
    ),
    "mllama": Family(
        name="Llama-3.2-Vision",
        processor_class="MllamaProcessor",
        prompt_start="<|begin_of_text|>",
        turn_start="<|start_header_id|>{role}<|end_header_id|>\n\n",
        turn_end="<|eot_id|>",
        picture="<|image|>",
        video=None,
        vision_tokens=("<|image|>",),
        image_spec=TileSpec,
        vision_modules=("vision_model", "multi_modal_projector"),
        vision_linear=r".*vision_model.*\.(q_proj|k_proj|v_proj|o_proj|fc1|fc2)|.*multi_modal_projector",
        token_inputs=cross_attention_mask,
        decode_state=last_seen,
        decode_inputs=lambda state, step: state,
        positions=places,
        in_one_line=each_sees_its_own,
        can_pack=False,  # a line has one list of pictures, and its rows would share it
        prepare=blind_text_before_pictures,
    ),
}


def family_of(config: PreTrainedConfig, where: str) -> Family:
    """The family of a model's configuration; RequestError for one that is not known here."""
    if config.model_type not in FAMILIES:
        known = ", ".join(family.name for family in FAMILIES.values())
        raise RequestError(f"{where}: config.json, model_type = {config.model_type!r}: give a model of {known}")
    return FAMILIES[config.model_type]
