"""Geometry3K as hiyouga/geometry3k, and Vision-R1-rl (Osilly/Vision-R1-rl), which has the same parquet columns.

`images` (bytes), `problem` (with as many `<image>` as pictures), `answer`. Geometry3K's gold is the right option's
value and its options are not shown; Vision-R1-rl mixes letters, numbers, LaTeX and short texts, here and there inside
`<answer>` tags.
"""

import re
from typing import Any

from vr1lib.data.readers.pictures import row_pictures
from vr1lib.data.readers.rows import Place, RowFault, Source, file_rows, shown_choices, text_of
from vr1lib.records import Problem

ANSWER_TAGS = re.compile(r"^\s*<answer>\s*(.*?)\s*</answer>\s*$", re.S)


def parquet_files(split: str) -> list[tuple[str, ...]]:
    """Where a split lies: in the hub's `data/`, in its converted copy, or beside each other."""
    return [
        (f"{split}.parquet", f"{split}-*.parquet"),
        (f"data/{split}.parquet", f"data/{split}-*.parquet"),
        (f"{split}/*.parquet",),
        (f"default/{split}/*.parquet",),
    ]


def reader(name: str) -> Any:
    """The `read` of a source with these columns."""

    def read(row: Any, place: Place) -> Problem:
        text, answer = text_of(row, "problem"), text_of(row, "answer")
        number = row["number"]
        question, choices = shown_choices(text)
        problem_id = f"{name}-{place.split}-{number}"
        meta = {"group": problem_id}
        if row.get("choices"):
            meta["hidden_choices"] = [str(choice) for choice in row["choices"]]
        return Problem(
            id=problem_id,
            images=row_pictures(row.get("images", row.get("image")), problem_id, place),
            question=question,
            answer=ANSWER_TAGS.sub(r"\1", answer) or answer,
            choices=choices,
            source=name,
            split=place.split,
            meta=meta,
        )

    return read


def numbered_rows(path: Any) -> Any:
    """Rows with their number in the file; parts of a split are told apart by the file's number."""
    part = re.search(r"-(\d+)-of-\d+$|^(\d+)$", path.stem)
    offset = f"{int(part.group(1) or part.group(2))}." if part and int(part.group(1) or part.group(2)) else ""
    for number, (name, row) in enumerate(file_rows(path), start=1):
        yield name, {**row, "number": f"{offset}{number}"} if isinstance(row, dict) else RowFault("row unreadable")


GEOMETRY3K = Source(
    name="geometry3k",
    hub="hiyouga/geometry3k",
    licence="mit",
    default_split="train",
    files=parquet_files,
    rows=numbered_rows,
    read=reader("geometry3k"),
    extracts=True,
)
VISION_R1_RL = Source(
    name="vision_r1_rl",
    hub="Osilly/Vision-R1-rl",
    licence="cc-by-nc-sa-4.0",
    default_split="train",
    files=parquet_files,
    rows=numbered_rows,
    read=reader("vision_r1_rl"),
    extracts=True,
)
