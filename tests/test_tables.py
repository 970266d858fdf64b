import json

import pytest
from synthetic_runs import model_of, synthetic_problems

from vr1lib.analysis import tables


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    return synthetic_problems(tmp_path_factory.mktemp("problems"), 40)


def test_summary_keeps_the_given_order_and_the_contracts_keys(problems):
    models = [model_of("CI", problems, [1, 0] * 20, lengths=4), model_of("base", problems, [1] * 40)]
    rows = tables.summary(models)
    assert [row["model"] for row in rows] == ["CI", "base"]
    assert list(rows[0]) == ["model", "accuracy", "low", "high", "mean_length", "n"]
    assert (rows[0]["accuracy"], rows[0]["mean_length"], rows[0]["n"]) == (0.5, 60, 40)
    assert rows[0]["low"] < 0.5 < rows[0]["high"]
    assert json.loads(json.dumps(rows)) == rows
    assert "50.0 %" in tables.summary_text(rows)


def test_summary_of_several_samples_has_pass_and_majority(problems):
    several = {"samples": 2, "pass_at_k": {"1": 0.5, "2": 0.75}, "majority_at_k": {"1": 0.5, "2": 0.6}}
    rows = tables.summary([model_of("a", problems, [[1, 0]] * 40, **several), model_of("b", problems, [1] * 40)])
    assert list(rows[0]) == list(rows[1])
    assert (rows[0]["samples"], rows[0]["pass_at_2"], rows[0]["majority_at_2"], rows[0]["n"]) == (2, 0.75, 0.6, 40)
    assert (rows[1]["samples"], rows[1]["pass_at_2"]) == (1, None)
    head, first, second = tables.summary_text(rows).splitlines()
    assert head.endswith("pass@2  majority@2") and first.endswith("75.0 %      60.0 %") and second.endswith("–")


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


def test_the_papers_tables_are_as_printed():
    assert [row["avg"] for row in tables.paper_rows("paper_table1") if row["model"] == "Vision-R1-7B (Ours)"] == [
        "55.4"
    ]
    assert tables.paper_rows("paper_table2")[0]["vision_r1_cold_200k"] == "585719"
    assert len(tables.paper_rows("paper_table3")) == 4
    assert tables.paper_series("A")["Accuracy (%)"] == [("0-4K", 41), ("4K-8K", 28), ("8K+", 7)]
    assert len(tables.paper_series("D")["Vision-R1-Long"]) == 13
