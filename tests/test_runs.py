import json

import pytest
from synthetic_runs import model_of, synthetic_problems, write_benchmark_run, write_training_run

from vr1lib.analysis import runs
from vr1lib.analysis.statistics import REFLECTION_WORDS, count_words
from vr1lib.analysis.tables import group_scores
from vr1lib.records import Graded, RequestError, read_jsonl, write_jsonl


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    return synthetic_problems(tmp_path_factory.mktemp("problems"), 40)


def test_runs_are_read_from_their_folders(tmp_path, problems):
    folder = write_benchmark_run(tmp_path / "run", "CI", problems, right=0.5, passes=4)
    model = runs.load_scored_model("CI", folder)
    assert len(model.graded) == 40 and list(model.by_benchmark) == ["shapeworld"]
    groups = group_scores([model])
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


def test_a_sweeps_points_are_not_taken_for_runs(tmp_path, problems):
    for name in ("mine", "points-lr1", "points-lr2"):
        write_benchmark_run(tmp_path / "outputs/40_benchmark" / name, name, problems[:2], right=1, passes=1)
    sweep = tmp_path / "outputs/sweeps/points/points.jsonl"
    sweep.parent.mkdir(parents=True)
    rows = [{"name": name, "run": f"outputs/40_benchmark/{name}"} for name in ("points-lr1", "points-lr2")]
    sweep.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert set(runs.finished_runs(tmp_path / "outputs/40_benchmark")) == {"mine"}


def test_texts_are_read_from_the_file_when_asked_for(tmp_path, problems):
    folder = write_benchmark_run(tmp_path / "run", "CI", problems, right=0.5, passes=4)
    file = folder / "completions.jsonl"
    rows = [row.model_copy(update={"text": f"Zürich ≤ {row.text}"}) for row in read_jsonl(file, Graded)]
    write_jsonl(file, rows)
    file.write_text("\n" + file.read_text(encoding="utf-8"), encoding="utf-8")  # a blank line moves every offset
    saved = runs.read_completions(file)
    assert [row.text for row in saved] == [row.text for row in rows]
    for name in Graded.model_fields:
        assert [getattr(row, name) for row in saved] == [getattr(row, name) for row in rows], name


def test_words_are_counted_for_each_completion(tmp_path, problems):
    model = runs.load_scored_model("CI", write_benchmark_run(tmp_path / "run", "CI", problems, right=0.5, passes=4))
    counts = model.word_counts
    assert counts.shape == (40, len(REFLECTION_WORDS)) and counts.sum() > 0
    for row, found in zip(model.graded, counts):
        assert dict(zip(REFLECTION_WORDS, found.tolist())) == count_words([row.text])


def test_several_samples_count_once_a_problem(problems):
    model = model_of("x", problems[:2], [[1, 0, 0, 0], [1, 1, 1, 0]])
    model.graded.reverse()
    assert model.samples == 4 and model.accuracy.mean == 0.5 and model.accuracy.n == 2
    (rows,) = (rows for rows in model.by_problem["shapeworld"].values() if rows[0].problem_id == problems[0].id)
    assert [row.sample for row in rows] == [0, 1, 2, 3] and runs.mean_reward(rows) == 0.25


def test_a_line_that_is_no_completion_is_named(tmp_path, problems):
    folder = write_benchmark_run(tmp_path / "run", "CI", problems, right=0.5, passes=4)
    lines = (folder / "completions.jsonl").read_text().splitlines()
    (folder / "completions.jsonl").write_text("\n".join([lines[0], lines[1].replace('"tokens"', '"token"')]))
    with pytest.raises(RequestError, match="completions.jsonl, line 2: .*tokens"):
        runs.load_scored_model("CI", folder)
    (folder / "completions.jsonl").unlink()
    with pytest.raises(RequestError, match="completions.jsonl: cannot be read"):
        runs.load_scored_model("CI", folder)
