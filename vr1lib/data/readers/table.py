"""Problems of one's own: a table (.csv, UTF-8, commas) with pictures beside it, one question a row.

Columns, in any order and case: `image`, `question`, `answer`, and at will `choices`, `id`, `solution`, `group`, `task`.
Several pictures or choices stand in one cell with `|` between them; a blank `image` is a question without a picture.
`answer` is an option's letter, a value or a text. The reference teacher copies `solution`; rows of one `group` stay in
one split; scores are also given by `task`. What other columns hold is kept in the problem's `meta`, under `more`.
"""

import csv
from pathlib import Path

from vr1lib.data.readers.pictures import picture_path
from vr1lib.data.readers.rows import Place, RowFault, Rows, Source, csv_rows, text_of
from vr1lib.records import Problem, RequestError

SEPARATOR = "|"
NEEDED = ("image", "question", "answer")
OPTIONAL = ("choices", "id")
IN_META = ("solution", "group", "task")


def table(path: Path) -> Source:
    """The table `path` as a source called like the file. Raises RequestError where a column is missing."""
    names = column_names(path)
    missing = [column for column in NEEDED if column not in names]
    if missing:
        hint = "; separate columns by commas" if len(names) < 2 else ""
        raise RequestError(f"{path}: no column {missing[0]!r} among {', '.join(names)}; add or rename one{hint}")
    if len(set(names)) < len(names):
        raise RequestError(f"{path}: column {next(n for n in names if names.count(n) > 1)!r} occurs twice; rename one")
    name = path.stem

    def read(row: dict, place: Place) -> Problem:
        return read_row(row, place, name)

    return Source(
        name=name, hub="", licence="your own", default_split="all", files=lambda split: [], rows=rows, read=read
    )


def is_table(path: Path) -> bool:
    """Whether the table has the columns of this format; a data set's own tables have others."""
    return set(NEEDED) <= set(column_names(path))


def column_names(path: Path) -> list[str]:
    """The header in lower case, blanks around names taken off."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        return [name.strip().lower() for name in next(csv.reader(file), [])]


def rows(path: Path) -> Rows:
    """Rows by column name in lower case, with their `number` from 1; cells beyond the header stay under None."""
    for number, (name, row) in enumerate(csv_rows(path), start=1):
        named = {key.strip().lower() if key else None: cell for key, cell in row.items()}
        yield name, {**named, "row number": number}


def read_row(row: dict, place: Place, name: str) -> Problem:
    """One row of the table `name`. Raises RowFault where it does not fit the header, or question or answer is blank."""
    if None in row or None in row.values():
        raise RowFault("cells and columns differ", 'put cells that hold a comma in "double quotes"')
    if any("\N{REPLACEMENT CHARACTER}" in str(cell) for cell in row.values()):
        raise RowFault("not UTF-8 text", "save the table as CSV UTF-8")
    number = row["row number"]
    known = {*NEEDED, *OPTIONAL, *IN_META, "row number"}
    meta = {column: row[column].strip() for column in IN_META if (row.get(column) or "").strip()}
    more = {column: cell for column, cell in row.items() if column not in known and cell.strip()}
    return Problem(
        id=(row.get("id") or "").strip() or f"{name}-{number}",
        images=[picture_path({"image": path}, "image", place.folder) for path in parts(row["image"])],
        question=text_of(row, "question"),
        answer=text_of(row, "answer"),
        choices=parts(row.get("choices") or "") or None,
        source=name,
        split=place.split,
        meta={**meta, "more": more} if more else meta,
    )


def parts(cell: str) -> list[str]:
    """The pictures or choices of a cell."""
    return [part.strip() for part in cell.split(SEPARATOR) if part.strip()]
