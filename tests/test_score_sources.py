"""We-Math, MathVision and ShapeWorld: prompts with pictures in their places, golds, official rules, scores by hand."""

import json
from pathlib import Path

import pytest
from PIL import Image

from vr1lib.answers import grade_answer
from vr1lib.benchmarks import catalogue, mathvision, scoring, shapeworld, wemath
from vr1lib.data.shapeworld import make_problems
from vr1lib.prompts import prompt_parts
from vr1lib.records import Problem, RequestError, write_jsonl


def score(folder, benchmark, responses, data=None, **options):
    path = folder / "predictions.jsonl"
    rows = [{"id": name, "response": text} for name, text in responses.items()]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return scoring.score(benchmark, path, data or folder, **options)


def counts(row):
    return row["correct"], row["total"]


# -------------------------------------------------------------------------------------------------------------- We-Math

STEPS = {"2steps": ("1", "2", "multi"), "3steps": ("1", "2", "3", "multi")}


@pytest.fixture
def math(tmp_path):
    """Four problems of two steps and one of three; gold B throughout."""
    Image.new("RGB", (30, 30), "white").save(tmp_path / "1.png")
    rows = [
        {
            "ID": f"{kind}_{number}",
            "key": f"{kind}_{step}",
            "question": f"How long is {number} < 7?",
            "option": "A. 31.4;B. 3.14; C．62.8; D. No correct answer",
            "answer": "B",
            "image_path": "1.png",
            "knowledge concept": "Circles" if step == "1" else "Angles",
        }
        for kind, number in [("2steps", 1), ("2steps", 2), ("2steps", 3), ("2steps", 4), ("3steps", 5)]
        for step in STEPS[kind]
    ]
    (tmp_path / "testmini.json").write_text(json.dumps(rows), encoding="utf-8")
    return tmp_path


def said(wrong):
    """Responses that are right but for the named ones."""
    names = [
        f"{kind}_{n}-{kind}_{step}"
        for kind, n in [("2steps", 1), ("2steps", 2), ("2steps", 3), ("2steps", 4), ("3steps", 5)]
        for step in STEPS[kind]
    ]
    return {
        name: "<Answer>: <<A>>" if name in wrong else "<Thought process>: … <Answer>: <<B. 3.14>>" for name in names
    }


def test_wemath_has_four_dimensions_strict_and_loose(math):
    wrong = {
        "2steps_2-2steps_multi",  # steps right, whole wrong: IG
        "2steps_3-2steps_1",  # a step wrong, whole right: strict RM, loose CM
        *("2steps_4-2steps_1", "2steps_4-2steps_2"),  # both wrong, whole right: RM in both
        *("3steps_5-3steps_1", "3steps_5-3steps_multi"),  # IK
    }
    scores = score(math, "wemath", said(wrong), strict=True)
    strict, loose = scores["strict"], scores["loose"]
    assert [counts(strict[name]) for name in ("IK", "IG", "CM", "RM")] == [(1, 5), (1, 5), (1, 5), (2, 3)]
    assert [counts(loose[name]) for name in ("IK", "IG", "CM", "RM")] == [(1, 5), (1, 5), (2, 5), (1, 3)]
    assert (strict["score"], loose["score"]) == (pytest.approx(1.5 / 5), pytest.approx(2.5 / 5))
    assert {name: counts(row) for name, row in scores["steps"].items()} == {
        "one-step": (7, 11),
        "two-step": (3, 4),
        "three-step": (0, 1),
    }
    assert counts(scores["overall"]) == (10, 16) and counts(scores["task"]["2steps_1"]) == (2, 4)
    assert {name: counts(row) for name, row in scores["skill"].items()} == {"Angles": (5, 6), "Circles": (2, 5)}
    assert "score (strict)" in scoring.table(scores) and "30.00" in scoring.table(scores)


def test_wemath_problems_without_all_their_steps_are_named(math):
    rows = json.loads((math / "testmini.json").read_text(encoding="utf-8"))
    (math / "testmini.json").write_text(json.dumps([row for row in rows if row["key"] != "3steps_2"]))
    scores = score(math, "wemath", said(()))
    assert scores["problems_without_all_their_steps"] == ["wemath-3steps_5"]
    assert counts(scores["strict"]["CM"]) == (4, 4) and scores["predictions"]["unknown"]["count"] == 1


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("<Thought process>: <<so>> <Answer>: <<C>>", "C"),
        ("Answer: B. 3.14", "B"),
        ("The Answer: is B", ""),  # officially only the first character counts
        ("D. No", "D"),
        ("I think it is B", ""),
        ("", ""),
        ("<think>A</think><answer> Final Answer:B </answer>", None),  # our form is the rules' matter
    ],
)
def test_wemath_reads_the_official_form(response, letter):
    assert wemath.own_form(response) == letter


def test_wemath_takes_its_published_outputs(math):
    rows = json.loads((math / "testmini.json").read_text(encoding="utf-8"))
    path = math / "output.json"
    path.write_text(json.dumps([row | {"response": "<Answer>: <<B>>"} for row in rows]))
    assert scoring.score("wemath", path, math, strict=True)["correct"] == 16


@pytest.mark.parametrize("place", ["folder", "file", "root"])
def test_wemath_prompts_show_the_picture_and_every_option(math, place):
    if place == "root":
        math.rename(math.parent / "root")
        (math.parent / "data").mkdir()
        (math.parent / "root").rename(math.parent / "data/wemath")
        loaded = wemath.load(None, math.parent / "data")
    else:
        loaded = wemath.load(math if place == "folder" else math / "testmini.json")
    assert len(loaded.problems) == 16 and not loaded.rejects
    for problem in loaded.problems:
        shown, text = prompt_parts(problem)
        assert Path(shown).name == "1.png" and text.endswith("A: 31.4\nB: 3.14\nC: 62.8\nD: No correct answer")
        shown, text = prompt_parts(catalogue.official_problem(wemath, problem))
        assert Path(shown).is_file() and "Option: A. 31.4; B. 3.14; C. 62.8; D. No correct answer\n" in text
        assert text.count("62.8") == 1
        assert grade_answer(problem.answer, problem.answer, problem.choices).ok


def test_a_row_without_its_gold_is_an_error_of_the_score_and_a_reject_of_the_run(math):
    rows = json.loads((math / "testmini.json").read_text(encoding="utf-8"))
    (math / "testmini.json").write_text(json.dumps([{**rows[0], "answer": ""}, *rows[1:]]))
    with pytest.raises(RequestError, match=r"testmini.json, row 1: no answer \(''\); give the published file"):
        wemath.problems(math)
    assert wemath.load(math).reasons == {"no answer": 1}


def test_a_folder_that_is_no_folder_is_named(tmp_path):
    with pytest.raises(RequestError, match="no such file or folder; give one, or the hub's id 'We-Math/We-Math'"):
        wemath.problems(tmp_path / "nowhere")


# ----------------------------------------------------------------------------------------------------------- MathVision


def stacked(path, colours):
    """Pictures on top of each other, blue lines between them, as MathVision publishes them."""
    image = Image.new("RGB", (60, 40 * len(colours)), "white")
    for place, colour in enumerate(colours):
        image.paste(colour, (10, 40 * place + 10, 40, 40 * place + 25))
        if place:
            image.paste((0, 0, 255), (0, 40 * place - 2, 60, 40 * place + 2))
    image.save(path)


VISION = [
    {"id": "1", "question": "How many?\n<image1>", "options": [], "answer": "60", "subject": "logic", "level": 2},
    {"id": "2", "question": "Is <image1> like <image2>?", "options": ["A", "B", "C"], "answer": "C", "subject": "a"},
    {"id": "3", "question": "Which?", "options": ["<image1>", "<image2>"], "answer": "B", "subject": "b"},
    {
        "id": "4",
        "question": "Of <image2>?",
        "options": ["like <image1>", "$4^{\\circ}$"],
        "answer": "B",
        "subject": "b",
    },
    {"id": "5", "question": "Ratio?\n<image1>", "options": ["1: 2", "$3:2$"], "answer": "B", "subject": "b"},
    {"id": "6", "question": "Part?\n<image1>", "options": [], "answer": r"$\boxed{\frac{121}{180}}$", "subject": "b"},
]
COLOURS = ["red", "green"]


@pytest.fixture
def vision(tmp_path):
    rows = []
    for row in VISION:
        stacked(tmp_path / f"{row['id']}.png", COLOURS[: 2 if row["id"] in "234" else 1])
        rows.append({"level": 1, "image": f"{row['id']}.png", **row})
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return tmp_path


def colour(path):
    image = Image.open(path).convert("RGB")
    return {(255, 0, 0): "red", (0, 128, 0): "green"}[image.getpixel((20, 15))]


def in_words(problem):
    return "".join(f"[{colour(part)}]" if isinstance(part, Path) else part for part in prompt_parts(problem))


def test_mathvision_puts_every_picture_where_it_is_named_even_inside_options(vision, tmp_path):
    shown = {row.id[-1]: in_words(row) for row in mathvision.load(vision, panels=tmp_path / "panels").problems}
    assert shown["1"] == "How many?\n[red]"
    assert shown["2"] == "Is [red] like [green]?\nChoose from A, B, C."
    assert shown["3"] == "Which?\nChoices:\nA: [red]\nB: [green]"
    assert shown["4"] == "Of [green]?\nChoices:\nA: like [red]\nB: $4^{\\circ}$"


def test_mathvision_asks_officially_with_the_pictures_in_their_places(vision, tmp_path):
    problems = mathvision.load(vision, panels=tmp_path / "panels").problems
    shown = [in_words(catalogue.official_problem(mathvision, row)).partition('"\\boxed{}".\n')[2] for row in problems]
    assert shown[1].rpartition('"\\boxed{}".\n')[2] == "Is [red] like [green]?\n"
    assert shown[2].rpartition('"\\boxed{}".\n')[2] == "Which?\n(A) [red]\n(B) [green]\n"


def test_mathvision_keeps_stacked_pictures_whole_without_a_folder_for_pieces(vision):
    problems = {row.id[-1]: row for row in mathvision.load(vision).problems}
    assert [len(row.images) for row in problems.values()] == [1] * 6
    assert problems["3"].choices == ["[image 1]", "[image 2]"]


def test_golds_grade_themselves(vision, math):
    for benchmark, data in ((mathvision, vision), (wemath, math)):
        problems = benchmark.problems(data)
        assert all(benchmark.is_right(row.answer, row) for row in problems)
        for protocol in ("official", "strict", "authors"):
            said = {row.meta["id"]: f"<think>x</think><answer> Final Answer:{row.answer} </answer>" for row in problems}
            assert score(data, benchmark.NAME, said, protocol=protocol)["correct"] == len(problems)


@pytest.mark.parametrize(
    ("number", "answer", "right"),
    [
        ("1", "60", True),
        ("1", "60.004", True),  # two decimals
        ("1", "60.006", False),
        ("1", "60°", False),  # officially no number
        ("1", None, False),
        ("1", "", False),
        ("5", "b", True),
        ("5", r"\frac{3}{2}", True),
        ("5", "1.5", True),
        ("5", "1:2", False),
        ("5", r"\frac{3}{2}}. The answer is: \frac{3}{2", True),  # as some published answers are cut
        ("4", "4", False),  # of degrees too
        ("4", r"$4^{\circ}$", True),
        ("6", "121/180", True),
        ("6", "(" * 500, False),
    ],
)
def test_mathvision_compares_with_the_letter_and_the_options_text(vision, number, answer, right):
    problem = next(row for row in mathvision.problems(vision) if row.meta["id"] == number)
    assert mathvision.is_right(answer, problem) is right


def test_mathvision_counts_by_level_subject_and_kind(vision):
    said = {"1": "The answer is 60.", "2": "(C)", "3": "A", "mathvision-5": "B"}
    scores = score(vision, "mathvision", said)
    assert counts(scores["overall"]) == (3, 6) and scores["predictions"]["missing"]["ids"] == ["4", "6"]
    assert {name: counts(row) for name, row in scores["level"].items()} == {"1": (2, 5), "2": (1, 1)}
    assert {name: counts(row) for name, row in scores["answer"].items()} == {"free answer": (1, 2), "options": (2, 4)}
    assert counts(scores["skill"]["b"]) == (1, 4)
    assert "level 2" in scoring.table(scores)


def test_mathvision_takes_the_answers_of_its_published_outputs(vision):
    rows = [{"id": row["id"], "response": "?", "model_answer": row["answer"].lower()} for row in VISION]
    (vision / "output.jsonl").write_text("\n".join(map(json.dumps, rows)))
    scores = scoring.score("mathvision", vision / "output.jsonl", vision)
    assert scores["correct"] == 6 and scores["predictions"]["answers"] == {"extraction": 6}


# ----------------------------------------------------------------------------------------------------------- ShapeWorld


def test_shapeworld_is_scored_by_our_grader(tmp_path):
    problems = make_problems(tmp_path, "test", 6)
    write_jsonl(tmp_path / "test.jsonl", problems)
    said = {row.id: f"The answer is {row.answer}." for row in problems[:4]} | {problems[4].id: "none"}
    scores = score(tmp_path, "shapeworld", said, tmp_path / "test.jsonl")
    assert counts(scores["overall"]) == (4, 6)
    assert sum(row["total"] for row in scores["family"].values()) == 6
    assert scores["predictions"]["missing"]["ids"] == [problems[5].id]
    assert catalogue.official_problem(shapeworld, problems[0]).question.startswith(problems[0].question)


def test_shapeworld_refuses_a_file_with_an_id_twice(tmp_path):
    write_jsonl(tmp_path / "test.jsonl", make_problems(tmp_path, "test", 2) * 2)
    with pytest.raises(RequestError, match="an id occurs twice"):
        shapeworld.problems(tmp_path / "test.jsonl")


# ------------------------------------------------------------------------------------------------------------ catalogue


def test_an_official_problem_asks_once_and_keeps_its_gold():
    row = Problem(
        id="x", images=["/a"], question="<image> Which?", answer="B", choices=["1", "2"], source="s", split="t"
    )
    row.meta |= {"question_type": "multi_choice", "answer_type": "text", "unit": None}
    asked = catalogue.official_problem(catalogue.module_of("mathvista"), row)
    assert prompt_parts(asked)[1] == Path("/a")
    assert asked.question.endswith("Question: <image> Which?\nChoices:\n(A) 1\n(B) 2")
    assert (asked.choices, asked.answer, row.choices) == (None, "B", ["1", "2"])


def test_an_unknown_benchmark_is_named():
    with pytest.raises(RequestError, match="benchmark 'chess' is unknown; known are mathvista, .*wemath, shapeworld"):
        catalogue.module_of("chess")
