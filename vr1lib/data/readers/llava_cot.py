"""LLaVA-CoT-100k (Xkev/LLaVA-CoT-100k): four tagged sections a reply, written by GPT-4o; rounds of conversation.

The reply is `meta["trace"]`, a pseudo-CoT that need not be asked for again; the gold is what its conclusion states.
"""

import re
from typing import Any

from vr1lib.data.readers import conversations
from vr1lib.data.readers.conversations import plain_answer, stated_paths
from vr1lib.data.readers.pictures import find_picture
from vr1lib.data.readers.rows import Place, RowFault, Source, shown_choices
from vr1lib.records import Problem

CONCLUSION = re.compile(r"<CONCLUSION>(.*?)(?:</CONCLUSION>|$)", re.S)


def read(row: Any, place: Place) -> Problem:
    """One round. The pictures lie beside the file, or in a folder of the unpacked archive."""
    if isinstance(row, RowFault):
        raise row
    conclusions = CONCLUSION.findall(row["reply"])
    if not conclusions or not conclusions[-1].strip():
        raise RowFault("no conclusion", row["reply"][-80:])
    question, choices = shown_choices(row["question"])
    return conversations.problem(
        "llava_cot",
        row,
        place.split,
        images=[
            find_picture(path, place.folder, ("", "images", "image", "llava_cot_images"), rooted=True)
            for path in stated_paths(row["row"])
        ],
        question=question,
        answer=plain_answer(conclusions[-1], row["question"]),
        choices=choices,
        meta={"trace": row["reply"], "source_id": str(row["row"].get("id", ""))},
    )


LLAVA_COT = Source(
    name="llava_cot",
    hub="Xkev/LLaVA-CoT-100k",
    licence="apache-2.0",
    default_split="train",
    files=lambda split: [(f"{split}.jsonl",), (f"{split}.json",)],
    rows=conversations.file_rounds,
    read=read,
    response=conversations.reply,
)
