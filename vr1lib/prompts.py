"""What the model is shown: pictures and text in order, under one hashed prompt specification.

Vision-R1's RL uses no format prompt after the cold start (Section 3.4); Vision-R1-Zero gets a system prompt in the
DeepSeek-R1-Zero template's words (Section 3.1; the wording here is ours). Options are shown as "A: …" lines, the style
of the paper's Figures 5 to 7.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vr1lib.records import Problem, RequestError

IMAGE_MARKER = "<image>"
OPTION_LETTERS = "ABCDEFGHIJ"
ZERO_SYSTEM_PROMPT = (
    "The user asks a question and the assistant solves it. The assistant first thinks about the reasoning process, "
    "then provides the user with the answer. The reasoning process and the answer are enclosed within <think> </think> "
    "and <answer> </answer> tags, that is: "
    "<think> reasoning process here </think><answer> answer here </answer>"
)


@dataclass(frozen=True)
class PromptSpec:
    """How a problem becomes a prompt. `system` None means no system turn at all; `instruction` follows the question."""

    system: str | None = None
    instruction: str | None = None

    @property
    def sha256(self) -> str:
        return spec_sha256(self)


def spec_sha256(spec: Any) -> str:
    """The hash that a specification (a dataclass of plain values) goes by."""
    return hashlib.sha256(json.dumps(asdict(spec), sort_keys=True).encode()).hexdigest()


def prompt_parts(problem: Problem, spec: PromptSpec = PromptSpec()) -> list[str | Path]:
    """The user turn as text and picture paths in reading order.

    Raises RequestError if the question's `<image>` markers and the pictures differ in number.
    """
    text = question_text(problem)
    if spec.instruction:
        text = f"{text}\n{spec.instruction}"
    pictures = [Path(image) for image in problem.images]
    markers = text.count(IMAGE_MARKER)
    if markers == 0:
        return [*pictures, text]
    if markers != len(pictures):
        raise RequestError(
            f"problem {problem.id}: {markers} {IMAGE_MARKER} markers for {len(pictures)} pictures; make them equal"
        )
    parts: list[str | Path] = []
    for index, piece in enumerate(text.split(IMAGE_MARKER)):
        if index:
            parts.append(pictures[index - 1])
        if piece:
            parts.append(piece)
    return parts


def question_text(problem: Problem) -> str:
    """The question with its options under it, one "A: …" line each."""
    if not problem.choices:
        return problem.question
    lines = [f"{letter}: {choice}" for letter, choice in zip(OPTION_LETTERS, problem.choices)]
    return "\n".join([problem.question, "Choices:", *lines])
