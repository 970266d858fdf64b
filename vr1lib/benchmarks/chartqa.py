"""ChartQA test: questions about charts, half written by people (human), half by a machine (augmented).

A general benchmark of the paper's Table 3. Relaxed accuracy: two numbers (percents as hundredths) are equal if they
differ by at most 5 % of the gold, all else is compared as text without case. Of the gold: the authors' runner takes 5 %
of the prediction, by arguments in the wrong order. The published files have no ids: predictions are named
"human-0", "augmented-0", … by the row's place in its file, counted from 0.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from vr1lib.benchmarks.extraction import Wanted
from vr1lib.benchmarks.files import At, Published, Row, json_or_file_rows
from vr1lib.records import Problem, RequestError

NAME = "chartqa"
HUB = "HuggingFaceM4/ChartQA"
PATTERNS = (
    "test_*.json",
    "test/test_*.json",
    "ChartQA Dataset/test/test_*.json",
    "data/test-*.parquet",
    "test-*.parquet",
)
TOLERANCE = 0.05
_SPLITS = {"0": "human", "1": "augmented", "human": "human", "machine": "augmented", "augmented": "augmented"}


def read(row: Row, at: At) -> Problem:
    told = row.get("human_or_machine", at.file.stem.rpartition("_")[2])
    split = _SPLITS.get(str(told))
    if split is None:
        raise RequestError(
            f"{at.file}, {at.name}: neither human nor augmented; give test_human.json, test_augmented.json"
        )
    name = f"{split}-{int(at.name.split()[-1]) - 1}"
    label = row.get("label")
    gold = {"label": label[0] if isinstance(label, list) and len(label) == 1 else label}
    picture = row.get("image") or f"png/{at.text(row, 'imgname')}"
    return Problem(
        id=f"chartqa-{name}",
        images=at.picture(picture, f"chartqa-{name}"),
        question=at.text(row, "query"),
        answer=at.text(gold, "label"),
        source=NAME,
        split="test",
        meta={"id": name, "part": split},
    )


_PUBLISHED = Published(NAME, HUB, PATTERNS, read, json_or_file_rows)
problems, load = _PUBLISHED.problems, _PUBLISHED.load


def query(problem: Problem) -> str:
    return f"{problem.question}\nAnswer the question using a single word or phrase."


def groups(problem: Problem) -> dict[str, list[str]]:
    return {"part": [problem.meta["part"]]}


def wanted(problem: Problem) -> Wanted:
    return Wanted("text")


def is_right(extraction: Any, problem: Problem) -> bool:
    answer, gold = "" if extraction is None else str(extraction).strip(), problem.answer.strip()
    value, right = number(answer), number(gold)
    if value is not None and right:  # a gold of 0 allows no relative change: it is compared as text
        return abs(value - right) / abs(right) <= TOLERANCE
    return answer.lower() == gold.lower()


def number(text: str) -> float | None:
    """A decimal, a percent as its hundredth; None for any other text."""
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


is_strictly_right = is_right


def report(
    problems: Sequence[Problem], right: Sequence[bool], share: Callable[[Sequence[bool]], Any]
) -> dict[str, Any]:
    """Both halves pooled, and each."""
    parts: dict[str, list[bool]] = defaultdict(list)
    for problem, verdict in zip(problems, right, strict=True):
        parts[problem.meta["part"]].append(verdict)
    return {"overall": share(list(right)), "part": {name: share(parts[name]) for name in sorted(parts)}}


def headline(scores: dict[str, Any]) -> dict[str, Any]:
    return {"overall": scores["overall"], **scores["part"]}
