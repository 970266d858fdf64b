"""The policy and its processor: a Qwen2.5-VL with text, pictures and specifications kept together.

One rendering serves every model, tiny or 72B: ChatML turns; a picture is `<|vision_start|>`, one `<|image_pad|>` for
each merged block of its patches, `<|vision_end|>`. On purpose, and unlike Qwen's template, no default system message is
added when none is asked for (the paper's RL has no system prompt, Section 3.4). `save_vlm` writes the same template, so
that a server renders what was trained on. Prompts are never cut: image tokens are counted from the grid. A problem's
text cannot smuggle in special tokens, because it is encoded as plain text.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from accelerate.utils import extract_model_from_parallel
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from vr1lib.models.images import ImageSpec, picture_size, read_image_spec, spec_from_dict
from vr1lib.prompts import PromptSpec, prompt_parts
from vr1lib.records import Problem, RequestError, open_image

Method = Literal["full", "lora", "qlora"]
LoraTargets = Literal["language", "language+vision"]

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' or 'image' in part or 'image_url' in part %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' or 'video' in part %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
VISION_ID_KEYS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id", "vision_token_id")
SPEC_FILE = "vr1_spec.json"
IGNORED_LABEL = -100
NUMBER_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, eq=False)
class EncodedPrompt:
    """A problem's prompt as tensors on the CPU. `mm_token_type_ids` is 1 on image tokens, 0 elsewhere."""

    problem_id: str
    input_ids: torch.Tensor  # [tokens] long
    mm_token_type_ids: torch.Tensor  # [tokens] long
    pixel_values: torch.Tensor | None  # [patches, 3·temporal·patch·patch] float32
    image_grid_thw: torch.Tensor | None  # [images, 3] long: frames, patch rows, patch columns

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True, eq=False)
class EncodedRow(EncodedPrompt):
    """A prompt with its answer. `labels` are the ids on the assistant's turn, `<|im_end|>` included, else -100."""

    labels: torch.Tensor  # [tokens] long


@dataclass(eq=False, repr=False)
class Vlm:
    """A model with everything needed to speak to it. `method` says which weights train."""

    model: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase
    image_spec: ImageSpec
    prompt_spec: PromptSpec
    method: Method
    base: str | None = None  # under LoRA and QLoRA: the folder or hub id the adapter sits on

    def __post_init__(self) -> None:
        config, vocabulary = self.model.config, self.tokenizer.get_vocab()
        ends = self.model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        self.start_of_turn_id: int = vocabulary["<|im_start|>"]
        self.end_of_turn_id: int = vocabulary["<|im_end|>"]
        self.vision_start_id: int = vocabulary["<|vision_start|>"]
        self.vision_end_id: int = vocabulary["<|vision_end|>"]
        self.image_token_id: int = config.image_token_id
        self.pad_token_id: int = self.tokenizer.pad_token_id
        self.eos_token_ids: tuple[int, ...] = tuple(sorted({self.end_of_turn_id, *ends} - {None}))
        named = {vocabulary.get(token) for token in VISION_TOKENS}
        named |= {getattr(config, key, None) for key in VISION_ID_KEYS}
        self.vision_token_ids: tuple[int, ...] = tuple(sorted(named - {None}))

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def encode_prompt(self, problem: Problem) -> EncodedPrompt:
        """The user's turn and the opening of the assistant's. Never cut, whatever its length.

        Raises RequestError naming problem and file for a picture that cannot be used.
        """
        ids: list[int] = []
        pixel_values, grids = [], []
        for segment in self._segments(problem):
            if isinstance(segment, int):
                ids.append(segment)
            elif isinstance(segment, str):
                ids += self._plain_ids(segment)
            else:
                pixels, grid = self._patches(problem, segment)
                image_tokens = int(grid.prod()) // self.image_spec.merge_size**2
                ids += [self.vision_start_id, *[self.image_token_id] * image_tokens, self.vision_end_id]
                pixel_values.append(pixels)
                grids.append(grid)
        input_ids = torch.tensor(ids)
        prompt = EncodedPrompt(
            problem.id,
            input_ids,
            (input_ids == self.image_token_id).long(),
            torch.cat(pixel_values) if pixel_values else None,
            torch.stack(grids) if grids else None,
        )
        self.check_images(prompt)
        return prompt

    def encode_row(self, problem: Problem, response: str) -> EncodedRow:
        """Prompt and answer as one row to train on, loss on the answer and its `<|im_end|>` only.

        Never cut: `len(row)` tells the caller what it would cost, and a row too long is left out, not shortened.
        """
        prompt = self.encode_prompt(problem)
        answer = torch.tensor([*self._plain_ids(response), self.end_of_turn_id])
        return EncodedRow(
            prompt.problem_id,
            torch.cat([prompt.input_ids, answer]),
            torch.cat([prompt.mm_token_type_ids, torch.zeros_like(answer)]),
            prompt.pixel_values,
            prompt.image_grid_thw,
            torch.cat([torch.full_like(prompt.input_ids, IGNORED_LABEL), answer]),
        )

    def count_prompt_tokens(self, problem: Problem) -> int:
        """`len(encode_prompt(problem))` from the pictures' sizes alone: no pixel is decoded, so a filter is cheap."""
        count = 0
        for segment in self._segments(problem):
            if isinstance(segment, int):
                count += 1
            elif isinstance(segment, str):
                count += len(self._plain_ids(segment))
            else:
                with naming(f"problem {problem.id}"):
                    size = picture_size(segment)
                with naming(f"problem {problem.id}: {segment}"):
                    count += 2 + self.image_spec.image_tokens(*size)
        return count

    def why_not_shown(self, problem: Problem) -> str | None:
        """What keeps this model from being shown the problem (a broken picture, too few markers), or None."""
        try:
            for picture in problem.images:
                open_image(picture)
            self.count_prompt_tokens(problem)
        except RequestError as error:
            return str(error)
        return None

    def check_images(self, encoded: EncodedPrompt) -> None:
        """Raises RequestError naming the problem unless image tokens and image features are equal in number.

        A cut prompt or a sampled image token would otherwise end in a crash deep inside the model.
        """
        tokens = int((encoded.input_ids == self.image_token_id).sum())
        grid = encoded.image_grid_thw
        features = 0 if grid is None else int(grid.prod(dim=1).sum()) // self.image_spec.merge_size**2
        if tokens != features:
            raise RequestError(
                f"problem {encoded.problem_id}: {tokens} image tokens for {features} image features; "
                "leave the prompt uncut and keep vision tokens out of completions"
            )

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, the model is the one that training started from (LoRA and QLoRA only).

        A fresh adapter is switched off; one that was loaded steps back to the frozen copy of its start.
        """
        if self.method == "full":
            raise ValueError("a model trained in full has no adapter to switch off; keep a copy as the reference")
        from vr1lib.models.adapters import at_start

        with at_start(extract_model_from_parallel(self.model)):
            yield

    def _segments(self, problem: Problem) -> Iterator[int | str | Path]:
        """The ChatML rendering in order: turn marks as ids, runs of plain text, pictures as paths."""
        if self.prompt_spec.system is not None:
            yield from (self.start_of_turn_id, f"system\n{self.prompt_spec.system}", self.end_of_turn_id, "\n")
        yield self.start_of_turn_id
        text = "user\n"
        for part in prompt_parts(problem, self.prompt_spec):
            if isinstance(part, str):
                text += part
                continue
            yield from (text, part)
            text = ""
        yield from (text, self.end_of_turn_id, "\n", self.start_of_turn_id, "assistant\n")

    def _plain_ids(self, text: str) -> list[int]:
        """Ids of text in which the name of a special token is only its letters."""
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] if text else []

    def _patches(self, problem: Problem, path: Path) -> tuple[torch.Tensor, torch.Tensor]:
        with naming(f"problem {problem.id}"):
            picture = open_image(path)
        with naming(f"problem {problem.id}: {path}"):
            return self.image_spec.patches(picture)


@contextmanager
def naming(where: str) -> Iterator[None]:
    """A RequestError raised inside is told with where it happened."""
    try:
        yield
    except RequestError as error:
        raise RequestError(f"{where}: {error}") from None


def load_vlm(
    path: str | Path,
    *,
    method: Method | None = None,
    lora_rank: int = 64,
    lora_alpha: float = 64,
    lora_dropout: float = 0.0,
    lora_targets: LoraTargets = "language",
    train_vision: bool = False,
    dtype: Literal["float32", "bfloat16"] = "float32",
    device: str = "auto",
    gradient_checkpointing: bool = False,
    image_spec: ImageSpec | None = None,
    prompt_spec: PromptSpec | None = None,
    accept_other_spec: bool = False,
) -> Vlm:
    """A Qwen2.5-VL from a folder or a hub id, in evaluation mode, ready to train by `method`.

    full: every weight trains, the vision tower and its projector only with `train_vision`. lora: a fresh adapter on the
    linear layers of the language model, of the vision tower too with `lora_targets` "language+vision". qlora: the same
    over a 4-bit base (NF4, double quantisation); vision tower and head stay in `dtype`.

    A folder that holds an adapter loads its base too and goes on with that adapter, its rank and targets; `method` must
    be the one it was trained by. None means that one, or full for a plain model.

    The folder's own specifications hold unless others are given; a given one that differs from what the model was
    trained with is refused, unless `accept_other_spec`.
    """
    path = str(path)
    own = read_spec_file(path)
    trained_by = own["method"] if own else "full"
    holds_adapter = trained_by != "full"
    if holds_adapter and method not in (None, trained_by):
        raise RequestError(f"{path}: holds an adapter trained by {trained_by}; method = {method!r}: use {trained_by!r}")
    method = method or trained_by
    if train_vision and method != "full":
        raise RequestError(f"train_vision = True is for method full; under {method} use lora_targets 'language+vision'")
    with naming(f"{Path(path, SPEC_FILE)}, key 'base'") if holds_adapter else nullcontext():
        base = _model_place(own["base"] if holds_adapter else path)
    image_spec, prompt_spec = _settle_specs(path, own, image_spec, prompt_spec, accept_other_spec)
    model, tokenizer = _load_base(base, NUMBER_TYPES[dtype], device, quantised=method == "qlora")
    if gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    if method == "full":
        model.model.visual.requires_grad_(train_vision)
    else:
        from vr1lib.models.adapters import add_adapter, load_adapter

        if holds_adapter:
            model = load_adapter(model, path)
        else:
            model = add_adapter(model, lora_rank, lora_alpha, lora_dropout, lora_targets)
    return Vlm(model.eval(), tokenizer, image_spec, prompt_spec, method, base=None if method == "full" else base)


def _model_place(path: str) -> str:
    """A model folder's absolute path, or a hub id (ORGANISATION/NAME) as it is."""
    if Path(path, "config.json").is_file():
        return str(Path(path).resolve())
    if Path(path).exists() or not re.fullmatch(r"[\w-]+/[\w.-]+", path):
        raise RequestError(f"{path}: no model here (no config.json); give a model folder or a hub id such as Qwen/NAME")
    return path


def _load_base(
    path: str, number_type: torch.dtype, device: str, quantised: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The transformers model and tokenizer of a plain folder or hub id."""
    try:
        config = AutoConfig.from_pretrained(path)
        if config.model_type != "qwen2_5_vl":
            raise RequestError(f"{path}: config.json, model_type = {config.model_type!r}: give a Qwen2.5-VL model")
        if quantised:
            from vr1lib.models.adapters import four_bit, keep_trainable
        model = AutoModelForImageTextToText.from_pretrained(
            path,
            dtype=number_type,
            quantization_config=four_bit(number_type) if quantised else None,
            device_map={"": _place(device)},
        )
        tokenizer = AutoTokenizer.from_pretrained(path)
    except OSError as error:
        reason = str(error).split("\n")[0]
        raise RequestError(f"{path}: the model cannot be loaded ({reason}); give a complete folder or hub id") from None
    tokenizer.chat_template = CHAT_TEMPLATE
    if quantised:
        keep_trainable(model)
    return model, tokenizer


def _place(device: str) -> torch.device:
    """The device: "auto" is this process's own GPU (LOCAL_RANK's, under a launcher), or the CPU."""
    if device == "auto":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def read_spec_file(path: str) -> dict | None:
    """A model folder's vr1_spec.json with its specifications as objects; None where there is none (a hub model)."""
    file = Path(path, SPEC_FILE)
    if not file.is_file():
        return None
    try:
        own = json.loads(file.read_text(encoding="utf-8"))
        own["image_spec"] = spec_from_dict(own["image_spec"], ImageSpec, f"{file}, key 'image_spec'")
        own["prompt_spec"] = spec_from_dict(own["prompt_spec"], PromptSpec, f"{file}, key 'prompt_spec'")
        return {key: own[key] for key in ("method", "base", "image_spec", "prompt_spec")}
    except (ValueError, KeyError, AttributeError) as error:
        raise RequestError(f"{file}: not a specification ({error!r}); save the model again") from None


def _settle_specs(
    path: str, own: dict | None, image_spec: ImageSpec | None, prompt_spec: PromptSpec | None, accept_other_spec: bool
) -> tuple[ImageSpec, PromptSpec]:
    """The specifications to use: asked for, or the model's own; RequestError where both exist and differ."""
    if own is None:
        return image_spec or read_image_spec(path), prompt_spec or PromptSpec()
    for key, asked in (("image_spec", image_spec), ("prompt_spec", prompt_spec)):
        trained = own[key]
        if asked is None or asked == trained or accept_other_spec:
            continue
        differing = [
            f"{field} = {value!r} (model: {getattr(trained, field)!r})"
            for field, value in asdict(asked).items()
            if value != getattr(trained, field)
        ]
        raise RequestError(
            f"{path}: {key} {asked.sha256[:12]} asked for, but the model was trained with {trained.sha256[:12]}: "
            f"{', '.join(differing)}; leave it to the model, or set accept_other_spec"
        )
    return image_spec or own["image_spec"], prompt_spec or own["prompt_spec"]


def save_vlm(vlm: Vlm, folder: str | Path, weights: dict[str, torch.Tensor] | None = None) -> None:
    """Write a plain Hugging Face folder: safetensors, tokenizer, chat template, processor, and `vr1_spec.json`.

    Under LoRA and QLoRA the weights are the adapter alone in peft's format, and `vr1_spec.json` names its base.
    `weights` (name → whole tensor) stand in for the model's own where those are sharded over processes.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model = extract_model_from_parallel(vlm.model)
    if vlm.method == "full":
        model.save_pretrained(folder, state_dict=weights)
    else:
        from vr1lib.models.adapters import save_adapter

        save_adapter(model, folder, weights)
    vlm.tokenizer.save_pretrained(folder)
    _write_json(folder / "preprocessor_config.json", vlm.image_spec.preprocessor_config())
    _write_json(
        folder / SPEC_FILE,
        {
            "method": vlm.method,
            "base": vlm.base,
            "image_spec": asdict(vlm.image_spec),
            "image_spec_sha256": vlm.image_spec.sha256,
            "prompt_spec": asdict(vlm.prompt_spec),
            "prompt_spec_sha256": vlm.prompt_spec.sha256,
        },
    )


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def collate_prompts(prompts: Sequence[EncodedPrompt], pad_token_id: int) -> dict[str, torch.Tensor]:
    """A batch to generate from, padded on the left.

    Pictures are concatenated in row order; without any, `pixel_values` and `image_grid_thw` are absent.
    """
    return _collate(prompts, pad_token_id, pad_left=True)


def collate_rows(rows: Sequence[EncodedRow], pad_token_id: int) -> dict[str, torch.Tensor]:
    """A batch to train on, padded on the right, with `labels` [rows, tokens] (-100 on prompt and padding)."""
    batch = _collate(rows, pad_token_id, pad_left=False)
    batch["labels"] = _pad([row.labels for row in rows], IGNORED_LABEL, pad_left=False)
    return batch


def _collate(encoded: Sequence[EncodedPrompt], pad_token_id: int, pad_left: bool) -> dict[str, torch.Tensor]:
    batch = {
        "input_ids": _pad([item.input_ids for item in encoded], pad_token_id, pad_left),
        "attention_mask": _pad([torch.ones_like(item.input_ids) for item in encoded], 0, pad_left),
        "mm_token_type_ids": _pad([item.mm_token_type_ids for item in encoded], 0, pad_left),
    }
    with_pictures = [item for item in encoded if item.pixel_values is not None]
    if with_pictures:
        batch["pixel_values"] = torch.cat([item.pixel_values for item in with_pictures])
        batch["image_grid_thw"] = torch.cat([item.image_grid_thw for item in with_pictures])
    return batch


def _pad(values: Sequence[torch.Tensor], fill: int, pad_left: bool) -> torch.Tensor:
    """Rows [tokens] of different length as one tensor [rows, longest]."""
    width = max(len(value) for value in values)
    padded = torch.full((len(values), width), fill, dtype=torch.long)
    for row, value in zip(padded, values):
        row[width - len(value) if pad_left else 0 :][: len(value)] = value
    return padded
