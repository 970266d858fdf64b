import re
from dataclasses import replace

import pytest
from synthetic_runs import synthetic_problems, write_benchmark_run, write_training_run
from test_browser import Scripts, data_of

from vr1lib.analysis import figures
from vr1lib.analysis.browser import pick
from vr1lib.analysis.comparisons import compare_all
from vr1lib.analysis.findings import findings
from vr1lib.analysis.formats import of_rows
from vr1lib.analysis.page import Picture, figure_html, html_table, thumbnail
from vr1lib.analysis.paper_tables import table_1, table_4
from vr1lib.analysis.report import examples_html, notes_html, write_report, write_run_report
from vr1lib.analysis.runs import load_scored_model, load_training_run
from vr1lib.analysis.side_by_side import control_rows, sample_rows, side_by_side
from vr1lib.analysis.tables import summary
from vr1lib.records import Graded, RequestError, read_jsonl, write_jsonl

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
def models(runs):
    return [load_scored_model(label, runs / "40_benchmark" / label) for label in ("base", "CI", "Vision-R1")]


@pytest.fixture(scope="module")
def page(runs, models):
    training = load_training_run("PTST", runs / "30_ptst_grpo/demo")
    path = runs / "accuracy.png"
    figures.accuracy_bars(models).savefig(path)
    out = write_report(
        runs / "report.html",
        title="What happened",
        models=models,
        findings=findings(models, [training]),
        pictures=[Picture(path, "Accuracy & intervals")],
        tables=[table_4(models), table_1(models)],
        comparisons=compare_all(models),
        training_folders={"PTST": training.folder},
        board=(of_rows("Board", [{"arm": "PTST", "right": 80.0}]), [f"The board says {HOSTILE}."]),
        picked=[pick(model.label, model.graded, model.problems) for model in models],
        examples=40,
    )
    return out.read_text(encoding="utf-8")


def assert_self_contained(page, scripts=2):
    parsed = Scripts(page)
    assert len(parsed.scripts) == scripts
    assert parsed.sources and all(re.match("data:image/(png|jpeg);base64,", source) for source in parsed.sources)
    assert not re.search(r"@import|url\(", page) and not {"link", "iframe", "object"} & set(parsed.tags)
    assert '<meta name="viewport" content="width=device-width' in page


def test_the_report_needs_nothing_outside_itself(page):
    assert_self_contained(page)


def test_text_from_runs_is_escaped(page):
    assert HOSTILE not in page and page.count("&lt;script&gt;alert(1)") >= 3
    assert any(HOSTILE in row["text"] for row in data_of(page)["rows"])


def test_sections_come_in_the_order_of_interest(page):
    headings = re.findall("<h2>(.*?)</h2>", page)
    assert headings == [
        "What the paper saw, and what happened here",
        "Tables, ours beside the paper's",
        "Ablation",
        "Figures",
        "Model against model, on the same problems",
        "By group",
        "Some problems, and what each model said",
        "Completions",
        "How this was measured",
        "Where it comes from",
    ]
    assert '<p class="lead">Vision-R1 is above CI' in page


def test_the_numbers_of_the_report_are_the_summarys(page, models):
    for row in summary(models):
        assert f">{100 * row['accuracy']:,.1f}<" in page
        assert f"{100 * row['low']:.1f} – {100 * row['high']:.1f}" in page
    assert "3566" in page.replace(",", "") and "55.4" in page
    assert "CI 1.1 million parameters" in page and "a small rendered world" in page


def test_every_finding_stands_with_its_verdict(page):
    assert page.count('class="finding ') == 11
    verdicts = re.findall(r'<span class="chip">([^<]*)</span></p><p>Paper', page)
    assert len(verdicts) == 11 and verdicts.count("not tested") == 2  # neither Long nor Zero is among the runs


def test_unlike_pairs_are_named_in_the_report(tmp_path, models):
    pairs = compare_all(models[:2])
    pairs[0].unlike.append("shapeworld: sampling")
    said = dict(title="t", models=models, findings=[], pictures=[], tables=[], training_folders={}, examples=0)
    page = write_report(tmp_path / "report.html", comparisons=pairs, **said).read_text(encoding="utf-8")
    assert '<p class="warning">base and CI are not measured alike: shapeworld: sampling.</p>' in page


def test_examples_take_turns_among_the_patterns_of_who_is_right(models):
    cards = examples_html(models[:2], 2)
    assert len(cards) == 2
    shares = [int(re.search(r"(\d+) of 40 problems go this way", card).group(1)) for card in cards]
    assert shares[0] >= shares[1] and sum(shares) == 40


def test_examples_show_a_problems_first_answer(models):
    first = [row.model_copy(update={"sample": 0}) for row in read_jsonl(models[1].folder / "completions.jsonl", Graded)]
    second = [row.model_copy(update={"sample": 1, "tokens": 9999}) for row in first]
    model = replace(models[1], graded=[*first, *second])
    assert "9999" not in "".join(examples_html([model], 40)) and len(examples_html([model], 40)) == 40


def with_rows(model, **changes):
    """A model with another row of scores.json."""
    row = model.scores["benchmarks"][0]
    scores = model.scores | {key: [row | value] for key, value in changes.items()}
    return replace(model, scores=scores)


def test_both_protocols_stand_side_by_side(models):
    authors = {"protocol": "authors", "accuracy": 0.95, "low": 0.9, "high": 1.0, "tries": 5, "judge": {"model": "J"}}
    model = with_rows(models[1], authors=authors)
    what, table = side_by_side([model])["protocols"]
    assert "the format is there" in what and len(table.rows) == 1
    assert side_by_side(models) == {}
    assert "at most 5 tries, judge J" in notes_html([model])


def test_controls_stand_beside_the_score_of_the_same_model(models):
    blind = with_rows(models[1], benchmarks={"control": "blank_pictures", "accuracy": 0.1, "low": 0.0, "high": 0.2})
    (row,) = control_rows([models[1], blind])
    assert (row["model"], row["control"], row["under the control, %"]) == ("CI", "blank pictures", 10.0)
    assert row["as asked, %"] == round(100 * models[1].scores["benchmarks"][0]["accuracy"], 1)
    assert control_rows([blind])[0]["as asked, %"] is None


def test_a_control_is_no_model_of_the_headline(tmp_path, models):
    blind = replace(with_rows(models[2], benchmarks={"control": "blank_pictures"}), label="blind")
    parts = dict(findings=[], pictures=[], tables=[], comparisons=[], training_folders={}, examples=3)
    page = write_report(tmp_path / "report.html", title="t", models=[*models, blind], **parts).read_text(
        encoding="utf-8"
    )
    assert '<p class="lead">Vision-R1 is above CI' in page and "<strong>blind</strong>" not in page
    assert "blank pictures" in page


def test_notes_stand_folded_below_a_figure(runs, page):
    shown = figure_html(Picture(runs / "accuracy.png", "Accuracy", (HOSTILE,)))
    assert "<details><summary>Notes on the paper's figure</summary><p>&lt;script&gt;" in shown and HOSTILE not in shown


def test_samples_give_pass_and_majority(models):
    several = {"samples": 2, "pass_at_k": {"1": 0.5, "2": 0.7}, "majority_at_k": {"1": 0.5, "2": 0.55}}
    rows = sample_rows([with_rows(models[1], benchmarks=several)])
    assert [(row["k"], row["pass@k, %"], row["majority@k, %"]) for row in rows] == [(1, 50.0, 50.0), (2, 70.0, 55.0)]


def test_a_report_without_runs_shows_the_paper_alone(tmp_path):
    out = write_report(
        tmp_path / "report.html",
        title="t",
        models=[],
        findings=findings([], []),
        pictures=[],
        tables=[table_4()],
        comparisons=[],
        training_folders={},
    )
    page = out.read_text(encoding="utf-8")
    assert "No run of ours is in this report" in page and "2057" in page.replace(",", "") and "not tested" in page


def test_any_run_folders_make_one_page(runs, tmp_path):
    folders = [runs / "30_ptst_grpo/demo", runs / "40_benchmark/CI"]
    page = write_run_report(folders, tmp_path / "runs.html").read_text(encoding="utf-8")
    assert_self_contained(page)
    assert "30_ptst_grpo · demo" in page and "40_benchmark · CI" in page
    assert "metrics over steps" in page  # curves of the training
    assert "stages: [[64, 16, 20], [128, 8, 10]]" in page  # parameters
    assert "outputs/10_data_building/demo/test.jsonl" in page and "cccccccccccc" in page  # lineage
    assert "40 completions, " in page and len(data_of(page)["rows"]) == 40


def test_a_run_without_completions_has_no_browser(runs, tmp_path):
    page = write_run_report([runs / "30_ptst_grpo/demo"], tmp_path / "runs.html").read_text(encoding="utf-8")
    assert_self_contained(page, scripts=0)
    write_jsonl(tmp_path / "completions.jsonl", [])
    (tmp_path / "manifest.json").write_text('{"stem": "30_ptst_grpo", "run": "empty"}')
    assert "<p>None.</p>" in write_run_report([tmp_path], tmp_path / "runs.html").read_text(encoding="utf-8")


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
