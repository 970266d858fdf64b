"""What every reader needs: what a source is, rows out of files as a stream, and what makes a row unusable.

A file of 200,000 rows (a gigabyte) passes through in pieces: no more than one row group, one line, or a few megabytes
of a JSON array are in memory at a time.
"""

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vr1lib.prompts import OPTION_LETTERS
from vr1lib.records import Problem, Record, RequestError

PIECE = 1 << 20  # characters of a JSON array read at a time
MAX_ROW = 1 << 26  # characters of one row; our choice, hundreds of times the longest chain of thought
Rows = Iterator[tuple[str, Any]]  # (what to call the row in a reject, the row or the fault that it is)


class Reject(Record):
    """A row that was not used: where it fell (`step`), why (`reason`, one of few), and what exactly (`detail`)."""

    id: str
    reason: str
    detail: str = ""
    source: str = ""
    step: str = "source"


class RowFault(Exception):
    """What makes one row of a source unusable."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Place:
    """Where a row comes from, and the folder for pictures that no file of the source holds as they are needed."""

    folder: Path
    split: str
    pictures: Path | None = None


@dataclass(frozen=True)
class Source:
    """How one data set is read.

    `files`: for a split, alternatives of file patterns below the folder; the first that finds anything is used whole.
    `rows` yields a file's rows, `read` makes a Problem of one or raises RowFault. `response` is there where the rows
    hold a chain of thought to learn from. `extracts`: pictures lie inside the rows and are written out.
    """

    name: str
    hub: str
    licence: str
    default_split: str
    files: Callable[[str], list[tuple[str, ...]]]
    rows: Callable[[Path], Rows]
    read: Callable[[Any, Place], Problem]
    response: Callable[[Any], str] | None = None
    extracts: bool = False

    def find(self, folder: Path, split: str | None) -> list[Path]:
        for patterns in self.files(split or self.default_split):
            found = [path for pattern in patterns for path in sorted(folder.glob(pattern)) if path.is_file()]
            if found:
                return found
        return []


# ------------------------------------------------------------------------------------------------------ files as rows


def file_rows(path: Path) -> Rows:
    """The rows of a .json, .jsonl, .csv or .parquet file."""
    return {".jsonl": line_rows, ".csv": csv_rows, ".parquet": parquet_rows}.get(path.suffix, array_rows)(path)


def array_rows(path: Path) -> Rows:
    """The elements of a JSON array, read piece by piece. Raises RequestError where the file is no such array."""
    decoder = json.JSONDecoder()
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        text, at, number = file.read(PIECE).lstrip(), 1, 0
        if text[:1] != "[":
            raise RequestError(f"{path}: holds {_kind(text)}, not a list of rows; download the file again")
        while True:
            while at < len(text) and text[at] in " \t\r\n,":
                at += 1
            if text[at : at + 1] == "]":
                return
            try:
                row, at = decoder.raw_decode(text, at)
            except RecursionError:
                raise RequestError(f"{path}: row {number + 1} is nested too deep to be data; check the file") from None
            except ValueError as error:  # cut by the end of this piece, unless there is no more
                room = len(text) - at
                more = file.read(max(PIECE, room)) if room < MAX_ROW else ""  # as much again: few rows are parsed twice
                if not more:
                    raise RequestError(f"{path}: not JSON ({error}); download the file again") from None
                text, at = text[at:] + more, 0
                continue
            number += 1
            yield f"row {number}", row


def line_rows(path: Path) -> Rows:
    """One JSON object a line; a line that is none is None."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            yield f"line {number}", row


def csv_rows(path: Path) -> Rows:
    """The lines of a table with a header, as text."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        try:
            for number, row in enumerate(csv.DictReader(file), start=1):
                yield f"row {number}", row
        except csv.Error as error:
            raise RequestError(f"{path}: not CSV ({error}); download the file again") from None


def parquet_rows(path: Path) -> Rows:
    """The rows of a parquet file, some at a time."""
    import pyarrow  # slow to import, and most sources do without
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=16):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise RequestError(f"{path}: not a readable parquet file ({reason}); download the file again") from None


def _kind(text: str) -> str:
    names = {"{": "an object", '"': "a text", "": "nothing"}
    return names.get(text[:1], "something else")


# ------------------------------------------------------------------------------------------------- fields of one row


def text_of(row: Any, key: str) -> str:
    """The non-blank text under `key`."""
    if not isinstance(row, dict):
        raise RowFault("row unreadable", "not a JSON object")
    value = row.get(key)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise RowFault(f"no {key}", repr(value)[:80])
    return value.strip()


def shown_choices(text: str) -> tuple[str, list[str] | None]:
    """A question that ends in "Choices:" and lines "A: …", taken apart; shown again it is the same text."""
    question, found, lines = text.rpartition("\nChoices:\n")
    choices = lines.split("\n")
    labels = [f"{letter}: " for letter in OPTION_LETTERS[: len(choices)]]
    if not found or not 2 <= len(choices) == len(labels) or not question.strip():
        return text, None
    if not all(choice.startswith(label) and choice[3:].strip() for choice, label in zip(choices, labels)):
        return text, None
    return question, [choice[3:] for choice in choices]
