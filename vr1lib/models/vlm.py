"""The policy and its processor: a vision-language model with text, pictures and specifications kept together.

One rendering serves every model of a family, tiny or 72B: its turn marks and the tokens of a picture, as `families.py`
describes them. On purpose, and unlike Qwen's and Llama's templates, no default system message is added when none is
asked for (the paper's RL has no system prompt, Section 3.4). `save_vlm` writes the same template, so that a server
renders what was trained on. Prompts are never cut: image tokens are counted from the pictures. A problem's text cannot
smuggle in special tokens, because it is encoded as plain text.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

import torch
from accelerate.utils import extract_model_from_parallel
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from vr1lib.models.families import FAMILIES, SPECIAL_TOKEN, Family, family_of, split_marks
from vr1lib.models.images import (
    ImageSpec,
    TileSpec,
    hub_id_or_folder,
    image_spec_from_dict,
    picture_size,
    read_image_spec,
    spec_from_dict,
)
from vr1lib.prompts import PromptSpec, prompt_parts
from vr1lib.records import Problem, RequestError, open_image

Method = Literal["full", "lora", "qlora"]
LoraTargets = Literal["language", "language+vision"]

TOKEN_INPUTS = ("mm_token_type_ids", "cross_attention_mask")  # batch inputs [rows, tokens, …] that a family may have
NEVER_EMPTY = ("aspect_ratio_mask",)  # a picture of padding without any tile would attend to nothing: NaN in bf16
VISION_ID_KEYS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id", "vision_token_id")
SPEC_FILE = "vr1_spec.json"
IGNORED_LABEL = -100
NUMBER_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, eq=False)
class EncodedPrompt:
    """A problem's prompt as tensors on the CPU.

    `token_inputs` are the family's own inputs with one entry a token; `picture_inputs` are those of the pictures.
    """

    problem_id: str
    input_ids: torch.Tensor  # [tokens] long
    token_inputs: dict[str, torch.Tensor]  # name → [tokens, …]
    picture_inputs: dict[str, torch.Tensor]  # name → [patches or images, …]

    @property
    def mm_token_type_ids(self) -> torch.Tensor | None:
        """Qwen: 1 on image tokens, 0 elsewhere [tokens]."""
        return self.token_inputs.get("mm_token_type_ids")

    @property
    def pixel_values(self) -> torch.Tensor | None:
        return self.picture_inputs.get("pixel_values")

    @property
    def image_grid_thw(self) -> torch.Tensor | None:
        """Qwen: frames, patch rows, patch columns [images, 3]."""
        return self.picture_inputs.get("image_grid_thw")

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True, eq=False)
class EncodedRow(EncodedPrompt):
    """A prompt with its answer. `labels` are the ids on the assistant's turn, its end token included, else -100."""

    labels: torch.Tensor  # [tokens] long


@dataclass(eq=False, repr=False)
class Vlm:
    """A model with everything needed to speak to it. `method` says which weights train."""

    model: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase
    image_spec: ImageSpec | TileSpec
    prompt_spec: PromptSpec
    method: Method
    base: str | None = None  # under LoRA and QLoRA: the folder or hub id the adapter sits on

    def __post_init__(self) -> None:
        config, vocabulary = self.model.config, self.tokenizer.get_vocab()
        ends = self.model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        self.family: Family = FAMILIES[config.model_type]
        self.end_of_turn_id: int = vocabulary[self.family.end_of_turn]
        self.image_token_id: int = config.image_token_id
        self.pad_token_id: int = self.tokenizer.pad_token_id
        self.eos_token_ids: tuple[int, ...] = tuple(sorted({self.end_of_turn_id, *ends} - {None}))
        named = {vocabulary.get(token) for token in self.family.vision_tokens}
        named |= {getattr(config, key, None) for key in VISION_ID_KEYS}
        with_logit = range(config.get_text_config().vocab_size)  # Llama's `<|image|>` has none: it can't be sampled
        self.vision_token_ids: tuple[int, ...] = tuple(sorted(token for token in named if token in with_logit))

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def encode_prompt(self, problem: Problem) -> EncodedPrompt:
        """The user's turn and the opening of the assistant's. Never cut, whatever its length.

        Raises RequestError naming problem and file for a picture that cannot be used.
        """
        ids: list[int] = []
        pictures = []
        for segment in self._segments(problem):
            if isinstance(segment, Path):
                with naming(f"problem {problem.id}"):
                    picture = open_image(segment)
                with naming(f"problem {problem.id}: {segment}"):
                    ids += self._picture_ids(picture.height, picture.width)
                pictures.append(picture)
            else:
                ids += self._ids(segment)
        input_ids, encoded = torch.tensor(ids), self.image_spec.encode(pictures)
        token_inputs = self.family.token_inputs(input_ids, self.image_token_id, encoded)
        prompt = EncodedPrompt(problem.id, input_ids, token_inputs, encoded)
        self.check_images(prompt)
        return prompt

    def encode_row(self, problem: Problem, response: str) -> EncodedRow:
        """Prompt and answer as one row to train on, loss on the answer and its end of turn only.

        Never cut: `len(row)` tells the caller what it would cost, and a row too long is left out, not shortened.
        """
        prompt = self.encode_prompt(problem)
        answer = torch.tensor([*self._ids(response), self.end_of_turn_id])
        return EncodedRow(
            prompt.problem_id,
            torch.cat([prompt.input_ids, answer]),
            {name: go_on(value, len(answer), dim=0) for name, value in prompt.token_inputs.items()},
            prompt.picture_inputs,
            torch.cat([torch.full_like(prompt.input_ids, IGNORED_LABEL), answer]),
        )

    def count_prompt_tokens(self, problem: Problem) -> int:
        """`len(encode_prompt(problem))` from the pictures' sizes alone: no pixel is decoded, so a filter is cheap."""
        count = 0
        for segment in self._segments(problem):
            if isinstance(segment, Path):
                with naming(f"problem {problem.id}"):
                    size = picture_size(segment)
                with naming(f"problem {problem.id}: {segment}"):
                    count += len(self._picture_ids(*size))
            else:
                count += len(self._ids(segment))
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
        features = self.image_spec.tokens_of(encoded.picture_inputs)
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
        """The prompt in order: special tokens as ids, runs of plain text, pictures as paths."""
        family, pieces = self.family, []
        pieces += self._marks(family.prompt_start)
        if self.prompt_spec.system is not None:
            pieces += self._marks(family.turn_start.format(role="system"))
            pieces += [self.prompt_spec.system, *self._marks(family.turn_end)]
        pieces += self._marks(family.turn_start.format(role="user"))
        pieces += [*prompt_parts(problem, self.prompt_spec), *self._marks(family.turn_end)]
        pieces += self._marks(family.turn_start.format(role="assistant"))
        for kind, run in groupby(pieces, key=type):
            if kind is str:
                yield "".join(run)
            else:
                yield from run

    def _marks(self, marks: str) -> list[int | str]:
        """A family's marks, its special tokens as ids."""
        token_id = self.tokenizer.convert_tokens_to_ids
        return [token_id(piece) if SPECIAL_TOKEN.match(piece) else piece for piece in split_marks(marks)]

    def _picture_ids(self, height: int, width: int) -> list[int]:
        """The ids that stand for a picture of this size in pixels."""
        ids: list[int] = []
        for mark in self._marks(self.family.picture):
            ids += [mark] * (self.image_spec.image_tokens(height, width) if mark == self.image_token_id else 1)
        return ids

    def _ids(self, segment: int | str) -> list[int]:
        """Ids of a special token, or of plain text in which the name of a special token is only its letters."""
        if isinstance(segment, int):
            return [segment]
        return self.tokenizer(segment, add_special_tokens=False, split_special_tokens=True)["input_ids"]


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
    image_spec: ImageSpec | TileSpec | None = None,
    prompt_spec: PromptSpec | None = None,
    accept_other_spec: bool = False,
) -> Vlm:
    """A model of a known family from a folder or a hub id, in evaluation mode, ready to train by `method`.

    full: every weight trains, the vision tower and its projector only with `train_vision`. lora: a fresh adapter on the
    linear layers of the language model, of tower and projector too with `lora_targets` "language+vision". qlora: the
    same over a 4-bit base (NF4, double quantisation); vision tower and head stay in `dtype`.

    A folder that holds an adapter loads its base too and goes on with that adapter, its rank and targets; `method` must
    be the one it was trained by. None means that one, or full for a plain model.

    The folder's own specifications hold unless others are given; a given one that differs from what the model was
    trained with is refused, unless `accept_other_spec`.

    `device` "auto" is this process's own GPU or the CPU. "meta" loads no weight and takes no memory: parameters can be
    counted (under qlora those of the unquantised base) and prompts encoded, nothing more.
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
    with _complete(base):
        config = AutoConfig.from_pretrained(base)
        family = family_of(config, base)
        image_spec, prompt_spec = _settle_specs(path, family, own, image_spec, prompt_spec, accept_other_spec)
        tokenizer = AutoTokenizer.from_pretrained(base)
        tokenizer.chat_template = family.chat_template
        if device == "meta":
            model = _shape_of(base, config, NUMBER_TYPES[dtype])
        else:
            model = _load_weights(base, family, NUMBER_TYPES[dtype], _place(device), quantised=method == "qlora")
    family.prepare(model)
    if gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    if method == "full":
        for module in family.vision_modules:
            getattr(model.model, module).requires_grad_(train_vision)
    else:
        from vr1lib.models.adapters import add_adapter, load_adapter

        if holds_adapter:
            model = load_adapter(model, path, with_weights=device != "meta")
        else:
            model = add_adapter(model, lora_rank, lora_alpha, lora_dropout, family.lora_linear(lora_targets))
    return Vlm(model.eval(), tokenizer, image_spec, prompt_spec, method, base=None if method == "full" else base)


def _model_place(path: str) -> str:
    """A model folder's absolute path, or a hub id (ORGANISATION/NAME) as it is."""
    path = hub_id_or_folder(path)
    if not Path(path).is_dir():
        return path
    if not Path(path, "config.json").is_file():
        raise RequestError(f"{path}: no model here (no config.json); give a model folder or a hub id such as Qwen/NAME")
    return str(Path(path).resolve())


@contextmanager
def _complete(path: str) -> Iterator[None]:
    """A missing file or an unreachable hub is told in one line."""
    try:
        yield
    except OSError as error:
        reason = str(error).split("\n")[0]
        raise RequestError(f"{path}: the model cannot be loaded ({reason}); give a complete folder or hub id") from None


def _load_weights(
    path: str, family: Family, number_type: torch.dtype, device: torch.device, quantised: bool
) -> PreTrainedModel:
    if quantised:
        from vr1lib.models.adapters import four_bit, keep_trainable
    model = AutoModelForImageTextToText.from_pretrained(
        path,
        dtype=number_type,
        quantization_config=four_bit(number_type, family.unquantised) if quantised else None,
        device_map={"": device},
    )
    if quantised:
        keep_trainable(model)
    return model


def _shape_of(path: str, config: PreTrainedConfig, number_type: torch.dtype) -> PreTrainedModel:
    """The model without its weights."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, dtype=number_type)
    with suppress(OSError):  # as with weights: a model without this file speaks as its configuration says
        model.generation_config = GenerationConfig.from_pretrained(path)
    return model


def _place(device: str) -> torch.device:
    """The device: "auto" is this process's own GPU (LOCAL_RANK's, under a launcher), or the CPU."""
    if device == "auto":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def read_spec_file(path: str) -> dict | None:
    """A model folder's vr1_spec.json, its specifications as objects and the base's path absolute.

    None where there is none (a hub model).
    """
    file = Path(path, SPEC_FILE)
    if not file.is_file():
        return None
    try:
        own = json.loads(file.read_text(encoding="utf-8"))
        own["image_spec"] = image_spec_from_dict(own["image_spec"], f"{file}, key 'image_spec'")
        own["prompt_spec"] = spec_from_dict(own["prompt_spec"], PromptSpec, f"{file}, key 'prompt_spec'")
        if (own["base"] or "").startswith(".."):
            own["base"] = str(Path(path, own["base"]).resolve())
        return {key: own[key] for key in ("method", "base", "image_spec", "prompt_spec")}
    except (ValueError, KeyError, AttributeError) as error:
        raise RequestError(f"{file}: not a specification ({error!r}); save the model again") from None


def _settle_specs(
    path: str,
    family: Family,
    own: dict | None,
    image_spec: ImageSpec | TileSpec | None,
    prompt_spec: PromptSpec | None,
    accept_other_spec: bool,
) -> tuple[ImageSpec | TileSpec, PromptSpec]:
    """The specifications to use: asked for, or the model's own; RequestError where both exist and differ."""
    if image_spec is not None and not isinstance(image_spec, family.image_spec):
        raise RequestError(
            f"{path}: image_spec is a {type(image_spec).__name__}; {family.name} takes {family.image_spec.__name__}"
        )
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

    Weights keep their own type: those trained in float32 are written in float32, whatever they were computed in. Under
    LoRA and QLoRA they are the adapter alone in peft's format, and `vr1_spec.json` names its base. `weights` (name →
    whole tensor) stand in for the model's own where those are sharded over processes.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model = extract_model_from_parallel(vlm.model)
    if vlm.method == "full":
        with no_bars():
            model.save_pretrained(folder, state_dict=weights)
    else:
        from vr1lib.models.adapters import save_adapter

        save_adapter(model, folder, weights)
    vlm.tokenizer.save_pretrained(folder)
    _write_json(
        folder / "preprocessor_config.json",
        {"processor_class": vlm.family.processor_class, **vlm.image_spec.preprocessor_config()},
    )
    _write_json(
        folder / SPEC_FILE,
        {
            "method": vlm.method,
            "base": vlm.base and _movable(vlm.base, folder),
            "image_spec": asdict(vlm.image_spec),
            "image_spec_sha256": vlm.image_spec.sha256,
            "prompt_spec": asdict(vlm.prompt_spec),
            "prompt_spec_sha256": vlm.prompt_spec.sha256,
        },
    )


def _movable(base: str, folder: Path) -> str:
    """The base as the adapter's folder names it: relative if both lie in one `outputs`, which may then be moved."""
    folder = folder.resolve()
    shared = Path(base).is_absolute() and Path(os.path.commonpath([base, folder]))
    return os.path.relpath(base, folder) if shared and "outputs" in shared.parts else base


@contextmanager
def no_bars() -> Iterator[None]:
    """Inside, transformers draws no progress bars: a checkpoint's would break up training's own."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def collate_prompts(prompts: Sequence[EncodedPrompt], pad_token_id: int) -> dict[str, torch.Tensor]:
    """A batch to generate from, padded on the left.

    The inputs of pictures are concatenated in row order; without any picture they are absent.
    """
    return _collate(prompts, pad_token_id, pad_left=True)


def collate_rows(rows: Sequence[EncodedRow], pad_token_id: int) -> dict[str, torch.Tensor]:
    """A batch to train on, padded on the right, with `labels` [rows, tokens] (-100 on prompt and padding)."""
    batch = _collate(rows, pad_token_id, pad_left=False)
    batch["labels"] = _pad([row.labels for row in rows], IGNORED_LABEL, pad_left=False)
    return batch


def with_completions(
    batch: dict[str, torch.Tensor], completion_ids: torch.Tensor, completion_mask: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The prompts of `collate_prompts` followed by completions [rows, tokens], padded on the right under their mask.

    Completion token t of every row is in one column. A completion sees what the last token of its prompt sees.
    """
    tokens = completion_ids.shape[1]
    longer = {name: go_on(batch[name], tokens, dim=1) for name in TOKEN_INPUTS if name in batch}
    mask = batch["attention_mask"]
    return {
        **batch,
        **longer,
        "input_ids": torch.cat([batch["input_ids"], completion_ids], dim=1),
        "attention_mask": torch.cat([mask, completion_mask.to(mask.dtype)], dim=1),
    }


def go_on(value: torch.Tensor, tokens: int, dim: int) -> torch.Tensor:
    """The value continued for so many tokens as it ends: no picture begins in an answer."""
    last = value.narrow(dim, value.shape[dim] - 1, 1)
    return torch.cat([value, last.repeat_interleave(tokens, dim=dim)], dim=dim)


def _collate(encoded: Sequence[EncodedPrompt], pad_token_id: int, pad_left: bool) -> dict[str, torch.Tensor]:
    batch = {
        "input_ids": _pad([item.input_ids for item in encoded], pad_token_id, pad_left),
        "attention_mask": _pad([torch.ones_like(item.input_ids) for item in encoded], 0, pad_left),
    }
    for name in encoded[0].token_inputs:
        batch[name] = _pad([item.token_inputs[name] for item in encoded], 0, pad_left)
    with_pictures = [item.picture_inputs for item in encoded if item.picture_inputs]
    for name in with_pictures[0] if with_pictures else ():
        batch[name] = _concatenate([pictures[name] for pictures in with_pictures], fill=int(name in NEVER_EMPTY))
    return {name: value for name, value in batch.items() if value.numel()}


def _pad(values: Sequence[torch.Tensor], fill: int, pad_left: bool) -> torch.Tensor:
    """Rows [tokens, …] of different sizes as one tensor [rows, longest, …]; only tokens may be padded on the left."""
    widest = [max(sizes) for sizes in zip(*(value.shape for value in values))]
    padded = values[0].new_full((len(values), *widest), fill)
    for row, value in zip(padded, values):
        tokens = slice(widest[0] - len(value), None) if pad_left else slice(len(value))
        row[(tokens, *map(slice, value.shape[1:]))] = value
    return padded


def _concatenate(values: Sequence[torch.Tensor], fill: int) -> torch.Tensor:
    """Tensors one after another along the first dimension, the others padded to the widest."""
    widest = [max(sizes) for sizes in zip(*(value.shape[1:] for value in values))]
    joined = values[0].new_full((sum(map(len, values)), *widest), fill)
    for part, value in zip(joined.split([len(value) for value in values]), values):
        part[(slice(None), *map(slice, value.shape[1:]))] = value
    return joined
