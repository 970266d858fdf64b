import json
import struct
import zlib
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from vr1lib.data import sources
from vr1lib.data.sources import assign_splits, gather_pictures, load, load_all, place_markers, split_options
from vr1lib.prompts import prompt_parts
from vr1lib.records import Problem, RequestError, read_jsonl, write_jsonl


def picture(path: Path, colour: str = "red", size: tuple[int, int] = (8, 6), format: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, format=format)
    return path


def png_claiming(width: int, height: int) -> bytes:
    """A PNG that claims this size and holds next to nothing: a decompression bomb needs no more."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0"))]
    packed = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def wemath_row(number: int, **changes: object) -> dict:
    row = {
        "ID": f"2steps_{number}",
        "key": "2steps_1",
        "question": "How long?",
        "option": "A. 1;B. 2; C. No correct answer",
        "answer": "B",
        "image_path": f"image/{number}.png",
        "knowledge concept": "Length",
    }
    return {**row, **changes}


def wemath(folder: Path, rows: list[object]) -> Path:
    (folder / "wemath").mkdir(parents=True, exist_ok=True)
    (folder / "wemath" / "testmini.json").write_text(json.dumps(rows))
    return folder


def mathvision(folder: Path, rows: list[dict]) -> Path:
    (folder / "mathvision").mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"level": 1, "subject": "counting", "options": [], **row}) for row in rows]
    (folder / "mathvision" / "test.jsonl").write_text("\n".join(lines))
    return folder


def problem(id: str, images: list[str], **meta: object) -> Problem:
    return Problem(id=id, images=images, question="?", answer="1", source="s", split="test", meta=meta)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("A. 31.4;B. 3.14;C. 62.8; D. No correct answer", ["31.4", "3.14", "62.8", "No correct answer"]),
        ("A. B; B. C; C. D; D. No correct answer", ["B", "C", "D", "No correct answer"]),
        ("A. 4 B. 3 C. 2 ;D. 1; E. No correct answer", ["4", "3", "2", "1", "No correct answer"]),
        ("A. (3, 4);   B. ①, ③ ; C. a;b", ["(3, 4)", "①, ③", "a;b"]),
        ("A. 3;D.1", ["3;D.1"]),
    ],
)
def test_wemath_option_string_is_split_at_labels_in_order(text, options):
    if len(options) < 2:
        with pytest.raises(sources.RowFault):
            split_options(text)
    else:
        assert split_options(text) == options


def test_every_wemath_row_becomes_a_problem_or_a_reject_with_its_reason(tmp_path):
    root = tmp_path / "wemath"
    for number in range(1, 15):
        picture(root / f"image/{number}.png")
    (root / "image/2.png").unlink()
    (root / "image/3.png").write_bytes(b"")
    (root / "image/4.png").write_text("<html>404</html>")
    (root / "image/5.png").write_bytes(picture(tmp_path / "whole.png", size=(400, 400)).read_bytes()[:60])
    (root / "image/6.png").write_bytes(png_claiming(60_000, 60_000))
    (root / "image/7.png").unlink()
    (root / "image/7.png").symlink_to(picture(tmp_path / "outside.png"))
    rows = [wemath_row(number) for number in range(1, 15)]
    rows[7]["image_path"] = "../../whole.png"
    rows[8]["answer"] = "D"
    rows[9]["question"] = "  "
    rows[10]["option"] = "31 or 32"
    rows[11] = "not a row"
    rows[12]["ID"] = "2steps_1"
    rows[13]["question"] = "<image> and <image>"

    loaded = load("wemath", wemath(tmp_path, rows))

    assert loaded.read == 14
    assert [(problem.id, problem.choices, problem.answer) for problem in loaded.problems] == [
        ("wemath-2steps_1-2steps_1", ["1", "2", "No correct answer"], "B")
    ]
    assert [reject.reason for reject in loaded.rejects] == [
        "picture missing",
        "picture empty",
        "picture unreadable",
        "picture unreadable",
        "picture too large",
        "path leaves the folder",
        "path leaves the folder",
        "gold names no option",
        "no question",
        "options not understood",
        "row unreadable",
        "id occurs twice",
        "markers and pictures differ",
    ]
    assert sum(loaded.reasons.values()) == 13


def test_a_gold_that_the_grader_refuses_from_itself_is_a_reject(tmp_path):
    picture(tmp_path / "mathvision/images/1.png")
    rows = [{"id": "1", "question": "?", "answer": "Final Answer:", "image": "images/1.png"}]
    assert load("mathvision", mathvision(tmp_path, rows)).reasons == {"gold not accepted from itself": 1}


def test_a_jpeg_called_png_is_used_and_renamed_to_what_it_is(tmp_path):
    picture(tmp_path / "wemath/image/1.png", format="JPEG")
    loaded = load("wemath", wemath(tmp_path, [wemath_row(1)]))
    gathered = gather_pictures(loaded.problems, tmp_path / "run")
    assert Path(gathered[0].images[0]) == (tmp_path / "run/images/wemath-2steps_1-2steps_1-1.jpg").resolve()
    assert Path(gathered[0].images[0]).read_bytes() == Path(loaded.problems[0].images[0]).read_bytes()


@pytest.mark.parametrize(
    ("question", "images", "text", "order"),
    [
        ("See <image1>.", ["a"], "See <image>.", ["a"]),
        ("See <image2>, then <image1>.", ["a", "b"], "See <image>, then <image>.", ["b", "a"]),
        ("<image1> is like <image1>?", ["a"], "<image> is like <image>?", ["a", "a"]),
        ("Only <image2>.", ["a", "b"], "<image>Only <image>.", ["a", "b"]),
        ("No marker.", ["a", "b"], "No marker.", ["a", "b"]),
        ("<image1> to <image2>, stacked", ["a"], "[image 1] to [image 2], stacked", ["a"]),
    ],
)
def test_pictures_follow_their_markers(question, images, text, order):
    assert place_markers(question, [], images) == (text, [], order)


def test_markers_in_options_put_the_pictures_first():
    question, options, images = place_markers("Which?", ["<image1>", "<image2>"], ["a", "b"])
    assert (question, options, images) == ("Which?", ["[image 1]", "[image 2]"], ["a", "b"])


@pytest.mark.parametrize("options", [["A", "B", "C"], ["a", "b", "c"], ["(A)", "(B)", "(C)"], ["A)", "B)", "C)"]])
def test_options_drawn_in_the_picture_are_no_choices(tmp_path, options):
    picture(tmp_path / "mathvision/images/1.png")
    rows = [{"id": "1", "question": "Which? <image1>", "options": options, "answer": "C", "image": "images/1.png"}]
    (loaded,) = load("mathvision", mathvision(tmp_path, rows)).problems
    assert loaded.choices is None
    assert loaded.question == "Which? <image>\nChoose from A, B, C."


def test_a_stacked_picture_is_cut_at_its_blue_lines_only_if_the_pieces_fit_the_markers(tmp_path):
    stacked = Image.new("RGB", (40, 30), "white")
    stacked.paste((0, 0, 255), (0, 10, 40, 12))
    stacked.paste((255, 0, 0), (0, 20, 10, 30))
    (tmp_path / "mathvision/images").mkdir(parents=True)
    stacked.save(tmp_path / "mathvision/images/1.png")
    rows = [
        {"id": "1", "question": "<image1> or <image2>?", "answer": "2", "image": "images/1.png"},
        {"id": "2", "question": "<image1>, <image2> or <image3>?", "answer": "2", "image": "images/1.png"},
    ]
    two, three = load("mathvision", mathvision(tmp_path, rows), panels=tmp_path / "run/images").problems
    assert two.question == "<image> or <image>?"
    assert [Image.open(path).size for path in two.images] == [(40, 10), (40, 18)]
    assert Image.open(two.images[1]).getpixel((5, 15)) == (255, 0, 0)
    assert len(prompt_parts(two)) == 4
    assert (three.question, len(three.images)) == ("[image 1], [image 2] or [image 3]?", 1)
    whole = load("mathvision", tmp_path / "mathvision").problems[0]
    assert (whole.question, len(whole.images)) == ("[image 1] or [image 2]?", 1)


@pytest.mark.parametrize(
    ("name", "root", "words"),
    [("geometry", "x", "unknown"), ("wemath", None, "data_root"), ("wemath", "nowhere", "testmini.json")],
)
def test_a_source_that_cannot_be_found_is_one_clear_line(name, root, words):
    with pytest.raises(RequestError, match=words) as error:
        load(name, root)
    assert "\n" not in str(error.value)


def test_limit_stops_after_so_many_problems(tmp_path):
    for number in range(1, 5):
        picture(tmp_path / f"wemath/image/{number}.png")
    (tmp_path / "wemath/image/1.png").unlink()
    loaded = load("wemath", wemath(tmp_path, [wemath_row(number) for number in range(1, 5)]), limit=2)
    assert (len(loaded.problems), len(loaded.rejects)) == (2, 1)


def test_an_id_that_two_sources_share_is_used_once(tmp_path):
    for name, count in (("one", 2), ("two", 3)):
        write_jsonl(tmp_path / f"{name}.jsonl", [problem(f"p{number}", []) for number in range(count)])
    loaded = load_all([tmp_path / "one.jsonl", tmp_path / "two.jsonl"])
    assert [problem.id for problem in loaded.problems] == ["p0", "p1", "p2"]
    assert (loaded.read, loaded.reasons) == (5, {"id occurs twice": 2})
    assert [file.name for file in loaded.files] == ["one.jsonl", "two.jsonl"]


def test_splits_share_neither_picture_nor_group_and_do_not_depend_on_the_order(tmp_path):
    problems = []
    for number in range(120):
        path = picture(tmp_path / f"{number}.png", colour=f"#{number // 2:06x}")
        meta = {"group": f"g{number // 4}"} if number % 2 == 0 else {}  # the odd ones hang on by their picture alone
        problems.append(problem(f"p{number}", [str(path)], **meta))
    splits = assign_splits(problems, {"cold": 2, "rl": 1, "test": 1}, seed=3)
    assert Counter(len(split) > 0 for split in splits.values()) == {True: 3}
    assert sorted(p.id for split in splits.values() for p in split) == sorted(p.id for p in problems)
    assert all(p.split == name for name, split in splits.items() for p in split)
    for key in (lambda p: Path(p.images[0]).read_bytes(), lambda p: p.meta.get("group", p.id)):
        owners = [{key(p) for p in split} for split in splits.values()]
        assert not (owners[0] & owners[1] | owners[0] & owners[2] | owners[1] & owners[2])
    again = assign_splits(problems[::-1], {"cold": 2, "rl": 1, "test": 1}, seed=3)
    assert {n: {p.id for p in s} for n, s in again.items()} == {n: {p.id for p in s} for n, s in splits.items()}


def test_split_sizes_follow_the_shares(tmp_path):
    problems = [problem(f"p{number}", []) for number in range(4000)]
    splits = assign_splits(problems, {"cold": 0.5, "rl": 0.3, "test": 0.2})
    sizes = [len(split) / 4000 for split in splits.values()]
    assert sizes == pytest.approx([0.5, 0.3, 0.2], abs=0.03)


def test_gathered_problems_are_written_and_read_back_with_pictures_of_equal_bytes(tmp_path):
    first, second = picture(tmp_path / "x/1.png", "red"), picture(tmp_path / "y/1.png", "blue")
    rows = [problem("a/1", [str(first), str(second), str(first)]), problem("a_1", [str(second)])]
    gathered = gather_pictures(rows, tmp_path / "run")
    write_jsonl(tmp_path / "run/rl.jsonl", gathered)
    back = list(read_jsonl(tmp_path / "run/rl.jsonl", Problem))
    assert [[Path(i).read_bytes() for i in p.images] for p in back] == [
        [Path(i).read_bytes() for i in p.images] for p in rows
    ]
    assert len({image for p in gathered for image in p.images}) == 3


def test_a_problem_file_is_a_source_too_and_split_picks_from_it(tmp_path):
    picture(tmp_path / "images/1.png")
    rows = [
        problem(f"p{n}", [str(tmp_path / "images/1.png")]).model_copy(update={"split": s}) for n, s in enumerate("aab")
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    assert [p.id for p in load(tmp_path / "rows.jsonl", split="a").problems] == ["p0", "p1"]
    assert load(str(tmp_path / "rows.jsonl")).read == 3
