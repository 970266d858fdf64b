"""Completions of a prompt in one line with it: every token goes through the model once, the prompt for all of them.

A line is [prompt, completion, completion, …, next prompt, …] without padding, where each token has the rotary position
that it has in a row of its own. Linear layers, norms and the vision tower don't mix tokens, so for them a line is only
shorter than rows. Attention does, and knows the line's layout: a prompt attends within itself, a completion to its
prompt and to itself, as if they stood in a row alone (our choice; a cache repeated for the group computes the same, but
has to be kept out of gradient checkpointing, gathers sharded weights twice, and pads completions everywhere).

The layout travels with the model's other inputs. Where there is none, attention is transformers' own sdpa.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from vr1lib.models.vlm import EncodedPrompt, Vlm, collate_prompts, go_on

ATTENTION = "sdpa_shared_prompt"
LIKE_LENGTH = 0.75  # completions attend together if the shortest has this much of the longest's tokens; our choice


class Layout(Protocol):
    """Which keys each token of the model's input meets."""

    def attend(self, module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, **options) -> Tensor:
        """[rows, heads, tokens, size], keys and values [rows, key-value heads, tokens, size] →
        [rows, tokens, heads, size]"""


@dataclass(frozen=True, eq=False)
class Together:
    """Completions of one prompt that stand one after another in the line and attend in one call."""

    lengths: tuple[int, ...]  # longest first
    places: Tensor | None  # [tokens] where each of their tokens is in [rows × longest]; None: all are equally long
    mask: Tensor | None  # [longest, prompt + longest], true where a completion's token sees; None: everywhere

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.lengths), self.lengths[0]

    def as_rows(self, line: Tensor) -> Tensor:
        """[1, heads, tokens, size] → [rows, heads, longest, size]"""
        tokens = line[0].transpose(0, 1)  # [tokens, heads, size]
        if self.places is not None:
            rows, longest = self.shape
            tokens = tokens.new_zeros(rows * longest, *tokens.shape[1:]).index_copy(0, self.places, tokens)
        return tokens.unflatten(0, self.shape).transpose(1, 2)

    def as_line(self, rows: Tensor) -> Tensor:
        """[rows, longest, heads, size] → [1, tokens, heads, size]"""
        tokens = rows.flatten(0, 1)
        return (tokens if self.places is None else tokens.index_select(0, self.places))[None]


@dataclass(frozen=True, eq=False)
class Group:
    """A prompt and its completions, longest first."""

    prompt_tokens: int
    completions: tuple[Together, ...]


@dataclass(frozen=True, eq=False)
class LineLayout:
    """What stands in a line, group by group."""

    groups: tuple[Group, ...]

    @property
    def parts(self) -> list[int]:
        """Tokens of each part that attends by itself, in the line's order."""
        return [n for group in self.groups for n in (group.prompt_tokens, *(part.tokens for part in group.completions))]

    def attend(self, module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, **options) -> Tensor:
        """[1, heads, tokens, size] → [1, tokens, heads, size]"""

        def sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
            return sdpa_attention_forward(module, query, key, value, mask, **options)[0]

        parts = zip(*(states.split(self.parts, dim=2) for states in (query, key, value)))
        outputs = []
        for group in self.groups:
            prompt = next(parts)
            outputs.append(sdpa(*prompt, mask=None))
            for together in group.completions:
                query, key, value = (together.as_rows(states) for states in next(parts))
                key, value = (
                    torch.cat([shared.expand(len(own), -1, -1, -1), own], dim=2)
                    for shared, own in zip(prompt[1:], (key, value))
                )
                outputs.append(together.as_line(sdpa(query, key, value, together.mask)))
        return torch.cat(outputs, dim=1)


@dataclass(frozen=True, eq=False)
class Line:
    """A line's inputs, the prompts in it, and for each completion the places whose hidden states predict its tokens."""

    prompts: list[EncodedPrompt]
    inputs: dict[str, Tensor | LineLayout]
    predicting: list[Tensor]  # a completion's [tokens], in the order they were given in

    def __len__(self) -> int:
        return self.inputs["input_ids"].shape[1]


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    layout: Layout | None = None,
    **options,
) -> tuple[Tensor, None]:
    """Attention as the layout says, whose `attend` gives [rows, tokens, heads, size].

    Without a layout, and where a token looks at pictures instead of text (cross-attention), transformers' sdpa.
    """
    if layout is None or not getattr(module, "is_causal", False):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    return layout.attend(module, query, key, value, **options), None


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def let_share_prompts(model: torch.nn.Module) -> None:
    """From now on the model's text attention understands layouts; everything else it does as before."""
    extract_model_from_parallel(model).config.get_text_config()._attn_implementation = ATTENTION


def line_of(vlm: Vlm, prompts: Sequence[EncodedPrompt], completions: Sequence[Sequence[int]]) -> Line:
    """One line of these completions, each of at least one token; those whose prompt is the same object share it.

    A completion's last token predicts nothing, so it is left out. Inputs are on the model's device.
    """
    rows_of: dict[int, list[int]] = {}
    for row, prompt in enumerate(prompts):
        rows_of.setdefault(id(prompt), []).append(row)
    ids, positions, token_inputs, groups = [], [], [], []
    predicting: dict[int, Tensor] = {}
    start = 0
    for rows in rows_of.values():
        prompt, rows = prompts[rows[0]], sorted(rows, key=lambda row: -len(completions[row]))
        own = vlm.family.positions(vlm.model, prompt)
        ids.append(prompt.input_ids)
        positions.append(own)
        last, start = start + len(prompt) - 1, start + len(prompt)
        for row in rows:
            said = torch.tensor(completions[row][:-1], dtype=torch.long)
            ids.append(said)
            positions.append((own.max() + 1 + torch.arange(len(said))).expand(*own.shape[:-1], -1))
            predicting[row] = torch.cat([torch.tensor([last]), start + torch.arange(len(said))])
            start += len(said)
        lengths = [len(completions[row]) - 1 for row in rows]
        token_inputs.append({name: go_on(value, sum(lengths), dim=0) for name, value in prompt.token_inputs.items()})
        groups.append(group_of(len(prompt), lengths, vlm.device))
    shared = [prompts[rows[0]] for rows in rows_of.values()]
    joined = vlm.family.in_one_line(token_inputs, [prompt.picture_inputs for prompt in shared])
    line = EncodedPrompt(", ".join(prompt.problem_id for prompt in shared), torch.cat(ids), *joined)
    inputs = collate_prompts([line], vlm.pad_token_id)
    inputs["position_ids"] = torch.cat(positions, dim=-1)
    inputs["attention_mask"] = torch.ones(1, 1, 1, 1, dtype=torch.bool)  # taken as it is; without one, one is built
    inputs = {name: value.to(vlm.device) for name, value in inputs.items()}
    inputs["layout"] = LineLayout(tuple(groups))
    return Line(shared, inputs, [predicting[row] for row in range(len(prompts))])


def group_of(prompt_tokens: int, lengths: Sequence[int], device: torch.device) -> Group:
    """A prompt's completions, longest first and some perhaps of no token, those of like length together."""
    together: list[list[int]] = []
    for length in lengths:
        if length == 0:
            break
        if together and length >= LIKE_LENGTH * together[-1][0]:
            together[-1].append(length)
        else:
            together.append([length])
    return Group(prompt_tokens, tuple(together_of(prompt_tokens, tuple(each), device) for each in together))


def together_of(prompt_tokens: int, lengths: tuple[int, ...], device: torch.device) -> Together:
    longest = lengths[0]
    places = None
    if lengths[-1] < longest:
        places = torch.cat([row * longest + torch.arange(length) for row, length in enumerate(lengths)]).to(device)
    if longest == 1:
        mask = None
    elif device.type == "cpu":  # wants the pattern written out, once for all layers; on a GPU a kernel knows its name
        mask = torch.ones(longest, prompt_tokens + longest, dtype=torch.bool).tril(prompt_tokens)
    else:
        from torch.nn.attention.bias import causal_lower_right  # takes seconds to import

        mask = causal_lower_right(longest, prompt_tokens + longest)
    return Together(lengths, places, mask)
