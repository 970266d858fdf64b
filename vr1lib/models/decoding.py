"""What a model has read of the rows it is sampling, and reading one more token of each.

Keys and values of a prompt are there once, however many rows follow from it: queries of a prompt's rows meet its keys
in one product. A row's own tokens stand in a buffer that grows by steps; all rows write the same column, and a row that
came later begins at a later one. Rows leave, and rows of other prompts enter, at any time.

Families that look at pictures through cross-attention (Llama-3.2-Vision) cache pictures beside text, and take the plain
path instead: transformers' cache, repeated for every row, which others can only enter once it is empty.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor
from transformers import Cache

from vr1lib.models.families import inner_model
from vr1lib.models.seen_pictures import seen_once
from vr1lib.models.shared_prompt import let_share_prompts
from vr1lib.models.vlm import EncodedPrompt, Vlm, collate_prompts

GROWTH = 64  # columns that a buffer grows by; our choice


class Reading(Protocol):
    """The rows in the batch."""

    state: dict[str, Tensor]  # what the model's family needs for the next token, rows first

    def __len__(self) -> int:
        """Rows."""

    def read(self, tokens: Tensor) -> Tensor:
        """Read one more token of every row [rows]: the logits of the next one [rows, vocabulary]."""

    def keep(self, rows: Tensor) -> None:
        """Only `rows` (indices, rising) stay."""

    def lengthen(self, tokens: int) -> None:
        """Make it what it is so many tokens later, with nothing in them."""

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""


def read_prompts(vlm: Vlm, prompts: Sequence[EncodedPrompt], group_size: int) -> tuple[Tensor, "Reading"]:
    """Read each prompt once, for `group_size` rows: the logits of their first token [rows, vocabulary]."""
    batch = collate_prompts(prompts, vlm.pad_token_id)
    batch = {name: value.to(vlm.device) for name, value in batch.items()}
    with seen_once(vlm, vlm.model, prompts):
        output = vlm.model(**batch, use_cache=True, logits_to_keep=1)
    state = vlm.family.decode_state(vlm.model, batch)
    state = {name: value.repeat_interleave(group_size, dim=0) for name, value in state.items()}
    let_share_prompts(vlm.model)
    reading_of = SharedReading.of if vlm.family.can_pack else RepeatedReading.of
    reading = reading_of(vlm, output.past_key_values, batch["attention_mask"], state, group_size)
    return output.logits[:, -1].repeat_interleave(group_size, dim=0), reading


# ------------------------------------------------------------------------------------------------------- a prompt once


@dataclass(eq=False)
class SharedReading:
    """Rows in the order of their prompts; it is also the cache and the layout that the model's attention is given."""

    vlm: Vlm
    text_model: torch.nn.Module  # without the head, of which less is called than of the whole
    head: torch.nn.Module
    prompt_keys: list[Tensor]  # of each layer [prompts, key-value heads, prompt tokens, size]; values too
    prompt_values: list[Tensor]
    prompt_mask: Tensor  # [prompts, prompt tokens] bool, padded on the left
    state: dict[str, Tensor]
    prompt_of: Tensor  # [rows] number of each row's prompt, rising
    first: Tensor  # [rows] column of each row's first own token
    own_keys: list[Tensor]  # of each layer [rows, key-value heads, columns, size]; values too
    own_values: list[Tensor]
    column: int = 0  # the next one to write

    @classmethod
    def of(cls, vlm: Vlm, cache: Cache, mask: Tensor, state: dict[str, Tensor], group_size: int) -> "SharedReading":
        model = inner_model(vlm.model).language_model
        head = extract_model_from_parallel(vlm.model).get_output_embeddings()
        keys, values = ([getattr(layer, kind) for layer in cache.layers] for kind in ("keys", "values"))
        prompt_of = torch.arange(len(mask), device=mask.device).repeat_interleave(group_size)
        nothing = [keys[0].new_zeros(len(prompt_of), each.shape[1], 0, each.shape[3]) for each in keys]
        first = torch.zeros_like(prompt_of)
        reading = cls(vlm, model, head, keys, values, mask.bool(), state, prompt_of, first, nothing, [*nothing])
        reading.arrange()
        return reading

    def __len__(self) -> int:
        return len(self.prompt_of)

    @property
    def nbytes(self) -> int:
        held = (self.prompt_keys, self.prompt_values, self.own_keys, self.own_values)
        return sum(layer.nbytes for layers in held for layer in layers)

    def read(self, tokens: Tensor) -> Tensor:
        if self.column == self.own_keys[0].shape[2]:
            self.make_room()
        if self.staggered:
            columns = torch.arange(self.column + 1, device=self.first.device)
            self.own_mask = (columns >= self.first[:, None])[:, None, None]  # [rows, 1, 1, columns]
        output = self.text_model(
            input_ids=tokens[:, None],
            attention_mask=self.no_mask,
            past_key_values=self,
            layout=self,
            use_cache=True,
            **self.vlm.family.decode_inputs(self.state, self.column - self.first),
        )
        self.column += 1
        return self.head(output.last_hidden_state[:, 0])

    def update(self, keys: Tensor, values: Tensor, layer: int, *_, **__) -> tuple[Tensor, Tensor]:
        """As a cache: write a token's keys and values [rows, heads, 1, size], give all of the row's own."""
        self.own_keys[layer][:, :, self.column] = keys[:, :, 0]
        self.own_values[layer][:, :, self.column] = values[:, :, 0]
        until = self.column + 1
        return self.own_keys[layer][:, :, :until], self.own_values[layer][:, :, :until]

    def attend(
        self, module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, *, scaling: float, **_
    ) -> Tensor:
        """Each row's token [rows, heads, 1, size] over its prompt and its own [rows, heads, columns, size]:
        [rows, 1, heads, size]."""
        prompt_key, prompt_value = self.prompt_keys[module.layer_idx], self.prompt_values[module.layer_idx]
        rows, heads, _, size = query.shape
        query = (query * scaling).view(rows, key.shape[1], -1, size)  # those that share a key-value head together
        shared = query.shape[2]
        scores = self.seated(query) @ prompt_key.transpose(2, 3)  # [prompts, key-value heads, seats × shared, tokens]
        if self.prompt_bias is not None:
            scores += self.prompt_bias
        own_scores = query @ key.transpose(2, 3)
        if self.own_mask is not None:
            own_scores.masked_fill_(~self.own_mask, float("-inf"))
        weights = torch.softmax(torch.cat([self.standing(scores, shared), own_scores], dim=3), dim=3, dtype=torch.float)
        of_prompt, of_own = weights.to(query.dtype).tensor_split([prompt_key.shape[2]], dim=3)
        output = of_own @ value + self.standing(self.seated(of_prompt) @ prompt_value, shared)
        return output.view(rows, 1, heads, size)

    def seated(self, values: Tensor) -> Tensor:
        """[rows, heads, shared, size] → [prompts, heads, seats × shared, size], rows beside those of their prompt."""
        prompts, seats = self.seats
        _, heads, shared, size = values.shape
        if self.seat_of is not None:
            values = values.new_zeros(prompts * seats, heads, shared, size).index_copy_(0, self.seat_of, values)
        return values.view(prompts, seats, heads, shared, size).transpose(1, 2).reshape(prompts, heads, -1, size)

    def standing(self, values: Tensor, shared: int) -> Tensor:
        """[prompts, heads, seats × shared, size] → [rows, heads, shared, size]"""
        prompts, seats = self.seats
        _, heads, _, size = values.shape
        values = values.view(prompts, heads, seats, shared, size).transpose(1, 2).reshape(-1, heads, shared, size)
        return values if self.seat_of is None else values.index_select(0, self.seat_of)

    def keep(self, rows: Tensor) -> None:
        prompts, self.prompt_of = torch.unique_consecutive(self.prompt_of[rows], return_inverse=True)
        self.state = {name: value[rows] for name, value in self.state.items()}
        self.first = self.first[rows]
        start = int(self.first.min()) if len(rows) else self.column  # what came before is no row's
        width = int(self.prompt_mask[prompts].sum(dim=1).max()) if len(rows) else 0
        for layers in (self.own_keys, self.own_values):
            for number, layer in enumerate(layers):
                layers[number] = layer[:, :, start:].index_select(0, rows)
        if len(prompts) < len(self.prompt_mask):
            for layers in (self.prompt_keys, self.prompt_values):
                for number, layer in enumerate(layers):
                    layers[number] = layer[prompts, :, layer.shape[2] - width :]
            self.prompt_mask = self.prompt_mask[prompts, self.prompt_mask.shape[1] - width :]
        self.first, self.column = self.first - start, self.column - start
        self.arrange()

    def enter(self, other: "SharedReading") -> None:
        """Rows that have read their prompts and no more come after the ones that are here."""
        if not len(self):
            self.__dict__.update(other.__dict__)
            return
        width = max(self.prompt_mask.shape[1], other.prompt_mask.shape[1])
        for ours, theirs in ((self.prompt_keys, other.prompt_keys), (self.prompt_values, other.prompt_values)):
            for number, layer in enumerate(ours):
                ours[number] = torch.cat([padded_left(each, 2, width) for each in (layer, theirs[number])])
        masks = (self.prompt_mask, other.prompt_mask)
        self.prompt_of = torch.cat([self.prompt_of, other.prompt_of + len(self.prompt_mask)])
        self.prompt_mask = torch.cat([padded_left(mask, 1, width) for mask in masks])
        self.state = {name: torch.cat([value, other.state[name]]) for name, value in self.state.items()}
        self.first = torch.cat([self.first, torch.full_like(other.first, self.column)])
        for layers in (self.own_keys, self.own_values):
            for number, layer in enumerate(layers):
                layers[number] = torch.cat([layer, layer.new_zeros(len(other), *layer.shape[1:])])
        self.arrange()

    def arrange(self) -> None:
        """Work out the rows' seats, of which every prompt has as many as the fullest needs."""
        counts = torch.bincount(self.prompt_of, minlength=len(self.prompt_mask))
        seats = int(counts.max()) if len(self) else 0
        self.seats = (len(counts), seats)
        self.seat_of = None  # every prompt is full: rows are seated as they stand
        if len(counts) * seats > len(self):
            places = torch.arange(len(self), device=counts.device) - (counts.cumsum(0) - counts)[self.prompt_of]
            self.seat_of = self.prompt_of * seats + places
        self.staggered, self.own_mask = bool(self.first.any()), None
        self.no_mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=counts.device)  # without one, one is built
        self.prompt_bias = None
        if not self.prompt_mask.all():
            nothing = torch.zeros_like(self.prompt_mask, dtype=self.prompt_keys[0].dtype)
            self.prompt_bias = nothing.masked_fill(~self.prompt_mask, float("-inf"))[:, None, None]

    def make_room(self) -> None:
        """The buffer grows; columns before every row's first are given up."""
        start = int(self.first.min())
        for layers in (self.own_keys, self.own_values):
            for number, layer in enumerate(layers):
                more = layer.new_zeros(*layer.shape[:2], GROWTH, layer.shape[3])
                layers[number] = torch.cat([layer[:, :, start:], more], dim=2)
        self.first, self.column = self.first - start, self.column - start
        self.arrange()

    def lengthen(self, tokens: int) -> None:
        self.column += max(0, tokens)
        while self.own_keys[0].shape[2] < self.column:
            self.make_room()


def padded_left(values: Tensor, dim: int, width: int) -> Tensor:
    missing = list(values.shape)
    missing[dim] = width - missing[dim]
    return torch.cat([values.new_zeros(missing), values], dim=dim) if missing[dim] else values


# ---------------------------------------------------------------------------------------------- a prompt for each row


@dataclass(eq=False)
class RepeatedReading:
    """Every row has its prompt's cache to itself."""

    vlm: Vlm
    cache: Cache
    attention_mask: Tensor  # [rows, tokens]
    state: dict[str, Tensor]
    steps: int = 0  # tokens read since the prompt

    @classmethod
    def of(cls, vlm: Vlm, cache: Cache, mask: Tensor, state: dict[str, Tensor], group_size: int) -> "RepeatedReading":
        cache.batch_repeat_interleave(group_size)
        return cls(vlm, cache, mask.repeat_interleave(group_size, dim=0), state)

    def __len__(self) -> int:
        return len(self.attention_mask)

    @property
    def nbytes(self) -> int:
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.cache.layers)

    def read(self, tokens: Tensor) -> Tensor:
        mask = self.attention_mask
        self.attention_mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        output = self.vlm.model(
            input_ids=tokens.unsqueeze(1),
            attention_mask=self.attention_mask,
            past_key_values=self.cache,
            use_cache=True,
            **self.vlm.family.decode_inputs(self.state, self.steps),
        )
        self.steps += 1
        return output.logits[:, -1]

    def keep(self, rows: Tensor) -> None:
        self.cache.batch_select_indices(rows)
        self.attention_mask = self.attention_mask[rows]
        self.state = {name: value[rows] for name, value in self.state.items()}

    def lengthen(self, tokens: int) -> None:
        if tokens <= 0:
            return
        rows, width = self.attention_mask.shape
        for layer in self.cache.layers:
            if layer.keys.shape[2] == width:  # not the layers that only look at pictures: those don't grow
                nothing = layer.keys.new_zeros(*layer.keys.shape[:2], tokens, layer.keys.shape[3])
                layer.update(nothing, nothing)
        self.attention_mask = torch.cat([self.attention_mask, self.attention_mask.new_ones(rows, tokens)], dim=1)
        self.steps += tokens
