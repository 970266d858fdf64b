"""Who writes the chains of thought: the Teacher protocol, the prompts, and two teachers that live in this process.

The paper asks Qwen2.5-VL-72B for the pseudo-CoT and the description and DeepSeek-R1 for the reasoning (Sections
3.3.1, 4.1). Here a Teacher is anything that answers `ask`; the bridging knows no more of it, and endpoints.py has those
that speak over the network. The prompts are the files in `prompts/`: `description.txt` and `reasoning.txt` word for
word as the paper prints them (Section 3.3.1, Figure 2), the pseudo-CoT's, which the paper does not print, in our words,
with the gold and without it. The two teachers of this module need no network:

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
from typing import Any, Literal, Protocol

from vr1lib.data import shapeworld
from vr1lib.prompts import IMAGE_MARKER, question_text
from vr1lib.records import Problem, RequestError

Purpose = Literal["pseudo_cot", "description", "reasoning"]
PURPOSES: tuple[Purpose, ...] = ("pseudo_cot", "description", "reasoning")
PROMPTS = {
    path.stem: path.read_text(encoding="utf-8").strip()
    for path in sorted(Path(__file__).with_name("prompts").glob("*.txt"))
}
SLOT = re.compile(r"\{(?:question|answer|thinking process|description)\}")
PROMPT_SHA256 = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in PROMPTS.items()}


@dataclass(frozen=True)
class Failure:
    """A request that brought no reply: why, and what the endpoint counted for it all the same.

    `sent` is False where no connection came about, so that no server knows of it.
    """

    endpoint: str
    reason: str
    sent: bool = True
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class Reply:
    """A teacher's answer. `reasoning` is its chain of thought where it gives one apart from the `text`, else empty.

    `cost` is in the currency of the endpoint's prices; `estimated` says that the endpoint counted no tokens and they
    are a guess; `failures` are the requests before this one that brought nothing; a `cached` reply was paid earlier.
    """

    text: str
    reasoning: str
    model: str
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    finish: Literal["stop", "length"] = "stop"
    endpoint: str = ""
    cost: float = 0.0
    estimated: bool = False
    cached: bool = False
    failures: tuple[Failure, ...] = ()

    @property
    def attempts(self) -> int:
        return len(self.failures) + 1


class NoReply(Exception):
    """A call that brought no reply however often it was tried: `reason` is one of few, `detail` says what exactly."""

    def __init__(self, reason: str, detail: str = "", failures: Sequence[Failure] = ()):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail, self.failures = reason, detail, tuple(failures)


class TeacherStopped(NoReply):
    """No call can succeed until a person has acted: a wrong key, no credit left, no such model."""


class Teacher(Protocol):
    """`models` are the names under which it answers. The replies of a `paid` teacher are kept and never asked twice."""

    models: tuple[str, ...]
    paid: bool

    def settings(self, purpose: Purpose) -> dict[str, Any]:
        """Whatever, beside model, prompt, pictures and seed, decides what it answers: temperature and the like."""
        ...

    async def ask(self, purpose: Purpose, prompt: str, images: Sequence[str], seed: int) -> Reply:
        """One call. `images` are absolute paths, none for the text-only reasoning. Raises NoReply.

        Equal arguments, equal reply, as far as the model keeps to its seed.
        """
        ...

    async def close(self) -> None:
        """Let go of connections; the next `ask` opens them again."""
        ...


def render_prompt(
    purpose: Purpose, problem: Problem, pseudo_cot: str = "", description: str = "", show_gold: bool = True
) -> str:
    """The prompt file with its slots filled, in one pass, so that braces in a question are left alone."""
    slots = {
        "{question}": teacher_question(problem),
        "{answer}": problem.answer,
        "{thinking process}": pseudo_cot,
        "{description}": description,
    }
    name = "pseudo_cot_without_answer" if purpose == "pseudo_cot" and not show_gold else purpose
    return SLOT.sub(lambda slot: slots[slot.group()], PROMPTS[name])


def teacher_question(problem: Problem) -> str:
    """Question and options with markers numbered, `[image 1]`, so that a text without pictures can still name them."""
    pieces = question_text(problem).split(IMAGE_MARKER)
    return pieces[0] + "".join(f"[image {number}]{piece}" for number, piece in enumerate(pieces[1:], start=1))


class EmbeddedTeacher:
    """The common part of the teachers in this process: which problem a prompt is about. Tokens are counted as words."""

    model: str
    paid = False

    def __init__(self, problems: Iterable[Problem]):
        self._expected: dict[bytes, Problem] = {}
        for problem in problems:
            for show_gold in (True, False):
                self._expect(render_prompt("pseudo_cot", problem, show_gold=show_gold), problem.images, problem)
            if trace := problem.meta.get("trace"):
                self._expect(render_prompt("description", problem, pseudo_cot=trace), problem.images, problem)

    @property
    def models(self) -> tuple[str, ...]:
        return (self.model,)

    def settings(self, purpose: Purpose) -> dict[str, Any]:
        return {}

    async def ask(self, purpose: Purpose, prompt: str, images: Sequence[str], seed: int) -> Reply:
        start = time.perf_counter()
        problem = self._expected.get(_fingerprint(prompt, images))
        if problem is None:
            raise RequestError(
                f"{self.model}: a {purpose} prompt about none of its problems; give it the same problems"
            )
        text, reasoning, finish = self.write(purpose, problem, random.Random(seed))
        if purpose == "pseudo_cot":
            self._expect(render_prompt("description", problem, pseudo_cot=text), problem.images, problem)
        elif purpose == "description":
            self._expect(render_prompt("reasoning", problem, description=text), (), problem)
        words = len(prompt.split()), len(text.split()) + len(reasoning.split())
        return Reply(text, reasoning, self.model, *words, time.perf_counter() - start, finish)

    async def close(self) -> None:
        pass

    def write(
        self, purpose: Purpose, problem: Problem, rng: random.Random
    ) -> tuple[str, str, Literal["stop", "length"]]:
        """Text, reasoning and finish of the reply."""
        raise NotImplementedError

    def _expect(self, prompt: str, images: Sequence[str], problem: Problem) -> None:
        self._expected[_fingerprint(prompt, images)] = problem


def _fingerprint(prompt: str, images: Sequence[str]) -> bytes:
    return hashlib.blake2b("\0".join([prompt, *images]).encode(), digest_size=16).digest()


FAULTS = (
    "wrong answer",
    "inconsistent",
    "truncated",
    "talks of the description",
    "loop",
    "answer first",
    "leak",
    "language mixing",
)
MIXED_IN = (
    "等一下，让我再看一遍。",
    "Подождите, посмотрим ещё раз.",
    "Also noch einmal: wir zählen und das ist nicht der Rest.",
)


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

    def settings(self, purpose: Purpose) -> dict[str, Any]:
        return dict(self.passes)

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
    if fault == "language mixing":
        first, rest = reasoning.split(". ", maxsplit=1)
        return text, f"{first}. {rng.choice(MIXED_IN)} {rest}", "stop"
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
