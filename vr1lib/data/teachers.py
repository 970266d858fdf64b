"""Who writes the chains of thought: the Teacher protocol, the prompts, and two teachers that live in this process.

The paper asks Qwen2.5-VL-72B for the pseudo-CoT and the description and DeepSeek-R1 for the reasoning (Sections
3.3.1, 4.1). Here a Teacher is anything that answers `ask`; the bridging knows no more of it. The prompts are the
files in `prompts/`: `description.txt` and `reasoning.txt` word for word as the paper prints them (Section 3.3.1,
Figure 2), the pseudo-CoT's, which the paper does not print, in our words. The two teachers of this module need no
network:

- ShapeWorldTeacher knows the scene and writes sound texts, planting faults at a known rate for the filters to find.
- ReferenceTeacher reasons not at all. For a real row it copies the data set's own solution where there is one, and
  otherwise restates question and gold. It exercises the plumbing and the format, teaches no reasoning, and what it
  writes is no reproduction of the paper's data.

Both recognise a prompt because everything in it is theirs: the problem they were given, the text they wrote a step
before.
"""

import hashlib
import random
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from vr1lib.data import shapeworld
from vr1lib.prompts import IMAGE_MARKER, question_text
from vr1lib.records import Problem, RequestError

Purpose = Literal["pseudo_cot", "description", "reasoning"]
PURPOSES: tuple[Purpose, ...] = ("pseudo_cot", "description", "reasoning")
PROMPTS = {
    purpose: (Path(__file__).with_name("prompts") / f"{purpose}.txt").read_text(encoding="utf-8").strip()
    for purpose in PURPOSES
}
PROMPT_SHA256 = {purpose: hashlib.sha256(text.encode()).hexdigest() for purpose, text in PROMPTS.items()}


@dataclass(frozen=True)
class Reply:
    """A teacher's answer. `reasoning` is its chain of thought where it gives one apart from the `text`, else empty."""

    text: str
    reasoning: str
    model: str
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    finish: Literal["stop", "length"] = "stop"


class Teacher(Protocol):
    def ask(self, purpose: Purpose, prompt: str, images: Sequence[str], seed: int) -> Reply:
        """One call. `images` are absolute paths, none for the text-only reasoning. Equal arguments, equal reply."""
        ...


def render_prompt(purpose: Purpose, problem: Problem, pseudo_cot: str = "", description: str = "") -> str:
    """The prompt file with its slots filled, in one pass, so that braces in a question are left alone."""
    slots = {
        "{question}": teacher_question(problem),
        "{answer}": problem.answer,
        "{thinking process}": pseudo_cot,
        "{description}": description,
    }
    return re.sub("|".join(map(re.escape, slots)), lambda slot: slots[slot.group()], PROMPTS[purpose])


def teacher_question(problem: Problem) -> str:
    """Question and options with markers numbered, `[image 1]`, so that a text without pictures can still name them."""
    pieces = question_text(problem).split(IMAGE_MARKER)
    return pieces[0] + "".join(f"[image {number}]{piece}" for number, piece in enumerate(pieces[1:], start=1))


class EmbeddedTeacher:
    """The common part of the teachers in this process: which problem a prompt is about. Tokens are counted as words."""

    model: str

    def __init__(self, problems: Iterable[Problem]):
        self._expected: dict[tuple[str, tuple[str, ...]], Problem] = {}
        for problem in problems:
            self._expect("pseudo_cot", problem, problem.images)

    def ask(self, purpose: Purpose, prompt: str, images: Sequence[str], seed: int) -> Reply:
        start = time.perf_counter()
        problem = self._expected.get((prompt, tuple(images)))
        if problem is None:
            raise RequestError(
                f"{self.model}: a {purpose} prompt about none of its problems; give it the same problems"
            )
        text, reasoning, finish = self.write(purpose, problem, random.Random(seed))
        if purpose == "pseudo_cot":
            self._expect("description", problem, problem.images, pseudo_cot=text)
        elif purpose == "description":
            self._expect("reasoning", problem, (), description=text)
        words = len(prompt.split()), len(text.split()) + len(reasoning.split())
        return Reply(text, reasoning, self.model, *words, time.perf_counter() - start, finish)

    def write(
        self, purpose: Purpose, problem: Problem, rng: random.Random
    ) -> tuple[str, str, Literal["stop", "length"]]:
        """Text, reasoning and finish of the reply."""
        raise NotImplementedError

    def _expect(self, purpose: Purpose, problem: Problem, images: Sequence[str], **texts: str) -> None:
        self._expected[render_prompt(purpose, problem, **texts), tuple(images)] = problem


FAULTS = ("wrong answer", "inconsistent", "truncated", "talks of the description", "loop", "answer first", "leak")


class ShapeWorldTeacher(EmbeddedTeacher):
    """The scripted teacher of ShapeWorld problems; `planted` says which fault it put into which problem's texts.

    `fault_rate` of the problems get one of FAULTS; the others come out exactly as `shapeworld` writes them, with
    `repeat_probability`, `slip_probability` and `max_passes` for the overthinking.
    """

    model = "shapeworld-script"

    def __init__(
        self,
        problems: Sequence[Problem],
        seed: int = 0,
        fault_rate: float = 0.0,
        repeat_probability: float = 0.5,
        slip_probability: float = 1 / 3,
        max_passes: int = 6,
    ):
        strange = next((problem for problem in problems if "scene" not in problem.meta), None)
        if strange is not None:
            raise RequestError(
                f"problem {strange.id}: the scripted teacher knows ShapeWorld only; set teacher: reference"
            )
        super().__init__(problems)
        self.passes = {
            "repeat_probability": repeat_probability,
            "slip_probability": slip_probability,
            "max_passes": max_passes,
        }
        self.planted: dict[str, str] = {}
        for problem in problems:
            rng = random.Random(f"{seed}/{problem.id}/fault")
            if rng.random() < fault_rate:
                self.planted[problem.id] = rng.choice(FAULTS)

    def write(
        self, purpose: Purpose, problem: Problem, rng: random.Random
    ) -> tuple[str, str, Literal["stop", "length"]]:
        fault = self.planted.get(problem.id)
        if purpose == "pseudo_cot":
            return shapeworld.write_pseudo_cot(problem, rng), "", "stop"
        if purpose == "description":
            description = shapeworld.write_description(problem, rng)
            return (f"{description} The answer is {problem.answer}." if fault == "leak" else description), "", "stop"
        reasoning = shapeworld.write_reasoning(problem, rng, **self.passes)
        return plant_fault(fault, reasoning, problem.answer, rng)


def plant_fault(
    fault: str | None, reasoning: str, answer: str, rng: random.Random
) -> tuple[str, str, Literal["stop", "length"]]:
    """Text, reasoning and finish with one fault of FAULTS in them; a leak lies in the description, so not here."""
    text = f"Final Answer: {answer}"
    wrong = str(int(answer) + rng.choice((1, 2)))
    misstated = re.sub(rf"{re.escape(answer)}\.$", f"{wrong}.", reasoning)
    if fault == "wrong answer":
        return f"Final Answer: {wrong}", misstated, "stop"
    if fault == "inconsistent":
        return text, misstated, "stop"
    if fault == "truncated":
        words = reasoning.split()
        return "", " ".join(words[: rng.randrange(1, len(words))]), "length"
    if fault == "talks of the description":
        return text, f"I was given a description instead of a picture. {reasoning}", "stop"
    if fault == "loop":
        return text, f"{reasoning} {'Look again. ' * 40}{reasoning}", "stop"
    if fault == "answer first":
        return text, f"The answer is {answer}. {reasoning}", "stop"
    return text, reasoning, "stop"


class ReferenceTeacher(EmbeddedTeacher):
    """Writes what the data set already holds, nothing more: see the module's docstring for what that is good for."""

    model = "reference-copy"

    def write(
        self, purpose: Purpose, problem: Problem, rng: random.Random
    ) -> tuple[str, str, Literal["stop", "length"]]:
        solution = problem.meta.get("solution")
        known = f"The data set's solution: {solution}" if solution else "The data set holds no solution."
        if purpose == "pseudo_cot":
            return f"{known} The answer is {problem.answer}.", "", "stop"
        if purpose == "description":
            pictures = "1 picture" if len(problem.images) == 1 else f"{len(problem.images)} pictures"
            return f"{pictures.capitalize()}, not described: this teacher does not look.", "", "stop"
        steps = f"A worked solution is known. {solution}" if solution else "No worked solution is known."
        reasoning = f"Okay, the question is: {teacher_question(problem)}\n{steps}\nSo the answer is {problem.answer}."
        return f"Final Answer: {problem.answer}", reasoning, "stop"
