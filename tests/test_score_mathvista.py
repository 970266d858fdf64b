"""MathVista's published rule, on rows in its published format."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vr1lib.benchmarks import mathvista, scoring
from vr1lib.records import RequestError

DETAILS = {
    "split": "testmini",
    "language": "english",
    "category": "general-vqa",
    "context": "table",
    "grade": "college",
}


def row(
    pid, answer, answer_type="text", choices=None, precision=None, task="figure question answering", skills=(), **more
):
    return {
        "pid": pid,
        "question": f"Question {pid}?",
        "image": f"images/{pid}.jpg",
        "choices": choices,
        "unit": None,
        "precision": precision,
        "answer": answer,
        "question_type": "multi_choice" if choices else "free_form",
        "answer_type": answer_type,
        "metadata": {**DETAILS, "source": "TabMWP", "task": task, "skills": list(skills)},
        **more,
    }


ROWS = [
    row(
        "1",
        "145°",
        choices=["135°", "140°", "145°", "150°"],
        task="geometry problem solving",
        skills=["geometry reasoning"],
    ),
    row("2", "4", "integer", skills=["arithmetic reasoning", "numeric commonsense"]),
    row("3", "1.2", "float", precision=1, task="math word problem", skills=["arithmetic reasoning"]),
    row("4", "[0, 2, 3]", "list", skills=["algebraic reasoning"]),
]


@pytest.fixture
def data(tmp_path):
    (tmp_path / "testmini.json").write_text(json.dumps({row["pid"]: row for row in ROWS}), encoding="utf-8")
    return tmp_path


@pytest.fixture
def by_id(data):
    return {problem.meta["id"]: problem for problem in mathvista.problems(data)}


def predictions(folder, answers, field="extraction"):
    path = folder / "predictions.jsonl"
    lines = [json.dumps({"id": name, "response": "", field: answer}) for name, answer in answers.items()]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("pid", "extraction", "normalised"),
    [
        ("1", "C", "145°"),
        ("1", " C ", "145°"),
        ("1", "(c) whatever, not (A)", "145°"),  # the first letter in brackets
        ("1", "c", "135°"),  # a bare small letter is no letter: the first of equally near choices
        ("1", "E", "135°"),  # beyond the choices
        ("1", "140", "140°"),
        ("1", None, "135°"),  # the text "None"
        ("1", 150, "150°"),
        ("1", ["145°"], "145°"),
        ("1", "", "135°"),
        ("2", "4.0", "4"),
        ("2", 4.9, "4"),
        ("2", "4 cm", None),
        ("2", None, None),
        ("2", True, "1"),
        ("2", "inf", None),
        ("2", "nan", None),
        ("2", 10**400, None),
        ("2", [], None),
        ("2", "1e3", "1000"),
        ("3", "1.24", "1.2"),
        ("3", "1.25", "1.2"),  # half to even, of the binary 1.25
        ("3", "2", "2.0"),
        ("3", "", None),
        ("4", [0, 2, 3], "[0, 2, 3]"),
        ("4", "[0,2,3]", "[0,2,3]"),
    ],
)
def test_an_extraction_is_normalised_as_officially(by_id, pid, extraction, normalised):
    assert mathvista.normalise(extraction, by_id[pid]) == normalised


def slow_distance(text, other):
    row = list(range(len(other) + 1))
    for place, character in enumerate(text, start=1):
        new = [place]
        for column, letter in enumerate(other, start=1):
            new.append(min(row[column] + 1, new[-1] + 1, row[column - 1] + (character != letter)))
        row = new
    return row[-1]


@settings(max_examples=200, deadline=None)
@given(st.text("ab1°", max_size=30), st.text("ab1°", max_size=12))
def test_edit_distance_is_levenshteins(text, other):
    assert mathvista.edit_distance(text, other) == slow_distance(text, other) == mathvista.edit_distance(other, text)


def test_scores_have_the_published_structure_and_the_papers_labels(data):
    scores = scoring.score("mathvista", predictions(data, {"1": "C", "2": "5", "3": "1.2", "4": "?"}), data)
    assert scores["average"] == {"accuracy": "50.0", "correct": 2, "total": 4}
    assert scores["question_type"] == {
        "multi_choice": {"accuracy": "100.00", "correct": 1, "total": 1},
        "free_form": {"accuracy": "33.33", "correct": 1, "total": 3},
    }
    assert list(scores["answer_type"]) == ["text", "float", "integer", "list"]  # by accuracy, then as they come
    assert scores["skills"]["arithmetic reasoning"] == {"accuracy": "50.00", "correct": 1, "total": 2}
    labels = scores["sub_scores"]
    assert labels["ALL"] == {"accuracy": 0.5, "correct": 2, "total": 4}
    assert (labels["GPS"]["correct"], labels["MWP"]["correct"], labels["FQA"]["total"]) == (1, 1, 2)
    assert labels["ARI (arithmetic, MathVista's)"]["total"] == 2
    assert labels["ARI (algebraic, the paper's caption)"] == {"accuracy": 0.0, "correct": 0, "total": 1}


def test_protocols_read_one_response_differently(data):
    answers = {
        "1": "<think>a</think><answer> Final Answer:C </answer>",  # well formed, and the authors' very form
        "2": "<think>a</think><answer>4</answer>",  # the authors take the whole text, where the rules find the block
        "3": "The answer is 1.2.",  # not well formed
    }
    path = predictions(data, answers, field="response")
    right = {protocol: scoring.score("mathvista", path, data, protocol=protocol) for protocol in ("official", "strict")}
    assert [right[protocol]["correct"] for protocol in ("official", "strict")] == [3, 2]
    assert right["strict"]["predictions"]["answers"] == {"answer block": 2, "not well formed": 1, "no prediction": 1}
    twice = answers | {"1": answers["1"] + "<answer> Final Answer:A </answer>"}
    path = predictions(data, twice, field="response")
    correct = {
        name: scoring.score("mathvista", path, data, protocol=name)["correct"] for name in ("official", "authors")
    }
    assert correct == {"official": 2, "authors": 3}  # theirs takes the first block, ours the last


def test_the_official_query_has_hint_question_unit_and_choices(data, by_id):
    assert mathvista.query(by_id["1"]) == (
        "Hint: Please answer the question and provide the correct option letter, e.g., A, B, C, D, at the end.\n"
        "Question: Question 1?\nChoices:\n(A) 135°\n(B) 140°\n(C) 145°\n(D) 150°"
    )
    assert mathvista.query(by_id["3"]).startswith(
        "Hint: Please answer the question requiring a floating-point number with one decimal place and provide the"
    )


def test_a_parquet_of_the_hub_is_read_like_the_folder(tmp_path, data, by_id):
    import pyarrow
    from pyarrow import parquet

    hub = tmp_path / "hub" / "data"
    hub.mkdir(parents=True)
    rows = [row | {"decoded_image": {"bytes": b"x", "path": None}} for row in ROWS]
    parquet.write_table(pyarrow.Table.from_pylist(rows), hub / "testmini-00000-of-00001-abc.parquet")
    assert mathvista.problems(hub.parent) == list(by_id.values())


def test_generation_leaves_out_rows_whose_picture_is_not_there(data):
    loaded = mathvista.load(data)
    assert not loaded.problems
    assert {reject.reason for reject in loaded.rejects} == {"picture missing"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "holds no rows"),
        ('{"1": 3}', "not an object"),
        ('{"1": {"pid": "1"', "not readable as JSON"),
        (json.dumps([ROWS[0] | {"answer": ""}]), "field 'answer' = ''"),
        (json.dumps([ROWS[0], ROWS[0]]), "occurs twice"),
    ],
)
def test_data_that_are_not_the_published_ones_are_refused(tmp_path, content, said):
    (tmp_path / "testmini.json").write_text(content)
    (tmp_path / "p.jsonl").write_text('{"id": "1", "response": "x"}')
    with pytest.raises(RequestError, match=said):
        scoring.score("mathvista", tmp_path / "p.jsonl", tmp_path)
