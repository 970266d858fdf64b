"""Vision-R1-cold (Osilly/Vision-R1-cold): the paper's own cold-start rows, released in two files of different schema.

`vision_r1_llava_cot_full.json` says `image`, human and gpt; `vision_r1_mulberry_sft_full.json` says `images`, user and
assistant. Split "train" is both of them, "llava_cot" and "mulberry" one. The pictures are those of the two sources,
in `llava_cot_images/` and `mulberry_images/`; whether the paths name these folders is tried both ways.
The reply is the response to learn, word for word; the gold is the answer that it states.
"""

from pathlib import Path
from typing import Any

from vr1lib.data.readers import conversations
from vr1lib.data.readers.conversations import answer_block, plain_answer, rounds, stated_paths
from vr1lib.data.readers.pictures import find_picture
from vr1lib.data.readers.rows import Place, RowFault, Rows, Source, file_rows, shown_choices
from vr1lib.records import Problem


def rows(path: Path) -> Rows:
    half = "mulberry" if "mulberry" in path.name else "llava_cot"
    for name, row in rounds(file_rows(path)):
        yield f"{half} {name}", row if isinstance(row, RowFault) else {**row, "half": half}


def read(row: Any, place: Place) -> Problem:
    """One round, called by its half and its number in that file."""
    if isinstance(row, RowFault):
        raise row
    half = row["half"]
    question, choices = shown_choices(row["question"])
    named = {**row, "number": f"{half}-{row['number']}", "group": f"{half}-{row['group']}"}
    return conversations.problem(
        "vision_r1_cold",
        named,
        place.split,
        images=[
            find_picture(path, place.folder, ("", f"{half}_images"), rooted=True) for path in stated_paths(row["row"])
        ],
        question=question,
        answer=plain_answer(answer_block(row["reply"]), row["question"]),
        choices=choices,
        meta={"half": half},
    )


def files(split: str) -> list[tuple[str, ...]]:
    halves = {"llava_cot": ("vision_r1_llava_cot*.json*",), "mulberry": ("vision_r1_mulberry*.json*",)}
    return [halves[split]] if split in halves else [halves["llava_cot"] + halves["mulberry"]]


VISION_R1_COLD = Source(
    name="vision_r1_cold",
    hub="Osilly/Vision-R1-cold",
    licence="cc-by-nc-sa-4.0",
    default_split="train",
    files=files,
    rows=rows,
    read=read,
    response=conversations.reply,
)
