import json
import random
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageOps
from test_sources import mathvision, picture, wemath, wemath_row

from vr1lib.data import rl_set, sources
from vr1lib.data.rl_set import audit_golds, by_difficulty, deduplicate, marked_question, pass_rates, write_parquet
from vr1lib.records import Graded, Problem, RequestError, write_jsonl


def drawing(path: Path, seed: int) -> str:
    """A line drawing of its own: triangles, circles and bars on white."""
    dice = random.Random(seed)
    image = Image.new("RGB", (200, 160), "white")
    draw = ImageDraw.Draw(image)
    for _ in range(dice.randrange(3, 7)):
        at = [dice.randrange(10, 190) for _ in range(6)]
        if dice.random() < 0.5:
            draw.polygon([(at[0], at[1] * 0.8), (at[2], at[3] * 0.8), (at[4], at[5] * 0.8)], outline="black", width=3)
        else:
            x, y = sorted(at[:2]), sorted(value * 0.8 for value in at[2:4])
            draw.ellipse([x[0], y[0], x[1] + 5, y[1] + 5], outline="blue", width=3)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return str(path)


def problem(id: str, images: list[str], question: str, answer: str = "5", **fields: object) -> Problem:
    return Problem(id=id, images=images, question=question, answer=answer, source="s", split="rl", **fields)


def graded(problem_id: str, *answers: bool, format_ok: bool = True) -> list[Graded]:
    common = {"step": 0, "stage": 0, "text": "", "tokens": 1, "finish": "stop", "logprob": 0.0, "extracted": None}
    return [
        Graded(
            problem_id=problem_id,
            sample=number,
            reward=float(ok),
            format_ok=format_ok,
            answer_ok=ok,
            reason="",
            **common,
        )
        for number, ok in enumerate(answers)
    ]


LONG = "In the triangle ABC the side AB is 5 cm long; how long is the height on it?"


def test_of_the_same_problem_the_first_stays_though_its_picture_was_altered(tmp_path):
    first = drawing(tmp_path / "1.png", 1)
    inverted = str(tmp_path / "inverted.png")
    ImageOps.invert(Image.open(first)).resize((300, 230)).save(inverted)
    other = drawing(tmp_path / "2.png", 2)
    rows = [
        problem("a", [first], LONG),
        problem("same", [inverted], LONG.replace("how long", "How long")),
        problem("other picture", [other], LONG),
        problem("other question", [first], "In the triangle ABC the side AB is 5 cm long; what is the area in cm²?"),
        problem("other gold", [first], LONG, "6"),
    ]
    kept, rejects = deduplicate(rows)
    assert [p.id for p in kept] == ["a", "other picture", "other question", "other gold"]
    assert [(r.id, r.reason, r.step) for r in rejects] == [("same", "same as another", "rl_set")]
    assert rejects[0].detail.startswith("a: picture")


def test_short_questions_about_different_drawings_are_different_problems(tmp_path):
    rows = [problem(f"p{seed}", [drawing(tmp_path / f"{seed}.png", seed)], "Find x.") for seed in range(40)]
    assert deduplicate(rows)[1] == []


def test_questions_without_pictures_are_the_same_only_with_the_same_numbers():
    rows = [problem("a", [], LONG), problem("b", [], LONG.upper()), problem("c", [], LONG.replace("5", "7"))]
    kept, rejects = deduplicate(rows)
    assert ([p.id for p in kept], [r.id for r in rejects]) == (["a", "c"], ["b"])


def test_a_gold_that_the_grader_refuses_from_itself_is_shown_and_left_out():
    kept, rejects = audit_golds([problem("good", [], "?", "5"), problem("bad", [], "?", "Final Answer:")])
    assert [p.id for p in kept] == ["good"]
    assert (rejects[0].id, rejects[0].reason) == ("bad", "gold not accepted from itself")
    assert "Final Answer:" in rejects[0].detail


def test_pass_rates_count_answers_that_are_right_in_form_and_value(tmp_path):
    rows = [*graded("p", True, False, True, True), *graded("q", True, True, format_ok=False)]
    assert pass_rates(rows) == {"p": 0.75, "q": 0.0}
    write_jsonl(tmp_path / "graded.jsonl", rows)
    assert pass_rates(tmp_path / "graded.jsonl") == {"p": 0.75, "q": 0.0}


def test_what_is_always_or_never_solved_is_left_out_with_its_reason():
    rates = {"never": 0.0, "rarely": 0.1, "half": 0.5, "always": 1.0}
    kept, rejects = by_difficulty([problem(name, [], "?") for name in [*rates, "unseen"]], rates)
    assert [(p.id, p.meta["pass_rate"]) for p in kept] == [("rarely", 0.1), ("half", 0.5)]
    assert {r.id: r.reason for r in rejects} == {
        "never": "too hard",
        "always": "too easy",
        "unseen": "difficulty not measured",
    }
    narrow, _ = by_difficulty([problem(name, [], "?") for name in rates], rates, lowest=0.1, highest=0.9)
    assert [p.id for p in narrow] == ["half"]


def test_the_mix_accounts_for_every_row_of_every_source(tmp_path):
    for number in range(4):
        drawing(tmp_path / f"wemath/image/{number}.png", number)
    rows = [wemath_row(number, ID=f"2steps_{number}", question=f"How long is side {number}?") for number in range(5)]
    wemath(tmp_path, rows)
    picture(tmp_path / "mathvision/images/1.png")
    mathvision(tmp_path, [{"id": "1", "question": "<image1> 2 + 3?", "answer": "5", "image": "images/1.png"}])
    tries = [
        *graded("wemath-2steps_0-2steps_1", True, False),
        *graded("wemath-2steps_1-2steps_1", True, True),
        *graded("mathvision-1", False, True),
    ]
    built = rl_set.build(("wemath", "mathvision"), tmp_path, graded=tries)
    assert [p.id for p in built.problems] == ["wemath-2steps_0-2steps_1", "mathvision-1"]
    assert built.counts == {
        "wemath": {"kept": 1, "picture missing": 1, "too easy": 1, "difficulty not measured": 2},
        "mathvision": {"kept": 1},
    }
    with pytest.raises(RequestError, match="geometry3k"):
        rl_set.build(("wemath", "geometry3k"), tmp_path)


def test_the_parquet_read_by_our_own_reader_gives_the_same_problems_and_bytes(tmp_path):
    one, two = drawing(tmp_path / "1.png", 1), drawing(tmp_path / "2.png", 2)
    rows = [
        problem("a", [one, two], "<image> or <image>?", "B", choices=["the first", "the second"]),
        problem("b", [two], "Find x.", r"\frac{1}{2}"),
        problem("c", [], "1 + 1?", "2"),
    ]
    assert write_parquet(rows, tmp_path / "set/train.parquet") == 3
    back = sources.load(tmp_path / "set/train.parquet", panels=tmp_path / "pictures").problems
    assert [(p.question, p.answer, p.choices) for p in back] == [
        ("<image> or <image>?", "B", ["the first", "the second"]),
        ("<image>Find x.", r"\frac{1}{2}", None),
        ("1 + 1?", "2", None),
    ]
    assert [[Path(i).read_bytes() for i in p.images] for p in back] == [
        [Path(i).read_bytes() for i in p.images] for p in rows
    ]


def test_the_parquet_has_geometry3ks_schema(tmp_path):
    from pyarrow import parquet

    write_parquet([problem("a", [drawing(tmp_path / "1.png", 1)], "?")], tmp_path / "train.parquet")
    schema = parquet.read_schema(tmp_path / "train.parquet")
    assert schema.names == ["images", "problem", "answer"]
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert features["images"]["feature"]["_type"] == "Image"


def test_markers_are_added_only_where_the_question_has_none():
    assert marked_question(problem("a", ["x", "y"], "Which?")) == "<image><image>Which?"
    assert marked_question(problem("a", ["x"], "See <image>.")) == "See <image>."
