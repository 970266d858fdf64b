"""DynaMath's published rule and its two accuracies, worked by hand on three seeds of ten variants."""

import json
import math

import pytest

from vr1lib.benchmarks import dynamath, scoring
from vr1lib.records import Problem

SEEDS = {  # gold of variant n, answer type, subject, level
    "8": (lambda n: f"{n}.5", "float", "plane geometry", "high school"),
    "98": (lambda n: "AB"[n % 2], "multiple choice", "analytic  geometry ", "high school"),
    "380": (lambda n: f"({n}, 2)", "text", "statistics", "elementary school"),
}


@pytest.fixture
def data(tmp_path):
    for variant in range(1, 11):
        folder = tmp_path / f"trial{variant}"
        folder.mkdir()
        rows = {
            seed: {
                "question": f"Seed {seed}, variant {variant}?",
                "answer": gold(variant),
                "image": f"image/image{seed}.png",
                "answer_type": kind,
                "subject": subject,
                "level": level,
            }
            for seed, (gold, kind, subject, level) in SEEDS.items()
        }
        (folder / "dataset.json").write_text(json.dumps(rows), encoding="utf-8")
    return tmp_path


def predictions(folder, response):
    path = folder / "predictions.jsonl"
    rows = [
        {"id": seed, "variant": variant, "response": response(seed, variant, gold(variant))}
        for seed, (gold, *_) in SEEDS.items()
        for variant in range(1, 11)
    ]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def test_average_counts_variants_and_worst_case_seeds(data):
    def response(seed, variant, gold):
        return "wrong" if (seed, variant) in (("98", 3), ("380", 10), ("380", 9)) else gold

    scores = scoring.score("dynamath", predictions(data, response), data)
    assert scores["average"] == {"accuracy": 0.9, "correct": 27, "total": 30}
    assert scores["worst_case"] == {"accuracy": 1 / 3, "correct": 1, "total": 3}
    assert scores["topic"]["analytic geometry"] == {
        "average": {"accuracy": 0.9, "correct": 9, "total": 10},
        "worst_case": {"accuracy": 0.0, "correct": 0, "total": 1},
    }
    assert scores["level"]["high school"]["worst_case"] == {"accuracy": 0.5, "correct": 1, "total": 2}
    assert scores["level"]["elementary school"]["average"]["correct"] == 8


@pytest.mark.parametrize(
    "form",
    [
        "{}",
        "<think>Let me see.</think><answer> Final Answer:{} </answer>",
        '{{"solution": "as 1/2 \\\\frac", "short answer": "{}"}}',
        "I looked at the picture.\nThe answer is {}.",
    ],
)
def test_every_form_of_a_response_is_read(data, form):
    scores = scoring.score("dynamath", predictions(data, lambda seed, variant, gold: form.format(gold)), data)
    assert scores["correct"] == 30


def test_a_variant_without_a_prediction_is_wrong_and_named(data):
    path = predictions(data, lambda seed, variant, gold: gold)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[1:]))
    scores = scoring.score("dynamath", path, data)
    assert scores["predictions"]["missing"] == {"count": 1, "ids": ["8 variant 1"]}
    assert (scores["average"]["correct"], scores["worst_case"]["correct"]) == (29, 2)


@pytest.mark.parametrize(
    ("kind", "gold", "answer", "right"),
    [
        ("float", "8.0", "8.001", True),
        ("float", "8.0", "8.0011", False),
        ("float", "1.5708", "0.5π", True),
        ("float", "3.1416", "\\pi", True),
        ("float", "3.1416", "1 pi", True),
        ("float", "8.0", "8 cm", True),
        ("float", "8.0", "about 8", False),
        ("float", "8.0", "", False),
        ("float", "8.0", "nan", False),
        ("multiple choice", "B", "b", True),
        ("multiple choice", "B", "(B) 12", True),
        ("multiple choice", "A", "FAIL", False),
        ("multiple choice", "A", "A or B", False),
        ("multiple choice", "F", "F", True),
        ("text", "Oct", "In october it was: Oct", True),
        ("text", "(1, 2)", "(1,2)", False),  # contained letter by letter, as officially
        ("text", "(1, 2)", "", False),
        ("text", "(1, 2)", None, False),
    ],
)
def test_answer_types_have_their_rules(kind, gold, answer, right):
    problem = Problem(
        id="x", images=[], question="?", answer=gold, source="dynamath", split="v", meta={"answer_type": kind}
    )
    assert dynamath.is_right(answer, problem) is right


def test_multiples_of_pi_are_numbers():
    assert dynamath.number("2π") == 2 * math.pi
    assert dynamath.number("π2") is None
    assert dynamath.number("1" * 500) is None
