import pytest
from synthetic_runs import model_of, synthetic_problems

from vr1lib.analysis.formats import to_csv, to_markdown
from vr1lib.analysis.paper_tables import paper_tables, readme_table, table_1, table_2, table_3, table_4
from vr1lib.benchmarks import mathverse, mathvista
from vr1lib.data.audits import stats
from vr1lib.records import ColdRow, Problem, write_jsonl

PARTS = {  # of a made-up run: benchmark → published size, accuracy, groups
    "mathvista": (
        1000,
        0.5,
        {
            "skills": {"geometry reasoning": 0.41, "algebraic reasoning": 0.42, "arithmetic reasoning": 0.43},
            "task": {"geometry problem solving": 0.44, "math word problem": 0.45},
        },
    ),
    "mathverse": (
        3940,
        0.3,
        {
            "version": {
                "Text Dominant": 0.5,
                "Text Lite": 0.4,
                "Vision Intensive": 0.3,
                "Vision Dominant": 0.2,
                "Vision Only": 0.1,
                "Text Only": 0.9,
            }
        },
    ),
    "mmmath": (5929, 0.1, {}),
    "dynamath": (5010, 0.2, {}),
    "mmstar": (1500, 0.6, {}),
    "chartqa": (2500, 0.7, {}),
    "mme": (2374, 0.8, {}),
    "hallusionbench": (1129, 0.9, {}),
}
REPORTS = {"mme": {"sum": 1787.25}, "hallusionbench": {"mean": 0.1, "with_picture": {"mean": 0.403}}}


def score_row(benchmark, **changes):
    n, accuracy, groups = PARTS[benchmark]
    share = lambda value: {"n": n, "accuracy": value, "low": value - 0.03, "high": value + 0.03}  # noqa: E731
    by = {kind: {name: share(value) for name, value in named.items()} for kind, named in groups.items()}
    row = {"benchmark": benchmark, "protocol": "strict", "control": "none", "samples": 1, "by": by, "left_out": {}}
    return {**row, **share(accuracy), "report": REPORTS.get(benchmark, {}), "shard": "1/1", **changes}


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    return synthetic_problems(tmp_path_factory.mktemp("problems"), 10)


def run_of(problems, rows, authors=(), label="Vision-R1", parameters=7_600_000_000):
    model = model_of(label, problems, [1] * 10)
    model.scores = {"label": label, "parameters": parameters, "benchmarks": rows, "authors": list(authors)}
    return model


def our_cells(table):
    """Column → text of each row that was measured here."""
    names = [column.name for column in table.columns]
    ours = [row for row in table.rows if row.section == "Measured here"]
    return [dict(zip(names, (cell.text for cell in row.cells))) for row in ours]


@pytest.fixture(scope="module")
def everything(problems):
    return run_of(problems, [score_row(name) for name in PARTS])


def test_without_runs_the_tables_are_the_papers_and_say_so():
    for name, table in paper_tables().items():
        assert our_cells(table) == [] and "Measured here" not in {column.group for column in table.columns[:-4]}, name
    texts = [cell.text for row in table_1().rows for cell in row.cells if row.cells[0].text == "URSA-8B"]
    assert texts == ["URSA-8B", "8B", "–", "–", "", "79.3", "75.3", "59.8", "45.7", "–", "–", "as printed"]
    assert "No run of ours has a score on these benchmarks." in table_3().notes.values()


def test_table_1_has_both_readings_of_ari_and_the_papers_average(everything):
    (ours,) = our_cells(table_1([everything]))
    assert ours["GEO"] == "41.0 (38.0–44.0)" and ours["Params"] == "7.6B"
    assert ours["ARI"] == "42.0 (39.0–45.0)" and ours["ARI, arithmetic"] == "43.0 (40.0–46.0)"
    assert (ours["GPS"][:4], ours["MWP"][:4], ours["ALL"][:4]) == ("44.0", "45.0", "50.0")
    # the five versions' mean without Text Only; their intervals of ±3 become ±3/√5
    assert ours["MathVerse"] == "30.0 (28.7–31.3)" and ours["MM-Math"] == "10.0 (7.0–13.0)"
    # (50 + 30 + 10) / 3, ± √(3² + 1.34² + 3²) / 3
    assert ours["Avg."] == "30.0 (28.5–31.5)" and ours["Protocol"] == "strict"


def test_table_3_has_points_for_mme_and_the_mean_of_three_for_hallusionbench(everything):
    (ours,) = our_cells(table_3([everything]))
    assert (ours["MME_sum"], ours["HallBench"]) == ("1787", "40.3")
    assert ours["MMStar"] == "60.0 (57.0–63.0)" and ours["ChartQA"][:4] == "70.0" and ours["MathVista"][:4] == "50.0"


def test_readme_average_counts_mathverse_twice_and_has_no_interval(everything):
    (ours,) = our_cells(readme_table([everything]))
    assert ours["Vision-Only"] == "10.0 (7.0–13.0)" and ours["DynaMath"] == "20.0 (17.0–23.0)"
    assert ours["AVG."] == f"{(50 + 30 + 10 + 10 + 20) / 5:.1f}"


def test_a_missing_benchmark_is_an_empty_cell_and_has_no_average(problems):
    (ours,) = our_cells(table_1([run_of(problems, [score_row("mathvista"), score_row("mmstar")])]))
    assert ours["ALL"] == "50.0 (47.0–53.0)" and ours["MathVerse"] == "" and ours["Avg."] == ""
    assert our_cells(table_1([run_of(problems, [score_row("mmstar")])])) == []


def test_a_part_of_a_benchmark_says_so_at_its_cells_and_at_the_average(problems):
    left_out = {"above limit = 400": 590, "cannot be shown": 10}
    part = score_row("mathvista", n=400, left_out=left_out)
    table = table_1([run_of(problems, [part, score_row("mathverse"), score_row("mmmath")])])
    row = table.rows[-1]
    marks = {column.name: cell.marks for column, cell in zip(table.columns, row.cells)}
    (mark,) = marks["ALL"]
    text = "mathvista: 400 of 1,000 (left out: 590 above limit = 400; 10 cannot be shown)."
    assert table.notes[mark] == text
    assert marks["GEO"] == marks["Avg."] == (mark,) and marks["MathVerse"] == ()
    shard = table_3([run_of(problems, [score_row("mmstar", n=375, shard="1/4")])])
    assert "mmstar: 375 of 1,500 (left out: shard 1/4)." in shard.notes.values()


def test_protocols_are_rows_of_their_own_and_controls_are_none(problems):
    rows = [score_row("mmstar"), score_row("chartqa", control="blank_pictures")]
    judged = score_row("mmstar", protocol="authors", accuracy=0.65, tries=5, judge={"model": "j", "calls": 2})
    run = run_of(problems, rows, [judged])
    run.scores["clean"] = [score_row("mmstar", n=1400, accuracy=0.55)]
    ours = our_cells(table_3([run]))
    protocols = ["strict", "authors', at most 5 tries, judge j", "strict, clean problems alone"]
    assert [row["Protocol"] for row in ours] == protocols
    assert [row["MMStar"][:4] for row in ours] == ["60.0", "65.0", "55.0"] and ours[0]["ChartQA"] == ""


def test_table_4_sets_ours_beside_the_method_of_that_name(problems):
    models = [model_of("CI", problems, [1, 0] * 5, lengths=2), model_of("mine", problems, [1] * 10)]
    rows = {row.cells[0].text: [cell.text for cell in row.cells[1:]] for row in table_4(models).rows}
    assert rows["Vision-R1-CI"][:5] == ["✓", "–", "–", "3566", "44.5"]
    assert rows["Vision-R1-CI"][5:7] == ["CI", "30"] and rows["Vision-R1-CI"][7].startswith("50.0 (")
    assert rows["Vision-R1-CI"][8] == "shapeworld (10)" and rows["Vision-R1-Zero"][5:] == [""] * 4
    assert rows["–"][5] == "mine"
    blind = table_4([model_of("CI", problems, [1] * 10, control="blank_pictures")])
    assert [row.cells[6].text for row in blind.rows] == [""] * 5


def test_table_2_counts_our_cold_rows_beside_the_papers(tmp_path, problems):
    texts = ["Wait, I await it. Hmm.", "wait"]
    rows = [
        ColdRow(**problem.model_dump(), pseudo_cot="", description="", reasoning="", response=text, calls=[])
        for problem, text in zip(problems, texts)
    ]
    write_jsonl(tmp_path / "cold.jsonl", [row.model_copy(update={"images": []}) for row in rows])
    table = table_2({"ours": stats(tmp_path / "cold.jsonl")})
    wait = dict(zip([column.name for column in table.columns], [cell.text for cell in table.rows[0].cells]))
    assert wait["Vision-R1-cold 200K"] == "585,719" and wait["Vision-R1-cold 200K, per 1,000"] == "2,928.6"
    assert (wait["ours"], wait["ours, in words"], wait["ours, per 1,000"]) == ("2", "3", "1,000.0")


def test_the_best_cells_are_printed_as_in_the_paper():
    markdown = to_markdown(table_1())
    assert "| **80.3** | **79.0** |" in markdown and "| <ins>78.8</ins><sup>8</sup> |" in markdown
    assert "\\textbf" not in to_csv(table_1())


def test_the_groups_that_the_tables_read_are_those_that_benchmarks_count_by():
    meta = dict.fromkeys((*mathvista.SCORED_BY, "version", "subject", "subfield", "question_type"), "x")
    problem = Problem(
        id="p", images=[], question="?", answer="1", source="s", split="t", meta={**meta, "skills": ["x"]}
    )
    assert {"skills", "task"} <= mathvista.groups(problem).keys() and "version" in mathverse.groups(problem)
