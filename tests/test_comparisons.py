import json

import pytest
from synthetic_runs import model_of, synthetic_problems, write_benchmark_run

from vr1lib.analysis import comparisons
from vr1lib.analysis.formats import to_csv
from vr1lib.analysis.runs import load_scored_model
from vr1lib.records import RequestError


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    return synthetic_problems(tmp_path_factory.mktemp("problems"), 40)


def test_a_comparison_pairs_the_same_problems(problems):
    first = model_of("CI", problems, [1] * 10 + [0] * 30, lengths=4)
    second = model_of("Vision-R1", problems[5:], [0] * 5 + [1] * 30, lengths=2)
    pair = comparisons.compare(first, second)
    assert pair.accuracy.n == 35 and pair.only_in_one == 5
    assert pair.accuracy.mean == pytest.approx((30 - 5) / 35)
    assert (pair.test.only_first, pair.test.only_second) == (5, 30)
    assert pair.length.mean == -30
    assert pair.unlike == ["shapeworld: number of problems (40, 35)"]


def test_models_without_a_common_problem_are_not_compared(problems):
    assert comparisons.compare(model_of("a", problems[:5], [1] * 5), model_of("b", problems[5:9], [1] * 4)) is None


def test_unlike_protocols_are_named(problems):
    pair = comparisons.compare(
        model_of("a", problems, [1] * 40), model_of("b", problems, [1] * 40, image_spec="other", prompt_spec="b")
    )
    assert pair.unlike == ["shapeworld: image specification"]
    assert comparisons.comparison_rows([pair])[0]["unlike"] == "shapeworld: image specification"
    (warning,) = comparisons.unlike_warnings([pair])
    assert warning == "a and b are not measured alike: shapeworld: image specification"
    assert (
        comparisons.unlike_warnings([comparisons.compare(model_of("a", problems, [1]), model_of("b", problems, [1]))])
        == []
    )


def test_several_samples_are_paired_on_their_mean_and_tested_on_the_first(problems):
    first = model_of("a", problems, [[0, 0, 1, 1]] * 40)
    second = model_of("b", problems, [[0, 1, 1, 1]] * 20 + [[1, 1, 1, 1]] * 20)
    pair = comparisons.compare(first, second)
    assert pair.accuracy.mean == pytest.approx((20 * 0.25 + 20 * 0.5) / 40) and pair.accuracy.n == 40
    assert (pair.test.only_first, pair.test.only_second) == (0, 20)


def test_benchmarks_count_alike_and_those_of_one_model_only_do_not_count(problems):
    of = lambda index: "wemath" if index < 10 else "mathvision"  # noqa: E731
    first = model_of("a", problems, [0] * 40, benchmark=of)
    second = model_of("b", problems, [1] * 10 + [0] * 30, benchmark=of)
    assert comparisons.compare(first, second).accuracy.mean == pytest.approx(0.5)  # 1 and 0, not 10 of 40
    third = model_of("c", problems[:10], [1] * 10, benchmark=of)
    pair = comparisons.compare(first, third)
    assert pair.accuracy.mean == 1 and pair.accuracy.n == 10 and pair.only_in_one == 30


@pytest.fixture
def two_protocols(tmp_path, problems):
    """A run with 10 problems more right under the authors' protocol than under the strict one."""
    folder = write_benchmark_run(tmp_path / "run", "CI", problems, right=0.0, passes=1)
    scores = json.loads((folder / "scores.json").read_text())
    authors = {**scores["benchmarks"][0], "protocol": "authors", "accuracy": 0.25, "low": 0.125, "high": 0.4}
    authors |= {"tries": 5, "later_tries_kept": 7, "judge": {"model": "some-judge", "calls": 3}}
    scores["authors"] = [authors]
    (folder / "scores.json").write_text(json.dumps(scores))
    rows = [{"problem_id": problem.id, "right": place < 10} for place, problem in enumerate(problems)]
    (folder / "verdicts_authors.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_protocols_stand_side_by_side_with_their_difference(two_protocols):
    table = comparisons.protocol_table([load_scored_model("CI", two_protocols)])
    (row,) = table.rows
    texts = dict(zip([column.name for column in table.columns], [cell.text for cell in row.cells]))
    assert texts["Strict"].startswith("0.0 (0.0–") and texts["Authors'"] == "25.0 (12.5–40.0)"
    assert texts["Difference"].startswith("+25.0 (+1")
    assert (texts["Tries at most"], texts["Later tries kept"]) == ("5", "7")
    assert (texts["Judge"], texts["Judge's calls"]) == ("judge some-judge", "3")
    assert "Difference (points)" in to_csv(table)


def test_without_saved_verdicts_the_difference_has_no_interval(two_protocols):
    (two_protocols / "verdicts_authors.jsonl").unlink()
    table = comparisons.protocol_table([load_scored_model("CI", two_protocols)])
    assert table.rows[0].cells[5].text == "+25.0"


def test_a_broken_verdict_is_named(two_protocols):
    (two_protocols / "verdicts_authors.jsonl").write_text('{"problem_id": "x", "right": true}\n{"problem\n')
    with pytest.raises(RequestError, match="verdicts_authors.jsonl, line 2: no verdict"):
        comparisons.protocol_table([load_scored_model("CI", two_protocols)])


def test_a_run_of_one_protocol_has_no_row(problems):
    assert comparisons.protocol_table([model_of("a", problems, [1] * 40)]).rows == []
