"""An untrained tiny Qwen2.5-VL: the real architecture and classes, about a million parameters, its own tokenizer.

No weights can be downloaded in a test or in the demo, so the workbench builds its own; everything downstream treats it
like any other Qwen2.5-VL folder. The tokenizer is byte-level BPE with Qwen's pre-tokenization (digits one by one) and
Qwen's special tokens after the vocabulary. Our choices: no Unicode normalisation (Qwen applies NFC), so that decoding
gives back exactly what was encoded; and, as in Qwen2.5, `<think>` and `<answer>` are plain text.
"""

from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from vr1lib.models.families import FAMILIES
from vr1lib.models.images import ImageSpec
from vr1lib.models.vlm import Vlm, save_vlm
from vr1lib.prompts import PromptSpec

SPECIAL_TOKENS = (
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
TURN_WORDS = ("system\n", "user\n", "assistant\n")  # in every prompt, so one token each whatever the texts
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TINY_IMAGE_SPEC = ImageSpec(min_pixels=28 * 28, max_pixels=256 * 28 * 28)  # our choice: at most 256 image tokens


def build_tiny_vlm(
    folder: str | Path,
    seed: int,
    texts: Iterable[str],
    *,
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
    image_spec: ImageSpec = TINY_IMAGE_SPEC,
) -> None:
    """Write an untrained Qwen2.5-VL to `folder`; `seed` fixes the weights, `texts` train the tokenizer's merges.

    `vocabulary_size` counts every token, special ones too; texts with few words give a smaller vocabulary. The global
    random state is left as it was.
    """
    tokenizer = train_tokenizer(texts, vocabulary_size)
    token_id = tokenizer.convert_tokens_to_ids
    half_head = hidden_size // heads // 2
    side_section = half_head * 3 // 8  # Qwen2.5-VL's split of the rotary half: time 2/8, height 3/8, width 3/8
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": hidden_size,
            "intermediate_size": intermediate_size,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": key_value_heads,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1_000_000.0,
                "mrope_section": [half_head - 2 * side_section, side_section, side_section],
            },
            "bos_token_id": token_id("<|endoftext|>"),
            "eos_token_id": token_id("<|im_end|>"),
            "pad_token_id": token_id("<|endoftext|>"),
        },
        vision_config={
            "depth": vision_depth,
            "hidden_size": vision_hidden_size,
            "intermediate_size": 2 * vision_hidden_size,
            "num_heads": vision_heads,
            "out_hidden_size": hidden_size,
            "patch_size": image_spec.patch_size,
            "spatial_merge_size": image_spec.merge_size,
            "temporal_patch_size": image_spec.temporal_patch_size,
            "window_size": 112,
            "fullatt_block_indexes": [vision_depth - 1],
        },
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=tie_word_embeddings,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        bos_token_id=token_id("<|endoftext|>"),
        eos_token_id=[token_id("<|im_end|>"), token_id("<|endoftext|>")],
        pad_token_id=token_id("<|endoftext|>"),
    )
    save_vlm(Vlm(model, tokenizer, image_spec, PromptSpec(), method="full"), folder)


def train_tokenizer(texts: Iterable[str], vocabulary_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE over `texts` with Qwen2.5-VL's special tokens; any UTF-8 text encodes and decodes unchanged."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(chain(texts, TURN_WORDS * 1000), trainer)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
        model_max_length=32768,
        chat_template=FAMILIES["qwen2_5_vl"].chat_template,
    )
