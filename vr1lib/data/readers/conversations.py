"""Rows that are conversations about a picture, and the final answer in what the assistant says.

LLaVA-CoT, Mulberry and Vision-R1-cold name their turns differently (`from`/`value` or `role`/`content`, human/gpt or
user/assistant), and LLaVA-CoT's go on for several rounds. Our choices: every round is a problem of its own about the
same picture, without the rounds before it, kept together with them by `meta["group"]`; it is called by its row's
number, because ids are missing or not unique.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vr1lib.data.readers.rows import RowFault, Rows, file_rows
from vr1lib.records import Problem

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
THINK = re.compile(r"<think>.*?</think>", re.S)
ANSWER_BLOCK = re.compile(r"<answer>(.*?)(?:</answer>|$)", re.S)
LEAD = re.compile(
    r"^[\s*#]*(?:(?:so|thus|therefore|hence),?\s+)?(?:the\s+)?(?:final |correct |right )?answer(?:\s*\**:\**| is:?)\s*",
    re.I,
)
LETTER = re.compile(r"(?:option|choice)?\s*[*(\[]*([A-Ja-j])[*)\]]*", re.I)
LABELLED = re.compile(r"(?:option|choice)?\s*\(?([A-J])(?:\)|[.:)]|\s(?=\())\s*\S.*", re.S | re.I)
LABELS_SHOWN = re.compile(r"(?:^|\s)\(?A[.:)]\s*\S.*?\s\(?B[.:)]\s*\S", re.S)
YES_OR_NO = re.compile(r"(yes|no)\s*[,.;:]\s+\S.*", re.S | re.I)
EQUATION = re.compile(r"[^=]*=\s*(-?\d+(?:\.\d+)?)")


def rounds(rows: Rows) -> Rows:
    """Every question and reply of every conversation as a row {number, round, question, reply, row}."""
    for number, (name, row) in enumerate(rows, start=1):
        try:
            pairs = list(_pairs(row))
        except RowFault as fault:
            yield name, fault
            continue
        for turn, (question, reply) in enumerate(pairs, start=1):
            several = f"-{turn}" if len(pairs) > 1 else ""
            yield (
                f"{name}{several}",
                {"number": f"{number}{several}", "group": number, "question": question, "reply": reply, "row": row},
            )


def _pairs(row: Any) -> Iterator[tuple[str, str]]:
    if not isinstance(row, dict):
        raise RowFault("row unreadable", "not a JSON object")
    turns = row.get("conversations") or row.get("messages")
    if not isinstance(turns, list) or not turns:
        raise RowFault("no conversation", f"keys {', '.join(map(str, row))}"[:200])
    said = []
    for turn in turns:
        role, text = (
            (turn.get("from", turn.get("role")), turn.get("value", turn.get("content")))
            if isinstance(turn, dict)
            else (None, None)
        )
        if not isinstance(role, str) or role.lower() not in ROLES or not isinstance(text, str):
            raise RowFault("turn unreadable", repr(turn)[:200])
        if ROLES[role.lower()] != "system":
            said.append((ROLES[role.lower()], text.strip()))
    if [role for role, _ in said] != ["user", "assistant"] * (len(said) // 2) or not said:
        raise RowFault("turns not in pairs", ", ".join(role for role, _ in said)[:200])
    for (_, question), (_, reply) in zip(said[::2], said[1::2]):
        yield question, reply


def file_rounds(path: Path) -> Rows:
    """The rounds of a file's conversations."""
    return rounds(file_rows(path))


def problem(source: str, row: Any, split: str, **fields: Any) -> Problem:
    """The Problem of one round; `fields` are the reader's: images, question, answer, choices, meta."""
    if isinstance(row, RowFault):
        raise row
    if not fields["question"]:
        raise RowFault("no question")
    meta = {"group": f"{source}-{row['group']}", **fields.pop("meta", {})}
    return Problem(id=f"{source}-{row['number']}", source=source, split=split, meta=meta, **fields)


def reply(row: Any) -> str:
    return row["reply"]


def stated_paths(row: dict[str, Any]) -> list[str]:
    """The picture paths of a row: under `image` or `images`, one or a list of them."""
    value = row.get("images", row.get("image"))
    paths = value if isinstance(value, list) else [value]
    if not paths or not all(isinstance(path, str) and path.strip() for path in paths):
        raise RowFault("no image", repr(value)[:80])
    return [path.strip() for path in paths]


def answer_block(text: str) -> str:
    """What stands in the answer block, or behind the last "Final Answer:" outside the thinking."""
    spoken = THINK.sub("", text)
    blocks = ANSWER_BLOCK.findall(spoken)
    if blocks:
        return blocks[-1]
    _, found, answer = spoken.rpartition("Final Answer:")
    if not found:
        raise RowFault("no final answer", text[-80:])
    return answer


def plain_answer(text: str, question: str) -> str:
    """A stated answer as a gold: leads, repetitions and explanations taken off.

    "Final Answer:B. 12 cm" is B if the question shows lettered options; "option C" is C, "2 + 3 = 5" is 5, "No, it
    is not." is No; a line "Answer:B" that only says it again is dropped.
    """
    first, *rest = [line.strip() for line in LEAD.sub("", text.strip()).strip().split("\n") if line.strip()] or [""]
    rest = [line for line in rest if not LEAD.match(line)]
    answer = "\n".join([first, *rest]).strip(" *")
    answer = LEAD.sub("", answer).removesuffix(".").strip(" *")
    if not answer:
        raise RowFault("no final answer", repr(text)[-80:])
    lettered = LABELS_SHOWN.search(question)
    letter = LETTER.fullmatch(answer) or (lettered and LABELLED.fullmatch(answer))
    if letter and (lettered or letter.group(1).isupper()):
        return letter.group(1).upper()
    for pattern in (YES_OR_NO, EQUATION):
        if match := pattern.fullmatch(answer):
            return match.group(1)
    return answer
