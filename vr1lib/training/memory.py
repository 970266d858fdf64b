"""How much memory a training takes, part by part, from the model's shape alone: no weights, no GPU.

Parameters are counted, not guessed: the model's own class is built without memory (torch's meta device). What training
keeps beside them is arithmetic over the run's plan: gradients and AdamW's two moments in float32, the key-value cache
of the rows sampled at once at full length, what backward needs of one micro-batch. Rollout and update take turns, so
the peak is what always stays plus the larger of the two. Activations follow transformers' decoder layer as autograd
keeps it (tests hold them within 2 % of what torch saves); the allocator's fragmentation is not in it.

Where a plan is over the limit, `changes_that_fit` looks for the least change: first what only costs time, then what
changes the model's sight, then how it is trained.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedConfig

from vr1lib.models.decoding import GROWTH
from vr1lib.models.families import family_of
from vr1lib.schedule import Stage
from vr1lib.training.logprobs import LOGITS_AT_ONCE
from vr1lib.training.processes import Sharding

GIB = 2**30
CUDA_CONTEXT = GIB  # what a CUDA process takes before its first tensor, and cuBLAS's workspaces; our allowance
CHOICE_BYTES = 3 * 4 + 6 * 8  # a token's logits thrice in float32; its probabilities in double, sorted for top-p
PROCESSES_TRIED = (2, 4, 8, 16, 32, 64)
PIXELS_TRIED = (1_003_520, 589_824, 401_408, 200_704)  # 1280 image tokens; the authors' framework's 768 × 768; 512; 256

# Shapes as published in each model's config.json on the Hugging Face hub; what is not named is the class's default.
VISION_2_5 = {"depth": 32, "hidden_size": 1280, "num_heads": 16}
VISION_2 = {"depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4}


def language(vocabulary: int, hidden: int, intermediate: int, layers: int, heads: int, key_value_heads: int) -> dict:
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
    }


PUBLISHED: dict[str, dict[str, Any]] = {
    "Qwen2.5-VL-3B": {
        "model_type": "qwen2_5_vl",
        "text_config": language(151936, 2048, 11008, 36, 16, 2),
        "vision_config": {**VISION_2_5, "intermediate_size": 3420, "out_hidden_size": 2048},
        "tie_word_embeddings": True,
    },
    "Qwen2.5-VL-7B": {
        "model_type": "qwen2_5_vl",
        "text_config": language(152064, 3584, 18944, 28, 28, 4),
        "vision_config": {**VISION_2_5, "intermediate_size": 3420, "out_hidden_size": 3584},
        "tie_word_embeddings": False,
    },
    "Qwen2.5-VL-32B": {
        "model_type": "qwen2_5_vl",
        "text_config": language(152064, 5120, 27648, 64, 40, 8),
        "vision_config": {**VISION_2_5, "intermediate_size": 3456, "out_hidden_size": 5120},
        "tie_word_embeddings": False,
    },
    "Qwen2.5-VL-72B": {
        "model_type": "qwen2_5_vl",
        "text_config": language(152064, 8192, 29568, 80, 64, 8),
        "vision_config": {**VISION_2_5, "intermediate_size": 3456, "out_hidden_size": 8192},
        "tie_word_embeddings": False,
    },
    "Qwen2-VL-2B": {
        "model_type": "qwen2_vl",
        "text_config": language(151936, 1536, 8960, 28, 12, 2),
        "vision_config": {**VISION_2, "hidden_size": 1536},
        "tie_word_embeddings": True,
    },
    "Qwen2-VL-7B": {
        "model_type": "qwen2_vl",
        "text_config": language(152064, 3584, 18944, 28, 28, 4),
        "vision_config": {**VISION_2, "hidden_size": 3584},
        "tie_word_embeddings": False,
    },
    "Llama-3.2-11B-Vision": {
        "model_type": "mllama",
        "text_config": {
            **language(128256, 4096, 14336, 40, 32, 8),
            "cross_attention_layers": [3, 8, 13, 18, 23, 28, 33, 38],
        },
        "vision_config": {
            "hidden_size": 1280,
            "image_size": 560,
            "num_hidden_layers": 32,
            "num_global_layers": 8,
            "attention_heads": 16,
            "intermediate_size": 5120,
            "vision_output_dim": 7680,
            "max_num_tiles": 4,
            "patch_size": 14,
        },
        "tie_word_embeddings": False,
    },
}


# ---------------------------------------------------------------------------------------------------- the model's shape


@dataclass(frozen=True)
class Shape:
    """What of a model decides its memory. Widths are numbers of values, counts are parameters."""

    name: str
    parameters: int
    vision_parameters: int  # tower and projector
    quantised: tuple[int, ...]  # parameters of each linear layer that QLoRA puts in 4 bits
    adapted_width: int  # inputs + outputs of all linear layers that an adapter sits on: its parameters at rank 1
    layers: int
    hidden: int
    attention: int  # heads × head size
    key_value: int  # key-value heads × head size
    heads: int
    intermediate: int
    vocabulary: int
    cross_layers: int  # layers that look at the picture instead of the text (Llama-3.2-Vision)
    vision_layers: int
    vision_hidden: int
    vision_heads: int
    vision_intermediate: int
    pixels_per_patch: int
    patches_per_token: int  # 0: a picture takes one token whatever its size
    fixed_patches: int  # patches of every picture where they are all alike, else 0

    def patches(self, pixels: int) -> int:
        return self.fixed_patches or pixels // self.pixels_per_patch

    def picture_tokens(self, pixels: int) -> int:
        return self.patches(pixels) // self.patches_per_token if self.patches_per_token else 1


def shape_of(config: PreTrainedConfig, name: str) -> Shape:
    """The shape of a configuration, its parameters counted on a model without memory."""
    family = family_of(config, name)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    linear = {key: each for key, each in model.named_modules() if isinstance(each, torch.nn.Linear)}
    adapted = re.compile(family.lora_linear("language"))
    text, vision = config.get_text_config(), config.vision_config
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    vision_hidden = getattr(vision, "embed_dim", vision.hidden_size)
    side, tiles = getattr(vision, "image_size", None), getattr(vision, "max_num_tiles", 1)
    merge = getattr(vision, "spatial_merge_size", 0)
    return Shape(
        name=name,
        parameters=count(model),
        vision_parameters=sum(count(getattr(model.model, module)) for module in family.vision_modules),
        quantised=tuple(
            each.weight.numel() for key, each in linear.items() if not key.startswith(tuple(family.unquantised))
        ),
        adapted_width=sum(
            each.in_features + each.out_features for key, each in linear.items() if adapted.fullmatch(key)
        ),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        attention=text.num_attention_heads * head_size,
        key_value=text.num_key_value_heads * head_size,
        heads=text.num_attention_heads,
        intermediate=text.intermediate_size,
        vocabulary=text.vocab_size,
        cross_layers=len(getattr(text, "cross_attention_layers", None) or ()),
        vision_layers=getattr(vision, "depth", None) or vision.num_hidden_layers + vision.num_global_layers,
        vision_hidden=vision_hidden,
        vision_heads=getattr(vision, "num_heads", None) or vision.attention_heads,
        vision_intermediate=getattr(vision, "intermediate_size", None) or int(vision_hidden * vision.mlp_ratio),
        pixels_per_patch=vision.patch_size**2,
        patches_per_token=merge**2,
        fixed_patches=0 if merge else tiles * ((side // vision.patch_size) ** 2 + 1),
    )


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def published_shape(name: str) -> Shape:
    """The shape of a model by its published name, a key of PUBLISHED."""
    values = dict(PUBLISHED[name])
    return shape_of(AutoConfig.for_model(**values), name)


# ----------------------------------------------------------------------------------------------- the plan and its parts


@dataclass(frozen=True)
class Part:
    """One part of the memory of one process. `phase` says when it is there; `lowered_by` which parameters lower it."""

    name: str
    bytes: int
    phase: Literal["always", "loading", "rollout", "update"]
    lowered_by: tuple[str, ...] = ()


@dataclass(frozen=True)
class Estimate:
    """The memory of one process, part by part."""

    parts: tuple[Part, ...]

    def of_phase(self, phase: str) -> list[Part]:
        """What is there in a phase. Loading comes before all that stays."""
        return [part for part in self.parts if part.phase in (phase, "loading" if phase == "loading" else "always")]

    @property
    def worst_phase(self) -> str:
        return max(("loading", "rollout", "update"), key=lambda phase: sum(part.bytes for part in self.of_phase(phase)))

    @property
    def bytes(self) -> int:
        """The peak: what always stays and the largest of what takes turns."""
        return sum(part.bytes for part in self.of_phase(self.worst_phase))


@dataclass(frozen=True)
class Plan:
    """What a run asks of a model; fields have the notebook parameters' names. `processes` counts all machines'.

    The longest prompt has `text_tokens` beside `pictures` of at most `largest_picture` pixels (None: the most that
    `max_pixels` lets through).
    """

    method: Literal["full", "lora", "qlora"] = "full"
    dtype: Literal["float32", "bfloat16"] = "float32"
    lora_rank: int = 64
    train_vision: bool = False
    gradient_checkpointing: bool = False
    max_pixels: int = 12_845_056
    processes: int = 1
    sharding: Sharding = "none"
    pictures: int = 1
    largest_picture: int | None = None
    text_tokens: int = 0
    cuda: bool = True

    def estimate(self, shape: Shape) -> Estimate:
        raise NotImplementedError

    def at_once(self) -> list[tuple[str, str, list[int]]]:
        """Phase, parameter that says how much goes through the model at once, and its values from now downwards."""
        raise NotImplementedError

    def shorter(self) -> "Plan | None":
        """The plan with rows half as long, None where there is nothing left to halve."""
        raise NotImplementedError

    @property
    def step_rows(self) -> int:
        """Prompts or rows of a step, which the processes share."""
        raise NotImplementedError

    @property
    def picture(self) -> int:
        """Pixels of the largest picture."""
        return min(self.max_pixels, self.largest_picture or self.max_pixels)

    @property
    def weight_bytes(self) -> int:
        """Bytes of a weight outside 4 bits: full fine-tuning keeps float32 whatever it computes in."""
        return 4 if self.method == "full" or self.dtype == "float32" else 2

    @property
    def compute_bytes(self) -> int:
        return 4 if self.dtype == "float32" else 2

    @property
    def shards(self) -> int:
        return self.processes if self.sharding == "fsdp2" else 1

    def prompt_tokens(self, shape: Shape) -> int:
        return self.text_tokens + self.pictures * shape.picture_tokens(self.picture)

    @property
    def trains(self) -> bool:
        return True

    def trainable(self, shape: Shape) -> int:
        """How many weights have a gradient."""
        if not self.trains:
            return 0
        if self.method != "full":
            return self.lora_rank * shape.adapted_width
        return shape.parameters - (0 if self.train_vision else shape.vision_parameters)


@dataclass(frozen=True)
class GrpoPlan(Plan):
    """Sampling a group per problem, then updating on it."""

    stages: tuple[Stage, ...] = ()
    prompts_per_step: int = 16
    rollout_rows: int = 64
    micro_batch_tokens: int = 16384
    kl_coefficient: float = 0.01
    rollout: Literal["local", "vllm"] = "local"

    def estimate(self, shape: Shape) -> Estimate:
        def most(parts: list[list[Part]]) -> list[Part]:
            return max(parts, key=lambda each: sum(part.bytes for part in each))

        rollout = most([self.rollout_parts(shape, stage) for stage in self.stages]) if self.rollout == "local" else []
        update = most([self.update_parts(shape, stage) for stage in self.stages])
        pictures_kept = 0 if shape.cross_layers else -(-self.prompts_per_step // self.processes)
        resident = resident_parts(self, shape, self.kl_coefficient > 0, True, pictures_kept)
        return Estimate((*resident, *rollout, *update))

    def at_once(self) -> list[tuple[str, str, list[int]]]:
        return [
            ("rollout", "rollout_rows", easy_numbers(self.rollout_rows)),
            ("update", "micro_batch_tokens", easy_numbers(self.micro_batch_tokens)),
        ]

    def shorter(self) -> "GrpoPlan | None":
        halved = tuple(Stage(stage.max_completion_tokens // 2, *stage[1:]) for stage in self.stages)
        return replace(self, stages=halved) if all(stage.max_completion_tokens for stage in halved) else None

    @property
    def step_rows(self) -> int:
        return self.prompts_per_step

    def rows(self, stage: Stage) -> int:
        """Completions of one step in one process."""
        return -(-self.prompts_per_step // self.processes) * stage.group_size

    def prompts_at_once(self, stage: Stage) -> int:
        """Prompts whose groups are sampled together: whole groups, or one prompt and as many of its rows as may be."""
        return min(max(1, self.rollout_rows // stage.group_size), -(-self.prompts_per_step // self.processes))

    def rows_at_once(self, stage: Stage) -> int:
        return self.prompts_at_once(stage) * min(self.rollout_rows, stage.group_size)

    def rollout_parts(self, shape: Shape, stage: Stage) -> list[Part]:
        rows, prompts = self.rows_at_once(stage), self.prompts_at_once(stage)
        return sampling_parts(self, shape, rows, prompts, stage.max_completion_tokens, "stages")

    def micro_batch(self, prompt_tokens: int, stage: Stage) -> tuple[int, int]:
        """Prompts and completions of the largest micro-batch at full length: whole groups, or a part of one."""
        completion, budget = stage.max_completion_tokens, self.micro_batch_tokens
        groups = budget // (prompt_tokens + stage.group_size * completion)
        if groups == 0:
            return 1, min(max(1, (budget - prompt_tokens) // completion), stage.group_size)
        groups = min(groups, -(-self.prompts_per_step // self.processes))
        return groups, groups * stage.group_size

    def update_parts(self, shape: Shape, stage: Stage) -> list[Part]:
        prompt, completion = self.prompt_tokens(shape), stage.max_completion_tokens
        groups, rows = self.micro_batch(prompt, stage)
        tokens = groups * prompt + rows * (completion - 1)  # a completion's last token is not read
        layer = tokens * token_bytes(self, shape)
        layer += shared_attention_bytes(self, shape, groups, rows, prompt, completion - 1)
        ways = ("micro_batch_tokens", "stages")
        return backward_parts(self, shape, groups, tokens, layer, rows * completion, ways)


@dataclass(frozen=True)
class SftPlan(Plan):
    """Learning rows of at most `max_tokens`."""

    batch_size: int = 32
    micro_batch_size: int = 8
    max_tokens: int = 16384
    packing: bool = False  # rows in one line, whose mask is as wide as it is long

    def at_once(self) -> list[tuple[str, str, list[int]]]:
        share = max(1, self.batch_size // self.processes)
        return [("update", "micro_batch_size", [n for n in range(self.micro_batch_size, 0, -1) if share % n == 0])]

    def shorter(self) -> "SftPlan | None":
        return replace(self, max_tokens=self.max_tokens // 2) if self.max_tokens > 1 else None

    @property
    def step_rows(self) -> int:
        return self.batch_size

    def estimate(self, shape: Shape) -> Estimate:
        rows, width = self.micro_batch_size, self.max_tokens
        if self.packing:
            rows, width = 1, rows * width
        layer = layer_bytes(self, shape, rows, width)
        ways = ("micro_batch_size", "max_tokens")
        update = backward_parts(self, shape, rows, rows * width, layer, rows * width, ways)
        return Estimate((*resident_parts(self, shape, reference=False, samples=False), *update))


@dataclass(frozen=True)
class AnswerPlan(Plan):
    """Answering problems with a model that is not trained."""

    batch_size: int = 64
    max_completion_tokens: int = 16000

    @property
    def trains(self) -> bool:
        return False

    @property
    def weight_bytes(self) -> int:
        return self.compute_bytes  # nothing is trained that float32 would have to hold

    def at_once(self) -> list[tuple[str, str, list[int]]]:
        return [("rollout", "batch_size", easy_numbers(self.batch_size))]

    def shorter(self) -> "AnswerPlan | None":
        tokens = self.max_completion_tokens // 2
        return replace(self, max_completion_tokens=tokens) if tokens else None

    def estimate(self, shape: Shape) -> Estimate:
        parts = sampling_parts(
            self, shape, self.batch_size, self.batch_size, self.max_completion_tokens, "max_completion_tokens"
        )
        return Estimate((*resident_parts(self, shape, reference=False, samples=False), *parts))


def resident_parts(plan: Plan, shape: Shape, reference: bool, samples: bool, pictures_kept: int = 0) -> list[Part]:
    """What stays from the first step to the last; of so many prompts also what a frozen tower saw in their pictures."""
    trainable, full = plan.trainable(shape), plan.method == "full"
    spread = ("sharding", "processes")
    weights = weights_bytes(plan, shape)
    parts = [Part("weights", weights // plan.shards, "always", ("method", *spread))]
    if plan.shards > 1:
        parts.append(Part("weights before sharding", weights, "loading", ("method",)))
        layer = sum(shape.quantised) // shape.layers
        root = shape.parameters - sum(shape.quantised)  # embeddings, head and vision tower stay gathered for the step
        parts.append(Part("layers gathered", plan.compute_bytes * (root + 2 * layer), "update"))
    if not full:
        parts.append(Part("adapter", 4 * plan.lora_rank * shape.adapted_width, "always", ("lora_rank",)))
    if trainable:
        lower = ("method", *spread) if full else ("lora_rank",)
        buckets = 2 if plan.processes > 1 and plan.shards == 1 else 1  # DDP reduces gradients in buckets of its own
        parts.append(Part("gradients", 4 * trainable * buckets // plan.shards, "update", lower))
        parts.append(Part("optimizer", 8 * trainable // plan.shards, "always", lower))
    if pictures_kept and not (full and plan.train_vision):
        kept = pictures_kept * plan.pictures * shape.picture_tokens(plan.picture) * shape.hidden * plan.compute_bytes
        parts.append(Part("picture features", kept, "always", ("prompts_per_step", "max_pixels")))
    if full and reference:
        copy = plan.compute_bytes * shape.parameters // plan.shards
        parts.append(Part("reference copy", copy, "always", ("kl_coefficient", "method", *spread)))
    if samples and (plan.shards > 1 or full and plan.dtype == "bfloat16"):
        copy = plan.compute_bytes * shape.parameters
        parts.append(Part("inference copy", copy, "always", ("method",)))
        if plan.shards > 1:
            parts.append(Part("inference copy", copy, "loading", ("method",)))
    if full and trainable and plan.dtype == "bfloat16" and plan.shards == 1:
        linear = sum(shape.quantised) + shape.vocabulary * shape.hidden
        parts.append(Part("weights in bfloat16", 2 * linear, "update", ("method", *spread)))  # autocast keeps them
    if plan.cuda:
        parts.append(Part("CUDA context", CUDA_CONTEXT, "always"))
    return parts


def weights_bytes(plan: Plan, shape: Shape) -> int:
    """Bytes of the base's weights, whole."""
    if plan.method != "qlora":
        return plan.weight_bytes * shape.parameters
    return plan.weight_bytes * (shape.parameters - sum(shape.quantised)) + sum(map(nf4_bytes, shape.quantised))


def nf4_bytes(weights: int) -> int:
    """Half a byte a weight; a scale for each block of 64 in a byte; a float32 scale for each 256 of those."""
    blocks = -(-weights // 64)
    return -(-weights // 2) + blocks + 4 * -(-blocks // 256)


def sampling_parts(plan: Plan, shape: Shape, rows: int, prompts: int, completion_tokens: int, limit: str) -> list[Part]:
    """`rows` completions of `prompts` prompts at once, at full length."""
    prompt, number = plan.prompt_tokens(shape), plan.compute_bytes
    row_name = "rollout_rows" if isinstance(plan, GrpoPlan) else "batch_size"
    cached = shape.layers * (prompts * prompt + rows * GROWTH * -(-completion_tokens // GROWTH))
    if shape.cross_layers:  # this family's cache is repeated for every row
        text = (shape.layers - shape.cross_layers) * rows * (prompt + completion_tokens)
        cached = text + shape.cross_layers * rows * plan.pictures * shape.fixed_patches
    cache = 2 * number * shape.key_value * cached
    reading = prompts * prompt * number * (3 * shape.intermediate + 6 * shape.hidden)
    return [
        Part("KV cache", cache, "rollout", (row_name, limit, "max_pixels")),
        Part("prompts being read", reading, "rollout", (row_name, "max_pixels")),
        Part("vision tower", tower_bytes(plan, shape, prompts), "rollout", ("max_pixels", row_name)),
        Part("logits", rows * shape.vocabulary * CHOICE_BYTES, "rollout", (row_name,)),
    ]


def backward_parts(
    plan: Plan, shape: Shape, prompts: int, tokens: int, layer: int, kept: int, lowered_by: tuple[str, ...]
) -> list[Part]:
    """Forward and backward of a micro-batch with the pictures of `prompts` prompts and so many tokens, padded ones too,
    of which a decoder layer keeps `layer` bytes, with a loss on `kept` of them all."""
    stream = tokens * shape.hidden * (4 if plan.method == "full" and plan.shards == 1 else plan.compute_bytes)
    activations = shape.layers * stream + layer if plan.gradient_checkpointing else shape.layers * layer
    widest = 2 * max(shape.quantised) * plan.compute_bytes if plan.method == "qlora" else 0  # one layer, out of 4 bits
    tower = tower_bytes(plan, shape, prompts)
    logits = logits_bytes(plan, shape, kept)
    return [
        Part("activations", activations + widest, "update", ("gradient_checkpointing", *lowered_by, "max_pixels")),
        Part("vision tower", tower, "update", ("max_pixels", *lowered_by)),
        Part("logits", logits, "update", lowered_by),
    ]


def layer_bytes(plan: Plan, shape: Shape, rows: int, width: int) -> int:
    """What autograd keeps of one decoder layer where rows attend under a mask as wide as they are long."""
    return rows * width * (token_bytes(plan, shape) + plan.compute_bytes * width)


def token_bytes(plan: Plan, shape: Shape) -> int:
    """What autograd keeps of a token in one decoder layer, the mask apart.

    The norms keep their float32 input (and its normalised form, where their weight trains); the linear layers their
    inputs, cast once for each of them under bfloat16; attention its query, key, value and output; the gated MLP four
    tensors of its inner width; an adapter its narrow middle.
    """
    number, full = plan.compute_bytes, plan.method == "full"
    inputs = 2 if number == 4 else 5 if full else 6
    return (
        2 * 4 * shape.hidden * (2 if full else 1)
        + inputs * number * shape.hidden
        + 4 * number * shape.attention
        + 4 * number * shape.intermediate
        + 4 * shape.heads
        + (0 if full else 7 * number * plan.lora_rank)
    )


def shared_attention_bytes(
    plan: Plan, shape: Shape, prompts: int, rows: int, prompt_tokens: int, completion_tokens: int
) -> int:
    """What one layer's attention keeps beside that where completions share prompts: the prompt's keys and values for
    each completion and every head, all outputs in one line again, and on a CPU a mask for each prompt's completions."""
    number = plan.compute_bytes
    line = prompts * prompt_tokens + rows * completion_tokens
    mask = 0 if plan.cuda else number * completion_tokens * (prompt_tokens + completion_tokens)
    return number * shape.attention * (2 * rows * prompt_tokens + line) + prompts * mask


def tower_bytes(plan: Plan, shape: Shape, prompts: int) -> int:
    """The vision tower over the pictures of `prompts` prompts: one block at a time, or what backward needs of it."""
    patches = prompts * plan.pictures * shape.patches(plan.picture)
    a_patch = 4 * 4 * shape.vision_hidden + plan.compute_bytes * (
        9 * shape.vision_hidden + 4 * shape.vision_intermediate
    )
    if not (plan.train_vision and plan.method == "full"):
        return patches * a_patch
    if plan.gradient_checkpointing:
        return patches * (shape.vision_layers * 4 * shape.vision_hidden + a_patch)
    return patches * shape.vision_layers * a_patch


def logits_bytes(plan: Plan, shape: Shape, kept: int) -> int:
    """Logits are scored in pieces: each in float32, scaled, normalised, exponentiated, with its gradient. GRPO's head
    makes them in such pieces too; SFT's loss is given them whole, in the computation's type, and gives back a gradient.
    """
    pieces = 6 * 4 * min(kept * shape.vocabulary, max(LOGITS_AT_ONCE, shape.vocabulary))
    return pieces + (2 * plan.compute_bytes * kept * shape.vocabulary if isinstance(plan, SftPlan) else 0)


# ------------------------------------------------------------------------------------------------------ what would fit


def shortfall(plan: Plan, shape: Shape, limit: int) -> str | None:
    """One line that says what is too large for `limit` bytes and which values would fit; None if everything fits."""
    if fits(plan, shape, limit):
        return None
    estimate = plan.estimate(shape)
    phase, parts = estimate.worst_phase, estimate.of_phase(estimate.worst_phase)
    part, ways = advice(plan, shape, limit)
    verb = "need" if part.name.split()[0].endswith("s") else "needs"
    return (
        f"{part.name} {verb} {in_gib(part.bytes)} GiB, the whole {phase} {in_gib(sum(each.bytes for each in parts))} "
        f"of {in_gib(limit)} GiB: {ways}"
    )


def out_of_memory(plan: Plan, shape: Shape, limit: int, phase: str) -> str:
    """One line for a phase that ran out although it should have fitted: values that halve what comes and goes in it."""
    estimate = plan.estimate(shape)
    passing = sum(part.bytes for part in estimate.parts if part.phase == phase)
    staying = sum(part.bytes for part in estimate.parts if part.phase == "always")
    part, ways = advice(plan, shape, min(limit, staying + passing // 2), phase)
    return (
        f"out of memory in the {phase}, estimated at {in_gib(staying + passing)} of {in_gib(limit)} GiB, "
        f"{part.name} {in_gib(part.bytes)} of it: {ways}"
    )


def advice(plan: Plan, shape: Shape, limit: int, phase: str | None = None) -> tuple[Part, str]:
    """The part to blame and the values that would fit, in words.

    With `phase`, that phase alone is held against the limit (it ran out of memory; the others did not).
    """
    found = fitting_plans(plan, shape, limit, phase)
    changed = set(changes(plan, found[0])) if found else set()
    estimate = plan.estimate(shape)
    parts = estimate.of_phase(phase or estimate.worst_phase)
    part = max([part for part in parts if changed & set(part.lowered_by)] or parts, key=lambda part: part.bytes)
    ways = "; or ".join(", ".join(changes(plan, other).values()) for other in found)
    return part, ways or "no parameter that we know of makes it fit; take a smaller model"


def fits(plan: Plan, shape: Shape, limit: int, phase: str | None = None) -> bool:
    estimate = plan.estimate(shape)
    return sum(part.bytes for part in estimate.of_phase(phase or estimate.worst_phase)) <= limit


def fitting_plans(plan: Plan, shape: Shape, limit: int, phase: str | None = None) -> list[Plan]:
    """The plan with the least change that fits; where training itself has to change, one for each way of doing so."""
    otherwise = trained_otherwise(plan)
    both = (shorter for way in trained_otherwise(plan) for shorter in rows_shorter(way))
    for ways in (pictures_smaller(plan), otherwise, rows_shorter(plan), both):
        found: dict[str, Plan] = {}
        for way in ways:
            kind = f"{way.method} {way.sharding}"
            if kind not in found and (fitting := spread_thinner(way, shape, limit, phase)):
                found[kind] = fitting
        if found:
            return list(found.values())
    return []


def pictures_smaller(plan: Plan) -> Iterator[Plan]:
    """The plan as it is, then with ever smaller pictures."""
    yield plan
    for pixels in PIXELS_TRIED:
        if pixels < plan.picture:
            yield replace(plan, max_pixels=pixels)


def trained_otherwise(plan: Plan) -> Iterator[Plan]:
    """In 4 bits, or sharded over several cards."""
    if plan.trains and plan.method != "qlora":
        yield replace(plan, method="qlora", dtype="bfloat16", sharding="none")
        for processes in PROCESSES_TRIED if plan.cuda else ():
            if processes > plan.shards and plan.step_rows % processes == 0:
                yield replace(plan, sharding="fsdp2", processes=processes)


def rows_shorter(plan: Plan) -> Iterator[Plan]:
    """With ever shorter rows."""
    while (plan := plan.shorter()) is not None:
        yield plan


def spread_thinner(plan: Plan, shape: Shape, limit: int, phase: str | None = None) -> Plan | None:
    """The plan with as little at once as the limit asks for, activations recomputed where one row alone is too many.

    Only time is paid, nothing learnt changes. None if that is not enough.
    """
    if phase is None and not fits(plan, shape, limit, "loading"):
        return None
    for phase_of, name, values in plan.at_once():
        if phase not in (None, phase_of):
            continue
        recomputed = (plan.gradient_checkpointing, True) if phase_of == "update" else (plan.gradient_checkpointing,)
        ways = [
            replace(plan, gradient_checkpointing=on, **{name: n}) for on in dict.fromkeys(recomputed) for n in values
        ]
        thinner = next((way for way in ways if fits(way, shape, limit, phase_of)), None)
        if thinner is None:
            return None
        plan = thinner
    return plan


def easy_numbers(largest: int) -> list[int]:
    """`largest` and the round numbers below it, four to each doubling: …, 64, 56, 48, 40, 32, …, 3, 2, 1."""
    eighths = {number << doublings for number in (4, 5, 6, 7) for doublings in range(largest.bit_length())}
    return [largest, *(number for number in sorted(eighths | {1, 2, 3}, reverse=True) if number < largest)]


def changes(old: Plan, new: Plan) -> dict[str, str]:
    """Each parameter that differs, in words."""
    told = {}
    for field in fields(old):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if before == after:
            continue
        if field.name == "stages":
            before, after = ([list(stage) for stage in value] for value in (before, after))
        lower = field.name != "processes" and not isinstance(after, str | bool)
        told[field.name] = f"{'lower' if lower else 'set'} {field.name} from {in_yaml(before)} to {in_yaml(after)}"
    return told


def in_yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def in_gib(count: int) -> str:
    return f"{count / GIB:.1f}" if count >= GIB / 10 else f"{count / GIB:.4f}"
