"""A model's answers to benchmark problems, as they come: on disk batch by batch, gone on with after a kill.

Answers come in one fixed order (problems in theirs, a problem's samples together, second tries after all first ones),
so a run folder holds a beginning of the whole at any time, and going on is reading it and doing the rest. What decides
an answer is its problem's id and the run's seed alone; a batch of which a kill left only a part is done again whole.
So a run that was killed ends in the same bytes as one that was not.

Tries: the authors' runner sends a request again while the reply has no `</answer>`, five times in all, and keeps the
first that has one, else the last (reference: their patched VLMEvalKit). The first try here is the strict sample itself.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vr1lib.benchmarks.protocol import Sampling, Selection, grade_strictly
from vr1lib.benchmarks.server import PURPOSE, ModelServer, ask_all
from vr1lib.data.bridging import cut_torn_line
from vr1lib.data.teachers import NoReply, Reply
from vr1lib.models.rollout_local import complete, seed_of
from vr1lib.models.vlm import Vlm
from vr1lib.records import Completion, Graded, Problem, RequestError, read_jsonl, write_jsonl
from vr1lib.reward import ANSWER_CLOSE

TRIES = 5  # the authors' runner: 1 and up to 4 more

Progress = Callable[[int], None]


def leave_out_unreadable(selection: Selection, vlm: Vlm) -> None:
    """Move problems whose pictures or markers this model cannot take to the rejects, with what is wrong."""
    for problem in list(selection.problems):
        if detail := vlm.why_not_shown(problem):
            selection.leave_out([problem], "cannot be shown", detail)


class Answerer(Protocol):
    """Whoever answers. `generated_by` goes into the scores; `at_once` problems are written together."""

    generated_by: str

    def at_once(self, samples: int) -> int: ...

    def answer(
        self, problems: Sequence[Problem], samples: int, number: int, progress: Progress
    ) -> Iterator[list[Completion]]:
        """Completions of try `number` in batches of `at_once(samples)` problems, in order. `step` is 0 or the try."""
        ...


@dataclass(frozen=True)
class LocalModel:
    """The model in this process, `batch_size` rows at a time."""

    vlm: Vlm
    sampling: Sampling
    batch_size: int
    generated_by = "local"

    def at_once(self, samples: int) -> int:
        return max(1, self.batch_size // samples)

    def answer(
        self, problems: Sequence[Problem], samples: int, number: int, progress: Progress
    ) -> Iterator[list[Completion]]:
        size = self.at_once(samples)
        for start in range(0, len(problems), size):
            yield complete(
                self.vlm,
                problems[start : start + size],
                max_completion_tokens=self.sampling.max_completion_tokens,
                temperature=self.sampling.temperature,
                top_p=self.sampling.top_p,
                samples=samples,
                batch_size=self.batch_size,
                seed=self.sampling.seed if number == 1 else seed_of(self.sampling.seed, number),
                step=step_of(number),
                progress=progress,
            )


@dataclass(frozen=True)
class ServedModel:
    """The model behind endpoints. Its tokens are the server's count; log-probabilities are not asked for (0)."""

    server: ModelServer
    sampling: Sampling
    folder: Path
    in_flight: int

    @property
    def generated_by(self) -> str:
        return f"server: {', '.join(self.server.models)}"

    def at_once(self, samples: int) -> int:
        return 1

    def answer(
        self, problems: Sequence[Problem], samples: int, number: int, progress: Progress
    ) -> Iterator[list[Completion]]:
        """Every problem is asked before a missing reply ends it, so that going on asks only for what is missing."""
        asked = [(problem, sample) for problem in problems for sample in range(samples)]
        questions = [
            self.server.question(problem, seed_of(self.sampling.seed, problem.id, sample, number))
            for problem, sample in asked
        ]
        failed: dict[str, NoReply] = {}
        batch: list[Completion] = []
        with closing(ask_all(self.server, PURPOSE, questions, self.folder, self.in_flight)) as replies:
            for (problem, sample), reply in zip(asked, replies, strict=True):
                if isinstance(reply, NoReply):
                    failed.setdefault(problem.id, reply)
                elif not failed:
                    batch.append(said(problem, sample, number, reply))
                    progress(1)
                if len(batch) == samples:
                    yield batch
                    batch = []
        if failed:
            first, reason = next(iter(failed.items()))
            raise RequestError(
                f"{len(failed)} of {len(problems)} problems got no reply, the first {first} ({reason}); "
                "mend it and go on with resume (--resume), or put them into a file for 'exclude'"
            )


def said(problem: Problem, sample: int, number: int, reply: Reply) -> Completion:
    """A server's reply as the record of a completion."""
    return Completion(
        problem_id=problem.id,
        sample=sample,
        step=step_of(number),
        stage=0,
        text=reply.text,
        tokens=reply.completion_tokens,
        finish=reply.finish,
        logprob=0.0,
    )


def step_of(number: int) -> int:
    """A completion's `step`: 0 for a first try, else the try's number."""
    return 0 if number == 1 else number


# ------------------------------------------------------------------------------------------------------ the run folder


class AnswerFile:
    """A growing JSONL file of completions: what an earlier run left is taken in the order in which it is expected."""

    def __init__(self, path: Path, record_type: type[Completion], tell: Callable[[str], None]):
        self.path, self.tell, self.taken = path, tell, 0
        if path.exists():
            cut_torn_line(path, tell)
        self.left = list(read_jsonl(path, record_type)) if path.exists() else []

    def take(self, expected: Sequence[tuple[str, int, int]], batch: int) -> list[Any]:
        """The rows that are there of those `expected` (problem id, sample, step), whole batches of them.

        Raises RequestError if others are there. A part of a batch is cut off.
        """
        found = self.left[self.taken : self.taken + len(expected)]
        for place, (row, key) in enumerate(zip(found, expected), start=self.taken + 1):
            if (row.problem_id, row.sample, row.step) != key:
                raise RequestError(
                    f"{self.path}, line {place}: answers {row.problem_id!r} where {key[0]!r} is to be answered; "
                    "the problems are not those the run was begun with: choose another run"
                )
        if len(found) < len(expected):
            whole = len(found) // batch * batch
            if whole < len(found):
                self.tell(f"{self.path}: {len(found) - whole} answers of an unfinished batch are asked for again")
                self._keep(self.taken + whole)
            found = found[:whole]
        self.taken += len(found)
        return found

    def append(self, rows: Sequence[Completion]) -> None:
        write_jsonl(self.path, rows, append=True)

    def end(self) -> None:
        """Raises RequestError if more is there than was expected."""
        if more := len(self.left) - self.taken:
            raise RequestError(f"{self.path}: holds {more} answers too many; choose another run")

    def _keep(self, count: int) -> None:
        with self.path.open("rb") as file:
            size = sum(len(file.readline()) for _ in range(count))
        os.truncate(self.path, size)
        del self.left[count:]


def generate(
    answerer: Answerer,
    problems: Sequence[Problem],
    file: AnswerFile,
    *,
    samples: int = 1,
    number: int = 1,
    as_row: Callable[[Completion], Completion] = lambda completion: completion,
    progress: Progress = lambda count: None,
) -> list[Any]:
    """Try `number` of all problems: the rows of `file`, those that are missing made and appended."""
    expected = [(problem.id, sample, step_of(number)) for problem in problems for sample in range(samples)]
    rows = file.take(expected, answerer.at_once(samples) * samples)
    progress(len(rows))
    if len(rows) < len(expected):
        for batch in answerer.answer(problems[len(rows) // samples :], samples, number, progress):
            new = [as_row(completion) for completion in batch]
            file.append(new)
            rows += new
    return rows


@dataclass
class Answers:
    """`graded`: every problem's samples, strictly graded. `retries`: second to fifth tries of the first sample."""

    graded: list[Graded]
    retries: list[Completion]

    def of(self, problems: Sequence[Problem]) -> list[Graded]:
        """The graded answers to some of the problems, in their order."""
        by_problem: dict[str, list[Graded]] = {}
        for row in self.graded:
            by_problem.setdefault(row.problem_id, []).append(row)
        return [row for problem in problems for row in by_problem[problem.id]]

    def winners(self) -> dict[str, tuple[int, Completion]]:
        """For each problem the number and reply of its last try, which the authors keep: none follows a closed one."""
        kept: dict[str, tuple[int, Completion]] = {row.problem_id: (1, row) for row in self.graded if row.sample == 0}
        return kept | {row.problem_id: (row.step, row) for row in self.retries}


def write_answers(answers: Answers, folder: Path) -> None:
    """Answers that others have made, as `answer_all` leaves its own."""
    write_jsonl(folder / "completions.jsonl", answers.graded)
    if answers.retries:
        write_jsonl(folder / "retries.jsonl", answers.retries)


def answer_all(
    answerer: Answerer,
    problems: Sequence[Problem],
    folder: Path,
    *,
    asked: Mapping[str, Problem] | None = None,
    samples: int = 1,
    tries: int = 1,
    progress: Progress = lambda count: None,
    tell: Callable[[str], None] = print,
) -> Answers:
    """Answer `problems` into `folder`: completions.jsonl, strictly graded, and with several tries retries.jsonl.

    `asked` gives by id the problem as it is put, where that is another text than the one that is graded against.
    """
    by_id = {problem.id: problem for problem in problems}
    asked = asked or by_id

    def graded(completion: Completion) -> Graded:
        return grade_strictly(completion, by_id[completion.problem_id])

    file = AnswerFile(folder / "completions.jsonl", Graded, tell)
    put = [asked[problem.id] for problem in problems]
    answers = Answers(
        generate(answerer, put, file, samples=samples, as_row=graded, progress=progress),
        [],
    )
    file.end()
    if tries > 1:
        file = AnswerFile(folder / "retries.jsonl", Completion, tell)
        for number in range(2, tries + 1):
            winners = answers.winners()
            again = [problem for problem in put if ANSWER_CLOSE not in winners[problem.id][1].text]
            answers.retries += generate(answerer, again, file, number=number)
        file.end()
    return answers
