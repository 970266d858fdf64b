import json
from pathlib import Path

import pytest
from datasets import load_dataset
from PIL import Image

from vr1lib.data import exports
from vr1lib.data.exports import export
from vr1lib.prompts import question_text
from vr1lib.records import ColdRow, Problem, RequestError, TeacherCall, write_jsonl

CALL = TeacherCall(
    purpose="description", model="m", prompt_sha256="0" * 64, prompt_tokens=7, completion_tokens=3, seconds=0.5
)


def picture(path: Path, colour: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (9, 7), "white")
    image.paste(colour, (2, 2, 6, 5))
    image.save(path)
    return str(path)


def cold_rows(folder: Path) -> list[ColdRow]:
    """No, one and three pictures; markers and none; options and none; letters beyond ASCII."""
    pictures = [picture(folder / f"images/{name}.png", name) for name in ("red", "green", "blue")]
    questions = [
        ("How many angles – 几个 – has a △?", [], "3", None),
        ("Which colour?", pictures[:1], "B", ["green", "red"]),
        ("First <image>, then <image>, last <image>: which is blue?", pictures, "3", None),
    ]
    return [
        ColdRow(
            id=f"row/{number}",
            images=images,
            question=question,
            answer=answer,
            choices=choices,
            source="wemath",
            split="cold",
            meta={"level": number},
            pseudo_cot="It shows…",
            description="A picture.",
            reasoning=f"Let me look.\n\nSo {answer}.",
            response=f"<think> Let me look.\n\nSo {answer}. </think><answer> Final Answer:{answer} </answer>",
            calls=[CALL],
        )
        for number, (question, images, answer, choices) in enumerate(questions)
    ]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def cold(tmp_path):
    rows = cold_rows(tmp_path)
    write_jsonl(tmp_path / "cold.jsonl", rows)
    return tmp_path / "cold.jsonl", rows


def pixels(picture: str | Image.Image) -> bytes:
    return (Image.open(picture) if isinstance(picture, str) else picture).convert("RGB").tobytes()


def test_llama_factory_reads_every_row_back_with_as_many_image_tokens_as_pictures(cold, tmp_path):
    path, rows = cold
    done = export(path, "llama-factory", tmp_path / "out")
    info = json.loads((tmp_path / "out/dataset_info.json").read_text())["cold"]
    assert (done["rows"], done["left_out"], info["formatting"]) == (3, {}, "sharegpt")
    columns, tags = info["columns"], info["tags"]
    back = load_dataset("json", data_files=str(tmp_path / "out" / info["file_name"]), split="train")
    assert len(back) == len(rows)
    for row, found in zip(rows, back):
        user, assistant = found[columns["messages"]]
        assert (user[tags["role_tag"]], assistant[tags["role_tag"]]) == (tags["user_tag"], tags["assistant_tag"])
        assert assistant[tags["content_tag"]] == row.response
        assert user[tags["content_tag"]].removeprefix("<image>" * len(row.images)) == question_text(row) or (
            user[tags["content_tag"]] == row.question
        )
        texts = "".join(turn[tags["content_tag"]] for turn in (user, assistant))
        assert texts.count("<image>") == len(found[columns["images"]]) == len(row.images)
        files = [tmp_path / "out" / picture for picture in found[columns["images"]]]
        assert [file.read_bytes() for file in files] == [Path(picture).read_bytes() for picture in row.images]


def test_a_text_that_llama_factory_would_take_for_a_picture_is_left_out_and_counted(tmp_path):
    rows = cold_rows(tmp_path)
    rows[1] = rows[1].model_copy(update={"response": "<think> An <image>? </think><answer> B </answer>"})
    rows[0] = rows[0].model_copy(update={"question": "What is a <video> tag?"})
    rows[2] = rows[2].model_copy(update={"question": "One <image> of three"})
    write_jsonl(tmp_path / "cold.jsonl", rows)
    done = export(tmp_path / "cold.jsonl", "llama-factory", tmp_path / "out")
    assert done["left_out"] == {"a placeholder stands in its text": 2, "markers and pictures differ": 1}
    assert json.loads((tmp_path / "out/cold.json").read_text()) == []


def test_easyr1_reads_every_row_back_in_geometry3ks_columns(cold, tmp_path):
    path, rows = cold
    export(path, "easyr1", tmp_path / "out")
    back = load_dataset("parquet", data_files=str(tmp_path / "out/train.parquet"), split="train")
    assert back.column_names == ["images", "problem", "answer"]
    for row, found in zip(rows, back, strict=True):
        assert found["problem"].count("<image>") == len(found["images"]) == len(row.images)
        assert (found["problem"].replace("<image>", ""), found["answer"]) == (
            question_text(row).replace("<image>", ""),
            row.answer,
        )
        assert [pixels(picture) for picture in found["images"]] == [pixels(picture) for picture in row.images]


def test_verl_reads_every_row_back(cold, tmp_path):
    path, rows = cold
    export(path, "verl", tmp_path / "out")
    back = load_dataset("parquet", data_files=str(tmp_path / "out/train.parquet"), split="train")
    for number, (row, found) in enumerate(zip(rows, back, strict=True)):
        (turn,) = found["prompt"]
        assert turn["role"] == "user" and turn["content"].count("<image>") == len(found["images"])
        assert found["reward_model"] == {"style": "rule", "ground_truth": row.answer}
        assert (found["extra_info"]["id"], found["extra_info"]["index"]) == (row.id, number)
        assert [pixels(picture) for picture in found["images"]] == [pixels(picture) for picture in row.images]


@pytest.mark.parametrize("rows_a_file", [2, 3, 20_000])
def test_the_hub_dataset_holds_all_that_the_rows_hold_however_it_is_cut(cold, tmp_path, monkeypatch, rows_a_file):
    path, rows = cold
    monkeypatch.setattr(exports, "ROWS_A_FILE", rows_a_file)
    done = export(path, "hf", tmp_path / "out")
    assert len(list((tmp_path / "out/data").iterdir())) == (2 if rows_a_file == 2 else 1) == len(done["files"]) - 1
    back = load_dataset(str(tmp_path / "out"), split="train")
    for row, found in zip(rows, back, strict=True):
        for name in ("id", "question", "answer", "choices", "source", "split", "pseudo_cot", "reasoning", "response"):
            assert found[name] == getattr(row, name), name
        assert json.loads(found["meta"]) == row.meta
        assert json.loads(found["calls"]) == {"calls": [CALL.model_dump()]}
        assert [pixels(picture) for picture in found["images"]] == [pixels(picture) for picture in row.images]
    card = (tmp_path / "out/README.md").read_text()
    assert "| wemath | 3 | We-Math/We-Math |" in card and "SHA-256" in card


def test_plain_problems_go_to_all_but_llama_factory(tmp_path):
    problem = Problem(id="p", images=[], question="1 + 1?", answer="2", source="s", split="rl")
    write_jsonl(tmp_path / "rl.jsonl", [problem])
    assert export(tmp_path / "rl.jsonl", "easyr1", tmp_path / "a")["rows"] == 1
    assert export(tmp_path / "rl.jsonl", "hf", tmp_path / "b")["rows"] == 1
    assert load_dataset(str(tmp_path / "b"), split="train")[0]["response"] is None
    with pytest.raises(RequestError, match="has no response"):
        export(tmp_path / "rl.jsonl", "llama-factory", tmp_path / "c")


def test_an_export_of_an_export_is_the_same_rows(cold, tmp_path):
    path, rows = cold
    export(path, "easyr1", tmp_path / "one")
    export(tmp_path / "one/train.parquet", "easyr1", tmp_path / "two")
    one, two = (
        load_dataset("parquet", data_files=str(tmp_path / name / "train.parquet"), split="train")
        for name in ("one", "two")
    )
    assert one["problem"] == two["problem"] and one["answer"] == two["answer"]
    assert [[pixels(p) for p in row["images"]] for row in one] == [[pixels(p) for p in row["images"]] for row in two]


def test_a_row_with_a_broken_picture_is_left_out_and_a_bad_line_too(cold, tmp_path):
    path, rows = cold
    (tmp_path / "images/green.png").write_bytes(b"")
    path.write_text(path.read_text() + '{"id": "torn", "ima')
    done = export(path, "easyr1", tmp_path / "out")
    assert (done["rows"], done["left_out"]) == (2, {"picture empty": 1, "row unreadable": 1})


@pytest.mark.parametrize(("to", "words"), [("trl", "give one of"), ("hf", "is there already")])
def test_a_wrong_target_and_a_used_folder_are_one_clear_line(cold, tmp_path, to, words):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/kept.txt").write_text("mine")
    with pytest.raises(RequestError, match=words) as error:
        export(cold[0], to, tmp_path / "out")
    assert "\n" not in str(error.value) and (tmp_path / "out/kept.txt").read_text() == "mine"


def test_the_command_says_what_it_wrote(cold, tmp_path, capsys):
    assert exports.export_command(str(cold[0]), "easyr1", str(tmp_path / "out")) == 0
    assert "3 rows for easyr1" in capsys.readouterr().out
