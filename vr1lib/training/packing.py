"""Packing: several rows of fine-tuning in one line, so that no place in a micro-batch is padding (our choice).

Nothing else changes: each row has the rotary positions, the attention and so the loss that it has alone. A line's
position_ids are [4, 1, tokens]: the place in the row, from 0 in each, and below it the row's own positions in time,
height and width. There is no attention mask: transformers then tells rows apart by where the first kind starts anew,
under every attention implementation. Families that look at pictures through cross-attention can't be packed, for a
line has one list of pictures.

What it costs: with sdpa a line of n tokens has attention scores for n² pairs, used or not; with flash attention only
those within rows. So keep the capacity near the longest row.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vr1lib.models.families import one_after_another, rotary_positions
from vr1lib.models.vlm import IGNORED_LABEL, EncodedRow, Vlm, collate_rows
from vr1lib.records import RequestError


def check_packable(vlm: Vlm) -> None:
    """RequestError if rows of this model can't share a line."""
    if not vlm.family.can_pack:
        raise RequestError(
            f"packing = True: {vlm.family.name} sees pictures through cross-attention, where a line's rows would share "
            "them; set packing: false"
        )


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Lines of row numbers, each of at most `capacity` tokens; every row is in one.

    First fit, longest row first: at most 11/9 of the fewest lines possible, and one more. Lines and the rows in each
    are in the order of first fit. Raises RequestError for a row longer than the capacity.
    """
    lines: list[list[int]] = []
    room: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        length = lengths[row]
        if length > capacity:
            raise RequestError(f"a row of {length} tokens does not fit a packed line of {capacity}; raise max_tokens")
        line = next((number for number, free in enumerate(room) if free >= length), len(lines))
        if line == len(lines):
            lines.append([])
            room.append(capacity)
        lines[line].append(row)
        room[line] -= length
    return lines


def collate_packed(rows: Sequence[EncodedRow], vlm: Vlm) -> dict[str, Tensor]:
    """One line to train on, [1, tokens]; pictures are concatenated in row order.

    `labels` are -100 on prompts, and on each row's first token, which the row before it must not learn to say.
    Raises RequestError for a family that can't be packed.
    """
    check_packable(vlm)
    tokens, pictures = one_after_another([row.token_inputs for row in rows], [row.picture_inputs for row in rows])
    line = EncodedRow(
        problem_id=", ".join(row.problem_id for row in rows),
        input_ids=torch.cat([row.input_ids for row in rows]),
        token_inputs=tokens,
        picture_inputs=pictures,
        labels=torch.cat([after_first(row.labels) for row in rows]),
    )
    batch = collate_rows([line], vlm.pad_token_id)
    del batch["attention_mask"]
    batch["position_ids"] = torch.cat([row_positions(row, vlm) for row in rows], dim=2)
    return batch


def after_first(labels: Tensor) -> Tensor:
    return torch.cat([labels.new_tensor([IGNORED_LABEL]), labels[1:]])


def row_positions(row: EncodedRow, vlm: Vlm) -> Tensor:
    """[4, 1, tokens]: the place in the row; time, height and width as the model counts them for the row alone."""
    places = torch.arange(len(row)).view(1, 1, -1)
    return torch.cat([places, rotary_positions(vlm.model, row)])
