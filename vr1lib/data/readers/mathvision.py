"""MathVision (MathLLMs/MathVision): competition problems; letter or value as gold.

A row's pictures are stacked in one file, blue lines between them and `<image1>:` printed on each. That file is kept
whole and the question says `[image 2]`; with a folder for pictures it is cut along the lines into the separate ones.
Options that are only letters, because they are drawn in the picture, are no `choices`: a line under the question names
them.
"""

import re
from typing import Any

from vr1lib.data.readers.pictures import cut_panels, picture_path
from vr1lib.data.readers.rows import Place, RowFault, Source, file_rows, text_of
from vr1lib.prompts import IMAGE_MARKER, OPTION_LETTERS
from vr1lib.records import Problem

NUMBERED_MARKER = re.compile(r"<image(\d+)>")


def read(row: Any, place: Place) -> Problem:
    """A row of MathVision: numbered markers in question or options, one file with all its pictures, letter or value."""
    name = f"mathvision-{text_of(row, 'id')}"
    question, answer = text_of(row, "question"), text_of(row, "answer")
    if not isinstance(row.get("options"), list | None):
        raise RowFault("options not understood", repr(row["options"])[:80])
    options = [str(option) for option in row.get("options") or []]
    meta = {"level": row.get("level"), "skills": [str(row.get("subject", ""))], "group": name}
    if row.get("solution"):
        meta["solution"] = str(row["solution"])
    images = [picture_path(row, "image", place.folder)]
    count = len(set(NUMBERED_MARKER.findall(" ".join([question, *options]))))
    if place.pictures is not None and count > 1:
        images = cut_panels(images[0], count, place.pictures, name) or images
    question, options, images = place_markers(question, options, images)
    letters = OPTION_LETTERS[: len(options)]
    if options and all(option.strip("()$. ").upper() == letter for option, letter in zip(options, letters)):
        question, options = f"{question}\nChoose from {', '.join(letters)}.", []
        if answer.upper() not in letters:
            raise RowFault("gold names no option", f"{answer} of {len(letters)} options")
    return Problem(
        id=name,
        images=images,
        question=question,
        answer=answer,
        choices=options or None,
        source="mathvision",
        split=place.split,
        meta=meta,
    )


def place_markers(question: str, options: list[str], images: list[str]) -> tuple[str, list[str], list[str]]:
    """Turn `<image2>` into our plain `<image>` where pictures can be put in place; returns question, options, pictures.

    Picture n belongs to marker n. If the question names pictures that are all there, each marker becomes `<image>`
    and the pictures follow the markers' order, one named twice coming twice; pictures that no marker names come
    first. Otherwise (markers in the options, or several markers for one stacked picture) all pictures come first, in
    their own order, and the text refers to `[image n]`.
    """
    numbers = [int(number) for number in NUMBERED_MARKER.findall(question)]
    in_options = any(NUMBERED_MARKER.search(option) for option in options)
    question = question.replace(IMAGE_MARKER, "").strip() if numbers else question
    in_place = numbers and not in_options and all(1 <= number <= len(images) for number in numbers)
    if in_place:
        unnamed = [index for index in range(1, len(images) + 1) if index not in numbers]
        text = IMAGE_MARKER * len(unnamed) + NUMBERED_MARKER.sub(IMAGE_MARKER, question)
        return text, options, [images[index - 1] for index in [*unnamed, *numbers]]
    return (
        NUMBERED_MARKER.sub(r"[image \1]", question),
        [NUMBERED_MARKER.sub(r"[image \1]", option) for option in options],
        images,
    )


MATHVISION = Source(
    name="mathvision",
    hub="MathLLMs/MathVision",
    licence="mit",
    default_split="test",
    files=lambda split: [(f"{split}.jsonl",)],
    rows=file_rows,
    read=read,
)
