"""The memory model: parameters as published, bytes as tensors have them, activations as autograd saves them, and values
that really fit."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig

from vr1lib.data.shapeworld import make_problems
from vr1lib.models.decoding import read_prompts
from vr1lib.models.shared_prompt import let_share_prompts, line_of
from vr1lib.models.tiny import build_tiny_vlm
from vr1lib.models.vlm import collate_prompts, load_vlm, with_completions
from vr1lib.schedule import PTST_PAPER, Stage
from vr1lib.training.memory import (
    GIB,
    PUBLISHED,
    AnswerPlan,
    GrpoPlan,
    SftPlan,
    easy_numbers,
    fits,
    layer_bytes,
    out_of_memory,
    published_shape,
    shape_of,
    shortfall,
    spread_thinner,
    weights_bytes,
)

PUBLISHED_COUNTS = {  # the hub's parameter counts: safetensors' total_size divided by two bytes
    "Qwen2.5-VL-3B": 3_754_622_976,
    "Qwen2.5-VL-7B": 8_292_166_656,
    "Qwen2.5-VL-32B": 33_452_718_336,
    "Qwen2.5-VL-72B": 73_410_777_344,
    "Qwen2-VL-2B": 2_208_985_600,
    "Qwen2-VL-7B": 8_291_375_616,
    "Llama-3.2-11B-Vision": 10_670_220_835,
}


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    return make_problems(tmp_path_factory.mktemp("world"), "rl", 2, grid_sizes=(2,))


@pytest.fixture(scope="module")
def folders(tmp_path_factory, problems):
    """Families' tiny models by name and by number of layers."""
    made = {}

    def folder(family="qwen2_5_vl", layers=2):
        if (family, layers) not in made:
            made[family, layers] = tmp_path_factory.mktemp("tiny")
            texts = [problem.question for problem in problems]
            build_tiny_vlm(
                made[family, layers], 0, texts, family=family, vocabulary_size=400, hidden_size=64, layers=layers
            )
        return made[family, layers]

    return folder


@pytest.fixture(scope="module")
def seven():
    return published_shape("Qwen2.5-VL-7B")


def tiny_shape(folder):
    return shape_of(AutoConfig.from_pretrained(folder), "tiny")


def parts(estimate, phase=None):
    return {part.name: part.bytes for part in estimate.parts if phase in (None, part.phase)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_the_published_ones(name):
    assert published_shape(name).parameters == PUBLISHED_COUNTS[name]


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen2_vl", "qwen3_vl", "mllama"])
def test_tiny_models_are_counted_as_loaded(folders, family):
    folder = folders(family)
    shape = tiny_shape(folder)
    model = load_vlm(folder).model
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    for trains, plan in [
        (load_vlm(folder), SftPlan()),
        (load_vlm(folder, train_vision=True), SftPlan(train_vision=True)),
        (load_vlm(folder, method="lora", lora_rank=8), SftPlan(method="lora", lora_rank=8)),
    ]:
        counted = sum(parameter.numel() for parameter in trains.model.parameters() if parameter.requires_grad)
        assert plan.trainable(shape) == counted


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_gradients_and_optimizer_are_counted_to_the_byte(folders, problems, method, dtype):
    shape = tiny_shape(folders())
    vlm = load_vlm(folders(), method=method, lora_rank=8, dtype="float32" if method == "full" else dtype)
    named = dict(vlm.model.named_parameters())
    base = {name: parameter for name, parameter in named.items() if "lora_" not in name}
    scales = [
        state.absmax.nbytes + state.state2.absmax.nbytes
        for parameter in base.values()
        if (state := getattr(parameter, "quant_state", None)) is not None
    ]
    assert len(scales) == (14 if method == "qlora" else 0)  # seven linear layers in each of two decoder layers
    plan = SftPlan(method=method, dtype=dtype, lora_rank=8)
    assert weights_bytes(plan, shape) == sum(parameter.nbytes for parameter in base.values()) + sum(scales)

    trained = [parameter for parameter in named.values() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    batch = collate_prompts([vlm.encode_prompt(problems[0])], vlm.pad_token_id)
    vlm.model(**batch, use_cache=False).logits.float().sum().backward()
    optimizer.step()
    moments = [state[key] for state in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]
    told = parts(plan.estimate(shape))
    assert told["gradients"] == sum(parameter.grad.nbytes for parameter in trained)
    assert told["optimizer"] == sum(moment.nbytes for moment in moments)
    assert told.get("adapter", 0) == (0 if method == "full" else sum(parameter.nbytes for parameter in trained))


@pytest.mark.parametrize("family", ["qwen2_5_vl", "mllama"])
def test_cache_is_counted_to_the_byte(folders, problems, family):
    vlm = load_vlm(folders(family))
    shape = tiny_shape(folders(family))
    prompt = vlm.encode_prompt(problems[0])
    with torch.no_grad():
        _, reading = read_prompts(vlm, [prompt], 2)
    reading.lengthen(7)
    picture = int(prompt.image_grid_thw.prod()) * 14 * 14 if prompt.image_grid_thw is not None else 1
    plan = GrpoPlan(
        stages=(Stage(7, 2, 1),), prompts_per_step=1, rollout_rows=2, largest_picture=picture,
        text_tokens=len(prompt) - shape.picture_tokens(picture),
    )  # fmt: skip
    assert plan.prompt_tokens(shape) == len(prompt)
    assert parts(plan.estimate(shape))["KV cache"] == reading.nbytes


def saved_for_backward(vlm, batch, autocast):
    """Bytes that autograd keeps, parameters apart."""
    kept, own = {}, {parameter.untyped_storage().data_ptr() for parameter in vlm.model.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address is given twice
        return tensor

    vlm.model.train()
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
        vlm.model(**batch, use_cache=False, logits_to_keep=1)
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize(
    ("method", "dtype"),
    [("full", "float32"), ("full", "bfloat16"), ("lora", "float32"), ("lora", "bfloat16"), ("qlora", "bfloat16")],
)
def test_a_layer_s_activations_are_within_2_percent_of_what_autograd_saves(folders, problems, method, dtype):
    rows, width, saved = 2, 300, {}
    for layers in (2, 3):
        weights = "float32" if method == "full" else dtype
        vlm = load_vlm(folders(layers=layers), method=method, dtype=weights, lora_rank=8)
        prompts = collate_prompts([vlm.encode_prompt(problems[0])] * rows, vlm.pad_token_id)
        ids = torch.full((rows, width - prompts["input_ids"].shape[1]), 5)
        mask = torch.ones_like(ids)
        mask[0, -1] = 0  # without padding there would be no mask to keep
        saved[layers] = saved_for_backward(vlm, with_completions(prompts, ids, mask), autocast=dtype == "bfloat16")
    one_layer = saved[3] - saved[2]
    if method == "full" and dtype == "bfloat16":
        one_layer -= 2 * (sum(tiny_shape(folders()).quantised) // 2)  # autocast's copies of the weights: their own part
    plan = SftPlan(method=method, dtype=dtype, lora_rank=8)
    assert layer_bytes(plan, tiny_shape(folders()), rows, width) == pytest.approx(one_layer, rel=0.02)


@pytest.mark.parametrize(("method", "dtype"), [("full", "float32"), ("lora", "bfloat16")])
def test_a_layer_of_completions_that_share_prompts_is_counted_too(folders, problems, method, dtype):
    saved, stage, groups = {}, Stage(60, 4, 1), 2
    for layers in (2, 3):
        vlm = load_vlm(folders(layers=layers), method=method, dtype=dtype, lora_rank=8)
        prompts = [vlm.encode_prompt(problems[0]) for _ in range(groups)]
        rows = [prompt for prompt in prompts for _ in range(4)]
        let_share_prompts(vlm.model)
        saved[layers] = saved_for_backward(vlm, line_of(vlm, rows, [[5] * 60] * 8).inputs, dtype == "bfloat16")
    plan = GrpoPlan(
        method=method, dtype=dtype, lora_rank=8, cuda=False, stages=(stage,), prompts_per_step=2, largest_picture=1,
        micro_batch_tokens=groups * (len(prompts[0]) + 4 * 60), pictures=0, text_tokens=len(prompts[0]),
    )  # fmt: skip
    shape = tiny_shape(folders())
    assert plan.micro_batch(len(prompts[0]), stage) == (2, 8)
    deeper = replace(shape, layers=shape.layers + 1)
    told = parts(plan.estimate(deeper))["activations"] - parts(plan.estimate(shape))["activations"]
    assert told == pytest.approx(saved[3] - saved[2], rel=0.05)


@pytest.mark.parametrize(
    ("budget", "expected"), [(10, (1, 1)), (500, (1, 3)), (1100, (1, 8)), (1900, (2, 16)), (10**6, (5, 40))]
)
def test_a_micro_batch_is_whole_groups_or_part_of_one(budget, expected):
    plan = GrpoPlan(stages=(Stage(100, 8, 1),), prompts_per_step=5, micro_batch_tokens=budget)
    assert plan.micro_batch(150, Stage(100, 8, 1)) == expected


def test_recomputing_keeps_one_tensor_a_layer(folders, problems):
    saved = {}
    for layers in (2, 3):
        vlm = load_vlm(folders(layers=layers), gradient_checkpointing=True)
        prompts = collate_prompts([vlm.encode_prompt(problems[0])], vlm.pad_token_id)
        saved[layers] = saved_for_backward(vlm, prompts, autocast=False)
    tokens, shape = prompts["input_ids"].numel(), tiny_shape(folders())
    deeper = replace(shape, layers=shape.layers + 1)
    plan = SftPlan(gradient_checkpointing=True, micro_batch_size=1, max_tokens=tokens)
    told = parts(plan.estimate(deeper))["activations"] - parts(plan.estimate(shape))["activations"]
    assert told == saved[3] - saved[2] == tokens * 64 * 4


def test_seven_billion_by_hand(seven):
    plan = GrpoPlan(
        method="qlora", dtype="bfloat16", stages=(Stage(2048, 8, 1),), prompts_per_step=1, rollout_rows=8,
        max_pixels=28 * 28 * 100, text_tokens=100,
    )  # fmt: skip
    told = parts(plan.estimate(seven))
    assert plan.prompt_tokens(seven) == 200
    assert told["KV cache"] == (200 + 8 * 2048) * 28 * 2 * 4 * 128 * 2  # prompt, rows; layers, k and v, heads, bytes
    in_four_bits = 28 * (3584 * 3584 * 2 + 3584 * 512 * 2 + 3 * 3584 * 18944)
    outside = 8_292_166_656 - in_four_bits
    assert told["weights"] == 2 * outside + in_four_bits * (2048 + 64 + 1) // 4096  # half a byte, 1/64 and 4/(64·256)
    assert told["adapter"] == 4 * 64 * 28 * (2 * 7168 + 2 * 4096 + 3 * 22528) == told["gradients"]
    assert told["optimizer"] == 2 * told["adapter"]
    sampled = {part.name: part.bytes for part in plan.estimate(seven).parts if part.phase == "rollout"}
    assert sampled["logits"] == 8 * 152_064 * 60  # three times in float32; probabilities, and their sorting, in double


def test_sharding_divides_what_trains_and_adds_an_inference_copy(seven):
    plan = GrpoPlan(stages=PTST_PAPER)
    alone, spread = (parts(each.estimate(seven)) for each in (plan, replace(plan, sharding="fsdp2", processes=8)))
    for name in ("weights", "gradients", "optimizer", "reference copy"):
        assert spread[name] == pytest.approx(alone[name] / 8, abs=1)
    assert spread["inference copy"] == 4 * 8_292_166_656 and "inference copy" not in alone
    in_bfloat16 = parts(replace(plan, dtype="bfloat16").estimate(seven))
    assert in_bfloat16["inference copy"] == in_bfloat16["reference copy"] == 2 * 8_292_166_656
    assert parts(replace(plan, processes=8).estimate(seven))["gradients"] == 2 * alone["gradients"]  # DDP's buckets


def test_a_packed_line_keeps_one_mask_as_wide_as_all_its_rows(seven):
    plan = SftPlan(dtype="bfloat16", micro_batch_size=4, max_tokens=1000)
    apart, packed = (parts(each.estimate(seven))["activations"] for each in (plan, replace(plan, packing=True)))
    assert packed - apart == 28 * 2 * (4000**2 - 4 * 1000**2)  # layers, bytes


def test_rollout_and_update_take_turns(seven):
    plan = GrpoPlan(method="qlora", dtype="bfloat16", stages=PTST_PAPER, gradient_checkpointing=True)
    estimate = plan.estimate(seven)
    always, rollout, update = (sum(parts(estimate, phase).values()) for phase in ("always", "rollout", "update"))
    assert estimate.bytes == always + max(rollout, update)


def test_advised_rows_fit_and_the_next_number_does_not(seven):
    plan = GrpoPlan(
        method="qlora", dtype="bfloat16", gradient_checkpointing=True, stages=PTST_PAPER, prompts_per_step=32,
        rollout_rows=256, micro_batch_tokens=4096, max_pixels=589_824, text_tokens=512,
    )  # fmt: skip
    limit = 80 * GIB
    line = shortfall(plan, seven, limit)
    assert line.startswith("KV cache needs 1") and "of 80.0 GiB: lower rollout_rows from 256 to " in line
    rows = int(line.split()[-1])
    assert fits(replace(plan, rollout_rows=rows), seven, limit)
    larger = easy_numbers(256)[easy_numbers(256).index(rows) - 1]
    assert not fits(replace(plan, rollout_rows=larger), seven, limit)
    assert shortfall(replace(plan, rollout_rows=rows), seven, limit) is None


def test_advice_prefers_what_costs_only_time(seven):
    plan = SftPlan(method="qlora", dtype="bfloat16", max_tokens=8192, max_pixels=589_824)
    thinner = spread_thinner(plan, seven, 40 * GIB)
    assert thinner.gradient_checkpointing and thinner.method == "qlora" and thinner.max_tokens == 8192
    assert thinner.batch_size % thinner.micro_batch_size == 0


def test_full_training_on_a_small_card_is_told_both_ways_out(seven):
    plan = GrpoPlan(dtype="bfloat16", gradient_checkpointing=True, stages=PTST_PAPER, max_pixels=589_824)
    line = shortfall(plan, seven, 80 * GIB)
    assert line.startswith("optimizer needs 56.7 GiB") and "\n" not in line
    assert "set method from full to qlora" in line and "set sharding from none to fsdp2" in line
    on_a_cpu = shortfall(replace(plan, cuda=False), seven, 80 * GIB)
    assert "fsdp2" not in on_a_cpu  # more processes there share the same memory


def test_one_phase_alone_can_be_held_against_the_limit(seven):
    plan = GrpoPlan(method="qlora", dtype="bfloat16", stages=PTST_PAPER, prompts_per_step=16, rollout_rows=128)
    line = out_of_memory(plan, seven, 80 * GIB, "rollout")
    assert "rollout_rows" in line and "micro_batch_tokens" not in line


def test_what_cannot_fit_is_said_to(seven):
    line = shortfall(AnswerPlan(max_completion_tokens=100), seven, GIB)
    assert line.endswith("no parameter that we know of makes it fit; take a smaller model")


def test_easy_numbers_go_down_in_quarters_of_a_doubling():
    assert easy_numbers(22) == [22, 20, 16, 14, 12, 10, 8, 7, 6, 5, 4, 3, 2, 1]
