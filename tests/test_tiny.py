"""The tiny model: real architecture, seeded, and a tokenizer that loses nothing."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration

from vr1lib.models.tiny import QWEN_TOKENS, build_tiny_vlm, train_tokenizer
from vr1lib.models.vlm import load_vlm

WORDS = "red blue green yellow circle square triangle row column count total image answer".split()
TEXTS = [f"How many {a} {b} are there? <think> {a}, {b}. So 3. </think>" for a, b in product(WORDS, WORDS)] * 9
TOKENIZER = train_tokenizer(TEXTS, 512)


def build(folder, seed: int = 0, **sizes) -> Qwen2_5_VLForConditionalGeneration:
    build_tiny_vlm(folder, seed, TEXTS, **sizes)
    return load_vlm(folder).model


def test_the_default_is_a_qwen2_5_vl_of_about_a_million_parameters(tmp_path):
    model = build(tmp_path)
    assert type(model) is Qwen2_5_VLForConditionalGeneration
    assert 1_000_000 < sum(value.numel() for value in model.parameters()) < 1_200_000
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight


def test_one_seed_gives_one_model_and_leaves_the_random_state_alone(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = build(tmp_path / "a", seed=1).state_dict()
    assert torch.equal(torch.rand(3), expected)
    again, other = build(tmp_path / "b", seed=1).state_dict(), build(tmp_path / "c", seed=2).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    embedding = "model.language_model.embed_tokens.weight"
    assert not torch.equal(first[embedding], other[embedding])
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == (tmp_path / "c" / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    "sizes", [{"hidden_size": 64, "heads": 2}, {"hidden_size": 192, "heads": 6, "vision_depth": 3}]
)
def test_other_sizes_split_the_rotary_half_fully(tmp_path, sizes):
    build(tmp_path, layers=1, tie_word_embeddings=False, **sizes)
    config = AutoConfig.from_pretrained(tmp_path)
    sections = config.text_config.rope_parameters["mrope_section"]
    assert 2 * sum(sections) == sizes["hidden_size"] // sizes["heads"]
    assert not config.tie_word_embeddings


@settings(deadline=None)
@given(st.text())
def test_any_text_decodes_to_itself(text):
    ids = TOKENIZER(text, split_special_tokens=True)["input_ids"]
    assert TOKENIZER.decode(ids) == text


def test_words_of_the_texts_are_one_token_and_digits_stand_alone():
    for word in WORDS:
        assert len(TOKENIZER(f" {word}")["input_ids"]) == 1
    assert TOKENIZER.tokenize("1024") == ["1", "0", "2", "4"]
    assert len(TOKENIZER("assistant\n")["input_ids"]) == 2  # the word and the end of line, as in Qwen2.5


def test_special_tokens_follow_the_vocabulary_and_are_one_id_each():
    ids = TOKENIZER.convert_tokens_to_ids(list(QWEN_TOKENS))
    assert ids == list(range(len(TOKENIZER) - len(QWEN_TOKENS), len(TOKENIZER)))
    assert TOKENIZER("".join(QWEN_TOKENS))["input_ids"] == ids
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == ""
    assert len(TOKENIZER) <= 512
