from dataclasses import replace

import pytest

from vr1lib.analysis import footnotes
from vr1lib.analysis.paper_tables import paper_tables

# Where each of the 28 belongs: a mark at (table, row, column), "" for all of it; figures and other slips by name.
TABLES = {
    ("table_1", "", ""): {6},
    ("table_1", "", "ARI"): {7},
    ("table_1", "Qwen2.5-VL-72B", "GPS"): {8},
    ("table_1", "Qwen2.5-VL-72B", "Avg."): {9},
    ("table_1", "GPT-4o", "ALL"): {16},
    ("table_1", "GPT-4o", "MM-Math"): {16},
    ("table_1", "GPT-4V", "ALL"): {16},
    ("table_1", "GPT-4V", "MM-Math"): {16},
    ("table_1", "Claude-3.5 Sonnet", "ALL"): {16},
    ("table_2", "", "Vision-R1-cold 200K"): {4},
    ("table_3", "Mulberry-Llama-11B", "MMStar"): {15},
    ("table_3", "Vision-R1-LlamaV-CI-11B", "Method"): {25},
    ("table_4", "", "PTST"): {1, 2},
    ("table_4", "Vision-R1-Zero", "Avg. Len."): {10},
    ("table_4", "Vision-R1-Zero", "Avg. Acc."): {11},
    ("table_4", "Vision-R1-Long", "Avg. Len."): {10},
    ("table_4", "Vision-R1-CI", "Avg. Acc."): {25},
    ("readme", "Qwen2.5-VL-7B", "AVG."): {17},
    ("readme", "Qwen2.5-VL-72B", "AVG."): {9},
    ("readme", "Vision-R1-7B (Ours)", "Vision-Only"): {17},
    ("readme", "Vision-R1-32B* (Ours)", "MathVista"): {17},
    ("readme", "", "Vision-Only"): {18},
    ("readme", "", "DynaMath"): {18},
}
FIGURES = {
    "figure_1": {12, 26},
    "figure_1c": {14},
    "figure_1d": {1, 2, 3, 10, 14},
    "figure_1e": {3, 9, 11},
    "figure_1f": {3, 13},
}
OTHER = {5, 19, 20, 21, 22, 23, 24, 27, 28}


def numbers(marks):
    return {int(mark) for mark in marks if mark.isdigit()}


def test_each_contradiction_is_marked_exactly_where_it_belongs():
    found = {}
    for name, table in paper_tables().items():
        found[name, "", ""] = numbers(table.marks)
        for column in table.columns:
            found[name, "", column.name] = numbers(column.marks)
        for row in table.rows:
            for column, cell in zip(table.columns, row.cells):
                found[name, row.cells[0].text, column.name] = numbers(cell.marks)
        marked = set().union(*(where for (table_name, *_), where in found.items() if table_name == name))
        assert numbers(table.notes) == marked, name  # below the table stand these notes and no others
    assert {place: where for place, where in found.items() if where} == TABLES


def test_all_28_are_somewhere_and_those_that_touch_nothing_are_other_slips():
    assert {name: {item.number for item in footnotes.contradictions_at(name)} for name in FIGURES} == FIGURES
    assert {item.number for item in footnotes.contradictions_at("other")} == OTHER
    touched = set().union(*TABLES.values(), *FIGURES.values())
    assert touched | OTHER == set(range(1, 29)) and not touched & OTHER
    table = footnotes.contradictions_table()
    assert sorted(int(row.cells[0].text) for row in table.rows) == list(range(1, 29))
    assert {int(row.cells[0].text) for row in table.rows if row.section == "Other slips"} == OTHER


def test_each_is_short_and_numbered_in_order():
    assert [item.number for item in footnotes.contradictions()] == list(range(1, 29))
    for item in footnotes.contradictions():
        sentences = item.text.replace("Fig. ", "").replace("Sec. ", "").count(". ") + 1
        assert sentences <= 2 and item.text[-1] in ".”", item.number


def test_a_place_that_a_table_lacks_is_an_error():
    table = paper_tables()["table_1"]
    with pytest.raises(LookupError, match="Table 1, Qwen2.5-VL-72B, GPS: no such row"):
        footnotes.with_contradictions(table, "table_1", [])
    table.columns[3] = replace(table.columns[3], name="ALG")
    with pytest.raises(LookupError, match="Table 1, ARI: no such column"):
        footnotes.with_contradictions(table, "table_1", ["Open-Source General MLLMs"])
