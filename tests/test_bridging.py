import hashlib
import random

import pytest

from vr1lib.data import shapeworld
from vr1lib.data.bridging import Ledger, assemble, bridge, bridge_all, call_seed, stated_answer
from vr1lib.data.sources import Reject
from vr1lib.data.teachers import PROMPT_SHA256, Reply, ShapeWorldTeacher
from vr1lib.records import ColdRow, Problem, read_jsonl, write_jsonl
from vr1lib.reward import grade


class Script:
    """A teacher that says what it is told and remembers what it was asked."""

    def __init__(self, reasoning: str = "2 and 3 is 5.", text: str = "Final Answer: 5", **texts: str):
        self.replies = {"pseudo_cot": "A caption.", "description": "A 2 and a 3.", **texts}
        self.reasoning, self.text = reasoning, text
        self.asked: list[tuple[str, str, tuple[str, ...]]] = []

    def ask(self, purpose, prompt, images, seed):
        self.asked.append((purpose, prompt, tuple(images)))
        text = self.text if purpose == "reasoning" else self.replies[purpose]
        return Reply(text, self.reasoning if purpose == "reasoning" else "", "script", 10, 20, 0.5)


PROBLEM = Problem(id="p", images=["/a.png"], question="Sum?", answer="5", source="s", split="cold")


def test_the_picture_goes_to_the_seeing_teacher_only_and_each_text_to_the_next_prompt():
    teacher = Script()
    row = bridge(PROBLEM, teacher, 0, Ledger())
    assert isinstance(row, ColdRow)
    assert [(purpose, images) for purpose, _, images in teacher.asked] == [
        ("pseudo_cot", ("/a.png",)),
        ("description", ("/a.png",)),
        ("reasoning", ()),
    ]
    assert "thinking process:A caption." in teacher.asked[1][1]
    assert teacher.asked[2][1].startswith("A 2 and a 3.\n")
    assert row.images == ["/a.png"]
    assert row.calls[2].prompt_sha256 == hashlib.sha256(teacher.asked[2][1].encode()).hexdigest()


def test_the_response_is_the_papers_format_to_the_letter():
    row = bridge(PROBLEM, Script(), 0, Ledger())
    assert row.response == "<think> 2 and 3 is 5. </think><answer> Final Answer:5 </answer>"
    assert grade(row.response, "5", None).reward == 1.0


def test_words_are_replaced_in_the_response_and_the_raw_reasoning_is_kept():
    row = bridge(PROBLEM, Script(reasoning="The description says 2 and 3. Sum 5."), 0, Ledger())
    assert row.reasoning.startswith("The description says")
    assert row.response.startswith("<think> The image shows 2 and 3.")


@pytest.mark.parametrize(
    ("teacher", "step", "reason"),
    [
        (Script(pseudo_cot=" "), "pseudo_cot", "empty reply"),
        (Script(description=""), "description", "empty reply"),
        (Script(description="The answer is 5."), "description", "description states the answer"),
        (Script(text=""), "reasoning", "truncated"),
        (Script(text="Final Answer: 6"), "answer", "wrong final answer"),
        (Script(reasoning="I have a description. 5."), "rules", "talks of the description"),
        (Script(reasoning="Again. " * 50), "rules", "repetition loop"),
        (Script(reasoning="The answer is 5. It is 2 and 3."), "rules", "answer before thinking"),
        (Script(reasoning="2 and 3. So the answer is 6."), "rules", "inconsistent with its answer"),
        (Script(reasoning="Let me </think> close early."), "response", "response not rewarded"),
    ],
)
def test_each_fault_is_rejected_at_its_step_with_its_reason(teacher, step, reason):
    outcome = bridge(PROBLEM, teacher, 0, Ledger())
    assert isinstance(outcome, Reject)
    assert (outcome.id, outcome.step, outcome.reason) == ("p", step, reason)


def test_the_ledger_adds_up_over_kept_and_rejected():
    ledger = Ledger()
    for teacher in (Script(), Script(text="Final Answer: 6"), Script(pseudo_cot="")):
        bridge(PROBLEM, teacher, 0, ledger)
    book = ledger.as_dict()
    assert {row["purpose"]: row["calls"] for row in book["by_purpose"]} == {
        "pseudo_cot": 3,
        "description": 2,
        "reasoning": 2,
    }
    assert book["total"] == {"calls": 7, "prompt_tokens": 70, "completion_tokens": 140, "seconds": 3.5}
    assert book["prompt_files_sha256"] == PROMPT_SHA256


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Final Answer: C", "C"),
        ("Work.\n\n**Final Answer:** 12 cm.", "12 cm"),
        ("So \\boxed{3} no, \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("We add.\n42", "42"),
        ("The answer is B.\nBecause of the angle.", "B"),
    ],
)
def test_the_stated_answer_is_taken_from_a_reasoners_closing_text(text, answer):
    assert stated_answer(text) == answer


def test_shapeworld_rows_come_out_token_for_token_as_they_were_written(tmp_path):
    problems = shapeworld.make_problems(tmp_path, "cold", 40, seed=2)
    teacher = ShapeWorldTeacher(problems, repeat_probability=0.7)
    rows = list(bridge_all(problems, teacher, 5, Ledger()))
    for problem, row in zip(problems, rows, strict=True):
        rng = random.Random(call_seed(5, problem.id, "reasoning"))
        reasoning = shapeworld.write_reasoning(problem, rng, repeat_probability=0.7)
        assert row.response == shapeworld.assemble(reasoning, problem.answer) == assemble(reasoning, problem.answer)
    write_jsonl(tmp_path / "cold.jsonl", rows)
    assert list(read_jsonl(tmp_path / "cold.jsonl", ColdRow)) == rows


def test_filters_drop_every_planted_fault_and_nothing_else(tmp_path):
    problems = shapeworld.make_problems(tmp_path, "cold", 300, seed=3)
    teacher = ShapeWorldTeacher(problems, seed=3, fault_rate=0.4)
    outcomes = list(bridge_all(problems, teacher, 3, Ledger()))
    dropped = {outcome.id for outcome in outcomes if isinstance(outcome, Reject)}
    assert len(outcomes) == 300
    assert dropped == set(teacher.planted)
    assert len(dropped) > 80
