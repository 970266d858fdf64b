r"""A table with footnotes, written as CSV, Markdown, LaTeX (booktabs) and HTML.

Marks of footnotes stand at the title, at a column's heading, or at a cell (a row's at its first); their texts stand
below the table. CSV stays rectangular for programs: a row's marks are in its last column, and the footnotes are
rows of the group "footnote". LaTeX needs \usepackage{booktabs,graphicx,amssymb}; letters that pdflatex does not know
(a label in another script) are left as they are, for xelatex or lualatex.
"""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

WIDE = 7  # columns; a wider LaTeX table is scaled to the line
LATEX = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "*": "{*}",  # after the end of a row a star or a bracket would belong to it
    "[": "{[}",
    "]": "{]}",
    "–": "--",
    "—": "---",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "→": r"$\rightarrow$",
    "←": r"$\leftarrow$",
    "≈": r"$\approx$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "✓": r"$\checkmark$",
    "†": r"\textdagger{}",
    "°": r"$^\circ$",
    "…": r"\ldots{}",
    "‘": "`",
    "’": "'",
    "“": "``",
    "”": "''",
    "\N{NO-BREAK SPACE}": "~",
}


@dataclass(frozen=True)
class Cell:
    """What a cell shows, how the paper printed it, and the marks of its footnotes."""

    text: str = ""
    bold: bool = False
    underlined: bool = False
    marks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Column:
    """`group` stands above neighbouring columns; numbers are set to the right."""

    name: str
    unit: str = ""
    group: str = ""
    number: bool = True
    marks: tuple[str, ...] = ()

    @property
    def heading(self) -> str:
        return f"{self.name} ({self.unit})" if self.unit else self.name


@dataclass(frozen=True)
class Row:
    """One cell a column; rows of one `section` stand together under its name."""

    cells: tuple[Cell, ...]
    section: str = ""


@dataclass
class Table:
    """`notes`: mark → text, in the order they are printed."""

    title: str
    columns: list[Column]
    rows: list[Row]
    marks: tuple[str, ...] = ()
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def sections(self) -> list[tuple[str, list[Row]]]:
        return [(name, list(rows)) for name, rows in groupby(self.rows, key=lambda row: row.section)]


def of_rows(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """A table of dictionaries under the first one's keys; None is an empty cell."""
    keys = list(rows[0]) if rows else []
    is_number = {key: all(isinstance(row[key], int | float | None) for row in rows) for key in keys}
    columns = [Column(str(key).replace("_", " "), number=is_number[key]) for key in keys]
    return Table(title, columns, [Row(tuple(Cell(plain(row[key])) for key in keys)) for row in rows])


def plain(value: Any) -> str:
    """A value as a cell shows it."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.1f}" if abs(value) >= 1 or value == 0 else f"{value:.3g}"
    return str(value)


def with_interval(value: float, low: float | None, high: float | None, digits: int = 1) -> str:
    """`53.2 (49.2–57.2)`; the value alone where it has no interval."""
    if low is None or high is None:
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def write_table(folder: str | Path, name: str, table: Table) -> list[Path]:
    """NAME.csv, NAME.md and NAME.tex in the folder; returns their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for ending, text in (("csv", to_csv(table)), ("md", to_markdown(table)), ("tex", to_latex(table, name))):
        paths.append(folder / f"{name}.{ending}")
        paths[-1].write_text(text, encoding="utf-8", newline="")
    return paths


# ---------------------------------------------------------------------------------------------------------------- CSV


def to_csv(table: Table) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["group", *(column.heading for column in table.columns), "footnotes"])
    for row in table.rows:
        marked = [f"{column.name}: {', '.join(cell.marks)}" for column, cell in _pairs(table, row) if cell.marks]
        writer.writerow([row.section, *(cell.text for cell in row.cells), "; ".join(marked)])
    blanks = [""] * (len(table.columns) - 1)
    for mark, text in table.notes.items():
        places = [column.name for column in table.columns if mark in column.marks]
        places += ["the table"] * (mark in table.marks)
        text = f"{', '.join(places)}: {text}" if places else text
        writer.writerow(["footnote", mark, *blanks, text])
    return file.getvalue()


def _pairs(table: Table, row: Row) -> list[tuple[Column, Cell]]:
    return list(zip(table.columns, row.cells, strict=True))


# ----------------------------------------------------------------------------------------------------------- Markdown


def to_markdown(table: Table) -> str:
    """GitHub's Markdown: a section is a row of its own, an underline `<ins>`, a mark `<sup>`."""

    def cell_text(cell: Cell) -> str:
        text = _markdown(cell.text)
        text = f"**{text}**" if cell.bold else text
        return (f"<ins>{text}</ins>" if cell.underlined else text) + _sup(cell.marks)

    lines = [f"**{_markdown(table.title)}**{_sup(table.marks)}", ""]
    lines.append(_piped(_markdown(column.heading) + _sup(column.marks) for column in table.columns))
    lines.append(_piped("---:" if column.number else "---" for column in table.columns))
    for section, rows in table.sections:
        if section:
            lines.append(_piped([f"*{_markdown(section)}*", *[""] * (len(table.columns) - 1)]))
        lines += [_piped(map(cell_text, row.cells)) for row in rows]
    for mark, text in table.notes.items():
        lines += ["", f"{_sup((mark,))} {_markdown(text)}"]
    return "\n".join(lines) + "\n"


def _piped(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", text).replace("\n", " ")


def _sup(marks: Sequence[str]) -> str:
    return f"<sup>{escape(', '.join(marks))}</sup>" if marks else ""


# -------------------------------------------------------------------------------------------------------------- LaTeX


def to_latex(table: Table, label: str = "") -> str:
    """A floating table with its footnotes below it."""

    def cell_text(cell: Cell) -> str:
        text = latex(cell.text)
        text = rf"\textbf{{{text}}}" if cell.bold else text
        return (rf"\underline{{{text}}}" if cell.underlined else text) + _raised(cell.marks)

    width = len(table.columns)
    body = [r"\toprule"]
    if any(column.group for column in table.columns):
        body += _grouped_headings(table.columns)
    body.append(_row(latex(column.heading) + _raised(column.marks) for column in table.columns))
    for section, rows in table.sections:
        body.append(r"\midrule")
        if section:
            body.append(rf"\multicolumn{{{width}}}{{l}}{{\textit{{{latex(section)}}}}} \\")
        body += [_row(map(cell_text, row.cells)) for row in rows]
    alignment = "".join("r" if column.number else "l" for column in table.columns)
    tabular = [rf"\begin{{tabular}}{{{alignment}}}", *body, r"\bottomrule", r"\end{tabular}"]
    if width > WIDE:
        tabular = [r"\resizebox{\linewidth}{!}{%", *tabular, "}"]
    caption = rf"\caption{{{latex(table.title)}{_raised(table.marks)}}}"
    lines = [r"% \usepackage{booktabs,graphicx,amssymb}", r"\begin{table}[t]", r"\centering", r"\small", caption]
    lines += [rf"\label{{tab:{re.sub('[^A-Za-z0-9]+', '-', label)}}}"] * bool(label) + tabular
    for mark, text in table.notes.items():
        lines += ["", r"\raggedright\footnotesize" + f" {_raised((mark,))}~{latex(text)}"]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def latex(text: str) -> str:
    """Text as LaTeX sets it, every character that means something to it escaped."""
    return "".join(LATEX.get(character, character) for character in text.replace("\n", " "))


def _grouped_headings(columns: Sequence[Column]) -> list[str]:
    """The row of headings over several columns, and the rules below them."""
    cells, rules, at = [], [], 1
    for group, members in groupby(columns, key=lambda column: column.group):
        count = len(list(members))
        cells.append(rf"\multicolumn{{{count}}}{{c}}{{{latex(group)}}}" if group else " & ".join([""] * count))
        rules += [rf"\cmidrule(lr){{{at}-{at + count - 1}}}"] * bool(group)
        at += count
    return [_row(cells), *rules]


def _row(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _raised(marks: Sequence[str]) -> str:
    return rf"\textsuperscript{{{latex(', '.join(marks))}}}" if marks else ""


# --------------------------------------------------------------------------------------------------------------- HTML


def to_html(table: Table) -> str:
    """For a page in `page.STYLE`: a wide table scrolls by itself."""

    def cell_html(column: Column, cell: Cell) -> str:
        text = escape(cell.text)
        text = f"<strong>{text}</strong>" if cell.bold else text
        text = f"<u>{text}</u>" if cell.underlined else text
        return _tag("td", text + _sup(cell.marks), column.number)

    head = ""
    if any(column.group for column in table.columns):
        groups = groupby(table.columns, key=lambda column: column.group)
        head = "".join(f'<th colspan="{len(list(members))}">{escape(group)}</th>' for group, members in groups)
        head = f"<tr>{head}</tr>"
    head += f"<tr>{''.join(_tag('th', escape(c.heading) + _sup(c.marks), c.number) for c in table.columns)}</tr>"
    body = ""
    for section, rows in table.sections:
        if section:
            body += f'<tr><th colspan="{len(table.columns)}">{escape(section)}</th></tr>'
        body += "".join(f"<tr>{''.join(cell_html(*pair) for pair in _pairs(table, row))}</tr>" for row in rows)
    notes = "<br>".join(f"{_sup((mark,))} {escape(text)}" for mark, text in table.notes.items())
    return (
        f"<p><strong>{escape(table.title)}</strong>{_sup(table.marks)}</p>"
        f'<div class="scroll"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'
        f"<p><small>{notes}</small></p>"
    )


def _tag(name: str, content: str, number: bool) -> str:
    return f'<{name} class="number">{content}</{name}>' if number else f"<{name}>{content}</{name}>"
