"""The answer in a model's free response, by rules alone.

MathVista and others let a language model take the answer out of a response; these rules stand in for it, so that a
score needs no judge and is the same tomorrow. In order: our own answer block, a box, MathVista's published shortcuts
(the response is a choice or a number), then what a sentence says. A refusal gives "N/A", for MathVista's rule
reads a choice out of any text. They agree with the published extractions on 94.5 % of GPT-4's worked solutions and on
90.8 % of LLaVAR's sentences; most of the rest are guesses where the response has no answer (`scoring.disagreements`).
"""

import re
from typing import Literal, NamedTuple

from vr1lib.benchmarks import sentences
from vr1lib.benchmarks.options import choose, yes_or_no

Kind = Literal["option", "integer", "float", "list", "yes or no", "text"]


class Wanted(NamedTuple):
    """What a question asks for; `choices` are an option question's texts, none where they are only in the picture.

    `question` is its text, which says what is given and what a yes affirms; nothing is made of a blank one.
    """

    kind: Kind
    choices: tuple[str, ...] = ()
    question: str = ""


MAX_READ = 4_000  # characters of a response's end that are looked at: an answer stands at the end of a long one
MAX_CUES = 8  # places where a text calls something its answer
_BLOCK = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)
_AUTHORS = re.compile(r"<answer> Final Answer:(.*?) </answer>", re.DOTALL)
_PREFIX = re.compile(r"\s*(?:\*\*)?final answer\s*[:：]\s*", re.IGNORECASE)
_TOKENS = re.compile(r"</?s>|<\|[a-z_]{1,30}\|>|\*\*|\\[,!;]")
_WRAPPED = re.compile(r"\\(?:text(?:bf|it|rm)?|math(?:rm|bf))\s*\{([^{}]*)\}")


def authors_text(response: str) -> str:
    """What Vision-R1's authors score: the first block of their exact form, stripped; without one the whole text."""
    match = _AUTHORS.search(response) if "<answer>" in response else None
    return match[1].strip() if match else response


def answer_block(response: str) -> str:
    """What the last `<answer>` block holds without `Final Answer:`, an empty text without a block."""
    blocks = _BLOCK.findall(response)
    return final_answer(blocks[-1]) if blocks else ""


def final_answer(block: str) -> str:
    """An answer block's text without its `Final Answer:`."""
    return _PREFIX.sub("", block, count=1).strip()


def extract(response: str, wanted: Wanted) -> str:
    """The answer in `response`, an empty text if it is blank."""
    text = _WRAPPED.sub(r"\1", _TOKENS.sub("", response[-MAX_READ:])).replace("−", "-")
    text = re.sub(r"[^\S\n]+", " ", text).strip()
    if block := answer_block(text):
        return _read(last_boxed(block) or block, wanted) or block
    text = text.rpartition("</think>")[2].strip() or text
    boxed = last_boxed(text)
    if boxed and (found := _read(boxed, wanted)):
        return found
    return _read(text, wanted)


def _read(text: str, wanted: Wanted) -> str:
    if not text:
        return ""
    if wanted.kind == "option":
        return choose(text, wanted.choices, wanted.question)
    if wanted.kind in ("integer", "float"):
        return _number(text, wanted.kind, wanted.question)
    if wanted.kind == "list":
        return _list(text)
    return yes_or_no(text) if wanted.kind == "yes or no" else said_text(text)


def last_boxed(text: str) -> str:
    r"""What stands in the last \boxed{…}, an empty text without one."""
    start = text.rfind(r"\boxed{")
    if start < 0:
        return ""
    depth = 0
    for place in range(start + 6, len(text)):
        depth += (text[place] == "{") - (text[place] == "}")
        if depth == 0:
            return text[start + 7 : place].strip()
    return ""


# ------------------------------------------------------------------------------------------------- numbers and lists

_QUOTED = re.compile(r'The answer is "(.*)"\.')
_FRACTION = re.compile(r"\\[dt]?frac\s?\{(\d+)\}\s?\{(\d+)\}")
_SAID_NUMBER = re.compile(r"(?i:answer|答案)[^.。\n]{0,80}?(?i:\bis|\bbe|:|：|是|为)")


def _number(text: str, kind: Kind, question: str) -> str:
    """The number that is the answer; a refusal or nothing where there is none."""
    try:
        return str(int(text) if kind == "integer" else float(text))
    except (ValueError, OverflowError):
        pass
    if quoted := _QUOTED.search(text):
        return quoted[1]
    text = _FRACTION.sub(r"\1/\2", text)
    for match in list(_SAID_NUMBER.finditer(text))[: -MAX_CUES - 1 : -1]:
        said = sentences.split(text[match.end() :].lstrip() or " ")[0]
        if sentences.NUMBER.search(said):
            return sentences.stated_number(said)
    parts = sentences.split(text)
    if words := sentences.refusal(parts[-1:]):
        return words
    return sentences.answer_number(parts, question) or sentences.refusal(parts)


def _list(text: str) -> str:
    """The last list in square brackets, else the last sentence's numbers."""
    if brackets := re.findall(r"\[[^\[\]]*\]", text):
        return brackets[-1]
    parts = sentences.split(text)
    numbers = [sentences.plain_number(number) for number in sentences.NUMBER.findall(parts[-1])]
    return f"[{', '.join(numbers)}]" if numbers else sentences.refusal(parts) or text


# ---------------------------------------------------------------------------------------------------------------- words


_SAID_TEXT = re.compile(r"answer\s*(?:is|:|：)\s*(?:that\s+)?(.+?)(?:\.?\s*$|\.\s|\n)", re.IGNORECASE)


def said_text(text: str) -> str:
    """What the text calls its answer, else its last line."""
    text = text[-MAX_READ:].strip()
    said = _SAID_TEXT.findall(text)
    found = said[-1] if said else text.rpartition("\n")[2]
    return found.strip().strip('*"“”').strip()
