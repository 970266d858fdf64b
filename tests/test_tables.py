import csv
import json

import pytest
from synthetic_runs import completion_of, synthetic_problems, write_benchmark_run, write_training_run

from vr1lib.analysis import comparisons, runs, tables
from vr1lib.analysis.runs import ScoredModel
from vr1lib.records import RequestError


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    return synthetic_problems(tmp_path_factory.mktemp("problems"), 40)


def model_of(label, problems, right, lengths=1, benchmark=lambda index: "shapeworld", **row):
    """A model that answers problem i rightly iff right[i], in `lengths` (or lengths[i]) passes of 15 tokens."""
    copies = {}
    graded = []
    for index, (problem, is_right) in enumerate(zip(problems, right)):
        meta = {**problem.meta, "benchmark": benchmark(index)}
        copies[problem.id] = problem.model_copy(update={"meta": meta})
        passes = lengths if isinstance(lengths, int) else lengths[index]
        graded.append(completion_of(problem, is_right, passes))
    names = sorted({problem.meta["benchmark"] for problem in copies.values()})
    sampling = {"temperature": 0.0, "max_completion_tokens": 128}
    rows = [{"benchmark": name, "sampling": sampling, "image_spec": "a", "prompt_spec": "b", **row} for name in names]
    return ScoredModel(label, f"runs/{label}", {"benchmarks": rows}, copies, graded)


def test_summary_keeps_the_given_order_and_the_contracts_keys(problems):
    models = [model_of("CI", problems, [1, 0] * 20, lengths=4), model_of("base", problems, [1] * 40)]
    rows = tables.summary(models)
    assert [row["model"] for row in rows] == ["CI", "base"]
    assert list(rows[0]) == ["model", "accuracy", "low", "high", "mean_length", "n"]
    assert (rows[0]["accuracy"], rows[0]["mean_length"], rows[0]["n"]) == (0.5, 60, 40)
    assert rows[0]["low"] < 0.5 < rows[0]["high"]
    assert json.loads(json.dumps(rows)) == rows
    assert "50.0 %" in tables.summary_text(rows)


def test_accuracy_over_benchmarks_is_their_plain_mean(problems):
    # 4 of 10 on one and 30 of 30 on the other: .7, not 34/40
    model = model_of(
        "x", problems, [1] * 4 + [0] * 6 + [1] * 30, [2] * 10 + [4] * 30, lambda i: "wemath" if i < 10 else "mathvision"
    )
    assert model.accuracy.mean == pytest.approx(0.7)
    assert model.mean_length == (30 + 60) / 2


def test_labels_mean_the_papers_models():
    assert tables.paper_value("CI") == (3566, 44.5)
    assert tables.paper_value("Vision-R1-CI") == (3566, 44.5)
    assert tables.paper_value("Vision-R1") == (2057, 55.4)
    assert tables.paper_value("base") == (None, 49.6)
    assert tables.paper_value("something else") == (None, None)


def test_table_4_sets_ours_beside_the_paper(problems):
    rows = tables.table_4([model_of("CI", problems, [1, 0] * 20, lengths=2), model_of("mine", problems, [1] * 40)])
    by_method = {row["method"]: row for row in rows}
    assert list(by_method) == [
        "Qwen2.5-VL-7B",
        "Vision-R1-Zero",
        "Vision-R1-CI",
        "Vision-R1-Long",
        "Vision-R1 (Ours)",
        "–",
    ]
    row = by_method["Vision-R1-CI"]
    assert (row["cold_start"], row["grpo"], row["ptst"]) == ("✓", "–", "–")
    assert (row["paper_length_tokens"], row["paper_accuracy_percent"]) == (3566, 44.5)
    assert (row["our_run"], row["our_length_tokens"], row["our_accuracy_percent"], row["n"]) == ("CI", 30, 50, 40)
    assert by_method["Vision-R1-Zero"]["our_run"] is None
    assert by_method["–"]["our_run"] == "mine" and by_method["–"]["paper_accuracy_percent"] is None


def test_a_comparison_pairs_the_same_problems(problems):
    first = model_of("CI", problems, [1] * 10 + [0] * 30, lengths=4)
    second = model_of("Vision-R1", problems[5:], [0] * 5 + [1] * 30, lengths=2)
    pair = comparisons.compare(first, second)
    assert pair.accuracy.n == 35 and pair.only_in_one == 5
    assert pair.accuracy.mean == pytest.approx((30 - 5) / 35)
    assert (pair.test.only_first, pair.test.only_second) == (5, 30)
    assert pair.length.mean == -30 and pair.unlike == []


def test_models_without_a_common_problem_are_not_compared(problems):
    assert comparisons.compare(model_of("a", problems[:5], [1] * 5), model_of("b", problems[5:9], [1] * 4)) is None


def test_unlike_protocols_are_named(problems):
    pair = comparisons.compare(
        model_of("a", problems, [1] * 40), model_of("b", problems, [1] * 40, image_spec="other", prompt_spec="b")
    )
    assert pair.unlike == ["shapeworld: image_spec"]
    assert comparisons.comparison_rows([pair])[0]["unlike"] == "shapeworld: image_spec"


def test_runs_are_read_from_their_folders(tmp_path, problems):
    folder = write_benchmark_run(tmp_path / "run", "CI", problems, right=0.5, passes=4)
    model = runs.load_scored_model("CI", folder)
    assert len(model.graded) == 40 and list(model.by_benchmark) == ["shapeworld"]
    groups = tables.group_scores([model])
    assert groups[0]["by"] == "all" and groups[0]["n"] == 40
    assert sum(row["n"] for row in groups if row["by"] == "family") == 40


def test_what_is_missing_or_mixed_up_is_named(tmp_path, problems):
    with pytest.raises(RequestError, match="scores.json: cannot be read .* finished 40_benchmark run"):
        runs.load_scored_model("CI", tmp_path)
    folder = write_benchmark_run(tmp_path / "run", "CI", problems, right=0.5, passes=4)
    lines = (folder / "problems.jsonl").read_text().splitlines()
    (folder / "problems.jsonl").write_text("\n".join(lines[1:]))
    with pytest.raises(RequestError, match=r"completions.jsonl, completion 1: problem_id .* is not in problems.jsonl"):
        runs.load_scored_model("CI", folder)
    with pytest.raises(RequestError, match="metrics.jsonl: cannot be read"):
        runs.load_training_run("PTST", tmp_path)


def test_training_series_leave_out_steps_without_a_value(tmp_path):
    folder = write_training_run(tmp_path / "run", [[64, 16, 6], [128, 8, 4]])
    run = runs.load_training_run("PTST", folder)
    steps, values = run.series("eval/accuracy")
    assert steps == [0, 5, 10] and values == pytest.approx([0.32, 0.57, 0.82])
    assert run.series("kl") == ([], [])
    assert run.spans == [(0, 1, 6), (1, 7, 10)]
    assert run.stage_name(0) == "stage 1: 64 tokens × 16" and run.stage_name(2) == "stage 3"


def test_a_step_written_twice_keeps_the_later_values(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2, "loss": 1}\n{"step": 1, "loss": 3, "kl": 5}\n{"step": 1, "loss": 4}\n')
    assert runs.read_metrics(path) == [{"step": 1, "loss": 4, "kl": 5}, {"step": 2, "loss": 1}]
    path.write_text("[1]\n")
    with pytest.raises(RequestError, match="metrics.jsonl, line 1"):
        runs.read_metrics(path)


def test_finished_runs_go_by_label_and_by_folder_where_labels_collide(tmp_path, problems):
    for name, label in (("one", "CI"), ("two", "CI"), ("three", "base"), ("three~1", "base")):
        write_benchmark_run(tmp_path / name, label, problems[:2], right=1, passes=1)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/manifest.json").write_text('{"status": "failed"}')
    assert set(runs.finished_runs(tmp_path)) == {"one", "two", "base"}
    assert runs.finished_runs(tmp_path / "nowhere") == {}


def test_the_papers_tables_are_as_printed():
    assert [row["avg"] for row in tables.paper_rows("paper_table1") if row["model"] == "Vision-R1-7B (Ours)"] == [
        "55.4"
    ]
    assert tables.paper_rows("paper_table2")[0]["vision_r1_cold_200k"] == "585719"
    assert len(tables.paper_rows("paper_table3")) == 4
    assert tables.paper_series("A")["Accuracy (%)"] == [("0-4K", 41), ("4K-8K", 28), ("8K+", 7)]
    assert len(tables.paper_series("D")["Vision-R1-Long"]) == 13


def test_csv_has_empty_cells_for_what_is_not_known(tmp_path, problems):
    path = tables.write_csv(tmp_path / "tables/table_4.csv", tables.table_4([model_of("CI", problems, [1] * 40)]))
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert rows[1]["our_run"] == "" and rows[2]["our_accuracy_percent"] == "100.0"
