import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vr1lib.records import RequestError
from vr1lib.reward import Parsed, grade, grade_row, parse_completion

WELL_FORMED = [
    "<think>a</think><answer>7</answer>",
    "\n <think>a</think>\n\n<answer> 7 </answer>\u00a0",
    "<think>1 < 2 and 3 > 2</think><answer>7</answer>",
    "<think><b>bold</b> <Think> <answers></think>\t<answer>7</answer>",
    "<think>" + "long " * 12_000 + "</think><answer>7</answer>",
    "<think>a</think><answer>Final Answer: 7</answer>",
    "<think>a</think><answer>final answer:7</answer>",
]
MALFORMED = {
    "": "no <think>",
    "7": "no <think>",
    "<answer>7</answer>": "no <think>",
    "<think>a</think>": "no <answer>",
    "<think>a<answer>7</answer>": "no </think>",
    "<think>a</think><answer>7": "no </answer>",
    "<Think>a</Think><answer>7</answer>": "no <think>",
    "<THINK>a</THINK><ANSWER>7</ANSWER>": "no <think>",
    "‹think›a‹/think›<answer>7</answer>": "no <think>",
    "<think>a</think><answer >7</answer>": "no <answer>",
    "<think> </think><answer>7</answer>": "blank think block",
    "<think>\u00a0\n</think><answer>7</answer>": "blank think block",
    "<think></think><answer>7</answer>": "blank think block",
    "<think>a</think><answer> </answer>": "blank answer block",
    "<think>a</think><answer></answer>": "blank answer block",
    "<think>a</think><answer>7</answer><answer>7</answer>": "<answer> 2 times",
    "<think>a</think><think>b</think><answer>7</answer>": "<think> 2 times",
    "<think><think>a</think></think><answer>7</answer>": "<think> 2 times",
    "<think>a </answer></think><answer>7</answer>": "</answer> 2 times",
    "<think>a<answer>7</answer></think>": "text after </answer>",
    "<think>a<answer></think>7</answer>": "answer block inside the think block",
    "<answer>7</answer><think>a</think>": "answer before think",
    "</think>a<think><answer>7</answer>": "text before <think>",
    "<think>a</answer><answer></think>": "text after </answer>",
    "Here: <think>a</think><answer>7</answer>": "text before <think>",
    "<think>a</think><answer>7</answer> Done.": "text after </answer>",
    "<think>a</think><answer>7</answer><|im_end|>": "text after </answer>",
    "<think>a</think> so <answer>7</answer>": "text between the blocks",
    "<think>a</think>.<answer>7</answer>": "text between the blocks",
    "\ufeff<think>a</think><answer>7</answer>": "text before <think>",
}


@pytest.mark.parametrize("text", WELL_FORMED)
def test_well_formed_and_right_is_one_in_both_rewards(text):
    verdict = grade(text, "7")
    assert (verdict.reward, verdict.format_ok, verdict.answer_ok, verdict.extracted) == (1.0, True, True, "7")
    assert grade(text, "7", kind="format_plus_result").reward == 1.0


@pytest.mark.parametrize(("text", "fault"), MALFORMED.items(), ids=[repr(text)[:50] for text in MALFORMED])
def test_malformed_is_zero_whatever_it_answers(text, fault):
    for kind in ("hard", "format_plus_result"):
        assert grade(text, "7", kind=kind) == (0.0, False, False, None, f"format: {fault}")
    assert parse_completion(text) is None


def test_hard_reward_needs_format_and_answer_and_zero_reward_halves_them():
    wrong = "<think>a</think><answer>8</answer>"
    assert grade(wrong, "7").reward == 0.0
    assert grade(wrong, "7", kind="format_plus_result").reward == 0.5


def test_blocks_come_without_their_tags():
    assert parse_completion("<think> so\n2 < 3 </think> <answer>\\boxed{7}</answer>") == Parsed(
        "so\n2 < 3", "\\boxed{7}"
    )


def test_choices_reach_the_grader():
    assert grade("<think>a</think><answer>Tuesday</answer>", "B", ["Monday", "Tuesday"]).reward == 1.0
    assert grade("<think>a</think><answer>Tuesday</answer>", "B").reward == 0.0


def test_a_row_becomes_its_verdict():
    row = {"id": 3, "completion": "<think>a</think><answer>8</answer>", "answer": "7", "choices": None, "source": "me"}
    verdict = grade_row(row)
    assert verdict == {
        "id": 3,
        "reward": 0.0,
        "format_ok": True,
        "answer_ok": False,
        "extracted": "8",
        "reason": "number: 8 ≠ 7",
    }
    json.dumps(verdict)
    assert grade_row(row, "format_plus_result")["reward"] == 0.5


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"id": ...}, "field 'id' is missing; add it"),
        ({"completion": ...}, "field 'completion' is missing; add it"),
        ({"answer": ...}, "field 'answer' is missing; add it"),
        ({"answer": 60}, "field 'answer' = 60: not a string; put it in quotes"),
        ({"answer": " "}, "field 'answer' is blank; give the gold answer"),
        ({"completion": None}, "field 'completion' = None: not a string; put it in quotes"),
        ({"choices": "A"}, "field 'choices' = 'A': not a list of strings; give the option texts or null"),
        ({"choices": ["a", 2]}, "field 'choices' = ['a', 2]: not a list of strings; give the option texts or null"),
    ],
)
def test_a_wrong_row_is_told_by_field(change, complaint):
    row = {"id": "r", "completion": "<think>a</think><answer>8</answer>", "answer": "7"} | change
    row = {field: value for field, value in row.items() if value is not ...}
    with pytest.raises(RequestError) as error:
        grade_row(row)
    assert str(error.value) == complaint


def test_a_row_that_is_no_object_is_refused():
    with pytest.raises(RequestError, match="not an object"):
        grade_row(["a"])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "7", " ", "\n", "<", "x"]), max_size=9)
)
def test_only_one_order_of_tags_is_well_formed(pieces):
    text = "".join(pieces)
    verdict = grade(text, "7")
    tags = [piece for piece in pieces if len(piece) > 5]
    assert verdict.format_ok <= (tags == ["<think>", "</think>", "<answer>", "</answer>"])
    assert verdict.reward == float(verdict.format_ok and verdict.answer_ok)
    assert verdict.answer_ok <= verdict.format_ok


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.text(), st.text(min_size=1))
def test_any_text_gets_a_verdict(text, gold):
    assert grade(text, gold).reward in (0.0, 1.0)
    assert grade(f"<think>a</think><answer>{text}</answer>", gold).reward in (0.0, 1.0)
