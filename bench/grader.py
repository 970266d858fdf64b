"""How fast the grader is, beside math-verify and mathruler where they are installed, and how it bears hostile answers.

    python bench/grader.py [--rows 20000] [--json]

Plain answers are letters, integers, decimals and short texts in well-formed completions of some 300 characters; every
row goes the whole way (format, answer, reward), on one core. The peers only see the extracted answer, as they are used
in practice: math-verify with both sides boxed. Agreement is with the rule's own cases in tests/data, so ours is 100 %
or a bug; it tells what another grader would have rewarded otherwise.
"""

import argparse
import io
import json
import random
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.test_answers import GOLDS, HOSTILE  # noqa: E402
from vr1lib.reward import grade, grade_row  # noqa: E402

THINK = "First I list what the picture gives. Then I check each candidate; two of them can be ruled out at once. " * 3
CHOICES = ["12", "13.5", "Monday", "none of these", "5 cm"]


def plain_rows(count: int, seed: int = 0) -> list[dict]:
    """Rows {id, completion, answer, choices} with letters, integers, decimals and texts in equal parts, half right."""
    dice = random.Random(seed)
    texts = ["octopus", "Yes", "No", "quarter past", "Small Shrimp", "odd"]
    rows = []
    for number in range(count):
        kind = number % 5
        if kind == 0:
            gold, wrong = dice.sample("ABCDE", 2)
        elif kind == 1:
            gold, wrong = (str(value) for value in dice.sample(range(10_000), 2))
        elif kind == 2:
            gold, wrong = (f"{value / 100:.2f}" for value in dice.sample(range(10_000), 2))
        elif kind == 3:
            gold, wrong = dice.sample(texts, 2)
        else:
            gold, wrong = dice.sample("ABCDE", 2)
            gold, wrong = gold, f"({wrong})"
        said = gold if dice.random() < 0.5 else wrong
        completion = f"<think>{THINK}</think>\n<answer>{said}</answer>"
        choices = CHOICES if kind == 0 else None
        rows.append({"id": number, "completion": completion, "said": said, "answer": gold, "choices": choices})
    return rows


def cases() -> list[tuple[str, str, list[str] | None, bool]]:
    """(answer, gold, choices, right?) of the rule's own cases."""
    path = ROOT / "tests" / "data" / "grader_cases_own.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        (said, row["answer"], row["choices"], verdict)
        for row in rows
        for verdict in (True, False)
        for said in row["right" if verdict else "wrong"]
    ]


def peers() -> dict[str, Callable[[str, str], bool]]:
    """(answer, gold) → right? of the other graders that are installed."""
    found: dict[str, Callable[[str, str], bool]] = {}
    try:
        from math_verify import parse, verify

        def boxed(text: str) -> str:
            return text if "\\boxed" in text else rf"\boxed{{{text}}}"

        found["math-verify"] = lambda said, gold: verify(parse(boxed(gold)), parse(boxed(said)))
    except ImportError:
        pass
    try:
        from mathruler.grader import grade_answer

        found["mathruler"] = lambda said, gold: grade_answer(said, gold)
    except ImportError:
        pass
    return found


def measure(rows: list, work: Callable) -> tuple[float, list]:
    """(rows per second, results)"""
    started = time.perf_counter()
    results = [work(row) for row in rows]
    return len(rows) / (time.perf_counter() - started), results


def jsonl_loop(rows: list[dict]) -> float:
    """Rows per second from a JSONL text through the grader into another one."""
    source = io.StringIO("".join(json.dumps(row) + "\n" for row in rows))
    target = io.StringIO()
    started = time.perf_counter()
    for line in source:
        target.write(json.dumps(grade_row(json.loads(line)), ensure_ascii=False) + "\n")
    return len(rows) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000, help="plain rows for our grader; the peers see a tenth")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()

    rows, examples = plain_rows(options.rows), cases()
    report: dict = {"rows": len(rows), "cases": len(examples)}
    plain, _ = measure(rows, lambda row: grade(row["completion"], row["answer"], row["choices"]))
    symbolic, verdicts = measure(examples, lambda row: grade(f"<think>a</think><answer>{row[0]}</answer>", *row[1:3]))
    agreement = sum(grade.answer_ok == row[3] for grade, row in zip(verdicts, examples, strict=True)) / len(examples)
    report["ours"] = {
        "plain_rows_per_second": round(plain),
        "jsonl_rows_per_second": round(jsonl_loop(rows)),
        "case_rows_per_second": round(symbolic),
        "agreement": agreement,
    }

    hostile = []
    for name, answer in HOSTILE.items():
        for gold, choices in GOLDS:
            started = time.perf_counter()
            grade(f"<think>a</think><answer>{answer}</answer>", gold, choices)
            hostile.append((time.perf_counter() - started, name))
    slowest, name = max(hostile)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    report["ours"] |= {"hostile_seconds": round(slowest, 3), "hostile_name": name, "peak_mib": round(peak)}

    without_choices = [row for row in examples if not row[2]]
    for name, judge in peers().items():
        few = rows[: len(rows) // 10]
        plain, _ = measure(few, lambda row, judge=judge: judge(row["said"], row["answer"]))
        symbolic, verdicts = measure(without_choices, lambda row, judge=judge: attempt(judge, row[0], row[1]))
        agreed = sum(verdict == row[3] for verdict, row in zip(verdicts, without_choices, strict=True))
        report[name] = {
            "plain_rows_per_second": round(plain),
            "case_rows_per_second": round(symbolic),
            "agreement_without_choices": agreed / len(without_choices),
        }
    print(json.dumps(report, indent=2) if options.json else in_words(report))


def attempt(judge: Callable[[str, str], bool], said: str, gold: str) -> bool | None:
    """A peer's verdict, None where it raises."""
    try:
        return bool(judge(said, gold))
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
        return None


def in_words(report: dict) -> str:
    lines = [f"{report['rows']:,} plain rows, {report['cases']:,} cases of the rule"]
    for name in (name for name in report if isinstance(report[name], dict)):
        figures = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in report[name].items())
        lines.append(f"{name}: {figures}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
