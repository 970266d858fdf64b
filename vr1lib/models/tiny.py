"""An untrained tiny model of any family: real architecture and classes, about a million parameters, its own tokenizer.

No weights can be downloaded in a test or in the demo, so the workbench builds its own; everything downstream treats it
like any other model folder. The tokenizer is byte-level BPE with Qwen's pre-tokenization (digits one by one) and the
family's special tokens after the vocabulary. Our choices: no Unicode normalisation (Qwen applies NFC), so that decoding
gives back exactly what was encoded; `<think>` and `<answer>` are plain text, as in Qwen2.5; and Llama-3.2-Vision's
gates, closed in an untrained model, stand open, for it would see nothing and teach its tower nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig, PreTrainedTokenizerFast

from vr1lib.models.families import FAMILIES, split_marks
from vr1lib.models.images import ImageSpec, TileSpec
from vr1lib.models.vlm import Vlm, save_vlm
from vr1lib.prompts import PromptSpec

QWEN_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
LLAMA_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|finetune_right_pad_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    "<|image|>",  # the last one: it has an embedding but no logit
)
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ROLES = ("system", "user", "assistant")
TINY_IMAGE_SPEC = ImageSpec(min_pixels=28 * 28, max_pixels=256 * 28 * 28)  # our choice: at most 256 image tokens
HALF = (0.5, 0.5, 0.5)
GATE = 0.5  # of Llama-3.2-Vision, before tanh


@dataclass(frozen=True)
class TinyFamily:
    """A family's special tokens, by their parts, and the pictures that its tiny model takes."""

    special_tokens: tuple[str, ...]
    start: str
    ends: tuple[str, ...]  # a turn's end first
    padding: str
    image_spec: ImageSpec | TileSpec


QWEN = TinyFamily(QWEN_TOKENS, "<|endoftext|>", ("<|im_end|>", "<|endoftext|>"), "<|endoftext|>", TINY_IMAGE_SPEC)
QWEN3_IMAGE_SPEC = ImageSpec(
    patch_size=16, min_pixels=32 * 32, max_pixels=256 * 32 * 32, image_mean=HALF, image_std=HALF
)
TINY_FAMILIES = {
    "qwen2_vl": QWEN,
    "qwen2_5_vl": QWEN,
    "qwen3_vl": replace(QWEN, image_spec=QWEN3_IMAGE_SPEC),
    "mllama": TinyFamily(
        LLAMA_TOKENS,
        "<|begin_of_text|>",
        ("<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"),
        "<|finetune_right_pad_id|>",
        TileSpec(tile_size=56),
    ),
}


def build_tiny_vlm(
    folder: str | Path,
    seed: int,
    texts: Iterable[str],
    *,
    family: str = "qwen2_5_vl",
    vocabulary_size: int = 768,
    hidden_size: int = 128,
    layers: int = 4,
    heads: int = 4,
    key_value_heads: int = 2,
    intermediate_size: int = 384,
    vision_hidden_size: int = 64,
    vision_depth: int = 2,
    vision_heads: int = 2,
    tie_word_embeddings: bool = True,
    image_spec: ImageSpec | TileSpec | None = None,
) -> None:
    """Write an untrained model to `folder`; `seed` fixes the weights, `texts` train the tokenizer's merges.

    `family` is a key of FAMILIES; `image_spec` None is that family's tiny one. `vocabulary_size` counts every token,
    special ones too; texts with few words give a smaller vocabulary. Llama-3.2-Vision takes at least two layers, the
    second of which looks at the picture, and its head is never tied. The global random state is left as it was.
    """
    tiny = TINY_FAMILIES[family]
    image_spec = image_spec or tiny.image_spec
    tokenizer = train_tokenizer(texts, vocabulary_size, family)
    token_id = tokenizer.convert_tokens_to_ids
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
        "bos_token_id": token_id(tiny.start),
        "eos_token_id": token_id(tiny.ends[0]),
        "pad_token_id": token_id(tiny.padding),
    }
    tower = {"hidden_size": vision_hidden_size, "num_heads": vision_heads, "depth": vision_depth}
    shape = llama_shape if family == "mllama" else qwen_shape
    text, tower = shape(family, text, tower, image_spec)
    marks = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
        "image_token_index": "<|image|>",
    }
    config = AutoConfig.for_model(
        family,
        text_config=text,
        vision_config=tower,
        tie_word_embeddings=tie_word_embeddings and family != "mllama",
        **{key: token_id(token) for key, token in marks.items() if token in tiny.special_tokens},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config)
    for name, weight in model.named_parameters():
        if "gate" in name.rpartition(".")[2]:
            torch.nn.init.constant_(weight, GATE)
    model.generation_config = GenerationConfig(
        bos_token_id=token_id(tiny.start),
        eos_token_id=[token_id(token) for token in tiny.ends],
        pad_token_id=token_id(tiny.padding),
    )
    save_vlm(Vlm(model, tokenizer, image_spec, PromptSpec(), method="full"), folder)


def qwen_shape(family: str, text: dict, tower: dict, spec: ImageSpec) -> tuple[dict, dict]:
    """The configurations of language model and vision tower for a Qwen-VL."""
    half_head = text["hidden_size"] // text["num_attention_heads"] // 2
    interleaved = family == "qwen3_vl"  # time 24/64, height and width 20/64 each; else 2/8, 3/8 and 3/8
    side = half_head * 5 // 16 if interleaved else half_head * 3 // 8
    text["rope_parameters"]["mrope_section"] = [half_head - 2 * side, side, side]
    tower |= {
        "patch_size": spec.patch_size,
        "spatial_merge_size": spec.merge_size,
        "temporal_patch_size": spec.temporal_patch_size,
    }
    if family == "qwen2_vl":
        return text, {**tower, "embed_dim": tower["hidden_size"], "hidden_size": text["hidden_size"], "mlp_ratio": 2}
    tower |= {"intermediate_size": 2 * tower["hidden_size"], "out_hidden_size": text["hidden_size"]}
    if family == "qwen2_5_vl":
        return text, {**tower, "window_size": 112, "fullatt_block_indexes": [tower["depth"] - 1]}
    text["rope_parameters"]["mrope_interleaved"] = True
    text["head_dim"] = 2 * half_head
    return text, {**tower, "num_position_embeddings": 16 * 16, "deepstack_visual_indexes": [0]}


def llama_shape(family: str, text: dict, tower: dict, spec: TileSpec) -> tuple[dict, dict]:
    """The configurations of language model and vision tower for a Llama-3.2-Vision."""
    text |= {"vocab_size": text["vocab_size"] - 1, "cross_attention_layers": [1]}  # `<|image|>` has no logit
    return text, {
        "hidden_size": tower["hidden_size"],
        "intermediate_size": 2 * tower["hidden_size"],
        "attention_heads": tower["num_heads"],
        "num_hidden_layers": tower["depth"],
        "num_global_layers": 1,
        "intermediate_layers_indices": [0],
        "vision_output_dim": 2 * tower["hidden_size"],  # the last states and those of the layers above
        "image_size": spec.tile_size,
        "patch_size": 14,
        "max_num_tiles": spec.max_tiles,
    }


def train_tokenizer(texts: Iterable[str], vocabulary_size: int, family: str = "qwen2_5_vl") -> PreTrainedTokenizerFast:
    """A byte-level BPE over `texts` with the family's special tokens; any UTF-8 text encodes and decodes unchanged."""
    tiny, marks = TINY_FAMILIES[family], FAMILIES[family]
    turns = [piece for role in ROLES for piece in split_marks(marks.turn_start.format(role=role))]
    words = [piece for piece in turns if piece not in tiny.special_tokens]  # in every prompt, so one token each
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size - len(tiny.special_tokens),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(chain(texts, words * 1000), trainer)
    tokenizer.add_special_tokens(list(tiny.special_tokens))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=tiny.ends[0],
        pad_token=tiny.padding,
        clean_up_tokenization_spaces=False,
        model_max_length=32768,
        chat_template=marks.chat_template,
        **({"bos_token": marks.prompt_start} if marks.prompt_start else {}),
    )
