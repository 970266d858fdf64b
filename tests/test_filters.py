import random

import pytest

from vr1lib.data import filters, shapeworld


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("The description says that AB is 5.", "The image shows that AB is 5."),
        ("Based on the image description, x is 3.", "Based on the image, x is 3."),
        ("the description doesn't mention the radius", "the image doesn't show the radius"),
        ("In the description of the image, AB is drawn.", "In the image, AB is drawn."),
        ("Let me re-read the description again.", "Let me look at the image again."),
        ("The problem description says so.", "The problem says so."),
        ("the triangle is described as a right triangle", "the triangle is a right triangle"),
        ("Wait, maybe I misread the picture.", "Wait, maybe I misread the picture."),
    ],
)
def test_word_replacement_leaves_english_and_no_talk_of_the_description(before, after):
    assert filters.replace_description_words(before) == after
    assert filters.talk_of_description(after) is None


@pytest.mark.parametrize(
    "reasoning",
    [
        "Since I can't see the image, I assume that AB is 5.",
        "Without seeing the actual figure, this is a guess.",
        "No image is provided, but the row is red.",
    ],
)
def test_a_thinker_that_says_it_is_blind_is_found(reasoning):
    assert filters.talk_of_description(reasoning)
    assert filters.talk_of_description("I can see the image: it shows a row. No image of f lies there.") is None


ENGLISH = "So the total of all the red cells is 5, and we are done. Et al. says la la la. "


@pytest.mark.parametrize(
    ("reasoning", "given", "found"),
    [
        (ENGLISH, "How many?", None),
        ("Let α, Δ and π be angles; 90° ± ½, x² ≤ ∞, “quoted” – naïve café.", "How many?", None),
        (ENGLISH + "等一下。", "How many?", "Han"),
        (ENGLISH + "Подождите.", "How many?", "Cyrillic"),
        (ENGLISH + "잠깐만요", "How many?", "Hangul"),
        ("The label 面積 means area.", "How many? The image shows the label 面积.", None),
        ("The label 面積 and カタ.", "How many? The image shows the label 面积.", "Kana"),
        (ENGLISH + "Also ist das nicht der Rest und wir sind fertig.", "How many?", "German"),
        (ENGLISH + "Donc nous avons une somme pour le total.", "How many?", "French"),
        (ENGLISH + "Entonces el total es una suma que da cinco.", "How many?", "Spanish"),
        ("Donc nous avons une somme pour le total.", "Quelle est la somme, et pour quel le total ?", None),
        (
            "The sign says 'das ist nicht', and that is not in the question, so we go on as if it has no use.",
            "Why?",
            None,
        ),
        ("The café Le Monde is on the Rue de la Paix.", "How many?", None),
    ],
)
def test_a_language_that_was_not_given_is_mixed_in(reasoning, given, found):
    said = filters.language_mixing(reasoning, [given])
    assert (said and said.split(":")[0]) == found


@pytest.mark.parametrize(
    ("text", "finish", "reason"),
    [
        ("A row.", "stop", None),
        ("A row", "length", "truncated"),
        (" \n", "stop", "empty reply"),
        ("", "length", "empty reply"),
    ],
)
def test_a_description_is_whole_or_none(text, finish, reason):
    fault = filters.cut_or_empty(text, finish)
    assert (fault and fault[0]) == reason


def test_talk_that_no_replacement_mends_is_found():
    assert filters.talk_of_description("I only have a description, not the picture.")
    assert filters.talk_of_description("As the caption has it, 3.")


@pytest.mark.parametrize(
    ("reasoning", "text", "finish", "found"),
    [
        ("Total 3.", "3", "stop", False),
        ("So \\boxed{3}", "3", "stop", False),
        ("Total 3.", "3", "length", True),
        ("Total 3.", " ", "stop", True),
        ("", "3", "stop", True),
        ("and then the sum of", "3", "stop", True),
    ],
)
def test_a_reply_is_truncated_when_cut_or_without_one_of_its_parts(reasoning, text, finish, found):
    assert bool(filters.truncated(reasoning, text, finish)) is found


def test_a_unit_said_21_times_is_a_loop_and_20_times_is_not():
    unit = "Wait, let me check the first row again: "
    other = " ".join(str(number) for number in range(50))
    assert filters.repetition_loop(other + " " + unit * 20 + other) is None
    assert "21 times" in filters.repetition_loop(other + " " + unit * 21 + other)
    assert "'no' said 30 times" == filters.repetition_loop("yes " + "no " * 30 + "yes")


def test_many_doubts_between_different_words_are_no_loop():
    text = " ".join(f"Row {n} holds {n} cells. Wait, let me check." for n in range(60))
    assert filters.repetition_loop(text) is None


def test_overthinking_of_the_scripted_teacher_passes_every_rule_unchanged(tmp_path):
    problems = shapeworld.make_problems(tmp_path, "cold", 60, seed=1, grid_sizes=(2, 3, 4))
    longest = 0
    for problem in problems:
        text = shapeworld.write_reasoning(problem, random.Random(problem.id), repeat_probability=0.8)
        longest = max(longest, text.count("Wait") + text.count("Hmm") + text.count("Alternatively"))
        assert filters.replace_description_words(text) == text
        assert filters.talk_of_description(text) is None
        assert filters.repetition_loop(text) is None
        assert filters.inconsistent(text, problem.answer, None) is None
        assert filters.answer_before_thinking(text) is None
        assert filters.language_mixing(text, [problem.question]) is None
        assert filters.truncated(text, "Final Answer: 1", "stop") is None
    assert longest >= 4


@pytest.mark.parametrize(
    ("reasoning", "statement"),
    [
        ("So the answer is 12 cm.", "12 cm"),
        ("Thus the final answer: C", "C"),
        ("\\boxed{3}. Wait. So it is \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("The answer is 3. No, the answer is 4.", "4"),
        ("The answer is not 3.", None),
        ("The answer is clear to everyone.", None),
        ("Nothing is said.", None),
    ],
)
def test_final_statement_is_the_last_answer_that_is_said(reasoning, statement):
    assert filters.final_statement(reasoning) == statement


@pytest.mark.parametrize(
    ("reasoning", "answer", "choices", "found"),
    [
        ("So the answer is 12.", "12", None, False),
        ("So the answer is 13.", "12", None, True),
        ("So the answer is 2π.", "B", ["π", "2π"], False),
        ("So the answer is B.", "2π", ["π", "2π"], False),
        ("So the answer is A.", "B", ["π", "2π"], True),
        ("red red: 2, total 2.", "2", None, False),
        ("red red: 2, total 3.", "2", None, True),
        ("The third side is 5.", "C", None, False),
    ],
)
def test_reasoning_that_arrives_elsewhere_is_inconsistent(reasoning, answer, choices, found):
    assert bool(filters.inconsistent(reasoning, answer, choices)) is found


def test_an_answer_in_the_first_sentence_comes_before_thinking():
    assert filters.answer_before_thinking("The answer is 3. Let me see why.")
    assert filters.answer_before_thinking("Let me see. The answer is 3.") is None
    assert filters.answer_before_thinking("The answer is 3.") is None


def test_a_description_leaks_only_when_it_states_the_right_answer():
    assert filters.states_answer("A red cell. The answer is 3.", "3", None)
    assert filters.states_answer("A red cell. The answer is 4.", "3", None) is None
    assert filters.states_answer("There are 3 red cells.", "3", None) is None
    for said in ("The correct option is B.", "So option (B) is correct", "Choice B is the right one."):
        assert filters.states_answer(said, "B", ["1", "2"])
        assert filters.states_answer(said, "A", ["1", "2"]) is None


@pytest.mark.parametrize("text", ["answer is" + " " * 100_000, "\\boxed{" * 20_000, "the description " * 20_000])
def test_hostile_texts_do_not_hang_the_rules(text):
    filters.final_statement(text)
    filters.language_mixing(text, [text])
    filters.talk_of_description(text)
    filters.replace_description_words(text)
    filters.repetition_loop(text)
    filters.answer_before_thinking(text)
