"""An answer is shown as it is written, whole, thinking and answer apart; what cannot be asked is told in one line."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from itertools import combinations
from pathlib import Path

import pytest
import torch
from PIL import Image

from vr1lib.models.rollout_local import complete
from vr1lib.models.tiny import build_tiny_vlm
from vr1lib.models.vlm import load_vlm, save_vlm
from vr1lib.prompts import PromptSpec
from vr1lib.records import Problem, RequestError
from vr1lib.workbench.ask import Page, answer, ask_command, find_model, in_blocks, merge_command

GOOD = "<think> red, blue: 2. </think><answer> Final Answer:2 </answer>"
QUESTION = "How many red shapes are there?"
SMALL = dict(hidden_size=64, layers=2, intermediate_size=128, vision_hidden_size=32, vision_depth=1)
SMALL |= dict(tie_word_embeddings=False)  # tied and untrained, a model repeats its last token for ever


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A project with a run of a tiny model, and two pictures."""
    folder = tmp_path_factory.mktemp("ask")
    run = folder / "outputs" / "20_cold_sft" / "cold"
    build_tiny_vlm(run / "model", 0, [f"{QUESTION} {GOOD}"] * 20, **SMALL)
    (run / "manifest.json").write_text("{}")
    for name in ("one", "two"):
        Image.effect_noise((70, 60), 80).convert("RGB").save(folder / f"{name}.png")
    (folder / "notebooks").mkdir()
    (folder / "params").mkdir()
    return folder


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.delenv("VR1_HOME", raising=False)
    return folder


class Pieces(io.StringIO):
    """A target that remembers each write, and may be a terminal."""

    def __init__(self, terminal: bool = False) -> None:
        super().__init__()
        self.writes: list[str] = []
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> int:
        self.writes.append(text)
        return super().write(text)


def shown(text: str, cuts: list[int], terminal: bool = False) -> str:
    target = Pieces(terminal)
    page = Page(target)
    for start, end in zip([0, *cuts], [*cuts, len(text)]):
        page.add(text[start:end])
    page.close()
    return target.getvalue()


def say(vlm, text: str, interrupt_after: int | None = None):
    """In place of a model: `generate` hands out the tokens of `text`, as transformers does."""
    ids = vlm.tokenizer(text, add_special_tokens=False)["input_ids"]

    def generate(streamer, input_ids, **batch):
        streamer.put(input_ids)
        for place, token in enumerate(ids):
            if place == interrupt_after:
                raise KeyboardInterrupt
            streamer.put(torch.tensor([token]))
        streamer.end()

    vlm.model.generate = generate
    return ids


# The page.


def test_a_tag_cut_anywhere_is_still_a_tag():
    whole = shown(GOOD, [])
    assert whole == "Thinking\nred, blue: 2.\n\nAnswer\nFinal Answer:2\n"
    for cuts in combinations(range(1, len(GOOD)), 2):
        assert shown(GOOD, list(cuts)) == whole
    assert shown(GOOD, list(range(1, len(GOOD)))) == whole


def test_words_are_shown_when_they_come_and_not_at_the_end():
    target = Pieces()
    page = Page(target)
    for piece, so_far in [
        ("<think> red", "Thinking\nred"),
        (" blue ", "Thinking\nred blue"),
        ("a < b <", "Thinking\nred blue a < b"),
        ("/thin", "Thinking\nred blue a < b"),
        ("k> <answer>", "Thinking\nred blue a < b"),
        ("2", "Thinking\nred blue a < b\n\nAnswer\n2"),
    ]:
        page.add(piece)
        assert target.getvalue() == so_far


@pytest.mark.parametrize(
    ("text", "page"),
    [
        ("Two.", "Two.\n"),
        ("", ""),
        ("<think> red", "Thinking\nred\n"),
        ("<think> red </think> so 2", "Thinking\nred\n\nso 2\n"),
        ("First <think>a</think><answer>2", "First\n\nThinking\na\n\nAnswer\n2\n"),
        ("<think>a\n\n  b</think>", "Thinking\na\n\n  b\n"),
        ("a </thi", "a </thi\n"),
    ],
)
def test_what_is_not_in_the_format_is_shown_all_the_same(text, page):
    assert shown(text, []) == shown(text, list(range(1, len(text)))) == page


def test_a_terminal_dims_the_thinking_and_is_left_as_it_was(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    text = shown(GOOD, [], terminal=True)
    assert "\x1b[2mred, blue: 2." in text and "\x1b[0mFinal Answer:2" in text and text.endswith("\x1b[0m\n")
    assert shown("<think> red", [], terminal=True).endswith("red\x1b[0m\n")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in shown(GOOD, [], terminal=True)


@pytest.mark.parametrize(
    ("text", "thinking", "said", "format_ok"),
    [
        (GOOD, "red, blue: 2.", "Final Answer:2", True),
        ("<think>a</think><answer>2", "a", "2", False),
        ("<think>a</think> 2", "a", "2", False),
        ("2", "", "2", False),
        ("<think>a", "a", "", False),
        ("<think>a</think>b<answer>2</answer>", "a", "2", False),
    ],
)
def test_thinking_and_answer_are_kept_apart(text, thinking, said, format_ok):
    assert in_blocks(text) == {"thinking": thinking, "answer": said, "format_ok": format_ok}


# The answer.


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen2_vl", "qwen3_vl", "mllama"])
def test_greedy_answers_are_those_of_the_training_sampler(folder, tmp_path, family):
    """Also where the base is published with habits of its own."""
    build_tiny_vlm(tmp_path, 0, [f"{QUESTION} {GOOD}"] * 20, family=family, **SMALL)
    habits = json.loads((tmp_path / "generation_config.json").read_text())
    habits |= {"do_sample": True, "repetition_penalty": 1.5, "top_k": 1, "temperature": 0.1, "no_repeat_ngram_size": 2}
    (tmp_path / "generation_config.json").write_text(json.dumps(habits))
    vlm = load_vlm(tmp_path)
    for pictures in ([], ["one"], ["one", "two"]):
        images = [str(folder / f"{name}.png") for name in pictures]
        problem = Problem(id="p", images=images, question=QUESTION, answer="2", source="s", split="t")
        told: list[str] = []
        ids, interrupted = answer(vlm, vlm.encode_prompt(problem), 24, 0.0, told.append)
        wanted = complete(vlm, [problem], max_completion_tokens=24)[0]
        assert ("".join(told), len(ids), interrupted) == (wanted.text, wanted.tokens, False)


def test_a_temperature_draws_and_never_draws_a_vision_token(folder):
    vlm = load_vlm(folder / "outputs/20_cold_sft/cold/model")
    prompt = vlm.encode_prompt(Problem(id="p", images=[], question="red", answer="2", source="s", split="t"))
    torch.manual_seed(0)
    drawn = [tuple(answer(vlm, prompt, 200, 2.0, lambda text: None)[0]) for _ in range(3)]
    assert len(set(drawn)) == 3
    assert not set(vlm.vision_token_ids) & set(sum(drawn, ()))


def test_a_character_of_several_tokens_is_told_whole(folder):
    vlm = load_vlm(folder / "outputs/20_cold_sft/cold/model")
    text = "π ≈ 3 — 日本\n🙂!"
    assert len(say(vlm, text)) > len(text)
    told: list[str] = []
    answer(vlm, vlm.encode_prompt(problem_without_picture()), 99, 0.0, told.append)
    assert "".join(told) == text and all("\N{REPLACEMENT CHARACTER}" not in piece for piece in told)
    say(vlm, text, interrupt_after=1)  # half of π
    told.clear()
    ids, interrupted = answer(vlm, vlm.encode_prompt(problem_without_picture()), 99, 0.0, told.append)
    assert (told, len(ids), interrupted) == (["\N{REPLACEMENT CHARACTER}"], 1, True)


def problem_without_picture() -> Problem:
    return Problem(id="p", images=[], question="red", answer="2", source="s", split="t")


# The command.


@pytest.fixture
def speaking(here, monkeypatch):
    """`vr1 ask` with a model that says what it is given; returns how it was loaded and what it was asked."""
    asked = []

    def set_up(text, interrupt_after=None):
        vlm = load_vlm("outputs/20_cold_sft/cold/model")
        say(vlm, text, interrupt_after)
        real = vlm.encode_prompt
        vlm.encode_prompt = lambda problem: asked.append(problem) or real(problem)
        monkeypatch.setattr("vr1lib.models.vlm.load_vlm", lambda *arguments, **options: asked.append(options) or vlm)
        return asked

    return set_up


def test_ask_shows_both_parts_and_every_picture(speaking, capsys):
    asked = speaking(GOOD + "<|im_end|>")
    assert ask_command("20_cold_sft/cold", ["one.png", "two.png"], QUESTION) == 0
    output = capsys.readouterr()
    assert output.out == "Thinking\nred, blue: 2.\n\nAnswer\nFinal Answer:2\n"
    assert asked[0] == {"dtype": "float32"}  # as its weights are kept
    assert asked[1].images == [str(Path("one.png").resolve()), str(Path("two.png").resolve())]


def test_json_is_one_object(speaking, capsys):
    speaking(GOOD + "<|im_end|>")
    assert ask_command("20_cold_sft/cold", [], QUESTION, as_json=True) == 0
    said = json.loads(capsys.readouterr().out)
    assert list(said) == ["thinking", "answer", "format_ok", "tokens", "seconds"]
    assert (said["thinking"], said["answer"], said["format_ok"]) == ("red, blue: 2.", "Final Answer:2", True)
    assert said["tokens"] > 5 and said["seconds"] >= 0


@pytest.mark.parametrize("as_json", [False, True])
def test_an_interruption_shows_what_there_is(speaking, capsys, as_json):
    vlm = load_vlm("outputs/20_cold_sft/cold/model")
    tokens = len(vlm.tokenizer("<think> red,")["input_ids"])
    speaking("<think> red, blue", interrupt_after=tokens)
    assert ask_command("20_cold_sft/cold", [], QUESTION, as_json=as_json) == 130
    output = capsys.readouterr().out
    if as_json:
        said = json.loads(output)
        assert (said["thinking"], said["answer"], said["format_ok"], said["tokens"]) == ("red,", "", False, tokens)
    else:
        assert output == "Thinking\nred,\n"


def test_ctrl_c_ends_the_command_with_130(here):
    """The real signal, while a model writes without an end."""
    code = """if True:
        import sys, time, torch, transformers
        from vr1lib.workbench.ask import ask_command

        def generate(self, streamer, input_ids, **batch):
            streamer.put(input_ids)
            while True:
                streamer.put(torch.tensor([66]))
                time.sleep(0.01)

        transformers.PreTrainedModel.generate = generate
        sys.exit(ask_command("20_cold_sft/cold", [], "red"))
    """
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    first = os.read(process.stdout.fileno(), 1)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors.decode()
    assert first and len(output) > 1 and output.endswith(b"\n")
    assert b"Traceback" not in errors


def test_an_answer_cut_short_is_told_so(here, capsys):
    assert ask_command("20_cold_sft/cold", ["one.png"], QUESTION, max_tokens=3) == 0
    assert capsys.readouterr().err == "cut at 3 tokens; --max-tokens gives it more\n"


def test_the_model_s_own_prompt_is_used(here, tmp_path, capsys):
    vlm = load_vlm("outputs/20_cold_sft/cold/model", prompt_spec=PromptSpec(system="red blue"), accept_other_spec=True)
    save_vlm(vlm, tmp_path)
    problem = Problem(id="p", images=["one.png"], question=QUESTION, answer="2", source="s", split="t")
    for place, model in ((tmp_path, vlm), ("20_cold_sft/cold", load_vlm("outputs/20_cold_sft/cold/model"))):
        ask_command(str(place), ["one.png"], QUESTION, max_tokens=24, as_json=True)
        said = json.loads(capsys.readouterr().out)
        assert said["answer"] == complete(model, [problem], max_completion_tokens=24)[0].text.strip()


def test_a_model_is_found_by_run_checkpoint_or_folder(here):
    model = here / "outputs" / "20_cold_sft" / "cold" / "model"
    for name in (
        "20_cold_sft/cold",
        "outputs/20_cold_sft/cold",
        str(model.parent),
        str(model),
        "20_cold_sft/cold/model",
    ):
        assert find_model(name) == str(model)
    assert find_model("Qwen/Qwen2.5-VL-7B-Instruct") == "Qwen/Qwen2.5-VL-7B-Instruct"
    (here / "outputs" / "30_ptst_grpo" / "unfinished").mkdir(parents=True)
    (here / "outputs" / "30_ptst_grpo" / "unfinished" / "manifest.json").write_text("{}")
    with pytest.raises(RequestError, match="unfinished: this run saved no model/"):
        find_model("30_ptst_grpo/unfinished")


def test_merge_and_then_ask(here, tmp_path, capsys):
    merge_command("20_cold_sft/cold", str(tmp_path / "out"))
    assert capsys.readouterr().out == f"{(tmp_path / 'out').resolve()}\n"
    said = []
    for place in (str(tmp_path / "out"), "20_cold_sft/cold"):
        ask_command(place, ["one.png"], QUESTION, max_tokens=16, as_json=True)
        said.append(json.loads(capsys.readouterr().out) | {"seconds": 0})
    assert said[0] == said[1]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"images": ["gone.png"]}, "--image gone.png: no such file"),
        ({"images": ["notes.png"]}, "notes.png: not a readable picture"),
        ({"model": "outputs/gone"}, "outputs/gone: no model here"),
        ({"model": "nowhere/at/all"}, "nowhere/at/all: no model here"),
        ({"question": "  "}, "--question is blank"),
        ({"question": "<image> and <image>"}, "2 <image> markers for 1 pictures"),
        ({"max_tokens": 0}, "--max-tokens 0: give 1 or more"),
        ({"temperature": -1.0}, "--temperature -1.0: give 0"),
        ({"temperature": float("nan")}, "--temperature nan: give 0"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(here, capsys, changes, line):
    (here / "notes.png").write_text("no picture")
    request = {"model": "20_cold_sft/cold", "images": ["one.png"], "question": QUESTION} | changes
    with pytest.raises(RequestError) as error:
        ask_command(**request)
    assert line in str(error.value) and "\n" not in str(error.value)
    assert capsys.readouterr().out == ""
