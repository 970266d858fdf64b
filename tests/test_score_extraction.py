"""The answer in a free response, by rules."""

import time

import pytest

from vr1lib.benchmarks.extraction import Wanted, authors_text, extract, yes_or_no

SHAPES = Wanted("option", ("Lanceolate", "Linear", "Heart-shaped"))
ANGLES = Wanted("option", ("135°", "140°", "145°"))
LENGTHS = Wanted("option", (r"2*\sqrt{3}", r"\frac{3}{5}", "6*x"))
MORE = Wanted("option", ("greater than", "less than", "equal to"))
CHANGES = Wanted("option", ("It would decrease", "It would increase", "It would stay the same"))
SAMPLES = Wanted("option", ("neither; the samples weigh the same", "sample A", "sample B"))
PICTURES = Wanted("option", ("(b)", "(a)"))
DECREASES = Wanted("option", ("Decrease", "Slightly decrease"))
CLOCKS = Wanted("option", ("half", "quarter", "o'clock", "quarter to", "quarter past"))
UNSURE = Wanted("option", ("4", "8", "It cannot be determined"))
YES_NO = Wanted("option", ("Yes", "No"))
LARGER = Wanted("option", ("Yes", "No"), "Is the nest larger than a fist?")
SMALLER = Wanted("option", ("Yes", "No"), "Is the nest smaller than a fist?")
LIMIT = Wanted("integer", question="What is the limit as x goes to 1?")
INTEGER, FLOAT, LIST = Wanted("integer"), Wanted("float"), Wanted("list")


@pytest.mark.parametrize(
    ("response", "wanted", "answer"),
    [
        ("<think>(A)</think><answer> Final Answer:B </answer>", SHAPES, "B"),
        ("<answer>A</answer> no, <answer>(C)</answer>", SHAPES, "C"),
        (r"<answer>\boxed{145^{\circ}}</answer>", ANGLES, "145°"),
        (r"So it is \boxed{B}, as (A) is too wide.", SHAPES, "B"),
        (r"\boxed{\text{C}}", SHAPES, "C"),
        ("Linear", SHAPES, "Linear"),
        ("b", SHAPES, "B"),
        ("A. Lanceolate", SHAPES, "A"),
        ("Thus, the answer is B (Linear), not (A).", SHAPES, "B"),
        ("**Answer: C**", SHAPES, "C"),
        ("The answer is not (A) but (B).", SHAPES, "B"),
        ("I would choose B.", SHAPES, "B"),
        ("Option B fits. Option A is wrong.", SHAPES, "B"),
        ("(A) Lanceolate: too wide.\n(B) Linear: fits.\n\nThe answer is (B).", SHAPES, "B"),
        ("所以，答案是 (C) 心形。", SHAPES, "C"),
        ("选项B是正确的", SHAPES, "B"),
        ("(B) Linear is the most erect.", SHAPES, "B"),
        ("The most erect shape is linear.", SHAPES, "Linear"),
        ("Lanceolate leaves are wide. Therefore, the shape is linear.", SHAPES, "Linear"),
        ("It is not lanceolate, which leaves only linear.", SHAPES, "Linear"),
        ("Which shape is it?\n(A) Lanceolate\n(B) Linear\n(C) Heart-shaped", SHAPES, ""),  # only the prompt once more
        ("The angle is 140.0 degrees.", ANGLES, "140°"),
        ("One side (C) is known, so x = 145.", ANGLES, "145°"),
        ("Corners (A) and (B) lie opposite.\nSo x = 145°.", ANGLES, "145°"),
        ("The angle is 70°.", ANGLES, "70"),  # none of the choices: the number that is said
        ("The height is $2\\sqrt{3}$ units.", LENGTHS, r"2*\sqrt{3}"),
        ("sin B = 3/5", LENGTHS, r"\frac{3}{5}"),
        ("So the width is 6x.", LENGTHS, "6*x"),
        ("The width is 5x.", LENGTHS, "5x"),
        ("The cars are fewer: their number is less than the bikes'.", MORE, "less than"),
        ("If krill decreased, the fish would increase, because less krill is eaten.", CHANGES, "It would increase"),
        (
            "Sample A and sample B hold 3. Therefore, the samples weigh the same.",
            SAMPLES,
            "neither; the samples weigh the same",
        ),
        ("Sample B is heavier than sample A.", SAMPLES, "sample B"),
        ("The population may decrease slightly.", DECREASES, "Slightly decrease"),
        ("The time shown is 11:22.", CLOCKS, "quarter past"),
        ("The time shown is 9:55.", CLOCKS, "o'clock"),
        ("It is half past nine, so 9:45 is not far.", CLOCKS, "half"),
        ("(a)", PICTURES, "(a)"),  # MathVista's shortcut: the response is a choice
        ("It is picture (a).", PICTURES, "A"),
        ("It is a good picture, so I take b.", PICTURES, "A"),
        ("The answer must be picture a", PICTURES, "B"),  # a choice that looks like a letter is given by its own letter
        ("No, it is not a function.", YES_NO, "No"),
        ("The pizza is not cut in half.", YES_NO, "No"),
        ("The curve does not have a maximum.", YES_NO, "No"),
        ("It is not clear, but the curve is even.", YES_NO, "Yes"),
        ("The nest is smaller than a fist.", LARGER, "No"),
        ("The nest is smaller than a fist.", SMALLER, "Yes"),
        ("The nest is smaller than a fist.", YES_NO, "Yes"),
        ("The two have the same size.", SMALLER, "No"),
    ],
)
def test_a_response_chooses_an_option(response, wanted, answer):
    assert extract(response, wanted) == answer


@pytest.mark.parametrize(
    ("response", "wanted", "answer"),
    [
        ("14", INTEGER, "14"),
        ("The number missing in the sequence is 14.", INTEGER, "14"),
        ("The answer is 12 - 4 = 8.", INTEGER, "8"),
        ("**Answer: 12**\n\nThere are 3 rows and 4 columns.", INTEGER, "12"),
        ("So, 17 minutes - 14 minutes = 3 minutes per month.", INTEGER, "3"),
        ("The mode is 10, which means that 9 and 8 are rarer.", INTEGER, "10"),
        ("There are 7 left. They weigh 1, 2, 3, 4 and 5 grams.", INTEGER, "7"),  # a list of what was counted
        ("Out of 7 people, 3 wear glasses.", INTEGER, "3"),
        ("So, there is 1 block that has exactly 36 houses.", INTEGER, "1"),
        ("There are two people in the image.", INTEGER, "2"),
        ("Twenty-five students like apples.", INTEGER, "25"),
        ("There are no red objects.", INTEGER, "0"),
        ("The function has no zeros.", INTEGER, "0"),
        ("Three use A-847.", INTEGER, "3"),
        ("It came third on A-847.", INTEGER, ""),
        ("\\[ x \\approx 2.57 \\]", FLOAT, "2.57"),
        ("6 people lifted at least 46 pounds.", INTEGER, "6"),
        ("1. Red: 3\n2. Blue: 5\n\nTotal: 3 + 5 = 8", INTEGER, "8"),
        ("The area is 24 cm^2.", INTEGER, "24"),
        ("The city has 1,250 buses.", INTEGER, "1250"),
        ("The difference is −3.", INTEGER, "-3"),
        ("The limit is infinite.", INTEGER, "infinite"),
        ("所以面积为24平方厘米。", INTEGER, "24"),
        ("Luca needs $1.45 to buy a sour apple candy.", FLOAT, "1.45"),
        ("0.6", FLOAT, "0.6"),
        ("The probability is 3/5.", FLOAT, "0.6"),
        (r"The share is \frac{1}{4}.", FLOAT, "0.25"),
        ("The length is √12 ≈ 3.46 m.", FLOAT, "3.46"),
        ("The work is 1.34 x 10^-4 J.", FLOAT, "1.34 x 10^-4"),
        (f"It is 1/{'9' * 3000}.", FLOAT, "0.0"),
        ("The peak was between 2007 and 2008, or [2007, 2008].", LIST, "[2007, 2008]"),
        ("Between 2007 and 2008.", LIST, "[2007, 2008]"),
        ("The limit is 7. In other words, y goes up as x goes to 1.", LIMIT, "7"),
        ("The limit is 1.", LIMIT, "1"),
    ],
)
def test_a_response_states_a_number(response, wanted, answer):
    assert extract(response, wanted) == answer


@pytest.mark.parametrize(
    ("response", "wanted", "answer"),
    [
        ("However, none of the options match this calculation.", ANGLES, "N/A"),
        ("Without the total a specific answer cannot be given.", INTEGER, "N/A"),
        ("The picture does not say it. The answer cannot be determined.", UNSURE, "It cannot be determined"),
        ("The image does not provide the angle.", ANGLES, "N/A"),
        ("题目出现了错误", ANGLES, "N/A"),
        ("The image does not say how many of the 12 were born after 1945, so it cannot be determined.", INTEGER, "N/A"),
        ("The image does not provide the years.", LIST, "N/A"),
        ("I cannot identify people in images, nor the year 1945.", INTEGER, "N/A"),
        (
            "The picture does not show the number of pizzas. Therefore, the question cannot be answered.",
            YES_NO,
            "Cannot be determined",
        ),
        ("The picture does not show a pizza. Therefore, the question cannot be answered.", YES_NO, "N/A"),
        ("The image does not contain a curve.", YES_NO, "N/A"),
        ("", ANGLES, ""),
    ],
)
def test_a_refusal_gives_no_answer(response, wanted, answer):
    assert extract(response, wanted) == answer


@pytest.mark.parametrize(
    ("response", "wanted", "answer"),
    [
        ("Yes, it is.", Wanted("yes or no"), "Yes"),
        ("The answer is Oct.", Wanted("text"), "Oct"),
        ("First I look.\nOct", Wanted("text"), "Oct"),
    ],
)
def test_a_response_says_its_words(response, wanted, answer):
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


HOSTILE = "a|1|(A)|answer is |no |<answer>|\\boxed{|. |is |\n| |1,|, |=|(|\\frac{1}{|sqrt(|if a, |。|选|A. b\n".split(
    "|"
)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_response_of_any_length_is_read_in_little_time(text, time_limit_s=1.0):
    for wanted in (SHAPES, ANGLES, LARGER, CLOCKS, LIMIT, Wanted("text")):
        started = time.process_time()
        assert isinstance(extract("x" + text * (1_000_000 // len(text)), wanted), str)
        assert time.process_time() - started < time_limit_s
