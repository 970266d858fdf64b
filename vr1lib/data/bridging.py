"""Modality bridging: from a picture and a question to a cold-start row (Section 3.3 of the paper, Figure 2).

    picture, question, gold       → pseudo-CoT   the MLLM sees and captions            prompts/pseudo_cot.txt, ours
    picture, question, pseudo-CoT → description  the MLLM tells all that is needed     prompts/description.txt, the
    paper's description, question         → reasoning    a text-only reasoner; no picture      prompts/reasoning.txt,
    the paper's reasoning                     → row          answer filter, word replacement, rule filters; the
    picture again

A trace that another data set has published (LLaVA-CoT, Mulberry) stands in for the pseudo-CoT, as it seems to have done
for the authors. Every problem ends as a ColdRow in cold.jsonl or as a Reject in rejects.jsonl that names the step and
the reason, each written as it comes. Both files and the calls' store (calls.py) are all that a run remembers: started
again in the same folder it goes on where it was, whatever ended it, asks no paid call twice and writes no id twice.
"""

import asyncio
import hashlib
import json
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vr1lib.answers import grade_answer
from vr1lib.data import filters
from vr1lib.data.calls import Budget, BudgetReached, CallStore, Ledger
from vr1lib.data.sources import Reject
from vr1lib.data.teachers import (
    PROMPT_SHA256,
    PURPOSES,
    NoReply,
    Purpose,
    Reply,
    Teacher,
    TeacherStopped,
    render_prompt,
    teacher_question,
)
from vr1lib.records import ColdRow, Problem, RequestError, TeacherCall, first_error, inside, write_jsonl
from vr1lib.reward import grade

ANSWER_LEAD = re.compile(r"\b(?:final answer|answer)(?: is|:)\s*:?\s*", re.I)
NO_REPLY = "no reply"
LOG_EVERY = 100  # outcomes, or
LOG_SECONDS = 30.0  # since the last time
ID_FIRST = re.compile(rb'\{"id": "([^"\\]+)"')


@dataclass
class Bridged:
    """What a run has done: rows and rejects in the files now, and how it came to its end.

    `before` of them were there when it began, `repeated` problems came with an id that had come already, `cached`
    replies were found in the store. `stopped` says why not all problems have an outcome; None when they have.
    """

    kept: int
    rejected: int
    before: int
    repeated: int
    cached: int
    stopped: str | None
    ledger: Ledger
    settings: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The ledger with what it takes to read it: prompts, teachers, gold shown or not, kept and rejected."""
        return {
            **self.ledger.as_dict(),
            "prompt_files_sha256": PROMPT_SHA256,
            **self.settings,
            "kept": self.kept,
            "rejected": self.rejected,
            "stopped": self.stopped,
        }


def bridge(
    problems: Iterable[Problem | Reject],
    mllm: Teacher,
    reasoner: Teacher,
    folder: str | Path,
    *,
    log: Callable[[dict[str, Any]], None] = lambda metrics: None,
    tell: Callable[[str], None] = print,
    **settings: Any,
) -> Bridged:
    """`bridge_all` for a caller whose thread has an event loop of its own, as a notebook's has: it runs in another.

    `log` and `tell` are called in the caller's thread, and an interrupt there ends the run.
    """
    said: queue.SimpleQueue[tuple[Callable[[Any], None], Any]] = queue.SimpleQueue()
    work = bridge_all(
        problems,
        mllm,
        reasoner,
        folder,
        log=lambda metrics: said.put((log, metrics)),
        tell=lambda line: said.put((tell, line)),
        **settings,
    )
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="bridging", daemon=True)
    thread.start()
    future = asyncio.run_coroutine_threadsafe(work, loop)
    future.add_done_callback(lambda _: said.put((lambda _: None, None)))
    try:
        while not (future.done() and said.empty()):
            listener, message = said.get()
            listener(message)
        return future.result()
    finally:
        future.cancel()
        asyncio.run_coroutine_threadsafe(_rest_of(loop), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _rest_of(loop: asyncio.AbstractEventLoop) -> None:
    """Wait for whatever is still running in the loop, cancelled or not."""
    others = asyncio.all_tasks(loop) - {asyncio.current_task()}
    await asyncio.gather(*others, return_exceptions=True)
    await loop.shutdown_default_executor()


async def bridge_all(
    problems: Iterable[Problem | Reject],
    mllm: Teacher,
    reasoner: Teacher,
    folder: str | Path,
    *,
    seed: int,
    in_flight: int = 64,
    show_gold: bool = True,
    traces: Mapping[str, str] | None = None,
    budget: Budget = Budget(),
    retry_failed: bool = False,
    log: Callable[[dict[str, Any]], None] = lambda metrics: None,
    tell: Callable[[str], None] = print,
) -> Bridged:
    """Bridge all problems into `folder`, `in_flight` at a time, or as many as the budget allows; go on if it was begun.

    `problems` are taken one by one as there is room, in another thread; a Reject among them is written down as it is.
    `mllm` sees, `reasoner` reads. `traces` by problem id, or a problem's own `meta["trace"]`, replace the pseudo-CoT.
    With `retry_failed` the problems that were rejected because no reply came are tried again. The ledger is written to
    ledger.json at the end. Raises RequestError if the folder was begun with another seed, prompt or `show_gold`.
    """
    folder = Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    calls = CallStore(folder / "calls.sqlite", budget)
    try:
        settings: dict[str, Any] = {"seed": seed, "show_gold": show_gold}
        for name, value in [*settings.items(), ("prompt files", PROMPT_SHA256)]:
            calls.agree(name, value)
        outcomes = Outcomes(folder, retry_failed, tell)
        progress = Progress(outcomes, calls, log)
        feed = Feed(problems, outcomes.finished)
        before = outcomes.kept + outcomes.rejected
        stopped: str | None = None

        async def work() -> None:
            nonlocal stopped
            while stopped is None and (problem := await feed.next()) is not None:
                try:
                    outcome = problem
                    if isinstance(problem, Problem):
                        for image in problem.images:  # before anything is paid for a row that could not be written
                            inside(folder, image, f"problem {problem.id}")
                        trace = (traces or {}).get(problem.id) or problem.meta.get("trace") or ""
                        outcome = await bridge_problem(problem, mllm, reasoner, calls, seed, show_gold, trace)
                except BudgetReached as error:
                    stopped = stopped or f"{error}; raise it and start again to go on"
                except TeacherStopped as error:
                    stopped = stopped or f"{error}; mend it and start again to go on"
                else:
                    outcomes.write(outcome)
                    progress.step()

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(in_flight):
                    group.create_task(work())
        except BaseExceptionGroup as several:
            raise several.exceptions[0] from None
        finally:
            await mllm.close()
            await reasoner.close()
        progress.log_now()
        if stopped:
            tell(stopped)
        for name, teacher in (("mllm", mllm), ("reasoner", reasoner)):
            settings[name] = {"models": teacher.models, **{purpose: teacher.settings(purpose) for purpose in PURPOSES}}
        counts = {"before": before, "repeated": feed.repeated, "cached": calls.cached}
        done = Bridged(
            outcomes.kept, outcomes.rejected, **counts, stopped=stopped, ledger=calls.ledger, settings=settings
        )
    finally:
        calls.close()
    text = json.dumps(done.as_dict(), indent=2) + "\n"
    new = folder / ".ledger.json"
    new.write_text(text, encoding="utf-8")
    os.replace(new, folder / "ledger.json")
    return done


class Feed:
    """The problems that have no outcome yet, one by one. Taking one may take long: pictures are looked at."""

    def __init__(self, problems: Iterable[Problem | Reject], finished: set[str]):
        self.repeated = 0
        self._problems, self._finished, self._lock = iter(problems), finished, asyncio.Lock()
        self._come: set[str] = set()

    async def next(self) -> Problem | Reject | None:
        async with self._lock:
            return await asyncio.to_thread(self._next)

    def _next(self) -> Problem | Reject | None:
        for item in self._problems:
            name = outcome_name(item.model_dump()) if isinstance(item, Reject) else item.id
            if name in self._come:
                self.repeated += 1
            elif name in self._finished:
                self._come.add(name)
            else:
                self._come.add(name)
                return item
        return None


class Outcomes:
    """cold.jsonl and rejects.jsonl: whole lines, appended. `finished` names what was in them at the start."""

    def __init__(self, folder: Path, retry_failed: bool, tell: Callable[[str], None]):
        self.cold, self.rejects = folder / "cold.jsonl", folder / "rejects.jsonl"
        for path in (self.cold, self.rejects):
            path.touch()
            cut_torn_line(path, tell)
        if retry_failed:
            forget_failed(self.rejects, tell)
        cold, rejects = list(row_ids(self.cold)), [outcome_name(row) for row in read_rejects(self.rejects)]
        self.kept, self.rejected = len(cold), len(rejects)
        self.finished = {*cold, *rejects}

    def write(self, outcome: ColdRow | Reject) -> None:
        kept = isinstance(outcome, ColdRow)
        write_jsonl(self.cold if kept else self.rejects, [outcome], append=True)
        self.kept, self.rejected = self.kept + kept, self.rejected + (not kept)


def outcome_name(reject: Mapping[str, Any]) -> str:
    """A problem's id; a row that never became a problem is named by its source too, "row 3" being in every one."""
    return f"{reject['source']}: {reject['id']}" if reject["step"] == "source" else reject["id"]


def cut_torn_line(path: Path, tell: Callable[[str], None]) -> None:
    """Cut off what follows the last line's end: a kill may leave half a line."""
    with path.open("rb+") as file:
        size = end = file.seek(0, os.SEEK_END)
        torn = b""
        while end and b"\n" not in torn:
            start = max(0, end - 2**16)
            file.seek(start)
            torn = file.read(end - start)
            whole, end = start + torn.rfind(b"\n") + 1, start
        if size and whole < size:
            file.truncate(whole)
            tell(f"{path}: the last line was torn, {size - whole:,} bytes; it is cut off and its problem done again")


def row_ids(path: Path) -> Iterator[str]:
    """The ids of a file of cold rows; as `id` comes first in ours, the rows need not be parsed."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            first = ID_FIRST.match(line)
            try:
                yield first.group(1).decode() if first else json.loads(line)["id"]
            except (ValueError, KeyError, TypeError):
                raise RequestError(f"{path}, line {number}: no row with an 'id'; remove the line") from None


def read_rejects(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield Reject.model_validate_json(line).model_dump()
            except ValidationError as error:
                raise RequestError(f"{path}, line {number}: {first_error(error)}") from None


def forget_failed(path: Path, tell: Callable[[str], None]) -> None:
    """Take out of the rejects those that no teacher replied to, so that their problems have no outcome any more."""
    rows = list(read_rejects(path))
    others = [row for row in rows if not row["reason"].startswith(NO_REPLY)]
    new = path.with_name(f".{path.name}")
    write_jsonl(new, (Reject(**row) for row in others))
    os.replace(new, path)
    if len(others) < len(rows):
        tell(f"{path}: {len(rows) - len(others)} problems that got no reply are tried again")


class Progress:
    """Tells `log` how far the run is, every so often."""

    def __init__(self, outcomes: Outcomes, calls: CallStore, log: Callable[[dict[str, Any]], None]):
        self.outcomes, self.calls, self.log = outcomes, calls, log
        self.logged, self.time = -1, time.monotonic()

    def step(self) -> None:
        done = self.outcomes.kept + self.outcomes.rejected
        if done % LOG_EVERY == 0 or time.monotonic() - self.time > LOG_SECONDS:
            self.log_now()

    def log_now(self) -> None:
        step = self.outcomes.kept + self.outcomes.rejected
        if step == self.logged:
            return
        self.logged, self.time = step, time.monotonic()
        total = self.calls.ledger.as_dict()["total"]
        self.log(
            {
                "step": step,
                "cold/kept": self.outcomes.kept,
                "cold/rejected": self.outcomes.rejected,
                "teacher/calls": total["calls"],
                "teacher/failed": total["failed"],
                "teacher/cached": self.calls.cached,
                "teacher/tokens": total["prompt_tokens"] + total["completion_tokens"],
                "teacher/cost": total["cost"],
            }
        )


async def bridge_problem(
    problem: Problem,
    mllm: Teacher,
    reasoner: Teacher,
    store: CallStore,
    seed: int,
    show_gold: bool = True,
    trace: str = "",
) -> ColdRow | Reject:
    """Ask the teachers, filter, and assemble the row; or say at which step it fell and why."""
    receipts: list[TeacherCall] = []
    step: Purpose = "pseudo_cot"

    async def ask(purpose: Purpose, **texts: str) -> Reply:
        nonlocal step
        step = purpose
        teacher, images, sha256 = (reasoner, (), ()) if purpose == "reasoning" else (mllm, problem.images, pictures)
        prompt = render_prompt(purpose, problem, show_gold=show_gold, **texts)
        reply = await store.ask(teacher, purpose, prompt, images, sha256, call_seed(seed, problem.id, purpose))
        receipts.append(
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

    try:
        pictures = [hashlib.sha256(Path(image).read_bytes()).hexdigest() for image in problem.images]
        pseudo_cot = trace
        if not trace:
            reply = await ask("pseudo_cot")
            pseudo_cot = reply.text
            if fault := filters.cut_or_empty(reply.text, reply.finish):
                return reject(step, *fault)
        reply = await ask("description", pseudo_cot=pseudo_cot)
        description = reply.text
        if fault := filters.cut_or_empty(description, reply.finish):
            return reject(step, *fault)
        if leak := filters.states_answer(description, problem.answer, problem.choices):
            return reject(step, "description states the answer", leak)
        reply = await ask("reasoning", description=description)
    except OSError as error:
        return reject(step, "picture unreadable", str(error))
    except TeacherStopped:
        raise
    except NoReply as error:
        return reject(step, f"{NO_REPLY}: {error.reason}", error.detail)
    if cut := filters.truncated(reply.reasoning, reply.text, reply.finish):
        return reject("reasoning", "truncated", cut)
    answer = stated_answer(reply.text)
    verdict = grade_answer(answer, problem.answer, problem.choices)
    if not verdict.ok:
        return reject("answer", "wrong final answer", f"{answer[:80]!r} for {problem.answer!r}: {verdict.reason}")
    reasoning = filters.replace_description_words(reply.reasoning)
    found = check_rules(reasoning, answer, problem.choices, [teacher_question(problem), problem.answer, description])
    if found:
        return reject("rules", *found)
    response = assemble(reasoning, answer)
    reward = grade(response, problem.answer, problem.choices)
    if reward.reward != 1.0:
        return reject("response", "response not rewarded", reward.reason)
    meta = {name: value for name, value in problem.meta.items() if name != "trace"}  # it is the pseudo_cot now
    return ColdRow(
        **{**problem.model_dump(), "meta": meta},
        pseudo_cot=pseudo_cot,
        description=description,
        reasoning=reply.reasoning,
        response=response,
        calls=receipts,
    )


def check_rules(
    reasoning: str, answer: str, choices: Sequence[str] | None, given: Sequence[str]
) -> tuple[str, str] | None:
    """The first rule that the finished text breaks, as (reason, what was found); `given` is what the reasoner read."""
    rules = {
        "talks of the description": filters.talk_of_description(reasoning),
        "mixes languages": filters.language_mixing(reasoning, given),
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
