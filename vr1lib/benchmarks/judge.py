"""The authors' verdict on a reply: their extraction by rules, and a judge model where one is given.

The paper's runner lets a model extract or compare the answer (gpt-4o-mini, or gpt-3.5 for some sets). Here rules do it
(`scoring.verdict` under "authors"), and a judge at an OpenAI-compatible endpoint is asked only where they are
undecided, or always, as the authors do. Its prompt is in our own words and known by its hash; it answers 1 or 0 and
nothing else, else the rules' verdict stands and is counted. Its replies lie in the run folder's store of calls.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from vr1lib.benchmarks.catalogue import module_of
from vr1lib.benchmarks.extraction import authors_text
from vr1lib.benchmarks.predictions import Prediction
from vr1lib.benchmarks.protocol import Interval, Selection, grade_strictly, score
from vr1lib.benchmarks.scoring import verdict
from vr1lib.benchmarks.server import Question, ask_all
from vr1lib.data.bridging import call_seed
from vr1lib.data.endpoints import Endpoints, Sampling
from vr1lib.data.teachers import NoReply
from vr1lib.prompts import question_text
from vr1lib.records import Completion, Graded, Problem
from vr1lib.reward import ANSWER_OPEN

PURPOSE = "judgement"
VERDICTS = "verdicts_authors.jsonl"
MAX_READ = 4_000  # characters of the reply's end that the judge is shown: an answer stands at the end of a long one
PROMPT = """\
You compare the final answer of a model's reply with the right answer to a question.

Question:
{question}

Right answer: {answer}

The model's reply, or its end:
{reply}

Find the one answer on which the reply settles. It agrees with the right answer if both mean the same: the same \
option, named by its letter or by its text, the same quantity in whatever unit or spelling, or equal expressions. A \
reply that settles on no answer does not agree.
Write 1 if it agrees and 0 if it does not, and nothing else."""
PROMPT_SHA256 = hashlib.sha256(PROMPT.encode()).hexdigest()
SLOT = re.compile(r"\{(question|answer|reply)\}")


def sampling_of_judge(send_seed: bool = True) -> dict[str, Sampling]:
    """A verdict needs no chance; a judge that thinks gets room for it (our choice; authors: 128 tokens)."""
    return {PURPOSE: Sampling(0.0, 1.0, 2048, {} if send_seed else {"seed": None})}


@dataclass(frozen=True)
class Judge:
    """A model that is asked for verdicts: on what rules leave undecided, or on all replies."""

    model: Endpoints
    asks: Literal["undecided", "all"]
    folder: Path
    in_flight: int

    def identity(self) -> dict[str, Any]:
        """What two scores with a judge must share; no address."""
        return {"model": ", ".join(self.model.models), "asks": self.asks, "prompt_sha256": PROMPT_SHA256}


def authors_verdicts(
    problems: Sequence[Problem],
    winners: Mapping[str, tuple[int, Completion]],
    judge: Judge | None = None,
    known: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> list[dict[str, Any]]:
    """One row for each problem: problem_id, response_try, extracted, right, judged_by, and whether a judge was `asked`.

    `winners` are the replies that count, by problem id, each with the number of its try. `known` are rows by problem id
    for which a judge has been asked already, in a shard.
    """
    rows = []
    for problem in problems:
        number, reply = winners[problem.id]
        by_rules = verdict(
            module_of(problem.meta["benchmark"]), problem, Prediction(reply.text, None, False), "authors"
        )
        rows.append(
            {
                "problem_id": problem.id,
                "response_try": number,
                "extracted": by_rules.answer,
                "right": by_rules.right,
                "judged_by": "rules",
                "asked": judge is not None and (judge.asks == "all" or undecided(by_rules.answer, reply.text)),
            }
        )
    if judge is None:
        return rows
    for row in rows:
        row |= known.get(row["problem_id"], {})
    doubtful = [
        (row, problem) for row, problem in zip(rows, problems) if row["asked"] and row["problem_id"] not in known
    ]
    questions = [
        Question(prompt(problem, winners[problem.id][1].text), (), call_seed(0, problem.id, PURPOSE))
        for _, problem in doubtful
    ]
    with closing(ask_all(judge.model, PURPOSE, questions, judge.folder, judge.in_flight)) as replies:
        for (row, _), reply in zip(doubtful, replies, strict=True):
            said = "" if isinstance(reply, NoReply) else reply.text.strip()
            if said in ("0", "1"):
                row |= {"right": said == "1", "judged_by": "judge"}
    return rows


def undecided(extracted: Any, response: str) -> bool:
    """Whether rules found no answer, or found it in a reply without any answer block."""
    return extracted in (None, "") or ANSWER_OPEN not in response


def prompt(problem: Problem, response: str) -> str:
    """The judge's prompt, its slots filled in one pass, so that braces in a reply are left alone."""
    slots = {
        "question": question_text(problem),
        "answer": problem.answer,
        "reply": authors_text(response)[-MAX_READ:],
    }
    return SLOT.sub(lambda slot: slots[slot[1]], PROMPT)


def score_authors(
    selection: Selection,
    winners: Mapping[str, tuple[int, Completion]],
    verdicts: Sequence[Mapping[str, Any]],
    interval: Interval,
    judge: Judge | None,
    *,
    tries: int,
    **conditions: Any,
) -> dict[str, Any]:
    """The benchmark's row under the authors' protocol. `tries`: so many at most, and a note where it was one."""
    by_id = {row["problem_id"]: row for row in verdicts}
    rows = [by_id[problem.id] for problem in selection.problems]
    kept = [winners[problem.id][1] for problem in selection.problems]
    asked = [row for row in rows if row["asked"]]
    of_judge = None if judge is None else {**judge.identity(), "calls": len(asked)}
    return score(
        selection,
        [
            reply if isinstance(reply, Graded) else grade_strictly(reply, problem)
            for reply, problem in zip(kept, selection.problems)
        ],
        interval,
        protocol="authors",
        verdicts=[row["right"] for row in rows],
        tries=tries,
        **({"tries_note": "temperature 0: a second try would repeat the first"} if tries == 1 else {}),
        later_tries_kept=sum(row["response_try"] > 1 for row in rows),
        judge=of_judge,
        judge_without_verdict=sum(row["judged_by"] == "rules" for row in asked),
        **conditions,
    )


def read_verdicts(folders: Iterable[str | Path]) -> dict[str, dict[str, Any]]:
    """By problem id, the rows that finished shards hold."""
    files = [Path(folder) / VERDICTS for folder in folders]
    rows = [json.loads(line) for file in files if file.is_file() for line in file.open(encoding="utf-8")]
    return {row["problem_id"]: row for row in rows}


def write_verdicts(folder: Path, verdicts: Sequence[Mapping[str, Any]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in verdicts)
    (folder / VERDICTS).write_text(text, encoding="utf-8")
