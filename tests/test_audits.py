import io
import json
import random
import re
import resource
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from test_rl_set import drawing

from vr1lib.analysis.tables import paper_rows
from vr1lib.data import audits
from vr1lib.data.audits import (
    TextCounts,
    audit,
    audit_leaks,
    count_word,
    count_words,
    mentions,
    stats,
    table_2,
)
from vr1lib.data.near_duplicates import (
    SAME_QUESTION,
    Fingerprint,
    Index,
    _background,
    fingerprint,
    question_grams,
    question_words,
)
from vr1lib.records import ColdRow, Problem, RequestError, write_jsonl


def row(id: str, description: str, answer: str = "3", reasoning: str = "", **fields: object) -> ColdRow:
    texts = {"pseudo_cot": "", "description": description, "reasoning": reasoning, "response": ""}
    fixed = {"images": [], "question": "?", "source": "s", "split": "cold", "calls": []}
    return ColdRow(id=id, answer=answer, **{**fixed, **texts, **fields})


def test_words_are_counted_whole_and_as_substrings_whatever_their_case():
    counts = count_words(["Wait, wait! I am waiting. Check the checkbox.", "Hmm.", "waiter"])
    assert (counts["wait"].word, counts["wait"].substring, counts["wait"].rows) == (2, 4, 1)
    assert (counts["check"].word, counts["check"].substring, counts["check"].rows) == (1, 2, 1)
    assert (counts["hmm"].word, counts["mistake"].word, counts["alternatively"].substring) == (1, 0, 0)


def test_lengths_are_in_words():
    counts = TextCounts()
    for text in ["a b", "a", "a b c", ""]:
        counts.add(text)
    assert counts.as_dict()["lengths"] == {"texts": 4, "mean": 1.5, "median": 1.5, "p90": 2.7, "max": 3.0}
    assert TextCounts().as_dict()["lengths"]["texts"] == 0


def test_a_stated_gold_is_a_leak_and_a_mentioned_one_is_told_apart():
    rows = [
        row("a", "Three bars. The answer is 3."),
        row("b", "The bar is 3 cm."),
        row("c", "The bar is 3.5 or 13 cm."),
    ]
    audit = audit_leaks(rows)
    assert (audit.rows, audit.stated, audit.mentioned) == (3, ("a",), ("a", "b"))


def test_a_gold_is_mentioned_as_a_word_of_its_own_only():
    assert mentions("of $2\\pi$, or", "2\\pi")
    assert not mentions("Cylinder", "C")


def test_reasoning_that_was_told_the_answer_is_a_leak():
    told = [
        "The provided answer is 3, so let me work towards it.",
        "According to the reference solution it is 3.",
        "The answer is 3. Let me see why.",
    ]
    clean = [
        "The provided answer choices are 3 and 4.",
        "Given that AB is 3, the answer must follow.",
        "A standard solution of 3 mol. So 3.",
    ]
    rows = [
        row(f"{kind}{n}", "", reasoning=text)
        for kind, texts in (("told", told), ("clean", clean))
        for n, text in enumerate(texts)
    ]
    assert audit_leaks(rows).told == ("told0", "told1", "told2")


# -------------------------------------------------------------------------------------------------------------- stats


@pytest.mark.parametrize("seed", range(20))
def test_whole_words_are_those_that_a_regular_expression_finds(seed):
    dice = random.Random(seed)
    text = "".join(dice.choices(["wait", "Wait".lower(), " ", "_", "é", "1", ".", "几", "\n", "wai", "t"], k=300))
    assert count_word("wait", text) == (len(re.findall(r"\bwait\b", text)), text.count("wait"))


def test_statistics_by_source_and_step_are_those_counted_by_hand(tmp_path):
    texts = {"description": "A bar.", "reasoning": "Wait, waiting. Hmm", "response": "Check it, wait"}
    rows = [row("a", **{**texts, "source": "geo"}), row("b", **{**texts, "source": "chart", "response": "no"})]
    write_jsonl(tmp_path / "cold.jsonl", rows)
    with (tmp_path / "cold.jsonl").open("a") as file:
        file.write('{"id": "x"}\n{"id": "torn", "respon')
    found = stats(tmp_path / "cold.jsonl")
    assert (found["rows"], found["unreadable"]) == (4, 2)
    assert found["unreadable_first"] == ["cold.jsonl, line 3", "cold.jsonl, line 4"]
    assert found["steps"]["reasoning"]["words"]["wait"] == {"word": 2, "substring": 4, "rows": 2}
    assert found["steps"]["response"]["words"]["wait"] == {"word": 1, "substring": 1, "rows": 1}
    assert found["sources"]["geo"]["response"]["lengths"] == {
        "texts": 1,
        "mean": 3.0,
        "median": 3.0,
        "p90": 3.0,
        "max": 3.0,
    }
    assert found["sources"]["chart"]["response"]["words"]["check"]["word"] == 0
    assert set(found["sources"]) == {"geo", "chart"} and set(found["steps"]) == {"description", "reasoning", "response"}
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("name", "content", "source", "step"),
    [
        (
            "full.json",
            [
                {
                    "images": "mulberry_images/geo3k/images/1.png",
                    "conversations": [{"from": "user", "value": "Wait?"}, {"from": "assistant", "value": "Wait, 3."}],
                }
            ],
            "geo3k",
            "response",
        ),
        (
            "train.jsonl",
            {
                "image": "coco/1.jpg",
                "conversations": [{"from": "human", "value": "Wait?"}, {"from": "gpt", "value": "Wait, 3."}],
            },
            "coco",
            "response",
        ),
        (
            "sft.json",
            [
                {
                    "images": "/AI2D/images/1.png",
                    "messages": [{"role": "user", "content": "Wait?"}, {"role": "assistant", "content": "Wait, 3."}],
                }
            ],
            "AI2D",
            "response",
        ),
        ("completions.jsonl", {"problem_id": "p", "text": "Wait, 3."}, "completions", "text"),
        ("mine.jsonl", {"response": "Wait, 3.", "source": "x"}, "x", "response"),
    ],
)
def test_the_released_files_and_completions_are_counted_as_they_are(tmp_path, name, content, source, step):
    (tmp_path / name).write_text(json.dumps(content))
    found = stats(tmp_path / name)
    assert found["sources"][source][step]["words"]["wait"]["word"] == 1
    assert found["steps"][step]["lengths"]["texts"] == 1


def test_table_2_stands_beside_the_papers_numbers_in_both_countings(tmp_path):
    write_jsonl(tmp_path / "cold.jsonl", [row(f"r{n}", "", response="Wait. Waiting. Hmm.") for n in range(4)])
    paper = paper_rows("paper_table2")
    table = {line["word"]: line for line in table_2(stats(tmp_path / "cold.jsonl"), paper)}
    wait = table["Wait"]
    assert (wait["ours"], wait["ours_substring"], wait["ours_per_1000"]) == (4, 8, 1000.0)
    assert (wait["vision_r1_cold_200k"], wait["vision_r1_cold_200k_per_1000"]) == (585719, 585719 / 200)
    assert table["Check"]["mulberry_260k_per_1000"] == 26421 / 260
    write_jsonl(tmp_path / "rl.jsonl", [Problem(id="p", images=[], question="?", answer="1", source="s", split="rl")])
    with pytest.raises(RequestError, match="holds no response"):
        table_2(stats(tmp_path / "rl.jsonl"), paper)


def test_the_command_prints_the_table_or_all_of_it_as_json(tmp_path, capsys):
    write_jsonl(tmp_path / "cold.jsonl", [row("a", "It shows", response="Wait.")])
    assert audits.stats_command(str(tmp_path / "cold.jsonl"), paper=paper_rows("paper_table2")) == 0
    text = capsys.readouterr().out
    assert "Wait" in text and "vision_r1_cold_200k" in text and "2,928.6" in text
    assert audits.stats_command(str(tmp_path / "cold.jsonl"), as_json=True, paper=paper_rows("paper_table2")) == 0
    assert json.loads(capsys.readouterr().out)["table_2"][0]["ours"] == 1
    with pytest.raises(RequestError, match="no such file"):
        stats(tmp_path / "nowhere.jsonl")


def test_memory_does_not_grow_with_the_file(tmp_path):
    line = json.dumps({"source": "s", "response": "Wait, let me check that again. " * 200}) + "\n"
    with (tmp_path / "cold.jsonl").open("w") as file:
        for _ in range(3_000):
            file.write(line)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert stats(tmp_path / "cold.jsonl")["steps"]["response"]["words"]["wait"]["word"] == 600_000
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert (tmp_path / "cold.jsonl").stat().st_size > 18e6 and grown * 1024 < 8e6


# ------------------------------------------------------------------------------------------------------ same problems

SUBJECTS = ["triangle", "circle", "rectangular garden", "regular hexagon", "parallelogram", "right trapezoid"]
ASKED = [
    "how long is the side",
    "what is the area of",
    "which angle belongs to",
    "how many lines cross",
    "what is the perimeter of",
]


def planted_problem(folder: Path, seed: int) -> Problem:
    dice = random.Random(seed)
    question = (
        f"In the {dice.choice(SUBJECTS)} {''.join(dice.sample('ABCDEFGH', 4))} shown in the figure the side "
        f"{''.join(dice.sample('KLMN', 2))} is {dice.randrange(2, 99)} cm long; {dice.choice(ASKED)} "
        f"{''.join(dice.sample('PQRST', 3))} if it has {dice.randrange(2, 40)} points?"
    )
    picture = drawing(folder / f"{seed}.png", seed)
    return Problem(id=f"p{seed}", images=[picture], question=question, answer="1", source="s", split="test")


def altered(problem: Problem, folder: Path, seed: int) -> Problem:
    """Recoloured, resized, a margin cropped off, saved as a poor JPEG; the question reworded."""
    dice = random.Random(seed)
    image = Image.open(problem.images[0]).convert("RGB")
    recolour = dice.choice(
        [
            ImageOps.invert,
            lambda image: ImageOps.grayscale(image).convert("RGB"),
            lambda image: ImageEnhance.Contrast(image).enhance(0.6),
            lambda image: Image.blend(image, Image.new("RGB", image.size, "orange"), 0.3),
        ]
    )
    image = recolour(image)
    width, height = image.size
    left, top, right, bottom = (dice.uniform(0, 0.04) for _ in range(4))
    image = image.crop(
        (int(left * width), int(top * height), int(width - right * width), int(height - bottom * height))
    )
    scale = dice.choice([0.5, 0.7, 1.4, 2])
    image = image.resize((int(image.width * scale), int(image.height * scale * dice.uniform(0.95, 1.05))))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=40)
    path = folder / f"altered-{problem.id}.jpg"
    path.write_bytes(buffer.getvalue())
    words = {"shown in the figure": "of the picture", "is": "measures", "how long": "what length", "if": "given that"}
    question = problem.question
    for old, new in words.items():
        question = re.sub(rf"\b{old}\b", new, question)
    question = f"{dice.choice(['', 'Look carefully. ', 'Please answer: '])}{question}"
    return problem.model_copy(update={"id": f"x{problem.id}", "images": [str(path)], "question": question})


def test_planted_copies_are_found_and_others_are_not(tmp_path):
    """Recall and precision on a planted set: half of 120 training problems are altered benchmark problems."""
    benchmark = [planted_problem(tmp_path, seed) for seed in range(120)]
    training = [altered(problem, tmp_path, number) for number, problem in enumerate(benchmark[:60])]
    training += [planted_problem(tmp_path, seed) for seed in range(1000, 1060)]
    index = Index(benchmark)
    planted = {problem.id: problem.id.removeprefix("x") for problem in training[:60]}
    found = {(problem.id, match.id) for problem in training for match in index.matches(problem)}
    right = {pair for pair in found if planted.get(pair[0]) == pair[1]}
    assert len(right) / len(planted) >= 0.95, sorted(set(planted) - {id for id, _ in right})
    assert len(right) / len(found) >= 0.95, sorted(found - right)


def test_the_same_picture_with_another_question_is_found_by_the_picture(tmp_path):
    problem = planted_problem(tmp_path, 1)
    other = problem.model_copy(update={"id": "q", "question": "Name every colour."})
    (match,) = Index([problem]).matches(other)
    assert (match.id, match.by, match.picture) == ("p1", "picture", 1.0)


def test_a_question_without_its_picture_is_found_by_its_words_unless_its_numbers_differ(tmp_path):
    problem = planted_problem(tmp_path, 1)
    text = problem.model_copy(update={"images": [], "question": f"<image>{problem.question.upper()}"})
    (match,) = Index([problem]).matches(text)
    assert (match.by, match.question) == ("question", 1.0)
    other = text.model_copy(update={"question": re.sub(r"\d+", "1", problem.question)})
    assert Index([problem]).matches(other) == []
    assert (
        Index([problem.model_copy(update={"question": "Find x."})]).matches(
            text.model_copy(update={"question": "Find x."})
        )
        == []
    )


def test_a_long_question_with_one_other_number_is_another_problem(tmp_path):
    problems = [planted_problem(tmp_path, seed) for seed in range(20)]
    story = " Its walls get a bright varnish that dries within days under warm evening winds from the nearby lake."
    same = problems[3].model_copy(update={"images": [], "question": problems[3].question + story})
    index = Index([problem.model_copy(update={"images": []}) for problem in problems if problem.id != "p3"] + [same])
    other = same.model_copy(update={"question": re.sub(r"(\d+) points", r"1\1 points", same.question)})
    assert [match.id for match in index.matches(same)] == ["p3"] and other.question != same.question
    assert index.matches(other) == []
    assert index._likeness(question_grams(other.question), index.ids.index("p3")) > SAME_QUESTION  # but for the number


def test_a_wide_margin_around_a_picture_does_not_hide_it(tmp_path):
    problem = planted_problem(tmp_path, 1)
    page = Image.new("RGB", (420, 300), "white")
    page.paste(Image.open(problem.images[0]), (180, 90))
    page.save(tmp_path / "page.png")
    other = problem.model_copy(update={"images": [str(tmp_path / "page.png")], "question": "Look at this one."})
    one, two = (
        fingerprint(problem.images[0]).shape.reshape(4, -1),
        fingerprint(tmp_path / "page.png").shape.reshape(4, -1),
    )
    assert [round(float(4 * a @ b)) for a, b in zip(one, two)] == [0, 1, 0, 1]  # whole, trimmed, of ink and of edges
    same_words = other.model_copy(update={"question": problem.question})
    assert Index([problem]).matches(same_words)


def test_the_background_is_the_most_frequent_colour():
    pixels = np.zeros((10, 10, 3), dtype=np.float32)
    pixels[:6] = 250
    assert _background(pixels).tolist() == [250, 250, 250]


def test_the_likest_of_a_problems_pictures_counts(tmp_path):
    problem = planted_problem(tmp_path, 1)
    alike = altered(problem, tmp_path, 5).images[0]
    for images in ([problem.images[0], alike], [alike, problem.images[0]]):
        two = problem.model_copy(update={"id": "two", "images": images})
        assert [match.picture for match in Index([two]).matches(problem)] == [1.0]


def test_one_of_several_pictures_is_enough(tmp_path):
    problem = planted_problem(tmp_path, 1)
    two = problem.model_copy(update={"images": [drawing(tmp_path / "9.png", 9), problem.images[0]]})
    assert [match.by for match in Index([problem]).matches(two)] == ["picture and question"]
    assert [match.by for match in Index([two]).matches(problem)] == ["picture and question"]


def test_a_picture_of_one_colour_is_like_no_other_and_a_broken_one_harms_nothing(tmp_path):
    Image.new("RGB", (40, 30), "white").save(tmp_path / "white.png")
    assert fingerprint(tmp_path / "white.png") is None
    (tmp_path / "broken.png").write_bytes(b"no picture")
    Image.new("RGB", (1, 1), "red").save(tmp_path / "dot.png")
    problem = planted_problem(tmp_path, 1)
    for name in ("white", "broken", "dot"):
        odd = problem.model_copy(update={"images": [str(tmp_path / f"{name}.png")], "question": "?"})
        assert Index([problem, odd]).matches(odd) == []


def test_colours_do_not_matter_to_a_shape_and_its_length_is_one(tmp_path):
    path = drawing(tmp_path / "1.png", 1)
    ImageOps.invert(Image.open(path).convert("RGB")).save(tmp_path / "2.png")
    one, two, other = (
        fingerprint(picture).shape for picture in (path, tmp_path / "2.png", drawing(tmp_path / "3.png", 3))
    )
    assert float(one @ one) == pytest.approx(1, abs=1e-5)
    assert float(one @ two) > 0.99 > 0.9 > float(one @ other)


def test_of_pictures_that_are_all_alike_only_a_copy_counts(tmp_path):
    def grid(seed: int) -> Problem:
        """Nine squares in colours: alike but for these."""
        dice = random.Random(seed)
        image = Image.new("RGB", (96, 96), "white")
        for cell in range(9):
            x, y = 32 * (cell % 3) + 6, 32 * (cell // 3) + 6
            image.paste(dice.choice(["red", "green", "blue", "orange"]), (x, y, x + 20, y + 20))
        path = tmp_path / f"grid{seed}.png"
        image.save(path)
        question = "How many of the squares in the picture are red, say?"
        return Problem(id=f"g{seed}", images=[str(path)], question=question, answer="1", source="s", split="s")

    index = Index(grid(seed) for seed in range(40))
    assert [index.matches(grid(seed)) for seed in range(100, 110)] == [[]] * 10
    copy = grid(7)
    image = Image.open(copy.images[0]).resize((140, 140))
    image.save(tmp_path / "copy.jpg", quality=60)
    copied = copy.model_copy(update={"images": [str(tmp_path / "copy.jpg")], "question": "Count the red ones."})
    assert [match.id for match in index.matches(copied)] == ["g7"]


def test_questions_are_compared_without_markers_wrappers_and_case():
    assert question_words("<image1>Find $\\text{AB}$ = 3.5 [image 2]!") == ["find", "ab", "=", "3.5"]
    assert question_words("ＡＢ　is ５") == ["ab", "is", "5"]


def test_more_pictures_than_there_was_room_for_are_all_found():
    index = Index()
    pictures = [Fingerprint(shape, np.zeros(192)) for shape in np.eye(300, 1020, dtype=np.float32)]
    problems = [Problem(id=f"p{n}", images=[], question="?", answer="1", source="s", split="s") for n in range(300)]
    for problem, picture in zip(problems, pictures):
        index.add(problem, [picture])
    assert [[match.id for match in index.matches(p, [one])] for p, one in zip(problems, pictures)] == [
        [p.id] for p in problems
    ]


# -------------------------------------------------------------------------------------------------------------- audit


def test_an_audit_names_bad_rows_golds_copies_leaks_and_what_a_benchmark_holds_too(tmp_path):
    benchmark = [planted_problem(tmp_path / "images", seed) for seed in range(3)]
    write_jsonl(tmp_path / "test.jsonl", benchmark)
    common = {"question": "How many?", "response": "<think> So 3. </think><answer> Final Answer:3 </answer>"}
    shared = {"images": benchmark[1].images, "question": benchmark[1].question, "response": common["response"]}
    rows = [
        row("clean", "Three bars.", **common),
        row("copy", "Three bars.", **common),
        row("leak", "The answer is 3.", **{**common, "question": "How many are blue?"}),
        row("bad gold", "", "Final Answer:", **{**common, "question": "How many are red?"}),
        row("wrong", "", "4", reasoning="The provided answer is 4.", **{**common, "question": "How many are thin?"}),
        row("shared", "", **shared),
    ]
    write_jsonl(tmp_path / "cold.jsonl", rows)
    with (tmp_path / "cold.jsonl").open("a") as file:
        file.write(
            json.dumps({"id": "x", "images": ["../y.png"], "question": "?", "answer": "1", "source": "s", "split": "s"})
        )
        file.write('\n{"id": "torn", "ima')
    report = audit(tmp_path / "cold.jsonl", [tmp_path / "test.jsonl"])
    assert (report["rows"], [r["reason"] for r in report["unreadable"]]) == (
        8,
        ["path leaves the folder", "row unreadable"],
    )
    assert [r["id"] for r in report["refused_golds"]] == ["bad gold"]
    assert [(d["id"], d["of"]) for d in report["duplicates"]] == [("copy", "clean")]
    assert [r["id"] for r in report["responses"]["not_rewarded"]] == ["bad gold", "wrong"]
    assert (report["leaks"]["stated"], report["leaks"]["told"]) == (["leak"], ["wrong"])
    (held,) = report["contamination"]
    assert (held["problems"], held["shared"]) == (3, 1)
    assert [(hit["id"], hit["of"], hit["by"]) for hit in held["hits"]] == [("shared", "p1", "picture and question")]
    assert json.loads(json.dumps(report)) == report


def test_sets_may_be_folders_of_sources_and_parquet_files(tmp_path):
    from test_readers import geometry_row, parquet_file
    from test_sources import wemath, wemath_row

    drawing(tmp_path / "wemath/image/1.png", 1)
    wemath(tmp_path, [wemath_row(1, question="How long is the side AB of the triangle in the picture?")])
    data = (tmp_path / "wemath/image/1.png").read_bytes()
    images = [{"bytes": data, "path": "1.png"}]
    parquet_file(tmp_path / "rl/train.parquet", [geometry_row("<image>Find x.", "48", images)])
    report = audit(tmp_path / "rl/train.parquet", [tmp_path / "wemath"])
    assert [hit["by"] for hit in report["contamination"][0]["hits"]] == ["picture"]
    assert sorted(path.name for path in (tmp_path / "rl").iterdir()) == ["train.parquet"]  # nothing is left behind
    with pytest.raises(RequestError, match="nowhere"):
        audit(tmp_path / "rl/train.parquet", ["nowhere.jsonl"])


def test_the_audit_is_printed_to_be_read_or_as_json(tmp_path, capsys):
    write_jsonl(tmp_path / "cold.jsonl", [row("a", "The answer is 3.", response="3"), row("a", "", response="3")])
    assert audits.audit_command(str(tmp_path / "cold.jsonl"), [str(tmp_path / "cold.jsonl")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert Counter(line.split("  ")[0] for line in lines)["descriptions that state the gold"] == 1
    assert audits.audit_command(str(tmp_path / "cold.jsonl"), as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["leaks"]["stated"] == ["a"]
