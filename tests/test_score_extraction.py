"""The answer in a free response, by rules."""

import pytest

from vr1lib.benchmarks.extraction import Wanted, authors_text, extract, yes_or_no

SHAPES = Wanted("option", ("Lanceolate", "Linear", "Heart-shaped"))
ANGLES = Wanted("option", ("135°", "140°", "145°"))
YES_NO = Wanted("option", ("Yes", "No"))
INTEGER, FLOAT = Wanted("integer"), Wanted("float")


@pytest.mark.parametrize(
    ("response", "wanted", "answer"),
    [
        ("<think>(A)</think><answer> Final Answer:B </answer>", SHAPES, "B"),
        ("<answer>A</answer> no, <answer>(C)</answer>", SHAPES, "C"),
        (r"So it is \boxed{B}, as (A) is too wide.", SHAPES, "B"),
        ("Linear", SHAPES, "Linear"),
        ("Thus, the answer is B (Linear), not (A).", SHAPES, "B"),
        ("所以，答案是 (C) 心形。", SHAPES, "C"),
        ("(B) Linear is the most erect.", SHAPES, "B"),
        ("The most erect shape is linear.", SHAPES, "Linear"),
        ("Lanceolate leaves are wide. Therefore, the shape is linear.", SHAPES, "Linear"),
        ("The angle is 140.0 degrees.", ANGLES, "140°"),
        ("No, it is not a function.", YES_NO, "No"),
        ("The pizza is not cut in half.", YES_NO, "No"),
        ("However, none of the options match this calculation.", ANGLES, "none of the options match this calculation."),
        ("The image does not provide the angle.", ANGLES, "N/A"),
        ("", ANGLES, ""),
        ("14", INTEGER, "14"),
        ("The number missing in the sequence is 14.", INTEGER, "14"),
        ("So, 17 minutes - 14 minutes = 3 minutes per month.", INTEGER, "3"),
        ("So, there is 1 block that has exactly 36 houses.", INTEGER, "1"),
        ("There are two people in the image.", INTEGER, "2"),
        ("6 people lifted at least 46 pounds.", INTEGER, "6"),
        ("The city has 1,250 buses.", INTEGER, "1250"),
        ("The image does not say how many of the 12 were born after 1945, so it cannot be determined.", INTEGER, "N/A"),
        ("Luca needs $1.45 to buy a sour apple candy.", FLOAT, "1.45"),
        ("0.6", FLOAT, "0.6"),
        ("The peak was between 2007 and 2008, or [2007, 2008].", Wanted("list"), "[2007, 2008]"),
        ("Yes, it is.", Wanted("yes or no"), "Yes"),
        ("The answer is Oct.", Wanted("text"), "Oct"),
        ("First I look.\nOct", Wanted("text"), "Oct"),
    ],
)
def test_a_response_says_its_answer(response, wanted, answer):
    assert extract(response, wanted) == answer


@pytest.mark.parametrize(
    ("response", "text"),
    [
        ("<think>a</think><answer> Final Answer:C </answer>", "C"),
        ("<answer> Final Answer:1\n2 </answer><answer> Final Answer:3 </answer>", "1\n2"),
        ("<answer>Final Answer:C</answer>", "<answer>Final Answer:C</answer>"),  # without the blanks: the whole text
        ("<think>a</think><answer> Final Answer:C", "<think>a</think><answer> Final Answer:C"),
        ("Final Answer:C </answer>", "Final Answer:C </answer>"),
    ],
)
def test_the_authors_extraction_wants_its_very_form(response, text):
    assert authors_text(response) == text


def test_yes_or_no_needs_one_word_and_not_the_other():
    texts = ("Yes.", "no, never", "Yes and no", "Nobody knows", "YES!")
    assert [yes_or_no(text) for text in texts] == ["Yes", "No", "Unknown", "Unknown", "Yes"]


@pytest.mark.parametrize(
    "text", ["a", "1", "(A)", "answer is ", "no ", "<answer>", "\\boxed{", ". ", "is ", "\n", "1,"]
)
@pytest.mark.parametrize("wanted", [SHAPES, ANGLES, YES_NO, INTEGER, FLOAT, Wanted("text")])
def test_a_response_of_any_length_is_read_in_little_time(text, wanted):
    assert isinstance(extract(text * 20_000, wanted), str)
