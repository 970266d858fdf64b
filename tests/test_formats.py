import csv
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from vr1lib.analysis import formats
from vr1lib.analysis.footnotes import contradictions_table
from vr1lib.analysis.formats import Cell, Column, Row, Table
from vr1lib.analysis.paper_tables import paper_tables


@pytest.fixture
def table():
    columns = [
        Column("Model_name", number=False),
        Column("All", "%", "Math", marks=("7",)),
        Column("Ours", group="Math"),
    ]
    rows = [
        Row((Cell("a|b <i> & 100 %"), Cell("73.5", bold=True, marks=("a", "b")), Cell("53.2 (49.2–57.2)"))),
        Row((Cell("[x] *y* #1"), Cell("✓ → ±", underlined=True), Cell())),
    ]
    return Table(
        "A_title", columns, rows, marks=("†",), notes={"7": "of a column", "a": "5 % of it", "b": "x", "†": "y"}
    )


def test_csv_is_rectangular_and_keeps_the_notes(table):
    rows = list(csv.reader(io.StringIO(formats.to_csv(table))))
    assert rows[0] == ["group", "Model_name", "All (%)", "Ours", "footnotes"]
    assert rows[1] == ["", "a|b <i> & 100 %", "73.5", "53.2 (49.2–57.2)", "All: a, b"]
    assert rows[3] == ["footnote", "7", "", "", "All: of a column"]
    assert rows[6] == ["footnote", "†", "", "", "the table: y"]
    assert {len(row) for row in rows} == {5}


def test_markdown_escapes_what_it_would_read(table):
    lines = formats.to_markdown(table).splitlines()
    assert lines[0] == r"**A\_title**<sup>†</sup>"
    assert lines[2:4] == [r"| Model\_name | All (%)<sup>7</sup> | Ours |", "| --- | ---: | ---: |"]
    assert lines[4] == r"| a\|b \<i\> & 100 % | **73.5**<sup>a, b</sup> | 53.2 (49.2–57.2) |"
    assert lines[5] == r"| \[x\] \*y\* #1 | <ins>✓ → ±</ins> |  |"
    assert "<sup>a</sup> 5 % of it" in lines


def test_latex_escapes_what_it_would_obey(table):
    text = formats.to_latex(table, "my_table")
    assert r"a\textbar{}b \textless{}i\textgreater{} \& 100 \% & \textbf{73.5}\textsuperscript{a, b}" in text
    assert r"{[}x{]} {*}y{*} \#1 & \underline{$\checkmark$ $\rightarrow$ $\pm$} &  \\" in text
    assert r"\caption{A\_title\textsuperscript{\textdagger{}}}" in text and r"\label{tab:my-table}" in text
    assert r"\multicolumn{2}{c}{Math} \\" in text and r"\cmidrule(lr){2-3}" in text
    assert "53.2 (49.2--57.2)" in text and r"\resizebox" not in text


def latex_texts():
    tables = {**paper_tables(), "contradictions": contradictions_table()}
    return {name: formats.to_latex(table, name) for name, table in tables.items()}


@pytest.mark.parametrize("name, text", latex_texts().items())
def test_latex_of_every_table_is_balanced_and_plain(name, text):
    """No LaTeX is needed to know this: only ASCII, nothing special unescaped, braces and rows that fit."""
    assert text.isascii()
    body = "\n".join(text.splitlines()[1:]).replace("{!}{%", "{!}{")
    bare = re.sub(r"\\[\\&%$#_{}]", "", body)
    assert bare.count("{") == bare.count("}") and not set("%#_") & set(re.sub(r"\$[^$]*\$", "", bare))
    assert bare.count("$") % 2 == 0 and body.count(r"\begin{") == body.count(r"\end{")
    tabular = body.split(r"\begin{tabular}{")[1].split(r"\end{tabular}")[0]
    width = len(tabular.split("}")[0])
    for row in re.findall(r"^(.*) \\\\$", tabular, re.MULTILINE):
        spans = [int(count) - 1 for count in re.findall(r"\\multicolumn\{(\d+)\}", row)]
        assert len(re.findall(r"(?<!\\)&", row)) + 1 + sum(spans) == width, row


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex here")
def test_latex_compiles(tmp_path):
    packages = r"\usepackage{booktabs,graphicx,amssymb}"
    document = "\n".join([r"\documentclass{article}", packages, r"\begin{document}", *latex_texts().values()])
    (tmp_path / "all.tex").write_text(document + r"\end{document}", encoding="utf-8")
    subprocess.run(["pdflatex", "-halt-on-error", "all.tex"], cwd=tmp_path, check=True, capture_output=True)


class Tags(HTMLParser):
    """Fails where tags do not close in order; counts cells of rows."""

    def __init__(self):
        super().__init__()
        self.open, self.widths, self.text = [], [], ""

    def handle_starttag(self, tag, attributes):
        if tag != "br":
            self.open.append(tag)
        if tag == "tr":
            self.widths.append(0)
        if tag in ("td", "th"):
            self.widths[-1] += int(dict(attributes).get("colspan", 1))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_html_is_sound_and_escaped(table):
    tags = Tags()
    tags.feed(formats.to_html(table))
    assert tags.open == [] and set(tags.widths) == {3}
    assert "a|b <i> & 100 %" in tags.text and "<strong>73.5</strong><sup>a, b</sup>" in formats.to_html(table)
    for paper_table in paper_tables().values():
        tags = Tags()
        tags.feed(formats.to_html(paper_table))
        assert set(tags.widths) == {len(paper_table.columns)}


def test_three_files_are_written(tmp_path, table):
    paths = formats.write_table(tmp_path / "tables", "t", table)
    assert [path.name for path in paths] == ["t.csv", "t.md", "t.tex"]
    assert paths[1].read_text(encoding="utf-8") == formats.to_markdown(table)


def test_rows_of_dictionaries_become_a_table():
    table = formats.of_rows(
        "pairs", [{"from": "a", "low_points": 1.25, "n": 3}, {"from": "b", "low_points": None, "n": 4}]
    )
    assert [(column.name, column.number) for column in table.columns] == [
        ("from", False),
        ("low points", True),
        ("n", True),
    ]
    assert [[cell.text for cell in row.cells] for row in table.rows] == [["a", "1.2", "3"], ["b", "", "4"]]
    assert formats.to_csv(formats.of_rows("empty", [])) == "group,footnotes\n"


@pytest.mark.parametrize(
    "values, text",
    [((53.24, 49.2, 57.26), "53.2 (49.2–57.3)"), ((53.24, None, None), "53.2"), ((0, 0, 1), "0.0 (0.0–1.0)")],
)
def test_an_interval_stands_in_brackets(values, text):
    assert formats.with_interval(*values) == text
