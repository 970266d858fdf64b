"""A predictions file that does not fit its benchmark: named, counted, and refused where that is asked."""

import json

import pytest

from vr1lib.benchmarks import scoring
from vr1lib.benchmarks.predictions import match, read_predictions
from vr1lib.records import Problem, RequestError

PROBLEMS = [
    Problem(id=f"bench-{name}", images=[], question="?", answer="1", source="bench", split="test", meta={"id": name})
    for name in ("1", "2", "3")
]


@pytest.fixture
def chartqa(tmp_path):
    rows = [{"imgname": "a.png", "query": f"Question {number}?", "label": "14"} for number in range(3)]
    (tmp_path / "test_human.json").write_text(json.dumps(rows))
    return tmp_path


def written(folder, *rows):
    path = folder / "predictions.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_missing_second_and_unknown_predictions_are_named_and_counted(tmp_path):
    rows = [("1", "first"), ("1", "second"), ("x", "?"), ("2", "b"), ("x", "again")]
    path = written(tmp_path, *({"id": name, "response": text} for name, text in rows))
    matched = match(PROBLEMS, read_predictions(path))
    assert [p and p.response for p in matched.predictions] == ["first", "b", None]
    assert matched.counts() == {
        "rows": 5,
        "scored": 2,
        "missing": {"count": 1, "ids": ["3"]},
        "duplicate": {"count": 1, "ids": ["1"]},
        "unknown": {"count": 2, "ids": ["x", "x"]},
    }


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["1", "2"], r"1 problems without a prediction \(wrong\): 3;"),
        (["1", "2", "3", "3"], r"1 second predictions \(not scored\): 3;"),
        (["1", "2", "3", "4"], r"1 predictions for no problem \(not scored\): 4;"),
    ],
)
def test_strict_refuses_each(tmp_path, names, said):
    rows = read_predictions(written(tmp_path, *({"id": name, "response": ""} for name in names)))
    match(PROBLEMS, rows)
    with pytest.raises(RequestError, match=said):
        match(PROBLEMS, rows, strict=True)


def test_a_whole_file_passes_strict_under_the_datas_ids_or_ours(tmp_path):
    for names in (["3", "1", "2"], ["bench-1", "bench-2", "bench-3"], [1, 2, 3]):
        rows = read_predictions(written(tmp_path, *({"id": name, "response": "x"} for name in names), " "))
        assert match(PROBLEMS, rows, strict=True).missing == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 1: not JSON"),
        ("[1]", "line 1: not an object"),
        ('{"response": "x"}', "line 1: field 'id' = None"),
        ('{"id": true, "response": "x"}', "field 'id' = True"),
        ('{"id": "1"}', "field 'response' is missing"),
        ('{"id": "1", "response": 3}', "field 'response' = 3"),
        ('{"id": "1", "response": "x", "variant": "first"}', "field 'variant' = 'first'"),
    ],
)
def test_a_line_that_is_no_prediction_is_an_error_with_its_number(tmp_path, line, said):
    with pytest.raises(RequestError, match=said):
        read_predictions(written(tmp_path, line))


def test_an_extraction_of_null_is_one_and_an_empty_response_is_a_wrong_answer(tmp_path):
    path = written(tmp_path, {"id": "1", "extraction": None}, {"id": "2", "response": None})
    assert [(row[2].given, row[2].response) for row in read_predictions(path)] == [(True, ""), (False, "")]


def test_the_command_prints_what_does_not_fit_and_writes_everything(chartqa, capsys):
    path = written(chartqa, {"id": "human-0", "response": "14.5"}, {"id": "human-9", "response": "14"})
    out = chartqa / "scores.json"
    assert scoring.score_command("chartqa", str(path), str(chartqa), str(out)) == 0
    printed = capsys.readouterr()
    assert "2 problems without a prediction (wrong): human-1, human-2" in printed.err
    assert "1 predictions for no problem (not scored): human-9" in printed.err
    assert "overall   33.33 %  1 of 3" in printed.out
    scores = json.loads(out.read_text())
    assert (scores["protocol"], scores["n"], scores["predictions"]["missing"]["count"]) == ("official", 3, 2)
    with pytest.raises(RequestError, match="human-9"):
        scoring.score_command("chartqa", str(path), str(chartqa), strict=True)


def test_json_and_intervals_on_wish(chartqa, capsys):
    class Interval:
        low, high = 0.25, 0.75

    path = written(chartqa, *({"id": f"human-{number}", "response": "14"} for number in range(3)))
    scoring.score_command("chartqa", str(path), str(chartqa), as_json=True, interval=lambda values: Interval)
    scores = json.loads(capsys.readouterr().out)
    assert scores["overall"] == {"accuracy": 1.0, "correct": 3, "total": 3, "low": 0.25, "high": 0.75}


@pytest.mark.parametrize(
    ("benchmark", "data", "protocol", "said"),
    [
        ("chess", ".", "official", "benchmark 'chess' is unknown; known are mathvista, mathverse"),
        ("chartqa", "nowhere", "official", "no such file or folder; give one, or the hub's id 'HuggingFaceM4/ChartQA'"),
        ("mme", ".", "official", r"holds none of"),
        ("chartqa", ".", "lenient", "protocol = 'lenient': unknown; give one of official, strict, authors"),
    ],
)
def test_wrong_requests_are_named(chartqa, benchmark, data, protocol, said):
    path = written(chartqa, {"id": "human-0", "response": "14"})
    with pytest.raises(RequestError, match=said):
        scoring.score(benchmark, path, chartqa / data, protocol=protocol)


ROWS = {"1": {"response": "a"}, "2": {"response": "b", "extraction": [1]}, "3": {"response": "", "note": {"deep": [1]}}}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("output.json", json.dumps(ROWS, indent=2)),
        ("output.json", json.dumps([{"id": name, **row} for name, row in ROWS.items()])),
        ("output.json", "\n".join(json.dumps({"id": name, **row}) for name, row in ROWS.items())),
        ("output.jsonl", "\n".join(json.dumps({"pid": name, **row}) for name, row in ROWS.items())),
        ("output.jsonl", "\ufeff" + "\r\n".join(json.dumps({"id": int(name), **row}) for name, row in ROWS.items())),
        ("output.jsonl", "\n\n".join(json.dumps({"sample_index": f" {name} ", **row}) for name, row in ROWS.items())),
    ],
)
def test_published_forms_are_the_same_predictions(tmp_path, name, content):
    (tmp_path / name).write_bytes(content.encode())
    rows = read_predictions(tmp_path / name)
    assert [(row[0], row[2].response, row[2].extraction, row[2].given) for row in rows] == [
        ("1", "a", None, False),
        ("2", "b", [1], True),
        ("3", "", None, False),
    ]
    assert match(PROBLEMS, rows, strict=True).rows == 3


def test_an_id_that_is_twice_a_key_of_one_object_is_a_second_prediction(tmp_path):
    path = tmp_path / "output.json"
    path.write_text('{"1": {"response": "first"}, "1": {"response": "second"}}')
    matched = match(PROBLEMS, read_predictions(path))
    assert matched.predictions[0].response == "first" and matched.duplicate == ["1"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("3", "holds no rows; give rows one a line, a list of them, or rows by id"),
        ('{"id":', "not JSON"),
        ("[3]", "row 1: not an object"),
        ('{"1": {"text": "x"}}', "row '1': field 'response' is missing"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_json_file_without_predictions_is_an_error_that_says_so(tmp_path, content, said):
    (tmp_path / "output.json").write_text(content)
    with pytest.raises(RequestError, match=said):
        read_predictions(tmp_path / "output.json")


def test_what_is_no_number_is_an_extraction_like_any_other(tmp_path):
    rows = read_predictions(written(tmp_path, '{"id": "1", "response": "x", "extraction": NaN}'))
    assert rows[0][2].given and rows[0][2].extraction != rows[0][2].extraction
