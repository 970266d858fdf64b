"""The policy and its processor: a Qwen2.5-VL with text, pictures and specifications kept together.

One rendering serves every model, tiny or 72B: ChatML turns, a picture standing as `<|vision_start|>`, one `<|image_pad|>`
for each merged block of its patches, `<|vision_end|>`. Departure from Qwen's template, on purpose: no default system
message is put in when none is asked for (the paper's RL has no system prompt, Section 3.4); `save_vlm` writes the same
template, so a server renders what was trained on. Prompts are never cut: image tokens are counted from the grid, and the
text of a problem cannot smuggle in special tokens, because it is encoded as plain text.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from vr1lib.models.images import ImageSpec, read_image_spec, spec_from_dict
from vr1lib.prompts import PromptSpec, prompt_parts
from vr1lib.records import Problem, RequestError, open_image

Method = Literal["full", "lora", "qlora"]
LoraTargets = Literal["language", "language+vision"]

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' or 'image' in part or 'image_url' in part %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' or 'video' in part %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
VISION_ID_KEYS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
SPEC_FILE = "vr1_spec.json"
IGNORED_LABEL = -100
LANGUAGE_LINEAR = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
VISION_LINEAR = r".*visual\.blocks.*\.(qkv|proj|gate_proj|up_proj|down_proj)"


@dataclass(frozen=True)
class EncodedPrompt:
    """A problem's prompt as tensors on the CPU. `mm_token_type_ids` is 1 on image tokens, 0 elsewhere."""

    problem_id: str
    input_ids: torch.Tensor  # [tokens] long
    mm_token_type_ids: torch.Tensor  # [tokens] long
    pixel_values: torch.Tensor | None  # [patches, 3·temporal·patch·patch] float32
    image_grid_thw: torch.Tensor | None  # [images, 3] long: frames, patch rows, patch columns

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True)
class EncodedRow(EncodedPrompt):
    """A prompt with its answer. `labels` are the ids on the assistant's turn, `<|im_end|>` included, else -100."""

    labels: torch.Tensor  # [tokens] long


@dataclass
class Vlm:
    """A model with everything needed to speak to it. `method` says which weights train."""

    model: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase
    image_spec: ImageSpec
    prompt_spec: PromptSpec
    method: Method
    base: str | None = None  # under LoRA and QLoRA: the path or hub id the adapter sits on

    def __post_init__(self) -> None:
        config = self.model.config
        known = self.tokenizer.get_vocab()
        named = {known[token] for token in VISION_TOKENS if token in known}
        named |= {getattr(config, key) for key in VISION_ID_KEYS if getattr(config, key, None) is not None}
        self.vision_token_ids: tuple[int, ...] = tuple(sorted(named))
        self.image_token_id: int = config.image_token_id
        ends = self.model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        self.end_of_turn_id: int = known["<|im_end|>"]
        self.eos_token_ids: tuple[int, ...] = tuple(sorted({self.end_of_turn_id, *(end for end in ends if end is not None)}))
        self.pad_token_id: int = self.tokenizer.pad_token_id

    @property
    def device(self) -> torch.device:
        return self.model.device

    def encode_prompt(self, problem: Problem) -> EncodedPrompt:
        """The user's turn and the opening of the assistant's. Never cut, whatever its length.

        Raises RequestError naming the problem for a picture that cannot be used.
        """
        pictures = iter([self._patches(problem, path) for path in problem.images])
        ids: list[int] = []
        pixel_values, grids = [], []
        text = ""
        for piece in self._pieces(problem):
            if isinstance(piece, Path):
                pixels, grid = next(pictures)
                ids += self._plain_ids(text)
                text = ""
                tokens = int(grid.prod()) // self.image_spec.merge_size**2
                ids += [self._id("<|vision_start|>"), *[self.image_token_id] * tokens, self._id("<|vision_end|>")]
                pixel_values.append(pixels)
                grids.append(grid)
            elif piece in ("<|im_start|>", "<|im_end|>"):
                ids += [*self._plain_ids(text), self._id(piece)]
                text = ""
            else:
                text += piece
        ids += self._plain_ids(text)
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
        """Prompt and answer as one row to train on, loss on the answer and its `<|im_end|>` only. Never cut: the caller
        decides by `len(row)` what to do with a long one."""
        return self.append(self.encode_prompt(problem), [*self._plain_ids(response), self.end_of_turn_id])

    def append(self, prompt: EncodedPrompt, answer_ids: Sequence[int]) -> EncodedRow:
        """The prompt followed by an answer's own ids, which become its labels: what a sampled completion is scored on."""
        answer = torch.tensor(list(answer_ids), dtype=torch.long)
        row = EncodedRow(
            prompt.problem_id,
            torch.cat([prompt.input_ids, answer]),
            torch.cat([prompt.mm_token_type_ids, torch.zeros_like(answer)]),
            prompt.pixel_values,
            prompt.image_grid_thw,
            torch.cat([torch.full_like(prompt.input_ids, IGNORED_LABEL), answer]),
        )
        self.check_images(row)
        return row

    def count_prompt_tokens(self, problem: Problem) -> int:
        """`len(encode_prompt(problem))` from the pictures' sizes alone, their pixels unread."""
        count, text = 0, ""
        for piece in [*self._pieces(problem), None]:
            if isinstance(piece, str) and piece not in ("<|im_start|>", "<|im_end|>"):
                text += piece
                continue
            count += len(self._plain_ids(text))
            text = ""
            if isinstance(piece, Path):
                count += 2 + self._image_tokens(problem, piece)
            elif piece is not None:
                count += 1
        return count

    def check_images(self, encoded: EncodedPrompt) -> None:
        """Raises RequestError naming the problem unless image tokens and image features are equal in number: a cut
        prompt or a sampled image token would otherwise end in a crash deep inside the model."""
        tokens = int((encoded.input_ids == self.image_token_id).sum())
        grid = encoded.image_grid_thw
        features = 0 if grid is None else int(grid.prod(dim=1).sum()) // self.image_spec.merge_size**2
        if tokens != features:
            raise RequestError(
                f"problem {encoded.problem_id}: {tokens} image tokens for {features} image features; "
                "leave the prompt uncut and keep vision tokens out of completions"
            )

    def decode(self, ids: Sequence[int] | torch.Tensor) -> str:
        """The text of ids, special tokens left out, spaces exactly as they were."""
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, the model is the one that training started from: its adapter is off (LoRA and QLoRA only)."""
        if self.method == "full":
            raise ValueError("a model trained in full has no adapter to switch off; keep a copy as the reference")
        with self.model.disable_adapter():
            yield

    def _pieces(self, problem: Problem) -> Iterator[str | Path]:
        """The ChatML rendering: turn marks, plain text and picture paths, in order."""
        if self.prompt_spec.system is not None:
            yield from ("<|im_start|>", f"system\n{self.prompt_spec.system}", "<|im_end|>", "\n")
        yield from ("<|im_start|>", "user\n")
        for part in prompt_parts(problem, self.prompt_spec):
            yield part if isinstance(part, Path) else f"{part}"
        yield from ("<|im_end|>", "\n", "<|im_start|>", "assistant\n")

    def _plain_ids(self, text: str) -> list[int]:
        """Ids of text in which a special token's name is only its letters."""
        if not text:
            return []
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def _id(self, token: str) -> int:
        return self.tokenizer.convert_tokens_to_ids(token)

    def _patches(self, problem: Problem, path: str) -> tuple[torch.Tensor, torch.Tensor]:
        try:
            return self.image_spec.patches(open_image(path))
        except RequestError as error:
            raise RequestError(f"problem {problem.id}: {path}: {error}") from None

    def _image_tokens(self, problem: Problem, path: Path) -> int:
        try:
            with Image.open(path) as picture:
                return self.image_spec.image_tokens(picture.height, picture.width)
        except (OSError, RequestError) as error:
            raise RequestError(f"problem {problem.id}: {path}: {error}") from None


def load_vlm(
    path: str | Path,
    *,
    method: Method = "full",
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
    """A Qwen2.5-VL from a folder or a hub id, ready for `method`.

    full: every weight trains, the vision tower and its projector only with `train_vision`. lora: a fresh adapter on all
    linear layers of the language model. qlora: the same over a 4-bit base (NF4, double quantisation), the vision
    tower and the head kept in `dtype`.

    The folder's own specifications hold unless others are given; a given one that differs from what the model was trained
    with is refused, unless `accept_other_spec`.
    """
    path = str(path)
    image_spec, prompt_spec = _settle_specs(path, image_spec, prompt_spec, accept_other_spec)
    place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    number_type = {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
    quantization = None
    if method == "qlora":
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=number_type,
            llm_int8_skip_modules=["visual", "lm_head"],
        )
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.chat_template = CHAT_TEMPLATE
    model = AutoModelForImageTextToText.from_pretrained(
        path, dtype=number_type, quantization_config=quantization, device_map={"": place} if quantization else None
    )
    if quantization is None:
        model.to(place)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if method == "full":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(train_vision or "visual." not in name)
    else:
        model = _with_adapter(model, lora_rank, lora_alpha, lora_dropout, lora_targets)
    return Vlm(model, tokenizer, image_spec, prompt_spec, method, base=None if method == "full" else path)


def _with_adapter(
    model: PreTrainedModel, rank: int, alpha: float, dropout: float, targets: LoraTargets
) -> torch.nn.Module:
    from peft import LoraConfig, get_peft_model

    pattern = LANGUAGE_LINEAR if targets == "language" else f"({LANGUAGE_LINEAR}|{VISION_LINEAR})"
    return get_peft_model(
        model,
        LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=pattern, task_type="CAUSAL_LM"),
    )


def _settle_specs(
    path: str, image_spec: ImageSpec | None, prompt_spec: PromptSpec | None, accept_other_spec: bool
) -> tuple[ImageSpec, PromptSpec]:
    """The specifications to use: asked for, or the model's own; RequestError where both exist and differ."""
    own_file = Path(path) / SPEC_FILE
    if not own_file.is_file():
        return image_spec or read_image_spec(path), prompt_spec or PromptSpec()
    own = json.loads(own_file.read_text(encoding="utf-8"))
    own_specs = [
        spec_from_dict(own["image_spec"], ImageSpec, f"{own_file}, key 'image_spec'"),
        spec_from_dict(own["prompt_spec"], PromptSpec, f"{own_file}, key 'prompt_spec'"),
    ]
    for asked, trained in zip((image_spec, prompt_spec), own_specs):
        if asked is not None and asked != trained and not accept_other_spec:
            differing = [
                f"{key} = {value!r} (model: {asdict(trained)[key]!r})"
                for key, value in asdict(asked).items()
                if value != asdict(trained)[key]
            ]
            raise RequestError(
                f"{own_file}: the model was trained with {type(trained).__name__} {trained.sha256[:12]}, asked for is "
                f"{asked.sha256[:12]}: {', '.join(differing)}; use the model's own, or pass accept_other_spec"
            )
    return image_spec or own_specs[0], prompt_spec or own_specs[1]


def save_vlm(vlm: Vlm, folder: str | Path) -> None:
    """Write a plain Hugging Face folder: weights (safetensors), tokenizer, chat template, processor and `vr1_spec.json`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    vlm.model.save_pretrained(folder)
    vlm.tokenizer.chat_template = CHAT_TEMPLATE
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
    """A batch to generate from, padded on the left. Pictures are concatenated in row order; without any, the two picture
    keys are absent."""
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
