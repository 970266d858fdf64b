"""Predictions scored offline by each benchmark's own published rules: nothing is generated, no judge is asked.

Three ways from a response to a verdict (`protocol`), so that one file can be read as the leaderboard, as we and as the
paper's authors read it:

official  the row's `extraction`, else the answer that `extraction`'s rules find; right by the benchmark's own rule
strict    our reading: a response that is not well formed is wrong, and the answer block goes to our grader (to the
          benchmark's own rule where a tolerance is part of it)
authors   Vision-R1's reading: the first `<answer> Final Answer:… </answer>` in exactly that form, else the whole text;
          then as in official. Where their runner asks a judge model, our rules stand in for it
"""

import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple, get_args

from vr1lib.answers import grade_answer
from vr1lib.benchmarks.catalogue import module_of
from vr1lib.benchmarks.extraction import authors_text, extract, final_answer
from vr1lib.benchmarks.predictions import Prediction, in_phrases, match, read_predictions
from vr1lib.records import Problem, RequestError
from vr1lib.reward import parse_completion

Protocol = Literal["official", "strict", "authors"]
Share = Callable[[Sequence[bool]], dict[str, Any]]


def score(
    benchmark: str,
    predictions: str | Path,
    data: str | Path,
    *,
    protocol: Protocol = "official",
    strict: bool = False,
    interval: Callable[[list[float]], Any] | None = None,
) -> dict[str, Any]:
    """The scores of a predictions file against the published data in the folder, file or hub id `data`.

    `strict` refuses a file with missing, second or unknown predictions. `interval` gives for a list of verdicts an
    object with low and high, which each share then carries. Accuracies are shares from 0 to 1, but for the text in
    percent of MathVista's published structure.
    """
    module = module_of(benchmark)
    if protocol not in get_args(Protocol):
        raise RequestError(f"protocol = {protocol!r}: unknown; give one of {', '.join(get_args(Protocol))}")
    problems = module.problems(data)
    if not problems:
        raise RequestError(f"data = {str(data)!r}: holds no rows; give the published files")
    matched = match(problems, read_predictions(predictions), strict)
    verdicts = [verdict(module, *pair, protocol) for pair in zip(problems, matched.predictions)]
    right = [verdict.right for verdict in verdicts]
    share = share_with(interval)
    return {
        "benchmark": benchmark,
        "protocol": protocol,
        "n": len(problems),
        "correct": sum(right),
        **module.report(problems, right, share),
        "predictions": matched.counts() | {"answers": dict(Counter(verdict.source for verdict in verdicts))},
    }


def share_with(interval: Callable[[list[float]], Any] | None) -> Share:
    """How verdicts become a share: counts, accuracy 0 to 1, and its interval if one is wanted."""

    def share(verdicts: Sequence[bool]) -> dict[str, Any]:
        correct, total = sum(verdicts), len(verdicts)
        row = {"accuracy": correct / total if total else None, "correct": correct, "total": total}
        if interval and total:
            estimate = interval([float(verdict) for verdict in verdicts])
            row |= {"low": estimate.low, "high": estimate.high}
        return row

    return share


class Verdict(NamedTuple):
    """`answer` is what was graded, whatever it is; `source` where it came from."""

    answer: Any
    right: bool
    source: Literal["extraction", "rules", "answer block", "not well formed", "no prediction"]


def verdict(module: ModuleType, problem: Problem, prediction: Prediction | None, protocol: Protocol) -> Verdict:
    """Whether one prediction is right, and the answer it was judged by."""
    if prediction is None:
        return Verdict(None, False, "no prediction")
    if protocol == "strict":
        parsed = parse_completion(prediction.response)
        if parsed is None:
            return Verdict(None, False, "not well formed")
        if hasattr(module, "is_strictly_right"):
            return Verdict(
                parsed.answer, module.is_strictly_right(final_answer(parsed.answer), problem), "answer block"
            )
        graded = grade_answer(parsed.answer, problem.answer, problem.choices)
        return Verdict(parsed.answer, graded.ok, "answer block")
    if prediction.given:
        return Verdict(prediction.extraction, module.is_right(prediction.extraction, problem), "extraction")
    answer = extracted(module, problem, prediction.response, protocol)
    return Verdict(answer, module.is_right(answer, problem), "rules")


def extracted(module: ModuleType, problem: Problem, response: str, protocol: Protocol = "official") -> str:
    """The answer that rules find in a response: in the benchmark's own answer form if it has one, else by `extract`."""
    response = authors_text(response) if protocol == "authors" else response
    own = module.own_form(response) if hasattr(module, "own_form") else None
    return own if own is not None else extract(response, module.wanted(problem))


# ------------------------------------------------------------------------------------------------------------- command


def score_command(
    benchmark: str,
    predictions: str,
    data: str,
    out: str | None = None,
    strict: bool = False,
    as_json: bool = False,
    *,
    protocol: Protocol = "official",
    interval: Callable[[list[float]], Any] | None = None,
) -> int:
    """`vr1 score`: prints a table or the JSON, writes the JSON into the file `out`; stderr says what does not fit."""
    scores = score(benchmark, predictions, data, protocol=protocol, strict=strict, interval=interval)
    content = json.dumps(scores, indent=4, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()
    if out:
        try:
            Path(out).write_text(content + "\n", encoding="utf-8")
        except OSError as error:
            raise RequestError(f"--out {out}: cannot be written ({error.strerror}); give a file in a folder") from None
    for fault in in_phrases(scores["predictions"]):
        print(f"{predictions}: {fault}", file=sys.stderr)
    print(content if as_json else table(scores))
    return 0


def table(scores: dict[str, Any]) -> str:
    """The shares a reader looks for first, one a line."""
    lines = [f"{scores['benchmark']}, protocol {scores['protocol']}, n = {scores['n']}"]
    shares = module_of(scores["benchmark"]).headline(scores)
    width = max(map(len, shares), default=0)
    for name, row in shares.items():
        lines.append(f"{name:{width}}  {in_words(row)}")
    return "\n".join(lines)


def in_words(row: Any) -> str:
    """A share as percent with its counts and interval; a sum of shares as the number it is."""
    if not isinstance(row, dict):
        return f"{row:8.2f}"
    if row["accuracy"] is None:
        return "     –"
    between = f"  [{100 * row['low']:.1f}, {100 * row['high']:.1f}]" if "low" in row else ""
    return f"{100 * row['accuracy']:6.2f} %  {row['correct']} of {row['total']}{between}"


def disagreements(benchmark: str, predictions: str | Path, data: str | Path) -> tuple[list[dict[str, Any]], int]:
    """Rows whose rule-based answer is not their `extraction` in the benchmark's spelling, and how many have one.

    Where the rules go wrong: each row has id, response, extraction, rules, what both are normalised to, and gold.
    """
    module = module_of(benchmark)
    problems = module.problems(data)
    rows, compared = [], 0
    for problem, prediction in zip(problems, match(problems, read_predictions(predictions)).predictions):
        if prediction is None or prediction.extraction in (None, ""):
            continue
        compared += 1
        found = extracted(module, problem, prediction.response)
        normalised = [module.normalise(answer, problem) for answer in (prediction.extraction, found)]
        if normalised[0] != normalised[1]:
            row = {"id": problem.meta["id"], "response": prediction.response, "extraction": prediction.extraction}
            rows.append(row | {"rules": found, "normalised": normalised, "gold": problem.answer})
    return rows, compared
