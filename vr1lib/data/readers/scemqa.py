"""SceMQA (SceMQA/SceMQA): college-entrance science, multiple choice and free response, an object of subjects each.

Options stand under the question, "A. …" or "(A) …"; a picture is named without its suffix. Behind the gold an
explanation may follow; in free response the gold is inside `\\answer{…}` (once `\\anser{…}`). A row with several golds
has none that one answer could be held against and is rejected.
"""

import json
import re
from pathlib import Path
from typing import Any

from vr1lib.data.readers.pictures import find_picture
from vr1lib.data.readers.rows import Place, RowFault, Rows, Source, array_rows, text_of
from vr1lib.prompts import OPTION_LETTERS
from vr1lib.records import Problem, RequestError

GOLD = "Answer (final answer highlighted)"
BRACED_GOLD = re.compile(r"\\a\w{2,4}r\s*\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}")
LETTER_GOLD = re.compile(r"\s*\(?([A-J](?:\s*,\s*[A-J])*)\)?(?:[.:：;)\s-]\s*(.*))?", re.S)
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f]+")  # stand where a line break was
SUFFIXES = ("", ".png", ".jpg", ".jpeg")


def rows(path: Path) -> Rows:
    """Rows of all subjects, each with its subject, number and picture folder."""
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    if text.lstrip()[:1] == "[":
        subjects = {"all": [row for _, row in array_rows(path)]}
    else:
        try:
            subjects = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{path}: not JSON ({error}); download the file again") from None
    if not isinstance(subjects, dict) or not all(isinstance(found, list) for found in subjects.values()):
        raise RequestError(f"{path}: is no object of subjects with a list of rows each; download the file again")
    for subject, found in subjects.items():
        for number, row in enumerate(found, start=1):
            name = f"{subject} row {number}"
            if isinstance(row, dict):
                yield name, {**row, "subject": subject, "number": number, "file": path}
            else:
                yield name, RowFault("row unreadable", "not a JSON object")


def read(row: Any, place: Place) -> Problem:
    """A row of either file, told apart by its gold."""
    if isinstance(row, RowFault):
        raise row
    question, gold = text_of(row, "Question"), text_of(row, GOLD)
    free = BRACED_GOLD.findall(gold)
    choices = None
    if free or "free" in row["file"].stem:
        if len(free) != 1:
            raise RowFault("several golds" if free else "no \\answer{…}", gold[:80])
        answer, explanation = free[0].strip(), BRACED_GOLD.sub("", gold).strip(" .:\n")
    else:
        stated = LETTER_GOLD.fullmatch(gold)
        if not stated:
            raise RowFault("gold names no option", gold[:80])
        if "," in stated.group(1):
            raise RowFault("several golds", stated.group(1))
        answer, explanation = stated.group(1), (stated.group(2) or "").strip()
        question, choices = split_question(question)
    name = f"scemqa-{row['subject']}-{row['number']}"
    folder = row["file"].parent.relative_to(place.folder)
    meta = {"skills": [row["subject"].removesuffix("_Free_Response")], "group": name}
    return Problem(
        id=name,
        images=[find_picture(text_of(row, "ImagePath"), place.folder, (str(folder), "", "images"), SUFFIXES)],
        question=question,
        answer=answer,
        choices=choices,
        source="scemqa",
        split=place.split,
        meta={**meta, "solution": explanation} if explanation else meta,
    )


def split_question(text: str) -> tuple[str, list[str]]:
    """A question with its options under it, "A. …" or "(A) …", taken apart. Raises RowFault if it shows none."""
    text = CONTROLS.sub("\n", text)
    for style in (r"(?:^|\n|(?<=[.?:$]))\s*{0}\s?[.:)]\s*", r"(?:^|\n|\s)\s*\({0}\)\s*"):
        starts, ends, position = [], [], 0
        for letter in OPTION_LETTERS:
            label = re.compile(style.format(letter)).search(text, position)
            if label is None:
                break
            starts.append(label.end())
            ends.append(label.start())
            position = label.end()
        options = [" ".join(text[start:end].split()) for start, end in zip(starts, [*ends[1:], len(text)])]
        if len(options) >= 2 and all(options) and text[: ends[0]].strip():
            return text[: ends[0]].strip(), options
    raise RowFault("options not understood", text[-80:])


def files(split: str) -> list[tuple[str, ...]]:
    """Both files for "test"; the splits "multiple_choice" and "free_response" are one each."""
    names = [split] if split in ("multiple_choice", "free_response") else ["multiple_choice", "free_response"]
    return [tuple(f"{name.title()}/{name}.json" for name in names), tuple(f"{name}.json" for name in names)]


SCEMQA = Source(
    name="scemqa",
    hub="Haozy/SceMQA-main",
    licence="see its card",
    default_split="test",
    files=files,
    rows=rows,
    read=read,
)
