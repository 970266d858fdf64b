"""We-Math (We-Math/We-Math): school geometry and measurement, one to three steps a problem, all multiple choice."""

import re
from typing import Any

from vr1lib.data.readers.pictures import picture_path
from vr1lib.data.readers.rows import Place, RowFault, Source, file_rows, text_of
from vr1lib.prompts import OPTION_LETTERS
from vr1lib.records import Problem


def read(row: Any, place: Place) -> Problem:
    """A row of We-Math: a picture, options in one string, a letter as gold. Rows of one ID are one problem's steps."""
    number, step = text_of(row, "ID"), text_of(row, "key")
    return Problem(
        id=f"wemath-{number}-{step}",
        images=[picture_path(row, "image_path", place.folder)],
        question=text_of(row, "question"),
        answer=text_of(row, "answer"),
        choices=split_options(text_of(row, "option")),
        source="wemath",
        split=place.split,
        meta={"task": step, "skills": [text_of(row, "knowledge concept")], "group": f"wemath-{number}"},
    )


def split_options(text: str) -> list[str]:
    """We-Math's option string `A. 31.4;B. 3.14; … E. No correct answer` as a list of option texts.

    Labels are looked for in order, after a semicolon, or after a blank where the semicolon was forgotten. Raises
    RowFault if fewer than two options are found.
    """
    starts, ends = [], []
    position = 0
    for letter in OPTION_LETTERS:
        before = r"^\s*" if letter == "A" else r";\s*"
        label = re.compile(rf"{before}{letter}\s*[.:、．：]").search(text, position)
        if label is None and letter != "A":
            label = re.compile(rf"\s{letter}\s*\.\s").search(text, position)
        if label is None:
            break
        starts.append(label.end())
        ends.append(label.start())
        position = label.end()
    options = [text[start:end].strip(" ;\t\n") for start, end in zip(starts, [*ends[1:], len(text)])]
    if len(options) < 2 or not all(options):
        raise RowFault("options not understood", text)
    return options


WEMATH = Source(
    name="wemath",
    hub="We-Math/We-Math",
    licence="see its card",
    default_split="testmini",
    files=lambda split: [(f"{split}.json",)],
    rows=file_rows,
    read=read,
)
