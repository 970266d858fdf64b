import asyncio
import random
from collections import Counter

import pytest

from vr1lib.data import shapeworld
from vr1lib.data.teachers import (
    FAULTS,
    MIXED_IN,
    PROMPTS,
    ReferenceTeacher,
    Reply,
    ShapeWorldTeacher,
    plant_fault,
    render_prompt,
    teacher_question,
)
from vr1lib.records import Problem, RequestError


def real(**changes: object) -> Problem:
    fields = {"id": "m-1", "images": ["/a.png", "/b.png"], "question": "<image> or <image>?", "answer": "B"}
    return Problem(**{**fields, "choices": ["2π", "{answer}"], "source": "m", "split": "rl", **changes})


def ask(teacher, purpose: str, prompt: str, images=(), seed: int = 0) -> Reply:
    return asyncio.run(teacher.ask(purpose, prompt, images, seed))


def test_prompts_hold_the_papers_words():
    assert PROMPTS["description"] == (
        "Given a image, a question:{question} and a thinking process:{thinking process}, provide a detailed "
        "description containing all the necessary details of the image to answer the question correctly..."
    )
    sentence = "Following the above image description, think step by step and answer the following question directly."
    assert PROMPTS["reasoning"] == f"{{description}}\n\n{sentence}\n\n{{question}}"


def test_slots_are_filled_once_and_braces_in_the_texts_stay():
    prompt = render_prompt("pseudo_cot", real())
    assert "B: {answer}" in prompt
    assert prompt.endswith("The reference answer is: B")
    assert render_prompt("reasoning", real(), description="see {question}").startswith("see {question}\n")


def test_the_gold_is_shown_in_the_first_prompt_or_in_none():
    problem = real(answer="31415", choices=None)
    assert "31415" in render_prompt("pseudo_cot", problem)
    blind = render_prompt("pseudo_cot", problem, show_gold=False)
    assert "31415" not in blind and "{answer}" not in blind
    assert render_prompt("pseudo_cot", problem).startswith(blind)
    for purpose in ("description", "reasoning"):
        assert "31415" not in render_prompt(purpose, problem, "a", "b", show_gold=True)


def test_a_text_only_question_numbers_its_pictures():
    assert teacher_question(real()) == "[image 1] or [image 2]?\nChoices:\nA: 2π\nB: {answer}"


def test_equal_calls_get_equal_replies_and_other_seeds_other_doubts(tmp_path):
    problems = shapeworld.make_problems(tmp_path, "cold", 1)
    teacher = ShapeWorldTeacher(problems, max_passes=9)
    prompt = render_prompt("pseudo_cot", problems[0])
    pseudo_cot = ask(teacher, "pseudo_cot", prompt, problems[0].images, 0).text
    prompt = render_prompt("description", problems[0], pseudo_cot=pseudo_cot)
    description = ask(teacher, "description", prompt, problems[0].images, 0).text
    prompt = render_prompt("reasoning", problems[0], description=description)
    replies = [ask(teacher, "reasoning", prompt, seed=seed).reasoning for seed in (1, 1, 2, 3, 4, 5, 6, 7)]
    assert replies[0] == replies[1]
    assert len(set(replies)) > 2


def test_the_reasoner_is_not_told_more_than_the_description_and_the_question(tmp_path):
    problems = shapeworld.make_problems(tmp_path, "cold", 2)
    with pytest.raises(RequestError, match="none of its problems"):
        ask(ShapeWorldTeacher(problems), "reasoning", render_prompt("reasoning", problems[0], description="x"))


def test_faults_are_planted_at_the_rate_asked_and_of_every_kind(tmp_path):
    problems = [real(id=f"p{number}", meta={"scene": {}}) for number in range(2000)]
    planted = Counter(ShapeWorldTeacher(problems, seed=1, fault_rate=0.2).planted.values())
    assert sum(planted.values()) == pytest.approx(400, abs=60)
    assert set(planted) == set(FAULTS)
    assert not ShapeWorldTeacher(problems, seed=1).planted


def test_other_languages_are_planted_behind_the_first_sentence_and_nothing_else_changes():
    reasoning = "red red: red 2, total 2. blue red: red 1, total 3."
    for seed in range(9):
        text, planted, finish = plant_fault("language mixing", reasoning, "3", random.Random(seed))
        assert (text, finish) == ("Final Answer: 3", "stop")
        assert planted.startswith("red red: red 2, total 2. ") and planted.endswith(" blue red: red 1, total 3.")
        assert any(said in planted for said in MIXED_IN)


def test_a_published_trace_is_a_thinking_process_the_teacher_knows():
    problem = real(meta={"trace": "Two pictures. B."})
    prompt = render_prompt("description", problem, pseudo_cot="Two pictures. B.")
    assert "2 pictures" in ask(ReferenceTeacher([problem]), "description", prompt, problem.images).text


def test_the_scripted_teacher_refuses_problems_without_a_scene():
    with pytest.raises(RequestError, match="m-1.*set teacher: reference"):
        ShapeWorldTeacher([real()])


def test_the_reference_teacher_copies_the_solution_and_otherwise_only_restates():
    for solution in ("By Pythagoras, 5.", None):
        problem = real(meta={"solution": solution} if solution else {})
        teacher = ReferenceTeacher([problem])
        pseudo_cot = ask(teacher, "pseudo_cot", render_prompt("pseudo_cot", problem), problem.images, 0)
        prompt = render_prompt("description", problem, pseudo_cot=pseudo_cot.text)
        description = ask(teacher, "description", prompt, problem.images, 0)
        reply = ask(teacher, "reasoning", render_prompt("reasoning", problem, description=description.text), (), 0)
        assert ("By Pythagoras" in reply.reasoning) is bool(solution)
        assert reply.reasoning.endswith("So the answer is B.")
        assert reply.text == "Final Answer: B"
        assert reply.model == "reference-copy"
