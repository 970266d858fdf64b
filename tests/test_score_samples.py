"""pass@k, majority@k, and what makes two score rows unlike, by hand."""

import pytest

from vr1lib.answers import grade_answer
from vr1lib.benchmarks.comparability import unlike
from vr1lib.benchmarks.samples import majority_at_k, pass_at_k
from vr1lib.records import Problem


def problem(answer, choices=None):
    return Problem(id="x", images=[], question="?", answer=answer, choices=choices, source="s", split="t")


def is_right(answer, problem):
    return grade_answer(answer, problem.answer, problem.choices).ok


def test_pass_at_k_is_the_chance_of_a_draw_with_a_right_one():
    right = [[True, False, False, False], [False] * 4, [True] * 4]
    assert pass_at_k(right, 1) == [0.25, 0, 1]
    assert pass_at_k(right, 2) == [0.5, 0, 1]  # 1 − C(3, 2) / C(4, 2)
    assert pass_at_k(right, 4) == [1, 0, 1]
    assert pass_at_k([[True, True, False, False, False]], 2) == [pytest.approx(0.7)]
    assert pass_at_k([], 3) == []


@pytest.mark.parametrize("k", [0, 3])
def test_more_samples_than_there_are_is_refused(k):
    with pytest.raises(ValueError, match="a problem has 2 samples; give 1 to 2"):
        pass_at_k([[True, False], [True, True, True]], k)


@pytest.mark.parametrize(
    ("answers", "gold", "choices", "right"),
    [
        (["3", "4", "4"], "4", None, True),
        (["3", "4", "5"], "3", None, True),  # a tie: the first
        (["3", "4", "5"], "4", None, False),
        (["3", "0.5", r"\frac{1}{2}"], "1/2", None, True),  # equal for the grader
        (["A", "B", "20 cm"], "B", ["10 cm", "20 cm"], True),  # an option's letter and its text
        ([None, None, "7"], "7", None, True),  # no answer, no vote
        ([None, None, None], "7", None, False),
        (["4", "3", "3", "4", "4"], "4", None, False),  # only the first 3 count
    ],
)
def test_the_majority_is_over_equal_answers(answers, gold, choices, right):
    assert majority_at_k([answers], [problem(gold, choices)], 3, is_right) == [right]


ROW = {
    "benchmark": "mathvista",
    "protocol": "strict",
    "n": 1000,
    "sampling": {"temperature": 0.6, "top_p": 0.95, "max_completion_tokens": 4096, "seed": 0},
    "image_spec": "a",
    "prompt_spec": "b",
}


def test_rows_measured_alike_have_nothing_unlike_whatever_the_seed_and_the_age():
    newer = ROW | {"control": "none", "tries": 1, "judge": None, "prompt": "ours", "samples": 1, "shard": "1/1"}
    assert unlike(ROW, newer | {"sampling": {**ROW["sampling"], "seed": 7}, "accuracy": 0.1}) == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"protocol": "authors", "tries": 5}, ["protocol (strict, authors)", "tries for the format (1, 5)"]),
        ({"control": "blank_pictures"}, ["control (none, blank_pictures)"]),
        ({"n": 999}, ["number of problems (1000, 999)"]),
        ({"samples": 8}, ["samples a problem (1, 8)"]),
        ({"shard": "1/4"}, ["shard (1/1, 1/4)"]),
        ({"prompt": "official"}, ["prompt (ours, official)"]),
        ({"judge": {"model": "gpt", "calls": 3}}, ["judge (none, gpt)"]),
        ({"image_spec": "c"}, ["image specification"]),
        ({"prompt_spec": "c"}, ["prompt specification"]),
        ({"sampling": {**ROW["sampling"], "temperature": 1.0}}, ["temperature (0.6, 1.0)"]),
        ({"sampling": {**ROW["sampling"], "max_completion_tokens": 16}}, ["completion tokens allowed (4096, 16)"]),
    ],
)
def test_each_difference_is_named_with_both_values(changed, said):
    assert unlike(ROW, ROW | changed) == said


def test_top_p_says_nothing_when_greedy_and_calls_nothing_of_a_judge():
    greedy = [ROW | {"sampling": {"temperature": 0.0, "top_p": top_p}} for top_p in (0.9, 1.0)]
    assert unlike(*greedy) == []
    assert unlike(ROW | {"judge": {"model": "m", "calls": 1}}, ROW | {"judge": {"model": "m", "calls": 2}}) == []
    assert unlike(ROW | {"judge": {"model": "m", "prompt": "1"}}, ROW | {"judge": {"model": "m", "prompt": "2"}})
