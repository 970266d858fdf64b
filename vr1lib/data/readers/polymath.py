"""PolyMATH (him1411/polymath): puzzles of which nothing but the picture is given, options and question drawn in it.

The text of the problem is therefore ours, and names the options as the row does ("A-D", "1-4", "1,2,3,4"). How the
gold is stored is not documented; parquet, JSON and tables are read, and the columns by the names seen in use.
"""

import re
from typing import Any

from vr1lib.data.readers.geometry3k import parquet_files
from vr1lib.data.readers.pictures import find_picture, row_pictures
from vr1lib.data.readers.rows import Place, RowFault, Source, file_rows
from vr1lib.records import Problem

GOLD = ("final_answer", "final_answer-output", "answer")
RANGE = ("final_answer_range", "final_answer_range-output", "answer_range", "answer_option")
PICTURE = ("image", "images", "file_name", "image_path", "input_image_location-input")
SPAN = re.compile(r"\(?(\w)\)?\s*(?:-|–|to)\s*\(?(\w)\)?")


def read(row: Any, place: Place) -> Problem:
    """A row: a picture, its category, what the options are called, and which is right."""
    if isinstance(row, RowFault) or not isinstance(row, dict):
        raise RowFault("row unreadable", "not a JSON object")
    gold = _first(row, GOLD)
    if gold is None:
        raise RowFault("no answer", f"keys {', '.join(map(str, row))}"[:200])
    names = [name.strip(" ()[]'\"") for name in str(gold).split(",")]
    if len(names) > 1:
        raise RowFault("several golds", str(gold)[:80])
    answer = names[0].rstrip(".").removesuffix(".0")
    options = option_names(_first(row, RANGE))
    if options and answer.upper() not in options:
        raise RowFault("gold names no option", f"{answer} of {', '.join(options)}")
    picture = _first(row, PICTURE)
    path = picture.get("path") if isinstance(picture, dict) else picture
    stem = re.sub(r"\.\w+$", "", path.rsplit("/", 1)[-1]) if isinstance(path, str) else None
    number = str(row.get("id") or row.get("sample_id") or stem or row.get("number"))
    if isinstance(picture, str):
        images = [find_picture(picture.strip(), place.folder, ("", place.split, "images"), ("", ".png"))]
    else:
        images = row_pictures(picture, f"polymath-{number}", place)
    question = str(row["question"]).strip() if row.get("question") else "Solve the problem in the picture."
    return Problem(
        id=f"polymath-{number}",
        images=images,
        question=f"{question}\nChoose from {', '.join(options)}." if options else question,
        answer=answer.upper() if answer.upper() in options else answer,
        source="polymath",
        split=place.split,
        meta={"skills": [str(row["category"])], "group": f"polymath-{number}"} if row.get("category") else {},
    )


def option_names(stated: Any) -> list[str]:
    """ "A-D" or "1,2,3,4" as a list of names; empty where no options are stated."""
    text = str(stated or "").strip(" []")
    span = SPAN.fullmatch(text)
    if span:
        first, last = (ord(end.upper()) for end in span.groups())
        return [chr(code) for code in range(first, last + 1)] if 0 < last - first < 10 else []
    names = [name.strip(" ()'\"").upper() for name in text.split(",")]
    return names if len(names) > 1 and all(len(name) == 1 for name in names) else []


def _first(row: dict[str, Any], keys: tuple[str, ...]) -> Any:
    return next((row[key] for key in keys if row.get(key) not in (None, "")), None)


def numbered_rows(path: Any) -> Any:
    for number, (name, row) in enumerate(file_rows(path), start=1):
        yield name, {"number": number, **row} if isinstance(row, dict) else RowFault("row unreadable")


POLYMATH = Source(
    name="polymath",
    hub="him1411/polymath",
    licence="afl-3.0",
    default_split="testmini",
    files=lambda split: [
        *parquet_files(split),
        (f"{split}.json", f"{split}.jsonl", f"{split}.csv"),
        (f"{split}/metadata.jsonl", f"{split}/metadata.csv"),
    ],
    rows=numbered_rows,
    read=read,
    extracts=True,
)
