import re

import pytest
from synthetic_runs import synthetic_problems, write_benchmark_run, write_training_run

from vr1lib.analysis import figures, tables
from vr1lib.analysis.comparisons import compare_all
from vr1lib.analysis.findings import findings
from vr1lib.analysis.page import Picture, html_table, thumbnail
from vr1lib.analysis.report import examples_html, write_report, write_run_report
from vr1lib.analysis.runs import load_scored_model, load_training_run
from vr1lib.records import RequestError

HOSTILE = "<script>alert(1)</script><img src=http://evil.example/x.png>"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("outputs")
    problems = synthetic_problems(root / "problems", 40)
    problems[0].question = f"How many? {HOSTILE}"
    for label, right, passes, overthinks in (("base", 1, 1, False), ("CI", 0.4, 6, True), ("Vision-R1", 0.9, 2, False)):
        folder = root / "40_benchmark" / label
        write_benchmark_run(folder, label, problems, right=right, passes=passes, overthinks=overthinks)
        said = (folder / "completions.jsonl").read_text()
        (folder / "completions.jsonl").write_text(said.replace("There are some.", f"There are {HOSTILE}"))
    write_training_run(root / "30_ptst_grpo" / "demo", [[64, 16, 20], [128, 8, 10]])
    return root


@pytest.fixture(scope="module")
def report(runs):
    models = [load_scored_model(label, runs / "40_benchmark" / label) for label in ("base", "CI", "Vision-R1")]
    training = load_training_run("PTST", runs / "30_ptst_grpo/demo")
    path = runs / "accuracy.png"
    figures.accuracy_bars(models).savefig(path)
    out = write_report(
        runs / "report.html",
        title="What happened",
        models=models,
        findings=findings(models, [training]),
        pictures=[Picture(path, "Accuracy & intervals")],
        comparisons=compare_all(models),
        training_folders={"PTST": training.folder},
        examples=40,
    )
    return out.read_text(encoding="utf-8"), models


def assert_self_contained(page):
    assert "<script" not in page
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sources and all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r'(?:src|href)="?http|@import|url\(', page.replace("&lt;img src=http", ""))


def test_the_report_needs_nothing_outside_itself(report):
    assert_self_contained(report[0])


def test_text_from_runs_is_escaped(report):
    assert HOSTILE not in report[0] and "&lt;script&gt;alert(1)" in report[0]


def test_the_numbers_of_the_report_are_the_summarys(report):
    page, models = report
    for row in tables.summary(models):
        assert f">{100 * row['accuracy']:,.1f}<" in page
        assert f"{100 * row['low']:.1f} – {100 * row['high']:.1f}" in page
    assert "3,566" in page and "55.4" in page and "n = 40" in page
    assert "1.1 million parameters" in page and "a small rendered world" in page


def test_every_finding_stands_with_its_verdict(report):
    page, _ = report
    assert page.count('class="finding ') == 8
    assert page.count("as in the paper</span>") + page.count("undecided</span>") + page.count("opposite") >= 8


def test_examples_take_turns_among_the_patterns_of_who_is_right(runs):
    models = [load_scored_model(label, runs / "40_benchmark" / label) for label in ("base", "CI")]
    cards = examples_html(models, 2)
    assert len(cards) == 2
    shares = [int(re.search(r"(\d+) of 40 problems go this way", card).group(1)) for card in cards]
    assert shares[0] >= shares[1] and sum(shares) == 40


def test_a_report_without_runs_shows_the_paper_alone(tmp_path):
    out = write_report(
        tmp_path / "report.html",
        title="t",
        models=[],
        findings=findings([], []),
        pictures=[],
        comparisons=[],
        training_folders={},
    )
    page = out.read_text(encoding="utf-8")
    assert "No run of ours is in this report" in page and "2,057" in page and "not tested" in page


def test_any_run_folders_make_one_page(runs, tmp_path):
    folders = [runs / "30_ptst_grpo/demo", runs / "40_benchmark/CI"]
    page = write_run_report(folders, tmp_path / "runs.html").read_text(encoding="utf-8")
    assert_self_contained(page)
    assert "30_ptst_grpo · demo" in page and "40_benchmark · CI" in page
    assert "metrics over steps" in page  # curves of the training
    assert "stages: [[64, 16, 20], [128, 8, 10]]" in page  # parameters
    assert "outputs/10_data_building/demo/test.jsonl" in page and "cccccccccccc" in page  # lineage
    assert page.count('class="example"') == 8 and "40 completions" in page


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(RequestError, match="manifest.json: cannot be read .* give a run folder"):
        write_run_report([tmp_path], tmp_path / "runs.html")
    with pytest.raises(RequestError, match="no run folder is given"):
        write_run_report([], tmp_path / "runs.html")


def test_wide_tables_scroll_by_themselves_and_escape_their_cells():
    table = html_table([{"a_b": "<b>", "x": 1234.5, "p": 0.00012, "none": None}])
    assert table.startswith('<div class="scroll">') and "<th>a b</th>" in table
    assert "&lt;b&gt;" in table and "1,234.5" in table and "0.00012" in table and "<td></td>" in table


def test_thumbnails_are_bounded(tmp_path):
    from PIL import Image

    Image.effect_noise((2000, 500), 90).save(tmp_path / "large.png")
    assert len(thumbnail(tmp_path / "large.png")) < 60_000
