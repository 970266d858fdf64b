"""The reward of a completion: is it well formed, and is its final answer right?

The paper's hard formatting result reward (Section 3.4): 1 if and only if the completion follows the format and its
final answer equals the gold one, else 0. Vision-R1-Zero weighs format and result 1:1 (Section 4.1). The data filter,
the reward and the rule-based benchmarks all come through here, so that one answer never has two verdicts.

Our own choices, where the paper is silent: the format is checked by counting tags instead of one regular expression
(which accepts repeated, nested and blank blocks), and what is not well formed is never looked into for an answer.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from vr1lib.answers import grade_answer
from vr1lib.records import Completion, Graded, Problem, RequestError
from vr1lib.values import repair

RewardKind = Literal["hard", "format_plus_result"]

THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE = "<think>", "</think>", "<answer>", "</answer>"


class Parsed(NamedTuple):
    """A well-formed completion's two blocks, tags taken off."""

    think: str
    answer: str


class Reward(NamedTuple):
    """The verdict on one completion. `extracted`: the answer as read (an option's letter or the text); `reason` why."""

    reward: float
    format_ok: bool
    answer_ok: bool
    extracted: str | None
    reason: str


def parse_completion(text: str) -> Parsed | None:
    """The think and answer blocks of a well-formed completion, else None."""
    blocks = _read_blocks(text)
    return blocks if isinstance(blocks, Parsed) else None


def _read_blocks(text: str) -> Parsed | str:
    """The two blocks, or a few words on the first fault found."""
    text = text.strip()
    for tag in (THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE):
        count = text.count(tag)
        if count != 1:
            return f"no {tag}" if count == 0 else f"{tag} {count} times"
    if not text.startswith(THINK_OPEN):
        return f"text before {THINK_OPEN}" if text.find(THINK_OPEN) < text.find(ANSWER_OPEN) else "answer before think"
    if not text.endswith(ANSWER_CLOSE):
        return f"text after {ANSWER_CLOSE}"
    think_end = text.find(THINK_CLOSE)
    answer_start = text.find(ANSWER_OPEN)
    if answer_start < think_end:
        return "answer block inside the think block"
    if text[think_end + len(THINK_CLOSE) : answer_start].strip():
        return "text between the blocks"
    think = text[len(THINK_OPEN) : think_end].strip()
    answer = repair(text[answer_start + len(ANSWER_OPEN) : -len(ANSWER_CLOSE)]).strip()
    if not think:
        return "blank think block"
    if not answer:
        return "blank answer block"
    return Parsed(think, answer)


def grade(text: str, answer: str, choices: Sequence[str] | None = None, kind: RewardKind = "hard") -> Reward:
    """Grade one completion against its gold answer; never raises, whatever the text.

    hard: 1.0 if format and answer are both right, else 0.0. format_plus_result: half a point for each.
    """
    blocks = _read_blocks(text)
    if isinstance(blocks, str):
        return Reward(0.0, False, False, None, f"format: {blocks}")
    result = grade_answer(blocks.answer, answer, choices)
    reward = float(result.ok) if kind == "hard" else 0.5 + 0.5 * result.ok
    return Reward(reward, True, result.ok, result.extracted, result.reason)


def grade_completion(completion: Completion, problem: Problem, kind: RewardKind = "hard") -> Graded:
    """The completion with its verdict. Raises ValueError if it belongs to another problem: rows must not shift."""
    if completion.problem_id != problem.id:
        raise ValueError(f"completion of {completion.problem_id!r} met problem {problem.id!r}")
    verdict = grade(completion.text, problem.answer, problem.choices, kind)
    return Graded(**completion.model_dump(), **verdict._asdict())


def grade_row(row: Mapping[str, Any], kind: RewardKind = "hard") -> dict[str, Any]:
    """Grade one row {id, completion, answer, choices?} of a file; other fields are left alone.

    Returns {id, reward, format_ok, answer_ok, extracted, reason}. Raises RequestError naming the field that is missing
    or of the wrong type; the caller adds file and line.
    """
    if not isinstance(row, Mapping):
        raise RequestError("the row is not an object; write {id, completion, answer}")
    for field in ("id", "completion", "answer"):
        if field not in row:
            raise RequestError(f"field {field!r} is missing; add it")
    for field in ("completion", "answer"):
        if not isinstance(row[field], str):
            raise RequestError(f"field {field!r} = {_short(row[field])}: not a string; put it in quotes")
    if not row["answer"].strip():
        raise RequestError("field 'answer' is blank; give the gold answer")
    choices = row.get("choices")
    if choices is not None and not (isinstance(choices, list) and all(isinstance(choice, str) for choice in choices)):
        raise RequestError(f"field 'choices' = {_short(choices)}: not a list of strings; give the option texts or null")
    return {"id": row["id"], **grade(row["completion"], row["answer"], choices, kind)._asdict()}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
