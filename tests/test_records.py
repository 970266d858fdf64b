"""Records and their files: paths stay inside, errors name file, line and field, pictures are what they say."""

import json
from pathlib import Path

import pytest
from PIL import Image

from vr1lib.records import Problem, RequestError, open_image, read_jsonl, write_image, write_jsonl

ROW = {"id": "p1", "images": [], "question": "How many?", "answer": "3", "source": "test", "split": "rl"}


def file_with(tmp_path, *rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_paths_are_relative_on_disk_and_absolute_in_memory(tmp_path):
    picture = tmp_path / "images" / "a.png"
    problem = Problem(**{**ROW, "images": [str(picture)], "question": "Wie viele – 几个?"})
    path = tmp_path / "rows.jsonl"
    assert write_jsonl(path, [problem]) == 1
    assert json.loads(path.read_text(encoding="utf-8"))["images"] == ["images/a.png"]
    assert list(read_jsonl(path, Problem)) == [problem]


def test_a_folder_can_be_moved_whole(tmp_path):
    path = file_with(tmp_path, {**ROW, "images": ["images/a.png"]})
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    path.rename(moved / path.name)
    (problem,) = read_jsonl(moved / path.name, Problem)
    assert problem.images == [str(moved / "images" / "a.png")]


@pytest.mark.parametrize("image", ["../outside.png", "/etc/passwd", "images/../../outside.png"])
def test_a_path_that_leaves_the_folder_is_refused_both_ways(tmp_path, image):
    path = file_with(tmp_path, {**ROW, "images": [image]})
    with pytest.raises(RequestError, match=r"rows\.jsonl, line 1: field 'images'"):
        list(read_jsonl(path, Problem))
    with pytest.raises(RequestError, match="leaves"):
        write_jsonl(tmp_path / "out.jsonl", [Problem(**{**ROW, "images": [image]})])


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link.png").symlink_to(tmp_path / "secret.png")
    path = file_with(tmp_path / "data", {**ROW, "images": ["link.png"]})
    with pytest.raises(RequestError, match="leaves"):
        list(read_jsonl(path, Problem))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({key: value for key, value in ROW.items() if key != "answer"}, "field 'answer' is missing"),
        ({**ROW, "anwser": "3"}, "unknown field 'anwser'"),
        ({**ROW, "answer": 3}, "field 'answer' = 3"),
        ({**ROW, "answer": ""}, "field 'answer' = ''"),
        ("{not json", "line 2"),
    ],
)
def test_a_wrong_line_is_one_line_with_file_number_and_field(tmp_path, row, said):
    path = file_with(tmp_path, ROW, row)
    with pytest.raises(RequestError) as error:
        list(read_jsonl(path, Problem))
    assert "rows.jsonl, line 2" in str(error.value) and said in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_is_named():
    with pytest.raises(RequestError, match="nowhere.jsonl"):
        list(read_jsonl("nowhere.jsonl", Problem))


def test_transparency_is_laid_on_white(tmp_path):
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert open_image(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)


def test_a_photograph_stands_upright(tmp_path):
    picture = Image.new("RGB", (4, 2), "white")
    picture.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held sideways: turn a quarter clockwise
    picture.save(tmp_path / "sideways.png", exif=exif)
    upright = open_image(tmp_path / "sideways.png")
    assert upright.size == (2, 4) and upright.getpixel((1, 0)) == (255, 0, 0)


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 40, b"GIF89a"])
def test_what_is_no_picture_is_named(tmp_path, content):
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(RequestError, match=r"bad\.png") as error:
        open_image(tmp_path / "bad.png")
    assert "\n" not in str(error.value)


def test_a_cut_picture_and_a_huge_one_are_refused(tmp_path):
    Image.effect_noise((300, 300), 80).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:5000])
    with pytest.raises(RequestError, match="not a readable picture"):
        open_image(tmp_path / "cut.png")
    Image.new("1", (20_000, 6_000)).save(tmp_path / "huge.png")
    with pytest.raises(RequestError, match="20000×6000"):
        open_image(tmp_path / "huge.png")


def test_a_picture_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.png"
    write_image(Image.new("RGB", (4, 4), "red"), path)
    broken = Image.new("RGB", (4, 4), "blue")
    broken.save = lambda target: (Path(target).write_bytes(b"half"), 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_image(broken, path)
    assert open_image(path).getpixel((0, 0)) == (255, 0, 0)
