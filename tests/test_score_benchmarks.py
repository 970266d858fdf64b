"""MathVerse, MM-Math, MMStar, ChartQA, MME and HallusionBench: small files in the published formats, scores by hand."""

import io
import json

import pytest
from PIL import Image

from vr1lib.benchmarks import catalogue, chartqa, hallusionbench, mathverse, mme, mmmath, mmstar, scoring
from vr1lib.records import Problem, RequestError


def score(folder, benchmark, responses, **options):
    path = folder / "predictions.jsonl"
    rows = [{"id": name, "response": text} for name, text in responses.items()]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return scoring.score(benchmark, path, folder, **options)


def parquet(path, rows):
    import pyarrow
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def a_problem(answer, **meta):
    return Problem(id="x", images=[], question="?", answer=answer, source="x", split="x", meta=meta)


# ------------------------------------------------------------------------------------------------------------ MathVerse

CHOICES = "\nChoices:\nA:40°\nB:50°\nC:60°"


@pytest.fixture
def verse(tmp_path):
    versions = [*mathverse.VERSIONS, "Text Only"]
    rows = [
        {
            "sample_index": str(2 * place + free),
            "problem_index": str(free),
            "problem_version": version,
            "question": ["" if version == "Vision Only" else f"Find the angle.{CHOICES}", "How long is it?"][free],
            "image": "images/1.png",
            "answer": ["(B)", "118掳"][free],
            "question_type": ["multi-choice", "free-form"][free],
            "metadata": {"subject": "Plane Geometry", "subfield": "Angle", "source": "GeoQA", "split": "testmini"},
            "query_wo": f"Directly answer. {version}",
            "query_cot": "Reason first.",
            "question_for_eval": ["Find the angle." + CHOICES, "How long is it?"][free],
        }
        for place, version in enumerate(versions)
        for free in (0, 1)
    ]
    (tmp_path / "testmini.json").write_text(json.dumps(rows), encoding="utf-8")
    return tmp_path


def test_mathverse_means_five_versions_and_gives_vision_only_apart(verse):
    #   Dominant        Lite            Intensive        V. Dominant  Vision Only       Text Only (in no total)
    said = ["B", "118°", "50°", "118°T", "(B) 50°", "118", "A", "0", "Option B", "12", "B", "118°"]
    scores = score(verse, "mathverse", {str(number): text for number, text in enumerate(said)})
    correct = {name: row["correct"] for name, row in scores["version"].items()}
    assert correct["Text Dominant"] == 2 and correct["Vision Dominant"] == 0 and correct["Text Only"] == 2
    assert correct["Vision Only"] == scores["vision_only"]["correct"] == 1
    assert scores["overall"]["total"] == 10
    assert scores["mean_of_versions"] == pytest.approx(sum(correct[name] for name in mathverse.VERSIONS) / 10)
    assert scores["subject"]["Plane Geometry"]["total"] == 10
    assert scores["question_type"]["multi-choice"]["correct"] == 4


def test_mathverse_reads_choices_golds_and_queries(verse):
    first, second = mathverse.problems(verse)[:2]
    assert (first.answer, first.choices, mathverse.query(first)) == (
        "B",
        ["40°", "50°", "60°"],
        "Directly answer. Text Dominant",
    )
    assert (second.answer, second.choices) == ("118°", None)
    assert mathverse.options("Which?\nA: yes\nC: no") is None


# -------------------------------------------------------------------------------------------------------------- MM-Math


@pytest.fixture
def middle_school(tmp_path):
    golds = {"a": r"so \boxed{12}", "b": r"\boxed{2\sqrt{3}} cm", "c": r"\boxed{1} or \boxed{-3}"}
    details = [("easy", "seven", "Functions"), ("medium", "eight", "Circle"), ("medium", "eight", "Circle,Functions")]
    rows = [
        {
            "question": f"Question {name}",
            "file_name": f"{name}.png",
            "solution": gold,
            "difficult": difficulty,
            "year": year,
            "knowledge": knowledge,
        }
        for (name, gold), (difficulty, year, knowledge) in zip(golds.items(), details)
    ]
    (tmp_path / "MM_Math.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return tmp_path


def test_mm_math_scores_by_difficulty_year_and_knowledge(middle_school):
    answers = {"a": r"It is \boxed{12}.", "b": r"Thus $2\sqrt{3}$", "c": r"\boxed{-3} and \boxed{5}"}
    scores = score(middle_school, "mmmath", answers)
    assert scores["overall"] == {"accuracy": 2 / 3, "correct": 2, "total": 3}
    assert scores["difficulty"]["medium"]["correct"] == scores["year"]["eight"]["correct"] == 1
    assert {name: row["total"] for name, row in scores["knowledge"].items()} == {"Circle": 2, "Functions": 2}


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"\boxed{1}, then \boxed{\frac{1}{2}}", r"1,\frac{1}{2}"),
        (r"\boxed{\boxed{3}}", r"\boxed{3}"),
        (r"so $x=1$" + "\n" + "the answers are $2$ and $3$", "2,3"),
        (r"<think>\boxed{9}</think><answer> Final Answer:\boxed{8} </answer>", "8"),
        ("The answer is 7.", None),
        (r"\boxed{1", None),
    ],
)
def test_mm_math_takes_all_boxes_else_the_last_lines_dollars(response, answer):
    assert mmmath.own_form(response) == answer


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        ("12 cm", "12", True),
        ("12厘米", "12", True),
        ("3.47", "3.46", True),
        ("3.48", "3.46", False),
        ("0.5", "50", True),  # a percent
        ("50", "0.5", True),
        ("3, 1", "1,3", True),
        ("3", "1,3", False),
        ("3,3", "1,3", False),
        (r"\pm 2", "-2,2", True),
        (r"\pm2", "2,-2", True),
        ("(1, 3)", "1<x<3", True),
        (r"\frac{\sqrt{12}}{1}", r"2\sqrt{3}", True),
        ("60°", r"60^{\circ}", True),
        ("y=2x+1", "y = 2x + 1", True),
        ("", "1", False),
        (None, "1", False),
    ],
)
def test_mm_math_compares_items(answer, gold, right):
    assert mmmath.is_right(answer, a_problem(gold)) is right


# --------------------------------------------------------------------------------------------------------------- MMStar


def test_mmstar_reads_the_beginning_of_an_answer(tmp_path):
    picture = io.BytesIO()
    Image.new("RGB", (4, 4)).save(picture, "PNG")
    axes = [
        ("math", "geometry"),
        ("math", "geometry"),
        ("math", "statistical reasoning"),
        ("logical reasoning", "diagram"),
    ]
    rows = [
        {"index": place, "question": f"Which? Options: A: {place}, B: b", "image": {"bytes": picture.getvalue()}}
        | {"answer": "B", "category": category, "l2_category": axis, "meta_info": {"source": "MMMU"}}
        for place, (category, axis) in enumerate(axes)
    ]
    parquet(tmp_path / "mmstar.parquet", rows)
    said = {"0": "b. because", "1": "The answer is B", "2": "I say B", "3": "<think>A</think><answer>(B) b</answer>"}
    scores = score(tmp_path, "mmstar", said)
    assert scores["overall"]["correct"] == 3
    assert scores["category"]["math"] == {"accuracy": 2 / 3, "correct": 2, "total": 3}
    assert scores["axis"]["math (statistical reasoning)"]["correct"] == 0
    assert score(tmp_path, "mmstar", said, protocol="strict")["correct"] == 1
    loaded = mmstar.load(tmp_path, panels=tmp_path / "pictures")
    assert [len(problem.images) for problem in loaded.problems] == [1, 1, 1, 1] and not loaded.rejects


@pytest.mark.parametrize("answer", ["", None, " ", "(a", "option", "a b"])
def test_mmstar_holds_for_wrong_what_does_not_begin_so(answer):
    assert not mmstar.is_right(answer, a_problem("B"))


# -------------------------------------------------------------------------------------------------------------- ChartQA


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        ("105", "100", True),  # 5 % of the gold, not of the prediction
        ("95", "100", True),
        ("94.9", "100", False),
        ("105.1", "100", False),
        ("50%", "0.5", True),
        ("0", "0", True),
        ("0.0", "0", False),  # a gold of 0 is a text
        ("-100", "100", False),
        ("Blue", "blue", True),
        ("blue bar", "blue", False),
        ("nan", "100", False),
        (14, "14", True),
        (None, "14", False),
    ],
)
def test_chartqa_is_relaxed_around_the_gold(answer, gold, right):
    assert chartqa.is_right(answer, a_problem(gold)) is right


def test_chartqa_scores_halves_from_json_and_from_parquet(tmp_path):
    rows = {
        "human": [
            {"imgname": "1.png", "query": "How many?", "label": "10"},
            {"imgname": "2.png", "query": "?", "label": "Yes"},
        ],
        "augmented": [{"imgname": "3.png", "query": "Share?", "label": "25%"}],
    }
    for name, members in rows.items():
        (tmp_path / f"test_{name}.json").write_text(json.dumps(members))
    answers = {"human-0": "10.4", "human-1": "No", "augmented-0": "0.26"}
    scores = score(tmp_path, "chartqa", answers)
    assert scores["overall"]["correct"] == 2
    assert scores["part"]["human"] == {"accuracy": 0.5, "correct": 1, "total": 2}
    hub = tmp_path / "hub"
    one = [{"image": {"bytes": b"x"}, "query": "How many?", "label": ["10"], "human_or_machine": 0}]
    parquet(hub / "data" / "test-00000-of-00001.parquet", [*one, one[0] | {"human_or_machine": 1}])
    assert [problem.meta["id"] for problem in chartqa.problems(hub)] == ["human-0", "augmented-1"]
    assert chartqa.query(chartqa.problems(hub)[0]).endswith("using a single word or phrase.")


# ------------------------------------------------------------------------------------------------------------------ MME


def test_mme_adds_acc_and_acc_plus_over_subtasks(tmp_path):
    (tmp_path / "existence" / "questions_answers_YN").mkdir(parents=True)
    (tmp_path / "existence" / "images").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "existence" / "images" / "1.jpg")
    (tmp_path / "code_reasoning").mkdir()
    two = "Is it a dog? Please answer yes or no.\tYes\nIs it a cat? Please answer yes or no.\tNo\n"
    for name in ("1", "2"):
        (tmp_path / "existence" / "questions_answers_YN" / f"{name}.txt").write_text(two)
    (tmp_path / "code_reasoning" / "0020.txt").write_text(two)
    (tmp_path / "readme.txt").write_text("not a\tquestion")
    answers = {
        "existence/1.jpg-1": "Yes",
        "existence/1.jpg-2": "No.",
        "existence/2.png-1": "yes",
        "existence/2.png-2": "Yes",
    }
    answers |= {"code_reasoning/0020.png-1": "No", "code_reasoning/0020.png-2": "Yes and no"}
    scores = score(tmp_path, "mme", answers, strict=True)
    assert scores["category"]["existence"]["score"] == 75 + 50  # 3 of 4 questions, 1 of 2 pictures
    assert (scores["perception"], scores["cognition"], scores["sum"]) == (125, 0, 125)
    assert "count" in scores["subtasks_not_in_the_data"] and "existence" not in scores["subtasks_not_in_the_data"]
    loaded = mme.load(tmp_path)
    assert len(loaded.problems) == 2 and len(loaded.rejects) == 4


def test_mme_numbers_a_parquets_questions_within_each_picture(tmp_path):
    rows = [
        {
            "question_id": f"OCR/{name}.jpg",
            "image": {"bytes": b"x"},
            "question": "Is it?",
            "answer": answer,
            "category": "OCR",
        }
        for name in ("1", "2")
        for answer in ("Yes", "No")
    ]
    parquet(tmp_path / "data" / "test-00000-of-00001.parquet", rows)
    names = [f"OCR/{name}.jpg-{place}" for name in ("1", "2") for place in (1, 2)]
    assert [problem.meta["id"] for problem in mme.problems(tmp_path)] == names
    assert score(tmp_path, "mme", dict.fromkeys(names, "Yes"))["sum"] == 50


# ------------------------------------------------------------------------------------------------------- HallusionBench


def hallusion_rows():
    #        category, subcategory, picture, set, figure, question, gold
    places = [
        ("VD", "ocr", "1", "0", "0", "0", "1"),
        ("VD", "ocr", "1", "0", "0", "1", "0"),
        ("VD", "ocr", "2", "0", "1", "0", "0"),
        ("VD", "ocr", "2", "0", "1", "1", "1"),
        ("VS", "ocr", "1", "0", "0", "0", "1"),  # VD's and VS's ocr share their numbers
        ("VS", "ocr", "0", "0", "2", "0", "0"),
    ]
    keys = ("category", "subcategory", "visual_input", "set_id", "figure_id", "question_id", "gt_answer")
    return [
        dict(zip(keys, place)) | {"question": "Is it?", "filename": None if place[2] == "0" else "./x.png"}
        for place in places
    ]


def test_hallusionbench_groups_by_category_and_subcategory(tmp_path):
    (tmp_path / "HallusionBench.json").write_text(json.dumps(hallusion_rows()))
    answers = {
        "VD_ocr_0_0_0": "Yes",
        "VD_ocr_0_0_1": "No",
        "VD_ocr_0_1_0": "No",
        "VD_ocr_0_1_1": "I see nothing",
        "VS_ocr_0_0_0": "No",
        "VS_ocr_0_2_0": "No, it is not.",
    }
    scores = score(tmp_path, "hallusionbench", answers, strict=True)
    assert (scores["aAcc"]["correct"], scores["aAcc"]["total"]) == (4, 6)
    assert (scores["fAcc"]["correct"], scores["fAcc"]["total"]) == (2, 4)  # VD figure 0 and VS figure 2
    assert (scores["qAcc"]["correct"], scores["qAcc"]["total"]) == (1, 3)  # VD question 0
    assert scores["mean"] == pytest.approx((4 / 6 + 2 / 4 + 1 / 3) / 3)
    with_picture = scores["with_picture"]
    assert [(with_picture[name]["correct"], with_picture[name]["total"]) for name in ("aAcc", "fAcc", "qAcc")] == [
        (3, 5),
        (1, 3),
        (1, 3),
    ]
    assert scores["category"]["VD"]["aAcc"]["total"] == 4


def test_hallusionbench_refuses_a_gold_that_is_no_gold(tmp_path):
    (tmp_path / "HallusionBench.json").write_text(json.dumps([hallusion_rows()[0] | {"gt_answer": "2"}]))
    with pytest.raises(RequestError, match="row 1: field 'gt_answer' = '2': neither 0 nor 1"):
        hallusionbench.problems(tmp_path)


def test_every_benchmark_has_what_the_score_and_the_runner_need():
    for name, module in catalogue.BENCHMARKS.items():
        assert module.NAME == name
        for function in "problems load query groups wanted is_right report headline".split():
            assert callable(getattr(module, function)), f"{name} has no {function}"
