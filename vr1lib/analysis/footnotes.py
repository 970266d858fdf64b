"""Where the paper contradicts itself, its repository or a source, as footnotes to its tables and figures.

`paper/contradictions.csv` holds 28 of them in our own words, each with the places it concerns: `table|row|column`, a
part left empty for all of it (`table_1||ARI` is a column, `table_1||` the table), a figure or panel (`figure_1d`), or
`other` for what touches neither. A contradiction keeps its number as its mark in every table.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from vr1lib.analysis.formats import Cell, Column, Row, Table
from vr1lib.analysis.tables import paper_rows

NAMES = {"table_1": "Table 1", "table_2": "Table 2", "table_3": "Table 3", "table_4": "Table 4", "readme": "README"}
OTHER = "other"


@dataclass(frozen=True)
class Place:
    """A figure, a panel, `other`, or a table with a row and a column; empty means all of them."""

    where: str
    row: str = ""
    column: str = ""

    @property
    def is_table(self) -> bool:
        return self.where in NAMES

    @property
    def words(self) -> str:
        if self.where == OTHER:
            return ""
        name = NAMES.get(self.where) or f"Figure {self.where.removeprefix('figure_').upper()}"
        return ", ".join(part for part in (name, self.row, self.column) if part)


@dataclass(frozen=True)
class Contradiction:
    number: int
    places: tuple[Place, ...]
    text: str

    @property
    def mark(self) -> str:
        return str(self.number)


@cache
def contradictions() -> tuple[Contradiction, ...]:
    """All 28, by number."""
    return tuple(
        Contradiction(
            int(row["number"]),
            tuple(Place(*place.strip().split("|")) for place in row["concerns"].split(";")),
            row["text"],
        )
        for row in paper_rows("contradictions")
    )


def contradictions_at(where: str) -> list[Contradiction]:
    """Those that concern a table (`table_1` … `table_4`, `readme`) or a figure (`figure_1`, `figure_1a` …)."""
    return [item for item in contradictions() if any(place.where == where for place in item.places)]


def with_contradictions(table: Table, where: str, sections: Sequence[str]) -> Table:
    """The table with its contradictions as marks and notes, rows looked for by their first cell in these sections.

    Raises LookupError for a place that the table does not have.
    """
    marked = replace(table, columns=list(table.columns), rows=list(table.rows), notes={})
    for item in contradictions_at(where):
        for place in item.places:
            if place.where == where:
                _mark(marked, place, item.mark, sections)
        marked.notes[item.mark] = item.text
    marked.notes |= table.notes
    return marked


def _mark(table: Table, place: Place, mark: str, sections: Sequence[str]) -> None:
    column = next((at for at, column in enumerate(table.columns) if column.name == place.column), None)
    if place.column and column is None:
        raise LookupError(f"{place.words}: no such column")
    if not place.row:
        if column is None:
            table.marks = (mark, *table.marks)
        else:
            table.columns[column] = replace(table.columns[column], marks=(*table.columns[column].marks, mark))
        return
    for at, row in enumerate(table.rows):
        if row.section in sections and row.cells[0].text == place.row:
            cells = list(row.cells)
            cells[column or 0] = replace(cells[column or 0], marks=(*cells[column or 0].marks, mark))
            table.rows[at] = replace(row, cells=tuple(cells))
            return
    raise LookupError(f"{place.words}: no such row")


def contradictions_table() -> Table:
    """All 28 with what they concern: first those at tables, then at figures, then the other slips."""

    def section(item: Contradiction) -> str:
        if any(place.is_table for place in item.places):
            return "In the tables"
        return "Other slips" if any(place.where == OTHER for place in item.places) else "In the figures"

    order = ("In the tables", "In the figures", "Other slips")
    rows = [
        Row((Cell(item.mark), Cell("; ".join(filter(None, (p.words for p in item.places)))), Cell(item.text)), name)
        for name in order
        for item in contradictions()
        if section(item) == name
    ]
    columns = [Column("No."), Column("Concerns", number=False), Column("What", number=False)]
    return Table("Contradictions and slips of the paper and its repository", columns, rows)
