"""Every data set in its real format, traps included: written here in code, row by row."""

import json
import os
import struct
import tracemalloc
import zlib
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from vr1lib.data import sources
from vr1lib.data.readers import rows as row_files
from vr1lib.data.readers.conversations import plain_answer
from vr1lib.data.readers.polymath import option_names
from vr1lib.data.readers.rows import array_rows, shown_choices
from vr1lib.data.readers.scemqa import split_question
from vr1lib.data.sources import RowFault, iterate, load, load_cold
from vr1lib.prompts import question_text
from vr1lib.records import ColdRow, RequestError, write_jsonl

CHOICES = "Which is longest?\nChoices:\nA: 12\nB: 5 cm\nC: both"


def picture(path: Path, colour: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), colour).save(path)
    return path


def picture_bytes(colour: str = "red", format: str = "PNG") -> bytes:
    import io

    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(buffer, format)
    return buffer.getvalue()


def bomb(side: int = 60_000) -> bytes:
    """A PNG that claims so many pixels a side and holds next to nothing."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0"))]
    packed = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def written(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = content if path.suffix == ".jsonl" else None
    path.write_text("\n".join(map(json.dumps, lines)) if lines is not None else json.dumps(content), encoding="utf-8")
    return path


def reasons(loaded: object) -> list[str]:
    return [reject.reason for reject in loaded.rejects]


# ---------------------------------------------------------------------------------------------------------- LLaVA-CoT


def cot(conclusion: str, reasoning: str = "Step by step.") -> str:
    return (
        f"<SUMMARY> I will look. </SUMMARY>\n\n<CAPTION> A bar chart. </CAPTION>\n\n"
        f"<REASONING> {reasoning} </REASONING>\n\n<CONCLUSION> {conclusion} </CONCLUSION>"
    )


def llava_row(*rounds: tuple[str, str], image: object = "sqa/train/1/image.png", **fields: object) -> dict:
    turns = [
        {"from": role, "value": text}
        for question, reply in rounds
        for role, text in (("human", question), ("gpt", reply))
    ]
    return {"id": "1", "image": image, "conversations": turns, **fields}


def test_every_llava_cot_round_is_a_problem_with_its_trace_and_stays_with_the_others(tmp_path):
    picture(tmp_path / "llava_cot/sqa/train/1/image.png")
    rows = [
        llava_row((CHOICES, cot("The answer is B."))),
        llava_row(("How many?", cot("3")), ("Which colour?", cot("red."))),
    ]
    written(tmp_path / "llava_cot/train.jsonl", rows)
    loaded = load("llava_cot", tmp_path)
    assert [(p.id, p.question, p.answer, p.choices) for p in loaded.problems] == [
        ("llava_cot-1", "Which is longest?", "B", ["12", "5 cm", "both"]),
        ("llava_cot-2-1", "How many?", "3", None),
        ("llava_cot-2-2", "Which colour?", "red", None),
    ]
    assert question_text(loaded.problems[0]) == CHOICES
    assert loaded.problems[1].meta["trace"] == cot("3")
    assert [p.meta["group"] for p in loaded.problems] == ["llava_cot-1", "llava_cot-2", "llava_cot-2"]
    cold = load_cold("llava_cot", tmp_path)
    assert [(p.id, response) for p, response in cold.rows][2] == ("llava_cot-2-2", cot("red."))


def test_a_llava_cot_row_that_cannot_be_used_says_why(tmp_path):
    picture(tmp_path / "sqa/train/1/image.png")
    outside = picture(tmp_path.parent / "outside.png")
    good = ("How many?", cot("3"))
    rows = [
        llava_row(good),
        llava_row(("How many?", "<SUMMARY> x </SUMMARY>")),
        {"id": "2", "image": "sqa/train/1/image.png", "conversations": [{"from": "gpt", "value": "first"}]},
        {"id": "3", "image": "sqa/train/1/image.png", "conversations": [{"from": "human", "value": 5}]},
        {"id": "4", "image": "sqa/train/1/image.png"},
        llava_row(good, image="../outside.png"),
        llava_row(good, image=str(outside)),
        llava_row(good, image="nowhere.png"),
        llava_row(good, image=""),
        llava_row(good, image="x" * 5000),
        llava_row(good, image="a\0b.png"),
        llava_row(("", cot("3"))),
        llava_row(("<image> and <image>", cot("3"))),
        ["not", "an", "object"],
    ]
    path = written(tmp_path / "train.jsonl", rows)
    path.write_text(path.read_text() + '\n{"id": "torn", "ima')
    loaded = load("llava_cot", tmp_path)
    assert [p.id for p in loaded.problems] == ["llava_cot-1"]
    assert reasons(loaded) == [
        "no conclusion",
        "turns not in pairs",
        "turn unreadable",
        "no conversation",
        "path leaves the folder",
        "path leaves the folder",
        "picture missing",
        "no image",
        "picture missing",
        "path leaves the folder",
        "no question",
        "markers and pictures differ",
        "row unreadable",
        "row unreadable",
    ]
    assert loaded.read == 15


# ----------------------------------------------------------------------------------------------------------- Mulberry


def mulberry_row(answer: str, images: object = "AI2D/images/1.png", question: str = "<image>How many?") -> dict:
    text = (
        "### Image Description:\nBars.\n\n### Rationales:\nCount.\n\n### Let's think step by step.\n\n### Step 1:\n"
        "I think I have made a mistake. Let me rethink it.\n\n### The final answer is:\n" + answer
    )
    return {
        "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": text}],
        "images": images,
    }


@pytest.mark.parametrize("below", ["", "mulberry_images/"])
@pytest.mark.parametrize("value", ["AI2D/images/1.png", "/AI2D/images/1.png", ["AI2D/images/1.png"]])
def test_a_mulberry_picture_is_found_with_and_without_slash_and_folder_as_text_or_list(tmp_path, below, value):
    at = picture(tmp_path / below / "AI2D/images/1.png")
    written(tmp_path / "mulberry_sft.json", [mulberry_row("7", value)])
    (problem,) = load("mulberry", tmp_path).problems
    assert (problem.id, problem.images, problem.answer) == ("mulberry-1", [str(at.resolve())], "7")
    assert problem.question == "<image>How many?"
    assert "made a mistake" in problem.meta["trace"]


def test_a_mulberry_path_that_is_really_absolute_leaves_the_folder_though_a_slash_is_usual(tmp_path):
    outside = picture(tmp_path / "elsewhere/1.png")
    rows = [mulberry_row("7", str(outside)), mulberry_row("7", "/etc/passwd"), mulberry_row("7", "/AI2D/none.png")]
    written(tmp_path / "data/mulberry_sft.json", [*rows, {**rows[0], "messages": rows[0]["messages"][:1]}])
    loaded = load("mulberry", tmp_path / "data")
    assert reasons(loaded) == [
        "path leaves the folder",
        "path leaves the folder",
        "picture missing",
        "turns not in pairs",
    ]


def test_a_link_inside_the_folder_that_points_out_of_it_is_refused(tmp_path):
    outside = picture(tmp_path / "secret.png")
    (tmp_path / "data/AI2D/images").mkdir(parents=True)
    (tmp_path / "data/AI2D/images/1.png").symlink_to(outside)
    (tmp_path / "data/linked").symlink_to(tmp_path)
    rows = [mulberry_row("7"), mulberry_row("7", "linked/secret.png")]
    written(tmp_path / "data/mulberry_sft.json", rows)
    assert reasons(load("mulberry", tmp_path / "data")) == ["path leaves the folder"] * 2


def test_multi_image_rows_are_kept_with_their_markers(tmp_path):
    for name in "ab":
        picture(tmp_path / f"{name}.png")
    written(tmp_path / "mulberry_sft.json", [mulberry_row("2", ["a.png", "b.png"], "<image><image>Which?")])
    (problem,) = load("mulberry", tmp_path).problems
    assert [Path(p).name for p in problem.images] == ["a.png", "b.png"]


# ----------------------------------------------------------------------------------------------------- Vision-R1-cold


def r1(answer: str) -> str:
    return f"<think> Okay, let's see. </think><answer> {answer} </answer>"


def vision_r1_cold(folder: Path) -> Path:
    picture(folder / "llava_cot_images/coco/1.jpg")
    picture(folder / "mulberry_images/geo3k/images/2.png")
    half = [llava_row((CHOICES, r1("Final Answer:C")), ("And?", r1("Final Answer:yes")), image="coco/1.jpg")]
    turns = [
        {"from": "user", "value": f"<image>\n{CHOICES}"},
        {"from": "assistant", "value": r1("Final Answer:B. 5 cm\nAnswer:B")},
    ]
    written(folder / "vision_r1_llava_cot_full.json", half)
    written(
        folder / "vision_r1_mulberry_sft_full.json",
        [
            {"images": "mulberry_images/geo3k/images/2.png", "conversations": turns},
            {"images": "geo3k/images/2.png", "conversations": [turns[0], {"from": "assistant", "value": "no tags"}]},
        ],
    )
    return folder


def test_both_files_of_the_released_cold_set_are_read_though_their_schemas_differ(tmp_path):
    cold = load_cold("vision_r1_cold", vision_r1_cold(tmp_path / "vision_r1_cold").parent)
    assert [(p.id, p.answer, p.choices, response) for p, response in cold.rows] == [
        ("vision_r1_cold-llava_cot-1-1", "C", ["12", "5 cm", "both"], r1("Final Answer:C")),
        ("vision_r1_cold-llava_cot-1-2", "yes", None, r1("Final Answer:yes")),
        ("vision_r1_cold-mulberry-1", "B", ["12", "5 cm", "both"], r1("Final Answer:B. 5 cm\nAnswer:B")),
    ]
    assert [(r.id, r.reason) for r in cold.rejects] == [("mulberry row 2", "no final answer")]
    assert len(cold.files) == 2
    assert len(load_cold("vision_r1_cold", tmp_path, split="mulberry").rows) == 1
    assert [p.id for p in load("vision_r1_cold", tmp_path, split="llava_cot").problems] == [
        "vision_r1_cold-llava_cot-1-1",
        "vision_r1_cold-llava_cot-1-2",
    ]
    assert len(load_cold("vision_r1_cold", tmp_path, limit=2).rows) == 2


@pytest.mark.parametrize(
    ("said", "question", "answer"),
    [
        ("Final Answer:12", "How many?", "12"),
        ("Final Answer: C", CHOICES, "C"),
        ("C", CHOICES, "C"),
        ("Final Answer:(c)", CHOICES, "C"),
        ("Final Answer:option C", CHOICES, "C"),
        ("Final Answer:option C.\nAnswer:C", CHOICES, "C"),
        ("Final Answer:C.\nAnswer:C", CHOICES, "C"),
        ("Final Answer:12\nAnswer:12", "How many?", "12"),
        ("Final Answer:B. 5 cm", CHOICES, "B"),
        ("Final Answer:B (5 cm)", CHOICES, "B"),
        ("Final Answer:(B) 5 cm", "Which? (A) 12 (B) 5 cm", "B"),
        ("Final Answer:2 + 3 = 5", "How many?", "5"),
        ("Final Answer:No, it is not.", "Is it red?", "No"),
        ("Final Answer:Yes.", "Is it red?", "Yes"),
        ("The answer is B.", CHOICES, "B"),
        ("**Final Answer:** 7", "How many?", "7"),
        ("Final Answer:a. and b.", "Which animals?", "a. and b"),
        ("Final Answer:a", "Which side is longest?", "a"),
        ("Final Answer:B", "Which point?", "B"),
        ("Final Answer:E. coli", "Which bacterium?", "E. coli"),
        ("Final Answer:3.14", "How long?", "3.14"),
        (r"Final Answer:\frac{1}{2}", "How long?", r"\frac{1}{2}"),
    ],
)
def test_a_stated_answer_becomes_a_plain_gold(said, question, answer):
    assert plain_answer(said, question) == answer


@pytest.mark.parametrize("said", ["", "Final Answer:", " . ", "Final Answer:\n\n"])
def test_an_answer_that_says_nothing_is_a_fault(said):
    with pytest.raises(RowFault):
        plain_answer(said, "How many?")


@pytest.mark.parametrize(
    "text",
    [
        "No options",
        "Choices:\nA: 1\nB: 2",
        "Which?\nChoices:\nA: 1",
        "Which?\nChoices:\nA: 1\nC: 2",
        "Q\nChoices:\nA: 1\nB: ",
    ],
)
def test_only_a_question_with_well_formed_choices_is_taken_apart(text):
    assert shown_choices(text) == (text, None)


# ------------------------------------------------------------------------------------------- Geometry3K, Vision-R1-rl


def parquet_file(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


def geometry_row(problem: str = "<image>Find x.", answer: object = "48", images: object = None) -> dict:
    return {"images": images or [{"bytes": picture_bytes(), "path": "x.png"}], "problem": problem, "answer": answer}


@pytest.mark.parametrize(
    "place", ["train.parquet", "data/train-00000-of-00001.parquet", "train/0000.parquet", "default/train/0000.parquet"]
)
def test_geometry3k_is_found_wherever_the_hub_keeps_it_and_its_pictures_are_written_unchanged(tmp_path, place):
    rows = [geometry_row(answer=r"2 \sqrt { 221 }") | {"id": 7, "choices": ["1", "2"], "ground_truth": "A"}]
    parquet_file(tmp_path / "geometry3k" / place, rows)
    (problem,) = load("geometry3k", tmp_path, panels=tmp_path / "pictures").problems
    assert (problem.id, problem.question, problem.answer) == (
        "geometry3k-train-1",
        "<image>Find x.",
        r"2 \sqrt { 221 }",
    )
    assert problem.choices is None and problem.meta["hidden_choices"] == ["1", "2"]
    assert Path(problem.images[0]).parent == (tmp_path / "pictures").resolve()
    assert Path(problem.images[0]).read_bytes() == picture_bytes()


def test_parts_of_one_split_give_different_ids_and_pictures_lie_beside_them_by_default(tmp_path):
    for part in range(2):
        parquet_file(tmp_path / f"vision_r1_rl/data/train-0000{part}-of-00002.parquet", [geometry_row()])
    loaded = load("vision_r1_rl", tmp_path)
    assert [p.id for p in loaded.problems] == ["vision_r1_rl-train-1", "vision_r1_rl-train-1.1"]
    assert {Path(p.images[0]).parent for p in loaded.problems} == {(tmp_path / "vision_r1_rl/pictures").resolve()}


def test_golds_of_the_rl_set_may_be_letters_values_or_tagged_and_rows_may_hold_several_pictures(tmp_path):
    two = [{"bytes": picture_bytes("red"), "path": None}, {"bytes": picture_bytes("blue", "JPEG"), "path": None}]
    rows = [
        geometry_row(f"<image>{CHOICES}", "C"),
        geometry_row(answer="<answer> 11 </answer>"),
        geometry_row("<image> or <image>?", r"\frac{1}{2}", two),
    ]
    parquet_file(tmp_path / "train.parquet", rows)
    problems = load("vision_r1_rl", tmp_path).problems
    assert [(p.answer, p.choices, len(p.images)) for p in problems] == [
        ("C", ["12", "5 cm", "both"], 1),
        ("11", None, 1),
        (r"\frac{1}{2}", None, 2),
    ]
    assert [Path(picture).suffix for picture in problems[2].images] == [".png", ".jpg"]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_hostile_parquet_row_is_a_reject(tmp_path):
    def held(data: bytes | None, path: str | None = None) -> dict:
        return geometry_row(images=[{"bytes": data, "path": path}])

    rows = [
        held(bomb()),
        held(bomb(11_000)),  # more than we take, less than the library refuses by itself
        held(b""),
        held(b"<html>404</html>"),
        held(picture_bytes()[:40]),
        held(None, "../outside.png"),
        held(None, "/etc/passwd"),
        held(None),
        geometry_row("<image> and <image>"),
        geometry_row(answer=None),
        geometry_row(),
    ]
    picture(tmp_path.parent / "outside.png")
    parquet_file(tmp_path / "train.parquet", rows)
    loaded = load("vision_r1_rl", tmp_path)
    assert reasons(loaded) == [
        "picture too large",
        "picture too large",
        "picture empty",
        "picture unreadable",
        "picture unreadable",
        "path leaves the folder",
        "path leaves the folder",
        "picture missing",
        "markers and pictures differ",
        "no answer",
    ]
    assert [p.id for p in loaded.problems] == ["vision_r1_rl-train-11"]
    assert not any(path.stat().st_size > 1000 for path in (tmp_path / "pictures").iterdir())


def test_one_parquet_file_is_a_source_by_its_columns(tmp_path):
    file = parquet_file(tmp_path / "mine.parquet", [geometry_row()])
    assert [p.id for p in load(file).problems] == ["vision_r1_rl-mine-1"]


# ----------------------------------------------------------------------------------------------------------- PolyMATH


@pytest.mark.parametrize(
    ("stated", "names"),
    [("A-D", list("ABCD")), ("1-4", list("1234")), ("1,2,3,4", list("1234")), ("[A, B, C]", list("ABC")), (None, [])],
)
def test_polymath_options_are_named_in_many_ways(stated, names):
    assert option_names(stated) == names


def test_polymath_is_a_picture_and_the_names_of_its_options(tmp_path):
    image = {"bytes": picture_bytes(), "path": "0a1b_q7.png"}
    rows = [
        {"image": image, "category": "odd_one_out", "final_answer_range": "A-D", "final_answer": "b"},
        {"image": {**image, "path": "0a1b_q8.png"}, "category": None, "final_answer_range": "1-4", "final_answer": "3"},
        {"image": image, "category": None, "final_answer_range": "1-4", "final_answer": "5"},
        {"image": image, "category": None, "final_answer_range": "1-4", "final_answer": "[2,3]"},
        {"image": image, "category": None, "final_answer_range": None, "final_answer": None},
        {"image": None, "category": None, "final_answer_range": "1-4", "final_answer": "1"},
    ]
    parquet_file(tmp_path / "polymath/testmini/testmini.parquet", rows)
    loaded = load("polymath", tmp_path, panels=tmp_path / "pictures")
    assert [(p.id, p.question, p.answer) for p in loaded.problems] == [
        ("polymath-0a1b_q7", "Solve the problem in the picture.\nChoose from A, B, C, D.", "B"),
        ("polymath-0a1b_q8", "Solve the problem in the picture.\nChoose from 1, 2, 3, 4.", "3"),
    ]
    assert loaded.problems[0].meta["skills"] == ["odd_one_out"]
    assert reasons(loaded) == ["gold names no option", "several golds", "no answer", "no images"]


def test_polymath_as_a_folder_of_pictures_with_a_table(tmp_path):
    picture(tmp_path / "polymath/testmini/0a1b_q7.png")
    (tmp_path / "polymath/testmini/metadata.csv").write_text(
        "file_name,category,final_answer_range,final_answer\n0a1b_q7.png,odd_one_out,A-D,C\nnone.png,x,A-D,C\n"
    )
    loaded = load("polymath", tmp_path)
    assert [(p.id, p.answer, Path(p.images[0]).name) for p in loaded.problems] == [
        ("polymath-0a1b_q7", "C", "0a1b_q7.png")
    ]
    assert reasons(loaded) == ["picture missing"]


# ------------------------------------------------------------------------------------------------- a table of one's own


def own_table(folder: Path, *lines: str, name: str = "mine.csv", encoding: str = "utf-8") -> Path:
    picture(folder / "photos/a.png")
    picture(folder / "photos/b.png", "blue")
    (folder / name).write_text("\n".join(lines) + "\n", encoding=encoding)
    return folder / name


def test_a_table_of_ones_own_becomes_problems_called_like_it(tmp_path):
    path = own_table(
        tmp_path,
        "\ufeffQuestion, Image ,answer,Choices,solution,group,task,taken by",
        '"How long is it, in cm?",photos/a.png,12,,Measure it.,scene 1,length,Ann',
        "Which is bigger?,photos/a.png|photos/b.png,B,the red one | the blue one,,scene 1,,",
        "What is 2 + 2?,,4,,,,,",
    )
    first, second, third = load(path).problems
    assert (first.id, first.source, first.split, first.answer) == ("mine-1", "mine", "all", "12")
    assert first.images == [str(tmp_path / "photos/a.png")] and first.question == "How long is it, in cm?"
    assert first.meta == {
        "solution": "Measure it.", "group": "scene 1", "task": "length", "more": {"taken by": "Ann"}
    }  # fmt: skip
    assert [Path(image).name for image in second.images] == ["a.png", "b.png"]
    assert (second.choices, second.meta) == (["the red one", "the blue one"], {"group": "scene 1"})
    assert (third.images, third.choices) == ([], None)


def test_a_folder_with_one_table_and_its_pictures_is_that_table(tmp_path):
    own_table(tmp_path, "id,image,question,answer", "q7,photos/a.png,Which colour?,red")
    assert [problem.id for problem in load(tmp_path).problems] == ["q7"]
    own_table(tmp_path, "image,question,answer", name="second.csv")
    with pytest.raises(RequestError, match="holds the files of none of our sources"):
        load(tmp_path)


def test_rows_of_a_table_that_cannot_be_used_are_rejects_with_reasons(tmp_path):
    path = own_table(
        tmp_path,
        "image,question,answer,choices",
        "photos/a.png,What, exactly, is it?,red,",
        "photos/a.png,What is it?",
        "photos/none.png,What is it?,red,",
        "../outside.png,What is it?,red,",
        "photos/a.png,,red,",
        "photos/a.png,What is it?,,",
        "photos/a.png,Which?,C,one|two",
        "photos/a.png,Which?,one,one|two",
    )
    loaded = load(path)
    assert reasons(loaded) == [
        "cells and columns differ",
        "cells and columns differ",
        "picture missing",
        "path leaves the folder",
        "no question",
        "no answer",
        "gold names no option",
    ]
    assert [problem.id for problem in loaded.problems] == ["mine-8"]
    latin = own_table(
        tmp_path, "image,question,answer", "photos/a.png,Größe?,3", name="latin.csv", encoding="iso-8859-1"
    )
    assert reasons(load(latin)) == ["not UTF-8 text"]


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("picture,question,answer", "no column 'image' among picture, question, answer; add or rename one"),
        ("image;question;answer", "no column 'image' among image;question;answer; add or rename one; separate columns"),
        ("image,question,answer,answer", "column 'answer' occurs twice"),
    ],
)
def test_a_table_with_other_columns_is_one_line_naming_them(tmp_path, header, said):
    with pytest.raises(RequestError, match=said):
        load(own_table(tmp_path, header, "1,2,3,4"))


def test_a_table_that_is_not_there_is_said_to_be_missing(tmp_path):
    with pytest.raises(RequestError, match="none.csv': no such file"):
        load(tmp_path / "none.csv")


def test_a_table_called_like_a_data_sets_file_is_known_by_its_columns(tmp_path):
    own_table(tmp_path, "image,question,answer", "photos/a.png,Which colour?,red", name="testmini.csv")
    assert load(tmp_path / "testmini.csv").problems[0].source == "testmini"


# ------------------------------------------------------------------------------------------------------------- SceMQA

GOLD = "Answer (final answer highlighted)"


def scemqa(folder: Path, choice: list[object], free: list[object] = ()) -> Path:
    picture(folder / "scemqa/Multiple_Choice/Math/1.png")
    picture(folder / "scemqa/Free_Response/Math_Free_Response/1.jpg")
    written(folder / "scemqa/Multiple_Choice/multiple_choice.json", {"Math": choice})
    written(folder / "scemqa/Free_Response/free_response.json", {"Math_Free_Response": list(free)})
    return folder


def scemqa_row(question: str, gold: str, image: str = "Math/1") -> dict:
    return {"Question": question, GOLD: gold, "ImagePath": image}


QUESTION = "Which is true?\n\nA. $x=1$\nB. I\nand II\nC. none"


@pytest.mark.parametrize(
    "gold", ["B", "(B) It follows from I.", "B. It follows.", "\nB It follows", "B： because", "B-so"]
)
def test_a_scemqa_letter_is_read_with_and_without_its_explanation(tmp_path, gold):
    (problem,) = load("scemqa", scemqa(tmp_path, [scemqa_row(QUESTION, gold)])).problems
    assert (problem.question, problem.answer, problem.choices) == ("Which is true?", "B", ["$x=1$", "I and II", "none"])
    assert problem.images == [str((tmp_path / "scemqa/Multiple_Choice/Math/1.png").resolve())]
    assert problem.id == "scemqa-Math-1" and ("solution" in problem.meta) == (len(gold) > 1)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        (r"\answer{69.5} The height is 69.5.", "69.5"),
        (r"\anser{0.39} To estimate …", "0.39"),
        (r"\answer{$1s^22s^22p^63s^23p^4$}", "$1s^22s^22p^63s^23p^4$"),
        (r"\answer{\frac{1}{2}}: Half of it.", r"\frac{1}{2}"),
        (r"\answer{A }. Because.", "A"),
        (r"\answer{No}If so", "No"),
    ],
)
def test_a_scemqa_free_response_is_what_stands_in_the_braces(tmp_path, gold, answer):
    row = scemqa_row("How many? (Final Answer is a value)", gold, "Math_Free_Response/1")
    (problem,) = load("scemqa", scemqa(tmp_path, [], [row])).problems
    assert (problem.answer, problem.choices, Path(problem.images[0]).name) == (answer, None, "1.jpg")


def test_a_scemqa_row_that_cannot_be_used_says_why(tmp_path):
    rows = [
        scemqa_row(QUESTION, "(B, C) both"),
        scemqa_row("No options?", "B"),
        scemqa_row(QUESTION, "E"),
        scemqa_row(QUESTION, "because"),
        scemqa_row(QUESTION, ""),
        scemqa_row(QUESTION, "B", "Math/2"),
        scemqa_row(QUESTION, "B", "../../../Math/1"),
        "no row",
    ]
    free = [scemqa_row("?", "69.5", "Math_Free_Response/1"), scemqa_row("?", r"\answer{3} \answer{4}")]
    assert reasons(load("scemqa", scemqa(tmp_path, rows, free))) == [
        "several golds",
        "options not understood",
        "gold names no option",
        "gold names no option",
        f"no {GOLD}",
        "picture missing",
        "path leaves the folder",
        "row unreadable",
        "no \\answer{…}",
        "several golds",
    ]
    one = scemqa(tmp_path, [scemqa_row(QUESTION, "B")], [scemqa_row("?", r"\answer{3}", "Math_Free_Response/1")])
    assert len(load("scemqa", one).problems) == 2
    assert len(load("scemqa", one, split="free_response").problems) == 1


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("Which?\n\n(A) I only\n(B) III only", ["I only", "III only"]),
        ("Which is in (A) or (B)?\n\nA. one\nB. two", ["one", "two"]),
        ("interval $x < 20$.A. $0 < x$\n\nB. $-2 < x$", ["$0 < x$", "$-2 < x$"]),
        ("Which?\n A. Cu is \n B. Zn is \x08 C. none", ["Cu is", "Zn is", "none"]),
        ("Which?\r\nA) one\r\nB) two", ["one", "two"]),
    ],
)
def test_scemqa_options_are_split_at_their_labels(text, options):
    assert split_question(text)[1] == options


# ----------------------------------------------------------------------------------------- files, folders and the hub


def test_a_long_array_is_read_piece_by_piece_and_says_the_same(tmp_path, monkeypatch):
    rows = [{"n": n, "text": '[{\\" é 几 ' * (n % 50)} for n in range(300)]
    path = tmp_path / "rows.json"
    path.write_text("\ufeff" + json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")
    for piece in (64, 1 << 20):
        monkeypatch.setattr(row_files, "PIECE", piece)
        assert [row for _, row in array_rows(path)] == rows
    assert next(iter(array_rows(path)))[0] == "row 1"
    written(path, [])
    assert list(array_rows(path)) == []


@pytest.mark.parametrize("text", ["", "{}", '"x"', "[{]", '[{"a": 1}', '[{"a": 1} ', "[" * 100_000, "null"])
def test_a_file_that_is_no_whole_array_is_one_clear_line(tmp_path, text):
    (tmp_path / "mulberry_sft.json").write_text(text)
    with pytest.raises(RequestError, match="mulberry_sft.json") as error:
        load("mulberry", tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"PAR1 not really PAR1", b"<html>"])
def test_a_file_that_is_no_parquet_is_one_clear_line(tmp_path, content):
    (tmp_path / "train.parquet").write_bytes(content)
    with pytest.raises(RequestError, match="not a readable parquet") as error:
        load("geometry3k", tmp_path)
    assert "\n" not in str(error.value)


def test_a_row_too_long_to_be_data_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(row_files, "PIECE", 64)
    monkeypatch.setattr(row_files, "MAX_ROW", 10_000)
    (tmp_path / "mulberry_sft.json").write_text('[{"a": "' + "x" * 3_000_000)
    tracemalloc.start()
    with pytest.raises(RequestError, match="not JSON"):
        load("mulberry", tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 500_000
    tracemalloc.stop()


def test_rows_come_one_by_one(tmp_path):
    picture(tmp_path / "AI2D/images/1.png")
    (tmp_path / "mulberry_sft.json").write_text("[" + json.dumps(mulberry_row("7")) + ", then it breaks")
    outcomes = iterate("mulberry", tmp_path)
    assert next(outcomes).id == "mulberry-1"
    with pytest.raises(RequestError):
        next(outcomes)


@pytest.mark.parametrize("name", ["mulberry", "Mulberry-SFT", "anything"])
def test_a_folder_is_recognised_by_its_name_or_its_files(tmp_path, name):
    picture(tmp_path / name / "AI2D/images/1.png")
    written(tmp_path / name / "mulberry_sft.json", [mulberry_row("7")])
    assert load(tmp_path / name).problems[0].source == "mulberry"
    assert load(tmp_path / name / "mulberry_sft.json").problems[0].source == "mulberry"


def test_a_jsonl_of_conversations_is_its_source_and_any_other_ours(tmp_path):
    picture(tmp_path / "sqa/train/1/image.png")
    file = written(tmp_path / "train.jsonl", [llava_row(("How many?", cot("3")))])
    assert load(file).problems[0].source == "llava_cot"
    assert load_cold(file).rows[0][1] == cot("3")
    with pytest.raises(RequestError, match="line 1"):
        load(written(tmp_path / "test.jsonl", [{"id": "1", "question": "?"}]))


def test_a_folder_with_parquet_files_is_told_by_their_columns(tmp_path):
    parquet_file(tmp_path / "a/train.parquet", [geometry_row()])
    image = {"bytes": picture_bytes(), "path": "q1.png"}
    parquet_file(tmp_path / "b/test.parquet", [{"image": image, "final_answer_range": "A-D", "final_answer": "B"}])
    assert load(tmp_path / "a").problems[0].source == "vision_r1_rl"
    assert load(tmp_path / "b", split="test").problems[0].source == "polymath"


def test_a_folder_that_is_no_sources_is_one_clear_line(tmp_path):
    with pytest.raises(RequestError, match="holds the files of none"):
        load(tmp_path)
    written(tmp_path / "rows.json", [])
    with pytest.raises(RequestError, match="like no file of our sources"):
        load(tmp_path / "rows.json")
    with pytest.raises(RequestError, match="no responses"):
        (tmp_path / "wemath").mkdir()
        written(tmp_path / "wemath/testmini.json", [])
        load_cold("wemath", tmp_path)


def on_hub(monkeypatch, folder: Path, asked: list[str]) -> None:
    def snapshot_download(repo: str, repo_type: str) -> str:
        asked.append(f"{repo_type}/{repo}")
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)


def test_a_hub_id_is_downloaded_its_archives_unpacked_once(tmp_path, monkeypatch):
    import tarfile

    picture(tmp_path / "pack/mulberry_images/AI2D/images/1.png")
    written(tmp_path / "hub/mulberry_sft.json", [mulberry_row("7")])
    with tarfile.open(tmp_path / "hub/mulberry_images.tar", "w") as archive:
        archive.add(tmp_path / "pack/mulberry_images", "mulberry_images")
    asked = []
    on_hub(monkeypatch, tmp_path / "hub", asked)
    assert [p.id for p in load("HuanjinYao/Mulberry-SFT").problems] == ["mulberry-1"]
    (tmp_path / "hub/mulberry_images.tar").write_bytes(b"gone")
    assert [p.id for p in load("huanjinyao/mulberry-sft").problems] == ["mulberry-1"]
    assert asked == ["dataset/HuanjinYao/Mulberry-SFT"] * 2


def test_a_zip_in_parts_is_joined_and_an_archive_that_leaves_the_folder_refused(tmp_path, monkeypatch):
    import tarfile
    import zipfile

    picture(tmp_path / "1.png")
    with zipfile.ZipFile(tmp_path / "image.zip", "w") as archive:
        archive.write(tmp_path / "1.png", "sqa/train/1/image.png")
    whole = (tmp_path / "image.zip").read_bytes()
    hub = written(tmp_path / "hub/train.jsonl", [llava_row(("How many?", cot("3")))]).parent
    (hub / "image.zip.part-aa").write_bytes(whole[:50])
    (hub / "image.zip.part-ab").write_bytes(whole[50:])
    on_hub(monkeypatch, hub, [])
    assert len(load("Xkev/LLaVA-CoT-100k").problems) == 1
    with tarfile.open(hub / "more.tar", "w") as archive:
        archive.add(tmp_path / "1.png", "../escaped.png")
    with pytest.raises(RequestError, match="more.tar: cannot be unpacked"):
        load("Xkev/LLaVA-CoT-100k")
    assert not (tmp_path / "escaped.png").exists()


def test_the_cold_sets_hub_id_says_where_its_pictures_are(tmp_path, monkeypatch):
    written(tmp_path / "vision_r1_llava_cot_full.json", [])
    on_hub(monkeypatch, tmp_path, [])
    with pytest.raises(RequestError, match="comes without pictures"):
        load("Osilly/Vision-R1-cold")


def test_a_hub_that_cannot_be_reached_is_one_clear_line():
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    with pytest.raises(RequestError, match="hiyouga/geometry3k: cannot be downloaded") as error:
        load("hiyouga/geometry3k")
    assert "\n" not in str(error.value)


def test_our_own_cold_rows_are_loaded_too(tmp_path):
    texts = {"pseudo_cot": "", "description": "", "reasoning": "", "response": r1("Final Answer:3"), "calls": []}
    rows = [
        ColdRow(id=f"r{n}", images=[], question="?", answer="3", source="s", split=split, **texts)
        for n, split in enumerate("aab")
    ]
    write_jsonl(tmp_path / "cold.jsonl", rows)
    assert [p.id for p, _ in load_cold(tmp_path / "cold.jsonl", split="a").rows] == ["r0", "r1"]
    assert load_cold(tmp_path / "cold.jsonl", limit=1).rows == [(rows[0], r1("Final Answer:3"))]


def test_a_truncated_picture_is_a_reject_of_load_and_left_to_the_training_by_load_cold(tmp_path):
    Image.effect_noise((200, 200), 80).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:5000])
    (tmp_path / "empty.png").write_bytes(b"")
    written(tmp_path / "mulberry_sft.json", [mulberry_row("7", name) for name in ("cut.png", "empty.png")])
    assert reasons(load("mulberry", tmp_path)) == ["picture unreadable", "picture empty"]
    cold = load_cold("mulberry", tmp_path)
    assert (len(cold.rows), reasons(cold)) == (1, ["picture empty"])


def test_every_source_is_known_by_name_hub_id_and_licence():
    assert set(sources.SOURCES) == {
        "wemath",
        "mathvision",
        "llava_cot",
        "mulberry",
        "vision_r1_cold",
        "vision_r1_rl",
        "geometry3k",
        "polymath",
        "scemqa",
    }
    assert all("/" in source.hub and source.licence for source in sources.SOURCES.values())
