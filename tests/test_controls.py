"""Controls change what they say, keep the gold true, and count what they could not be applied to."""

import json

import pytest
from PIL import Image

from vr1lib.answers import grade_answer
from vr1lib.benchmarks import catalogue, mathverse
from vr1lib.benchmarks.controls import apply_control, clean_subset
from vr1lib.prompts import prompt_parts
from vr1lib.records import Problem, RequestError, open_image, write_jsonl


def picture(folder, name, colour, size=(30, 20)):
    path = folder / f"{name}.png"
    image = Image.new("RGB", size, "white")
    image.paste(colour, (3, 3, 12, 9))
    image.save(path)
    return str(path)


def problem(name, images=(), choices=None, answer="7", question="How many?", **meta):
    return Problem(
        id=name,
        images=list(images),
        question=question,
        answer=answer,
        choices=choices,
        source="s",
        split="t",
        meta=meta,
    )


def test_blank_pictures_have_the_size_and_nothing_else(tmp_path):
    problems = [problem("a", [picture(tmp_path, "a", "red")]), problem("b"), problem("c", [picture(tmp_path, "c", 9)])]
    blank = apply_control(problems, "blank_pictures", 0, tmp_path / "blank")
    assert [row.id for row in blank.problems] == ["a", "b", "c"]
    shown = open_image(blank.problems[0].images[0])
    assert shown.size == (30, 20) and shown.getcolors() == [(600, (128, 128, 128))]
    assert blank.problems[2].images == blank.problems[0].images  # one file for a size
    assert blank.counts == {"no picture": 1} and blank.not_applied["no picture"] == ["b"]
    assert blank.problems[0].meta["control"] == {"name": "blank_pictures"}
    assert problems[0].meta == {} and problems[0].images[0].endswith("a.png")


@pytest.mark.parametrize("seed", range(5))
def test_nobody_keeps_its_pictures_nor_gets_those_of_its_group(tmp_path, seed):
    paths = [picture(tmp_path, str(number), (number * 20, 0, 0)) for number in range(10)]
    same = picture(tmp_path, "copy of 0", (0, 0, 0))  # the same bytes as picture 0
    problems = [problem(str(number), [path]) for number, path in enumerate([*paths[:7], same])]
    problems += [problem(f"g{number}", [paths[number]], group="g") for number in (7, 8, 9)]
    problems += [problem("two", paths[:2]), problem("none")]
    shuffled = apply_control(problems, "shuffled_pictures", seed, tmp_path / "blank")
    by_id = {row.id: row for row in problems}
    for before, after in zip(problems[:-2], shuffled.problems):
        giver = by_id[after.meta["control"]["pictures_of"]]
        assert after.images == giver.images != before.images
        assert {before.id, giver.id} != {"0", "7"} and not before.id[0] == giver.id[0] == "g"
    assert shuffled.counts == {"no other problem with as many pictures: blanked": 1, "no picture": 1}
    assert all("blank-30x20" in path for path in shuffled.problems[-2].images)
    assert shuffled.problems == apply_control(problems, "shuffled_pictures", seed, tmp_path / "blank").problems


def test_different_seeds_shuffle_differently(tmp_path):
    problems = [problem(str(number), [picture(tmp_path, str(number), (number * 9, 0, 0))]) for number in range(12)]
    orders = {
        tuple(
            row.meta["control"]["pictures_of"]
            for row in apply_control(problems, "shuffled_pictures", seed, "").problems
        )
        for seed in range(4)
    }
    assert len(orders) == 4


def test_the_gold_letter_follows_its_option():
    choices = ["1", "2", "3", "4"]
    problems = [problem(str(number), choices=choices, answer="C") for number in range(40)]
    shuffled = apply_control(problems, "shuffled_options", 3, "").problems
    assert {row.choices["ABCD".index(row.answer)] for row in shuffled} == {"3"}
    assert {row.answer for row in shuffled} == set("ABCD")
    for row in shuffled:
        order = row.meta["control"]["order"]
        assert row.choices == [choices["ABCD".index(letter)] for letter in order]


def test_a_gold_that_is_a_text_stays_and_is_still_right():
    problems = [problem(str(number), choices=["10 cm", "B", "12 cm"], answer="B") for number in range(9)]
    shuffled = apply_control(problems, "shuffled_options", 0, "").problems
    assert {row.answer for row in shuffled} == {"B"}
    assert len({tuple(row.choices) for row in shuffled}) > 1


@pytest.mark.parametrize(
    ("choices", "reason"),
    [
        (None, "no choices"),
        (["A", "B", "C"], "options are letters drawn in the picture"),
        (["(A)", "(B)"], "options are letters drawn in the picture"),
        (["1", "2", "Both A and B"], "an option names others by letter"),
        (["1", "2", "A and B"], "an option names others by letter"),
        (["1", "2", "neither A nor B"], "an option names others by letter"),
        (["1", "All of the above"], "options refer to all others"),
        ([str(number) for number in range(11)], "more than 10 options"),
    ],
)
def test_options_that_refer_to_others_are_left_and_counted(choices, reason):
    before = problem("x", choices=choices, answer="1")
    shuffled = apply_control([before], "shuffled_options", 0, "")
    assert shuffled.counts == {reason: 1}
    assert shuffled.problems[0].choices == choices and shuffled.problems[0].answer == "1"


@pytest.mark.parametrize("last", ["None of the above", "No correct answer", "Neither", "all of these", "not given"])
def test_an_option_about_all_others_keeps_its_place(last):
    problems = [problem(str(number), choices=["a cat", "a dog", "a cow", last], answer="D") for number in range(12)]
    shuffled = apply_control(problems, "shuffled_options", 0, "")
    assert {(row.choices[3], row.answer, row.meta["control"]["kept_in_place"]) for row in shuffled.problems} == {
        (last, "D", 1)
    }
    assert len({tuple(row.choices) for row in shuffled.problems}) > 2 and shuffled.counts == {}


def test_pictures_inside_options_move_with_them():
    choices = ["<image>", "like <image> and <image>", "none"]
    before = problem("x", ["/q", "/a", "/b1", "/b2"], choices, "A", question="<image> Which?")
    for seed in range(6):
        after = apply_control([before], "shuffled_options", seed, "").problems[0]
        shown = " ".join(str(part) for part in prompt_parts(after))
        assert shown.startswith("/q") and "like \n /b1" in shown.replace("like  ", "like \n ")
        at = after.choices.index("<image>")
        assert f"{'ABC'[at]}:  /a" in shown and after.answer == "ABC"[at]


def test_mathverse_asks_officially_with_the_shuffled_choices(tmp_path):
    row = {
        "sample_index": "1",
        "problem_version": "Text Lite",
        "question": "Find x.\nChoices:\nA:40°\nB:50°\nC:60°",
        "answer": "B",
        "question_type": "multi-choice",
        "query_wo": "Answer with the letter.\nQuestion: Find x.\nChoices:\nA:40°\nB:50°\nC:60°",
    }
    (tmp_path / "testmini.json").write_text(json.dumps([row]), encoding="utf-8")
    problems = mathverse.problems(tmp_path)
    assert problems[0].question == "Find x." and mathverse.query(problems[0]) == row["query_wo"]
    for seed in range(4):
        after = apply_control(problems, "shuffled_options", seed, "").problems[0]
        assert f"\n{after.answer}:50°" in catalogue.official_problem(mathverse, after).question
        assert mathverse.is_right("50°", after) and mathverse.is_right(after.answer, after)


def test_an_unknown_control_is_named():
    with pytest.raises(RequestError, match="control = 'deaf': unknown; give one of blank_pictures, shuffled_pictures"):
        apply_control([], "deaf", 0, "")


def test_what_was_trained_on_is_not_clean(tmp_path):
    def drawn(name, number):
        path = tmp_path / f"{name}.png"
        image = Image.new("RGB", (64, 64), "white")
        for at in range(number + 2):
            image.paste("black", (at * 7, (at * number * 5) % 40, at * 7 + 5, (at * number * 5) % 40 + 9 + number))
        image.save(path)
        return str(path)

    questions = [
        f"How long is the side of the triangle number {number} that has {number} corners?" for number in range(5)
    ]
    problems = [problem(str(number), [drawn(number, number)], question=text) for number, text in enumerate(questions)]
    problems[2].meta["group"] = "g2"
    image = Image.open(problems[1].images[0]).resize((128, 128))
    image.save(tmp_path / "larger.png")
    trained = [
        problems[0],
        problem("other", [str(tmp_path / "larger.png")], question=questions[1].replace("How long is", "Give")),
        problem("step", question="Something else", group="g2"),
    ]
    write_jsonl(tmp_path / "train.jsonl", trained)
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write("{broken\n")
    found = clean_subset(problems, [tmp_path / "train.jsonl"])
    assert found.clean == ["3", "4"] and found.unreadable == 1
    assert found.contaminated["0"] == "itself in train.jsonl"
    assert found.contaminated["1"].endswith("of other in train.jsonl")
    assert found.contaminated["2"] == "same group as step in train.jsonl"


def test_a_shuffled_problem_is_graded_by_the_same_grader():
    row = problem("x", choices=["10", "20", "30"], answer="B")
    for seed in range(4):
        after = apply_control([row], "shuffled_options", seed, "").problems[0]
        assert (
            grade_answer("20", after.answer, after.choices).ok
            and not grade_answer("30", after.answer, after.choices).ok
        )
