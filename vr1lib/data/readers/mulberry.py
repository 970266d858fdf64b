"""Mulberry-SFT (HuanjinYao/Mulberry-SFT): tree-searched solutions in "### Step" sections, some with a corrected slip.

The reply is `meta["trace"]`, a pseudo-CoT that need not be asked for again; the gold stands under its last heading.
"""

import re
from typing import Any

from vr1lib.data.readers import conversations
from vr1lib.data.readers.conversations import plain_answer, stated_paths
from vr1lib.data.readers.pictures import find_picture
from vr1lib.data.readers.rows import Place, RowFault, Source, shown_choices
from vr1lib.records import Problem

FINAL = re.compile(r"#{2,4}\s*The final answer is\s*:?", re.I)


def read(row: Any, place: Place) -> Problem:
    """One row. Its picture is named from `mulberry_images/`, sometimes with a leading slash."""
    if isinstance(row, RowFault):
        raise row
    *steps, answer = FINAL.split(row["reply"])
    if not steps:
        raise RowFault("no final answer", row["reply"][-80:])
    question, choices = shown_choices(row["question"])
    return conversations.problem(
        "mulberry",
        row,
        place.split,
        images=[
            find_picture(path, place.folder, ("", "mulberry_images"), rooted=True) for path in stated_paths(row["row"])
        ],
        question=question,
        answer=plain_answer(answer, row["question"]),
        choices=choices,
        meta={"trace": row["reply"]},
    )


MULBERRY = Source(
    name="mulberry",
    hub="HuanjinYao/Mulberry-SFT",
    licence="see its card",
    default_split="train",
    files=lambda split: [("mulberry_sft.json",), ("mulberry_sft.jsonl",)],
    rows=conversations.file_rounds,
    read=read,
    response=conversations.reply,
)
