"""Each family from a tiny random configuration: what it is shown, how it batches, decodes, trains and is kept."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoTokenizer,
    MllamaImageProcessorPil,
    MllamaProcessor,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
    Qwen3VLProcessor,
)

from vr1lib.models.families import FAMILIES
from vr1lib.models.images import ImageSpec, TileSpec, read_image_spec
from vr1lib.models.tiny import TINY_FAMILIES, build_tiny_vlm
from vr1lib.models.vlm import collate_prompts, collate_rows, load_vlm, save_vlm, with_completions
from vr1lib.prompts import PromptSpec
from vr1lib.records import Problem, RequestError
from vr1lib.reward import grade_completion
from vr1lib.schedule import Schedule
from vr1lib.training.grpo import GrpoSettings, prepare, train_grpo
from vr1lib.training.sft import train_sft

RESPONSE = "<think> red, blue. So 2. </think><answer> Final Answer:2 </answer>"
NAMES = list(FAMILIES)
PROCESSORS = {
    "qwen2_vl": Qwen2VLProcessor,
    "qwen2_5_vl": Qwen2_5_VLProcessor,
    "qwen3_vl": Qwen3VLProcessor,
    "mllama": MllamaProcessor,
}
PICTURES = {"a": (84, 84), "b": (60, 130), "c": (20, 10), "long": (40, 200)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny model of each family and pictures of noise, of different shapes."""
    folder = tmp_path_factory.mktemp("families")
    for name in NAMES:
        sizes = {"hidden_size": 32, "layers": 3, "heads": 2, "intermediate_size": 64}
        vision = {"vision_hidden_size": 32, "vision_depth": 2}
        build_tiny_vlm(folder / name, 0, ["How many red shapes? " + RESPONSE] * 20, family=name, **sizes, **vision)
    for name, (height, width) in PICTURES.items():
        pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


@pytest.fixture(params=NAMES)
def vlm(request, folder):
    return load_vlm(folder / request.param, train_vision=True)


def problem(folder: Path, *names: str, question: str = "How many red shapes?") -> Problem:
    images = [str(folder / f"{name}.png") for name in names]
    return Problem(id="-".join(["p", *names]), images=images, question=question, answer="2", source="t", split="t")


def problems(folder: Path) -> list[Problem]:
    """One picture, none, three at their markers (two of them together), and a text that is longer."""
    three = problem(folder, "b", "c", "long", question="First <image> then <image><image>: how many red shapes?")
    return [problem(folder, "a"), problem(folder), three, problem(folder, question="How many shapes? " * 3)]


def logits(vlm, batch: dict) -> torch.Tensor:
    with torch.no_grad():
        return vlm.model(**batch).logits


def shake(vlm) -> None:
    """Move what trains far from its start, so that nothing is small or zero by accident."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in vlm.model.parameters():
            if weight.requires_grad and weight.ndim > 1:
                weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)


# --- what a model is shown


def test_the_auto_classes_give_each_family_its_own(folder):
    classes = {name: type(load_vlm(folder / name).model).__name__ for name in NAMES}
    assert classes == {
        "qwen2_vl": "Qwen2VLForConditionalGeneration",
        "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
        "qwen3_vl": "Qwen3VLForConditionalGeneration",
        "mllama": "MllamaForConditionalGeneration",
    }
    assert TINY_FAMILIES.keys() == FAMILIES.keys()


def test_a_llama_prompt_is_written_in_headers_with_one_token_a_picture(folder):
    vlm = replace(load_vlm(folder / "mllama"), prompt_spec=PromptSpec(system="Be brief."))
    text = vlm.tokenizer.decode(vlm.encode_prompt(problem(folder, "a", "b", question="Which <|eot_id|>?")).input_ids)
    assert text == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n<|image|><|image|>Which <|eot_id|>?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Which <|eot_id|>?"}]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}]
    assert vlm.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) == text
    row = vlm.encode_row(problem(folder, "a", question="Which <|eot_id|>?"), "This.")
    assert (row.input_ids == vlm.end_of_turn_id).sum() == 3  # system, user, assistant; the question's is only letters
    assert vlm.tokenizer.decode(row.labels[row.labels >= 0]) == "This.<|eot_id|>"


def their_processor(name: str, folder: Path):
    """transformers' own processor with its PIL pictures (its others, videos among them, want torchvision)."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if name == "mllama":
        return MllamaProcessor(MllamaImageProcessorPil.from_pretrained(folder), tokenizer)
    without_video = type(
        "WithoutVideo", (PROCESSORS[name],), {"get_attributes": lambda *_: ["image_processor", "tokenizer"]}
    )
    return without_video(image_processor=Qwen2VLImageProcessorPil.from_pretrained(folder), tokenizer=tokenizer)


@pytest.mark.parametrize("name", NAMES)
def test_every_input_equals_transformers_own_processor(name, folder):
    vlm = load_vlm(folder / name)
    content = [{"type": "text", "text": "First "}, {"type": "image"}, {"type": "text", "text": " then "}]
    content += [{"type": "image"}, {"type": "image"}, {"type": "text", "text": ": how many red shapes?"}]
    processor = their_processor(name, folder / name)
    text = processor.tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    pictures = [Image.open(folder / f"{each}.png") for each in ("b", "c", "long")]
    theirs = processor(text=[text], images=pictures, return_tensors="pt")
    ours = collate_prompts([vlm.encode_prompt(problems(folder)[2])], vlm.pad_token_id)
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert torch.equal(value, theirs[key]), key


def test_prompts_are_counted_without_reading_pixels(vlm, folder):
    for each in problems(folder):
        assert vlm.count_prompt_tokens(each) == len(vlm.encode_prompt(each))


def test_tokens_that_only_a_picture_gives_are_never_sampled(vlm):
    names = vlm.tokenizer.convert_ids_to_tokens(vlm.vision_token_ids)
    if "<|image|>" in vlm.tokenizer.get_vocab():
        assert names == []  # it can't be said: the head ends below it
        assert vlm.image_token_id == vlm.model.lm_head.out_features
    else:
        assert {"<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"} < set(names)


def test_a_qwen3_picture_is_cut_into_patches_of_16_around_grey(folder):
    spec = read_image_spec(folder / "qwen3_vl")
    encoded = spec.encode([Image.new("RGB", (84, 50), "black")])  # 2.6 × 1.6 tokens of 32 pixels: 96 × 64
    assert encoded["image_grid_thw"].tolist() == [[1, 4, 6]]
    assert encoded["pixel_values"].shape == (24, 3 * 2 * 16 * 16)
    assert (encoded["pixel_values"] == -1).all()  # (0 − 0.5) / 0.5


def test_a_llama_picture_is_cut_into_tiles_and_its_specification_hashed(folder):
    spec = TileSpec(tile_size=56)
    assert read_image_spec(folder / "mllama") == spec
    picture = Image.open(folder / "long.png")  # 200 × 40: beside each other in four tiles of 56, 224 × 45 pixels
    encoded = spec.encode([picture, Image.open(folder / "c.png")])
    assert encoded["pixel_values"].shape == (1, 2, 4, 3, 56, 56)
    assert encoded["aspect_ratio_mask"].tolist() == [[[1, 1, 1, 1], [1, 0, 0, 0]]]
    assert spec.sha256 != TileSpec(tile_size=56, max_tiles=2).sha256 != ImageSpec().sha256
    with pytest.raises(
        RequestError, match="max_pixels = 401408: this model takes pictures as tiles of 56 pixels, 4 at"
    ):
        read_image_spec(folder / "mllama", max_pixels=401_408)
    with pytest.raises(RequestError, match="image_spec is a ImageSpec; Llama-3.2-Vision takes TileSpec"):
        load_vlm(folder / "mllama", image_spec=ImageSpec())


# --- batches and decoding


def test_a_row_scores_the_same_alone_and_beside_any_other(vlm, folder):
    shake(vlm)
    rows = [vlm.encode_row(each, RESPONSE) for each in problems(folder)]
    together = logits(vlm, collate_rows(rows, vlm.pad_token_id))
    for number, row in enumerate(rows):
        alone = logits(vlm, collate_rows([row], vlm.pad_token_id))[0]
        torch.testing.assert_close(together[number, : len(row)], alone, rtol=0, atol=2e-4)


def test_a_llama_batch_fills_up_with_pictures_that_nobody_sees(folder):
    vlm = load_vlm(folder / "mllama")
    batch = collate_prompts([vlm.encode_prompt(each) for each in problems(folder)[:3]], vlm.pad_token_id)
    assert batch["pixel_values"].shape[:3] == (3, 3, 4)  # rows, pictures, tiles
    assert batch["aspect_ratio_ids"].tolist() == [[6, 0, 0], [0, 0, 0], [3, 1, 4]]  # 2×2 tiles; 1×3, 1×1, 1×4
    assert batch["aspect_ratio_mask"].any(dim=2).all()  # attention over no tile at all would be NaN in bf16
    seen = batch["cross_attention_mask"].any(dim=1).sum(dim=2)  # by any token, in tiles
    assert seen.tolist() == [[4, 0, 0], [0, 0, 0], [3, 1, 4]]


def test_a_picture_changes_what_comes_after_it_alone(vlm, folder):
    """Also for Llama, whose cross-attention is told so by a mask."""
    question = "How many red shapes <image>are there?"
    first, second = (vlm.encode_prompt(problem(folder, name, question=question)) for name in ("c", "long"))
    place = int((first.input_ids == vlm.image_token_id).nonzero()[0])
    text = vlm.encode_prompt(problem(folder, question="How many red shapes "))
    batches = [collate_prompts([each], vlm.pad_token_id) for each in (first, second, text)]
    before = [logits(vlm, batch)[0, : place - 2] for batch in batches]
    after = [logits(vlm, batch)[0, -1] for batch in batches]
    for each in before[1:]:
        torch.testing.assert_close(each, before[0], rtol=0, atol=2e-5)
    assert (after[0] - after[1]).abs().max() > 1e-3


def test_decoding_from_a_shared_cache_equals_reading_the_whole(vlm, folder):
    """Two samples a prompt, one row leaving the batch on the way, against one pass over prompts and completions."""
    prompts = [vlm.encode_prompt(each) for each in problems(folder)]
    batch = collate_prompts(prompts, vlm.pad_token_id)
    rows, tokens = 2 * len(prompts), 4
    ids = torch.randint(10, 200, (rows, tokens), generator=torch.Generator().manual_seed(1))
    doubled = collate_prompts([prompt for prompt in prompts for _ in range(2)], vlm.pad_token_id)
    whole = logits(vlm, with_completions(doubled, ids, torch.ones_like(ids)))[:, -tokens:]
    with torch.no_grad():
        cache = vlm.model(**batch, use_cache=True).past_key_values
        state = vlm.family.decode_state(vlm.model, batch)
        cache.batch_repeat_interleave(2)
        state = {name: value.repeat_interleave(2, dim=0) for name, value in state.items()}
        mask, kept = doubled["attention_mask"], torch.arange(rows)
        for step in range(tokens):
            if step == 2:
                stay = torch.tensor([0, 1, 2, 4, 5, 6, 7])
                cache.batch_select_indices(stay)
                state, mask, kept = {name: value[stay] for name, value in state.items()}, mask[stay], kept[stay]
            mask = torch.cat([mask, mask.new_ones(len(kept), 1)], dim=1)
            inputs = vlm.family.decode_inputs(state, step)
            output = vlm.model(
                input_ids=ids[kept, step : step + 1], attention_mask=mask, past_key_values=cache, **inputs
            )
            torch.testing.assert_close(output.logits[:, -1], whole[kept, step], rtol=0, atol=2e-4)


# --- what trains


def linear_layers(vlm, place: str) -> set[str]:
    modules = vlm.model.named_modules()
    return {name for name, module in modules if isinstance(module, torch.nn.Linear) and place in name}


@pytest.mark.parametrize("name", NAMES)
def test_full_trains_the_language_model_and_the_tower_when_asked(name, folder):
    frozen, whole = load_vlm(folder / name), load_vlm(folder / name, train_vision=True)
    rows = [frozen.encode_row(each, RESPONSE) for each in problems(folder)]
    tower = tuple(f"model.{module}." for module in frozen.family.vision_modules)
    for vlm in (frozen, whole):
        vlm.model(**collate_rows(rows, vlm.pad_token_id)).loss.backward()
    moved = {each for each, weight in whole.model.named_parameters() if weight.grad is not None and weight.grad.any()}
    everything = {each for each, _ in whole.model.named_parameters()}
    assert everything - moved <= {"model.vision_model.post_tile_positional_embedding.embedding.weight"}
    assert {each for each, weight in frozen.model.named_parameters() if weight.requires_grad} == {
        each for each in everything if not each.startswith(tower)
    }


@pytest.mark.parametrize("name", NAMES)
def test_an_adapter_sits_on_every_linear_layer_it_is_meant_for(name, folder):
    base = load_vlm(folder / name)
    language = linear_layers(base, "language_model")
    tower = set().union(*(linear_layers(base, f"model.{module}") for module in base.family.vision_modules))
    assert language and tower
    for targets, expected in {"language": language, "language+vision": language | tower}.items():
        vlm = load_vlm(folder / name, method="lora", lora_rank=2, lora_targets=targets)
        weights = {each for each, weight in vlm.model.named_parameters() if weight.requires_grad}
        adapted = {each.removeprefix("base_model.model.").split(".lora_")[0] for each in weights}
        assert adapted == expected


@pytest.mark.parametrize("name", NAMES)
def test_qlora_holds_the_language_model_alone_in_4_bits(name, folder):
    language = linear_layers(load_vlm(folder / name), "language_model")
    vlm = load_vlm(folder / name, method="qlora", lora_rank=2)
    held = {each for each, weight in vlm.model.named_parameters() if weight.dtype == torch.uint8}
    assert {each.removeprefix("base_model.model.").replace(".base_layer.weight", "") for each in held} == language


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize("name", NAMES)
def test_supervised_steps_lower_the_loss(name, method, folder, tmp_path):
    vlm = load_vlm(folder / name, method=method, lora_rank=8)
    rows = [(each, RESPONSE) for each in problems(folder)]
    result = train_sft(
        vlm, rows, log=lambda metrics: None, output_dir=tmp_path, steps=6, batch_size=4, learning_rate=1e-2
    )
    assert result.steps == 6 and not result.rejects
    assert result.losses[-1] < result.losses[0] - 0.1


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("name", NAMES)
def test_a_grpo_step_follows_the_rewards_and_scores_what_it_sampled(name, method, folder, monkeypatch):
    vlm = load_vlm(folder / name, method=method, lora_rank=8)
    shake(vlm)
    sampled = []

    def likes_early_letters(completion, problem, reward):
        sampled.append(completion.text)
        graded = grade_completion(completion, problem, reward)
        return graded.model_copy(update={"reward": float(completion.text < "m")})

    monkeypatch.setattr("vr1lib.training.rollouts.grade_completion", likes_early_letters)
    before = {each: weight.detach().clone() for each, weight in vlm.model.named_parameters()}
    session = prepare(vlm, GrpoSettings(prompts_per_step=4, learning_rate=1e-3, kl_coefficient=0.01))
    rows = []
    train_grpo(session, problems(folder), Schedule([(6, 4, 1)]), log=rows.append)
    assert len(sampled) == 16 and not any(token in text for text in sampled for token in vlm.family.vision_tokens)
    assert 0 < rows[1]["reward/mean"] < 1 and rows[1]["grad_norm"] > 0
    assert rows[1]["logprob_gap"] < 1e-4  # prompts read once and decoded token by token, against the whole at once
    moved = {each for each, weight in vlm.model.named_parameters() if not torch.equal(weight, before[each])}
    assert moved and moved <= {each for each, weight in vlm.model.named_parameters() if weight.requires_grad}


def test_every_decoder_layer_and_vision_block_is_a_unit_to_shard(vlm):
    """transformers names the classes; a layer class it forgot would be gathered with all the rest."""
    classes = vlm.model._no_split_modules
    units = [name for name, module in vlm.model.named_modules() if type(module).__name__ in classes]
    lists = [module for module in vlm.model.modules() if isinstance(module, torch.nn.ModuleList)]
    layers = [layer for each in lists for layer in each if type(layer).__name__ in classes]
    assert len(units) == len(layers) >= 3 + 2
    linear = linear_layers(vlm, "language_model")
    assert all(any(name.startswith(f"{unit}.") for unit in units) for name in linear)


# --- folders


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize("name", NAMES)
def test_a_saved_model_loads_with_its_scores_and_specifications(name, method, folder, tmp_path):
    vlm = load_vlm(folder / name, method=method, lora_rank=2)
    shake(vlm)
    save_vlm(vlm, tmp_path / "saved")
    again = load_vlm(tmp_path / "saved")
    batch = collate_rows([vlm.encode_row(each, RESPONSE) for each in problems(folder)], vlm.pad_token_id)
    assert again.method == method
    assert torch.equal(logits(again, batch), logits(vlm, batch))
    assert again.image_spec == vlm.image_spec and type(again.image_spec) is vlm.family.image_spec
    spec = json.loads((tmp_path / "saved" / "vr1_spec.json").read_text())
    assert spec["image_spec_sha256"] == vlm.image_spec.sha256
    assert read_image_spec(tmp_path / "saved") == vlm.image_spec
    preprocessor = json.loads((tmp_path / "saved" / "preprocessor_config.json").read_text())
    assert preprocessor["processor_class"] == PROCESSORS[name].__name__


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_a_model_on_meta_counts_and_encodes_like_the_real_one(method, folder, vlm):
    name = vlm.model.config.model_type
    shape, real = (load_vlm(folder / name, method=method, device=device) for device in ("meta", "cpu"))
    assert {weight.device.type for weight in shape.model.parameters()} == {"meta"}
    counts = [
        {each: weight.numel() for each, weight in vlm.model.named_parameters() if weight.requires_grad}
        for vlm in (shape, real)
    ]
    assert counts[0] == counts[1]
    if method != "qlora":
        assert shape.model.num_parameters() == real.model.num_parameters()
    for each in problems(folder):
        assert torch.equal(shape.encode_prompt(each).input_ids, real.encode_prompt(each).input_ids)
    assert (shape.eos_token_ids, shape.vision_token_ids) == (real.eos_token_ids, real.vision_token_ids)
