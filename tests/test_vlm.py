"""The model and its processor: ids, pixels and labels exact; padding, adapters and folders change nothing else."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vr1lib.models.images import CLIP_MEAN, CLIP_STD, ImageSpec, read_image_spec
from vr1lib.models.tiny import TINY_IMAGE_SPEC, build_tiny_vlm
from vr1lib.models.vlm import EncodedPrompt, collate_prompts, collate_rows, load_vlm, save_vlm
from vr1lib.prompts import ZERO_SYSTEM_PROMPT, PromptSpec
from vr1lib.records import Problem, RequestError

RESPONSE = "<think> Okay, let's see. red, blue. </think><answer> Final Answer:2 </answer>"
QWEN_SPEC = ImageSpec()  # the published bounds: 3,136 to 12,845,056 pixels


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny model and four pictures of noise, of different shapes."""
    folder = tmp_path_factory.mktemp("vlm")
    build_tiny_vlm(folder / "base", 0, ["How many red shapes are there? " + RESPONSE] * 20)
    for name, (height, width) in {"a": (84, 84), "b": (60, 130), "c": (20, 10), "thin": (2010, 10)}.items():
        noise(height, width).save(folder / f"{name}.png")
    (folder / "broken.png").write_text("not a picture")
    return folder


@pytest.fixture(scope="module")
def vlm(folder):
    return load_vlm(folder / "base", train_vision=True)


def noise(height: int, width: int) -> Image.Image:
    pixels = np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def problem(folder: Path, *names: str, question: str = "How many red shapes are there?") -> Problem:
    images = [str(folder / f"{name}.png") for name in names]
    return Problem(id="p7", images=images, question=question, answer="2", source="test", split="test")


def problems(folder: Path) -> list[Problem]:
    """No picture, one, and three at their markers."""
    three = problem(folder, "b", "c", "a", question="First <image> then <image> and <image>: how many red shapes?")
    return [problem(folder, "a"), problem(folder), three]


def logits(vlm, batch: dict) -> torch.Tensor:
    with torch.no_grad():
        return vlm.model(**batch).logits


# --- pictures


@pytest.mark.parametrize(
    ("height", "width", "resized"),
    [
        (84, 56, (84, 56)),
        (70, 98, (56, 112)),  # 2.5 and 3.5 tokens round to the even number
        (1, 1, (56, 56)),  # grown to 3,136 pixels
        (10, 400, (28, 364)),  # grown by √(3136/4000) = 0.885: 8.9 → 28, 354.2 → 364
        (8000, 4000, (5068, 2520)),  # shrunk by √(32e6/12845056) = 1.5784: 5068.5 → 181·28, 2534.3 → 90·28
    ],
)
def test_a_picture_is_resized_as_published(height, width, resized):
    assert QWEN_SPEC.resized(height, width) == resized
    assert QWEN_SPEC.image_tokens(height, width) == resized[0] * resized[1] // 784


def test_a_patch_row_is_colour_then_frame_then_y_then_x_in_merged_blocks():
    picture = noise(56, 84)
    pixels, grid = QWEN_SPEC.patches(picture)
    assert grid.tolist() == [1, 4, 6]
    assert pixels.shape == (24, 3 * 2 * 14 * 14)
    expected = []
    for top, left in [(0, 0), (0, 28), (0, 56), (28, 0), (28, 28), (28, 56)]:  # merged blocks, row by row
        for y, x in [(0, 0), (0, 14), (14, 0), (14, 14)]:  # the four patches of a block
            patch = np.asarray(picture)[top + y : top + y + 14, left + x : left + x + 14]
            for colour in range(3):
                plane = (patch[:, :, colour] / 255 - CLIP_MEAN[colour]) / CLIP_STD[colour]
                expected += [plane, plane]  # two equal frames
    torch.testing.assert_close(pixels.flatten(), torch.tensor(np.array(expected)).flatten().float())


@pytest.mark.parametrize("size", [(84, 84), (100, 333), (1, 1), (7, 900), (601, 1203)])
def test_pixels_equal_the_transformers_picture_processor_bit_for_bit(size, folder):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    theirs = Qwen2VLImageProcessorPil.from_pretrained(folder / "base")(images=[noise(*size)], return_tensors="pt")
    pixels, grid = TINY_IMAGE_SPEC.patches(noise(*size))
    assert torch.equal(pixels, theirs["pixel_values"])
    assert torch.equal(grid[None], theirs["image_grid_thw"])


def test_pixels_are_within_two_grey_levels_of_torchvision():
    """torchvision resizes by torch's antialiased bicubic, which rounds otherwise than PIL."""
    picture = noise(100, 333)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    theirs = torch.nn.functional.interpolate(pixels, QWEN_SPEC.resized(100, 333), mode="bicubic", antialias=True)
    resized, _ = QWEN_SPEC.patches(Image.fromarray(theirs[0].permute(1, 2, 0).numpy()))
    ours, _ = QWEN_SPEC.patches(picture)
    assert (ours - resized).abs().max() * 255 * max(CLIP_STD) < 2.1


def test_spec_of_a_model_comes_from_its_folder_and_bounds_can_be_given(folder):
    assert read_image_spec(folder / "base") == TINY_IMAGE_SPEC
    wider = read_image_spec(folder / "base", max_pixels=401_408)
    assert wider == replace(TINY_IMAGE_SPEC, max_pixels=401_408)
    assert wider.sha256 != TINY_IMAGE_SPEC.sha256 == ImageSpec(**asdict(TINY_IMAGE_SPEC)).sha256


@pytest.mark.parametrize("bounds", [(783, 1000), (2000, 1000)])
def test_bounds_below_one_token_or_crossed_are_refused(bounds):
    with pytest.raises(RequestError, match=f"min_pixels = {bounds[0]}, max_pixels = {bounds[1]}"):
        ImageSpec(min_pixels=bounds[0], max_pixels=bounds[1])


@pytest.mark.parametrize("call", ["encode_prompt", "count_prompt_tokens"])
@pytest.mark.parametrize(
    ("name", "reason"),
    [("broken", "not a readable picture"), ("thin", "picture of 10×2010: aspect ratio above 200"), ("gone", "")],
)
def test_a_picture_that_cannot_be_used_is_refused_by_problem_and_file(vlm, folder, call, name, reason):
    with pytest.raises(RequestError, match=rf"^problem p7: [^:]*/{name}\.png: {reason}") as error:
        getattr(vlm, call)(problem(folder, name))
    assert "\n" not in str(error.value)


# --- ids and labels


@pytest.mark.parametrize("system", [None, ZERO_SYSTEM_PROMPT])
def test_ids_equal_the_chat_template_of_the_saved_folder(vlm, folder, system):
    ours = replace(vlm, prompt_spec=PromptSpec(system=system))
    encoded = ours.encode_prompt(problems(folder)[2])
    tokens = [TINY_IMAGE_SPEC.image_tokens(*size) for size in [(60, 130), (20, 10), (84, 84)]]
    assert tokens == [10, 2, 9]  # 56×140, 56×28, 84×84
    content = [{"type": "text", "text": "First "}, {"type": "image"}, {"type": "text", "text": " then "}]
    content += [{"type": "image"}, {"type": "text", "text": " and "}, {"type": "image"}]
    content += [{"type": "text", "text": ": how many red shapes?"}]
    messages = [{"role": "user", "content": content}]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    for count in tokens:
        text = text.replace("<|image_pad|>", "@" * count, 1)
    ids = tokenizer(text.replace("@", "<|image_pad|>"))["input_ids"]
    assert encoded.input_ids.tolist() == ids
    assert encoded.mm_token_type_ids.tolist() == [int(token == vlm.image_token_id) for token in ids]
    assert encoded.image_grid_thw.tolist() == [[1, 4, 10], [1, 4, 2], [1, 6, 6]]
    assert ("You are a helpful" in text) is False


def test_pictures_without_markers_come_before_the_question(vlm, folder):
    text = vlm.tokenizer.decode(vlm.encode_prompt(problem(folder, "c", "c", question="Which?")).input_ids)
    picture = "<|vision_start|><|image_pad|><|image_pad|><|vision_end|>"
    assert text == f"<|im_start|>user\n{picture}{picture}Which?<|im_end|>\n<|im_start|>assistant\n"


def test_special_tokens_written_in_a_question_or_answer_are_plain_text(vlm, folder):
    question = "What is <|image_pad|> or <|im_end|>?"
    row = vlm.encode_row(problem(folder, "c", question=question), "It is <|vision_start|>.")
    assert row.mm_token_type_ids.sum() == 2
    assert (row.input_ids == vlm.end_of_turn_id).sum() == 2  # the two turns' own
    assert (row.input_ids == vlm.tokenizer.convert_tokens_to_ids("<|vision_start|>")).sum() == 1
    assert question in vlm.tokenizer.decode(row.input_ids)


def test_labels_are_the_answer_and_its_end_of_turn_alone(vlm, folder):
    prompt = vlm.encode_prompt(problem(folder, "a"))
    row = vlm.encode_row(problem(folder, "a"), RESPONSE)
    assert row.input_ids[: len(prompt)].tolist() == prompt.input_ids.tolist()
    assert row.labels[: len(prompt)].tolist() == [-100] * len(prompt)
    assert torch.equal(row.labels[len(prompt) :], row.input_ids[len(prompt) :])
    assert vlm.tokenizer.decode(row.labels[len(prompt) :]) == RESPONSE + "<|im_end|>"
    assert len(row) == len(row.labels) == len(row.mm_token_type_ids)


def test_a_long_prompt_is_counted_without_reading_pixels_and_never_cut(vlm, folder):
    long = problem(folder, "a", question="red blue " * 9000)
    assert len(vlm.encode_prompt(long)) > 18_000
    for each in [*problems(folder), long]:
        assert vlm.count_prompt_tokens(each) == len(vlm.encode_prompt(each))


def test_a_cut_prompt_is_refused_by_problem(vlm, folder):
    prompt = vlm.encode_prompt(problem(folder, "a"))
    cut = EncodedPrompt("p7", prompt.input_ids[:8], {}, prompt.picture_inputs)
    with pytest.raises(RequestError, match="problem p7: 4 image tokens for 9 image features"):
        vlm.check_images(cut)


def test_every_vision_token_is_known_for_the_sampler_to_ban(vlm):
    names = vlm.tokenizer.convert_ids_to_tokens(vlm.vision_token_ids)
    assert set(names) == {"<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"}
    assert vlm.tokenizer.convert_ids_to_tokens(vlm.eos_token_ids) == ["<|endoftext|>", "<|im_end|>"]


# --- batches


def test_rows_pad_right_and_prompts_left(vlm, folder):
    one, none = vlm.encode_row(problem(folder, "a"), "yes"), vlm.encode_row(problem(folder), "yes")
    batch = collate_rows([none, one], vlm.pad_token_id)
    pad = len(one) - len(none)
    assert pad == 11  # nine image tokens and their two marks
    assert batch["attention_mask"][0].tolist() == [1] * len(none) + [0] * pad
    assert batch["labels"][0].tolist() == [*none.labels.tolist(), *[-100] * pad]
    left = collate_prompts([none, one], vlm.pad_token_id)
    assert left["input_ids"][0].tolist() == [vlm.pad_token_id] * pad + none.input_ids.tolist()
    assert left["pixel_values"].shape[0] == 36
    assert collate_prompts([none], vlm.pad_token_id).keys() == {"input_ids", "attention_mask", "mm_token_type_ids"}


def test_a_row_scores_the_same_alone_and_in_a_mixed_batch(vlm, folder):
    rows = [vlm.encode_row(each, RESPONSE) for each in problems(folder)]
    together = logits(vlm, collate_rows(rows, vlm.pad_token_id))
    for number, row in enumerate(rows):
        alone = logits(vlm, collate_rows([row], vlm.pad_token_id))[0]
        torch.testing.assert_close(together[number, : len(row)], alone, rtol=0, atol=1e-5)


def test_left_padded_generation_equals_unpadded(vlm, folder):
    prompts = [vlm.encode_prompt(each) for each in problems(folder)]
    greedy = {"max_new_tokens": 12, "do_sample": False, "suppress_tokens": list(vlm.vision_token_ids)}
    batch = collate_prompts(prompts, vlm.pad_token_id)
    together = vlm.model.generate(**batch, **greedy)[:, batch["input_ids"].shape[1] :]
    for number, prompt in enumerate(prompts):
        alone = vlm.model.generate(**collate_prompts([prompt], vlm.pad_token_id), **greedy)[0, len(prompt) :]
        assert together[number, : len(alone)].tolist() == alone.tolist()


# --- methods


def loss_of(vlm, folder: Path) -> torch.Tensor:
    rows = [vlm.encode_row(each, RESPONSE) for each in problems(folder)]
    return vlm.model(**collate_rows(rows, vlm.pad_token_id)).loss


def trained(vlm) -> set[str]:
    return {
        name for name, value in vlm.model.named_parameters() if value.grad is not None and value.grad.abs().max() > 0
    }


def shake_adapter(vlm, seed: int) -> None:
    """Give a fresh adapter (zero in effect) an effect."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in vlm.model.named_parameters():
            if value.requires_grad and "lora_B" in name:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.05)


def batch_of(vlm, folder: Path) -> dict:
    return collate_rows([vlm.encode_row(each, RESPONSE) for each in problems(folder)], vlm.pad_token_id)


def test_every_weight_of_the_tower_learns_only_with_train_vision(folder):
    whole = load_vlm(folder / "base", train_vision=True)
    loss_of(whole, folder).backward()
    names = {name for name, _ in whole.model.named_parameters()}
    assert trained(whole) == names
    frozen = load_vlm(folder / "base")
    loss_of(frozen, folder).backward()
    assert trained(frozen) == {name for name in names if ".visual." not in name}
    assert not any(value.requires_grad for value in frozen.model.model.visual.parameters())


def test_gradient_checkpointing_changes_no_gradient(vlm, folder):
    plain, saving = load_vlm(folder / "base"), load_vlm(folder / "base", gradient_checkpointing=True)
    for each in (plain, saving):
        each.model.train()
        loss_of(each, folder).backward()
    for (name, a), (_, b) in zip(plain.model.named_parameters(), saving.model.named_parameters()):
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-7, msg=name)
    assert saving.model.is_gradient_checkpointing


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_an_adapter_trains_alone_and_its_reference_is_the_base(folder, method):
    vlm = load_vlm(folder / "base", method=method, lora_rank=4)
    batch = batch_of(vlm, folder)
    base = logits(vlm, batch)
    shake_adapter(vlm, 1)
    policy = logits(vlm, batch)
    assert (policy - base).abs().max() > 0.1
    with vlm.reference():
        torch.testing.assert_close(logits(vlm, batch), base)
    torch.testing.assert_close(logits(vlm, batch), policy)
    vlm.model.train()
    loss_of(vlm, folder).backward()  # after an evaluation without gradients, which must not spoil the weights
    adapter = {name for name, value in vlm.model.named_parameters() if value.requires_grad}
    assert trained(vlm) == adapter
    assert len(adapter) == 4 * 7 * 2  # four layers, seven linear maps, A and B
    assert all(".language_model." in name and ".lora_" in name for name in adapter)


def test_the_adapter_reaches_tower_and_projector_when_asked(folder):
    vlm = load_vlm(folder / "base", method="lora", lora_rank=4, lora_targets="language+vision")
    shake_adapter(vlm, 1)
    loss_of(vlm, folder).backward()
    names = [name for name in trained(vlm) if ".visual." in name]
    assert len(names) == 2 * 5 * 2 + 2 * 2  # two blocks of five linear maps, a projector of two
    with pytest.raises(RequestError, match="lora_targets"):
        load_vlm(folder / "base", method="lora", train_vision=True)


def test_qlora_holds_the_language_model_alone_in_nested_nf4(vlm, folder):
    from bitsandbytes.functional import dequantize_4bit

    small = load_vlm(folder / "base", method="qlora", lora_rank=4)
    quantised = {name: value for name, value in small.model.named_parameters() if value.dtype == torch.uint8}
    assert len(quantised) == 4 * 7
    originals = dict(vlm.model.named_parameters())
    for name, value in quantised.items():
        original = originals[name.removeprefix("base_model.model.").replace(".base_layer", "")]
        assert ".language_model.layers." in name
        assert (value.quant_state.quant_type, value.quant_state.nested) == ("nf4", True)
        error = dequantize_4bit(value.data, value.quant_state) - original
        assert 0.05 < error.norm() / original.norm() < 0.12  # sixteen levels for normal weights: 9 %


def test_qlora_scores_the_same_with_and_without_gradients(folder):
    """The sampler runs without, the trainer with: a gap between them would be a wrong ratio."""
    vlm = load_vlm(folder / "base", method="qlora", lora_rank=4, dtype="bfloat16", gradient_checkpointing=True)
    assert vlm.model.get_input_embeddings().weight.dtype == torch.bfloat16
    shake_adapter(vlm, 1)
    batch = batch_of(vlm, folder)
    sampling = logits(vlm, batch)
    vlm.model.train()
    torch.testing.assert_close(vlm.model(**batch).logits, sampling, rtol=0, atol=0)
    loss_of(vlm, folder).backward()
    assert all(torch.isfinite(value.grad).all() for value in vlm.model.parameters() if value.requires_grad)


def test_a_model_in_full_has_no_adapter_to_switch_off(vlm):
    with pytest.raises(ValueError, match="keep a copy"), vlm.reference():
        pass


# --- folders


def test_a_saved_model_loads_with_the_same_scores(vlm, folder, tmp_path):
    batch = batch_of(vlm, folder)
    changed = load_vlm(folder / "base")
    with torch.no_grad():
        for value in changed.model.parameters():
            value.mul_(1.1)
    save_vlm(changed, tmp_path)
    again = load_vlm(tmp_path)
    assert torch.equal(logits(again, batch), logits(changed, batch))
    assert not torch.equal(logits(again, batch), logits(vlm, batch))
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "preprocessor_config.json",
        "vr1_spec.json",
    }


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_a_saved_adapter_loads_over_its_base_and_its_start_stays_the_reference(folder, tmp_path, method):
    first = load_vlm(folder / "base", method=method, lora_rank=4)
    shake_adapter(first, 1)
    batch = batch_of(first, folder)
    save_vlm(first, tmp_path)
    second = load_vlm(tmp_path)
    assert second.method == method
    start = logits(second, batch)
    assert torch.equal(start, logits(first, batch))
    names = {name for name, value in second.model.named_parameters() if value.requires_grad}
    assert names == {name for name, value in first.model.named_parameters() if value.requires_grad}
    shake_adapter(second, 2)
    assert not torch.equal(logits(second, batch), start)
    with second.reference():
        assert torch.equal(logits(second, batch), start)
    save_vlm(second, tmp_path / "next")
    assert torch.equal(logits(load_vlm(tmp_path / "next"), batch), logits(second, batch))


def test_an_adapter_is_refused_under_another_method_or_without_its_base(folder, tmp_path):
    save_vlm(load_vlm(folder / "base", method="lora", lora_rank=4), tmp_path)
    with pytest.raises(RequestError, match="holds an adapter trained by lora; method = 'full'"):
        load_vlm(tmp_path, method="full")
    spec = json.loads((tmp_path / "vr1_spec.json").read_text())
    assert spec["base"] == str((folder / "base").resolve())
    (tmp_path / "vr1_spec.json").write_text(json.dumps({**spec, "base": "/gone/model"}))
    with pytest.raises(RequestError, match="vr1_spec.json, key 'base': /gone/model: no model here"):
        load_vlm(tmp_path)


def test_an_adapter_and_its_base_move_together_with_their_outputs(folder, tmp_path):
    base, adapter = (
        tmp_path / "outputs" / "20_cold_sft" / "run" / "model",
        tmp_path / "outputs" / "30" / "run" / "model",
    )
    save_vlm(load_vlm(folder / "base"), base)
    first = load_vlm(base, method="lora", lora_rank=4)
    shake_adapter(first, 1)
    save_vlm(first, adapter)
    assert json.loads((adapter / "vr1_spec.json").read_text())["base"] == "../../../20_cold_sft/run/model"
    (tmp_path / "outputs").rename(tmp_path / "moved")
    second = load_vlm(tmp_path / "moved" / "30" / "run" / "model")
    assert second.base == str(tmp_path / "moved" / "20_cold_sft" / "run" / "model")
    assert torch.equal(logits(second, batch_of(first, folder)), logits(first, batch_of(first, folder)))


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_a_saved_adapter_is_a_shape_on_meta_without_reading_its_weights(folder, tmp_path, method):
    saved = load_vlm(folder / "base", method=method, lora_rank=4)
    save_vlm(saved, tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    shape = load_vlm(tmp_path, device="meta")
    assert {value.device.type for value in shape.model.parameters()} == {"meta"}
    trained = [
        {name: value.shape for name, value in vlm.model.named_parameters() if value.requires_grad}
        for vlm in (shape, saved)
    ]
    assert trained[0] == trained[1]


@pytest.mark.parametrize("read", [load_vlm, read_image_spec])
@pytest.mark.parametrize("path", ["outputs/x", "./x", "../x", "/x/y", "somewhere/x", "a/b/c", "x", ""])
def test_a_mistyped_path_is_refused_without_asking_the_hub(tmp_path, monkeypatch, read, path):
    def ask(*_, **__):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("vr1lib.models.images.cached_file", ask)
    monkeypatch.setattr("vr1lib.models.vlm.AutoConfig.from_pretrained", ask)
    (tmp_path / "here" / "somewhere").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(RequestError, match=f"^{path}: no model here"):
        read(path)
    with pytest.raises(AssertionError, match="the hub was asked"):
        read("Qwen/Qwen2.5-VL-7B-Instruct")


def test_a_specification_that_differs_is_refused_unless_accepted(folder):
    other = replace(TINY_IMAGE_SPEC, max_pixels=401_408)
    with pytest.raises(RequestError) as error:
        load_vlm(folder / "base", image_spec=other)
    message = str(error.value)
    for part in (TINY_IMAGE_SPEC.sha256[:12], other.sha256[:12], "max_pixels = 401408 (model: 200704)", "accept"):
        assert part in message
    assert "min_pixels" not in message and "\n" not in message
    with pytest.raises(RequestError, match="prompt_spec .* instruction = 'Think.'"):
        load_vlm(folder / "base", prompt_spec=PromptSpec(instruction="Think."))
    assert load_vlm(folder / "base", image_spec=other, accept_other_spec=True).image_spec == other
    assert load_vlm(folder / "base", image_spec=TINY_IMAGE_SPEC, prompt_spec=PromptSpec()).prompt_spec == PromptSpec()


def test_a_folder_that_is_no_qwen_model_is_refused_in_one_line(folder, tmp_path):
    with pytest.raises(RequestError, match=r"nowhere/at/all: no model here"):
        load_vlm("nowhere/at/all")
    with pytest.raises(RequestError, match="no model here"):
        load_vlm(folder)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(RequestError, match="model_type = 'qwen2'"):
        load_vlm(tmp_path)
