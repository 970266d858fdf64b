"""Modality bridging: from a picture and a question to a cold-start row (Section 3.3 of the paper, Figure 2).

    picture, question, gold       → pseudo-CoT   the MLLM sees and captions            prompts/pseudo_cot.txt, ours
    picture, question, pseudo-CoT → description  the MLLM tells all that is needed     prompts/description.txt, the
    paper's description, question         → reasoning    a text-only reasoner; no picture      prompts/reasoning.txt,
    the paper's reasoning                     → row          answer filter, word replacement, rule filters; the
    picture again

Every problem ends as a ColdRow or as a Reject that names the step and the reason. The ledger counts what was asked,
kept or not: calls, tokens and seconds by purpose and model, and the hashes of the prompt files.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from vr1lib.answers import grade_answer
from vr1lib.data import filters
from vr1lib.data.sources import Reject
from vr1lib.data.teachers import PROMPT_SHA256, Purpose, Reply, Teacher, render_prompt
from vr1lib.records import ColdRow, Problem, TeacherCall
from vr1lib.reward import grade

ANSWER_LEAD = re.compile(r"\b(?:final answer|answer)(?: is|:)\s*:?\s*", re.I)


@dataclass
class Ledger:
    """Calls, tokens and seconds by purpose and model, over kept and rejected problems alike."""

    entries: dict[tuple[str, str], dict[str, float]] = field(default_factory=dict)

    def add(self, purpose: str, reply: Reply) -> None:
        entry = self.entries.setdefault(
            (purpose, reply.model), {"calls": 0, "prompt_tokens": 0, "completion_tokens": 0, "seconds": 0.0}
        )
        entry["calls"] += 1
        entry["prompt_tokens"] += reply.prompt_tokens
        entry["completion_tokens"] += reply.completion_tokens
        entry["seconds"] += reply.seconds

    def as_dict(self) -> dict[str, Any]:
        rows = [{"purpose": purpose, "model": model, **entry} for (purpose, model), entry in self.entries.items()]
        keys = ("calls", "prompt_tokens", "completion_tokens", "seconds")
        total = {key: sum(row[key] for row in rows) for key in keys}
        return {"by_purpose": rows, "total": total, "prompt_files_sha256": PROMPT_SHA256}


def bridge_all(problems: Sequence[Problem], teacher: Teacher, seed: int, ledger: Ledger) -> Iterator[ColdRow | Reject]:
    """One outcome a problem, in order; the ledger grows as the teacher is asked."""
    for problem in problems:
        yield bridge(problem, teacher, seed, ledger)


def bridge(problem: Problem, teacher: Teacher, seed: int, ledger: Ledger) -> ColdRow | Reject:
    """Ask the teacher three times, filter, and assemble the row; or say at which step it fell and why."""
    calls: list[TeacherCall] = []

    def ask(purpose: Purpose, images: Sequence[str], **texts: str) -> Reply:
        prompt = render_prompt(purpose, problem, **texts)
        reply = teacher.ask(purpose, prompt, images, call_seed(seed, problem.id, purpose))
        ledger.add(purpose, reply)
        calls.append(
            TeacherCall(
                purpose=purpose,
                model=reply.model,
                prompt_sha256=hashlib.sha256(prompt.encode()).hexdigest(),
                prompt_tokens=reply.prompt_tokens,
                completion_tokens=reply.completion_tokens,
                seconds=reply.seconds,
            )
        )
        return reply

    def reject(step: str, reason: str, detail: str) -> Reject:
        return Reject(id=problem.id, source=problem.source, step=step, reason=reason, detail=detail)

    pseudo_cot = ask("pseudo_cot", problem.images)
    if not pseudo_cot.text.strip():
        return reject("pseudo_cot", "empty reply", "")
    description = ask("description", problem.images, pseudo_cot=pseudo_cot.text)
    if not description.text.strip():
        return reject("description", "empty reply", "")
    if leak := filters.states_answer(description.text, problem.answer, problem.choices):
        return reject("description", "description states the answer", leak)
    reply = ask("reasoning", (), description=description.text)
    if cut := filters.truncated(reply.reasoning, reply.text, reply.finish):
        return reject("reasoning", "truncated", cut)
    answer = stated_answer(reply.text)
    verdict = grade_answer(answer, problem.answer, problem.choices)
    if not verdict.ok:
        return reject("answer", "wrong final answer", f"{answer[:80]!r} for {problem.answer!r}: {verdict.reason}")
    reasoning = filters.replace_description_words(reply.reasoning)
    found = check_rules(reasoning, answer, problem.choices)
    if found:
        return reject("rules", *found)
    response = assemble(reasoning, answer)
    reward = grade(response, problem.answer, problem.choices)
    if reward.reward != 1.0:
        return reject("response", "response not rewarded", reward.reason)
    return ColdRow(
        **problem.model_dump(),
        pseudo_cot=pseudo_cot.text,
        description=description.text,
        reasoning=reply.reasoning,
        response=response,
        calls=calls,
    )


def check_rules(reasoning: str, answer: str, choices: Sequence[str] | None) -> tuple[str, str] | None:
    """The first rule that the finished text breaks, as (reason, what was found)."""
    rules = {
        "talks of the description": filters.talk_of_description(reasoning),
        "repetition loop": filters.repetition_loop(reasoning),
        "answer before thinking": filters.answer_before_thinking(reasoning),
        "inconsistent with its answer": filters.inconsistent(reasoning, answer, choices),
    }
    return next(((reason, found) for reason, found in rules.items() if found), None)


def stated_answer(text: str) -> str:
    """The answer in a reasoner's closing text: the last boxed, else what follows "answer is", else the last line."""
    boxed = filters.BOXED.findall(text)
    if boxed:
        return boxed[-1].strip()
    line = ANSWER_LEAD.split(text.strip())[-1].strip()
    line = line.splitlines()[0 if ANSWER_LEAD.search(text) else -1] if line else ""
    return line.strip("* ").removesuffix(".").strip()


def assemble(reasoning: str, answer: str) -> str:
    """Reasoning and answer in the exact format of the paper's Figures 5 to 7, `Final Answer:` glued to the answer."""
    return f"<think> {reasoning.strip()} </think><answer> Final Answer:{answer} </answer>"


def call_seed(seed: int, problem_id: str, purpose: str) -> int:
    """A seed of its own for every call, the same in every run."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{problem_id}/{purpose}".encode()).digest()[:4])
