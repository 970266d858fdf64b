"""Prompts: pictures where the question puts them, options as lines, one hash for one way to ask."""

from pathlib import Path

import pytest

from vr1lib.prompts import ZERO_SYSTEM_PROMPT, PromptSpec, prompt_parts, question_text
from vr1lib.records import Problem, RequestError
from vr1lib.reward import parse_completion


def problem(question, images=("/a.png",), choices=None):
    return Problem(
        id="p", images=list(images), question=question, answer="1", choices=choices, source="test", split="rl"
    )


def test_without_markers_pictures_come_first():
    assert prompt_parts(problem("How many?", ["/a.png", "/b.png"])) == [Path("/a.png"), Path("/b.png"), "How many?"]


def test_markers_put_each_picture_in_its_place():
    parts = prompt_parts(problem("Turn <image> into <image>.", ["/a.png", "/b.png"]))
    assert parts == ["Turn ", Path("/a.png"), " into ", Path("/b.png"), "."]


@pytest.mark.parametrize("images", [[], ["/a.png"], ["/a.png", "/b.png", "/c.png"]])
def test_markers_and_pictures_must_be_equal_in_number(images):
    with pytest.raises(RequestError, match="2 <image> markers"):
        prompt_parts(problem("<image> and <image>", images))


def test_options_stand_below_the_question_one_a_line():
    assert question_text(problem("Which?", choices=["3 cm", "4 cm"])) == "Which?\nChoices:\nA: 3 cm\nB: 4 cm"
    assert question_text(problem("Which?")) == "Which?"


def test_the_instruction_follows_the_question():
    spec = PromptSpec(instruction="Think first.")
    assert prompt_parts(problem("Which?", choices=["x"]), spec)[-1] == "Which?\nChoices:\nA: x\nThink first."


def test_another_way_to_ask_has_another_hash():
    specs = [PromptSpec(), PromptSpec(system="Be brief."), PromptSpec(instruction="Be brief.")]
    assert len({spec.sha256 for spec in specs}) == 3
    assert PromptSpec(system="Be brief.").sha256 == PromptSpec(system="Be brief.").sha256


def test_zero_asks_for_the_very_format_that_is_rewarded():
    example = ZERO_SYSTEM_PROMPT.split("that is: ")[1]
    assert parse_completion(example).answer == "answer here"
