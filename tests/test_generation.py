"""Answers as they come: kills, shards, second tries, servers; each must end in the bytes of one undisturbed run."""

import base64
import io
import json
import socket
from dataclasses import replace
from typing import get_args

import pytest
import torch
from chat_server import Answer, ChatServer, chat
from PIL import Image

from vr1lib.analysis.statistics import accuracy_interval
from vr1lib.benchmarks import protocol, shards
from vr1lib.benchmarks.catalogue import BENCHMARKS
from vr1lib.benchmarks.generation import LocalModel, ServedModel, answer_all, write_answers
from vr1lib.benchmarks.judge import authors_verdicts, score_authors, write_verdicts
from vr1lib.benchmarks.server import ModelServer, check_reachable, picture_url
from vr1lib.data.endpoints import Endpoint, Limits, Sampling
from vr1lib.data.shapeworld import make_problems
from vr1lib.data.sources import gather_pictures
from vr1lib.models.images import ImageSpec
from vr1lib.models.tiny import build_tiny_vlm
from vr1lib.models.vlm import load_vlm
from vr1lib.prompts import PromptSpec
from vr1lib.records import Completion, RequestError, open_image, write_jsonl
from vr1lib.workbench.params import BenchmarkParameters, load_parameters

SAMPLING = protocol.Sampling(temperature=0.6, top_p=0.95, max_completion_tokens=6, seed=0)
QUICK = Limits(attempts=2, timeout=5.0, first_wait=0.01, longest_wait=0.02)
CONDITIONS = shards.Conditions("m", "local", SAMPLING, 1, 5, "none", "ours", "image", "prompt")


@pytest.fixture
def problems(tmp_path):
    problems = make_problems(tmp_path / "data", "test", 10)
    for problem in problems:
        problem.meta["benchmark"] = "shapeworld"
    return problems


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    build_tiny_vlm(folder, 0, ["How many red?"] * 50, hidden_size=64, layers=2)
    return load_vlm(folder)


class Scripted:
    """Answers by a rule, counts what it is asked, and dies after `batches` of them."""

    generated_by = "script"

    def __init__(self, size=3, dies_after=None, text=None):
        self.size, self.left, self.asked = size, dies_after, []
        self.text = text or (lambda problem, sample, number: f"<think> a </think><answer> {problem.answer} </answer>")

    def at_once(self, samples):
        return self.size

    def answer(self, problems, samples, number, progress):
        for start in range(0, len(problems), self.size):
            if self.left == 0:
                raise KeyboardInterrupt
            self.left = self.left and self.left - 1
            batch = problems[start : start + self.size]
            self.asked += [(problem.id, number) for problem in batch]
            yield [
                Completion(
                    problem_id=problem.id,
                    sample=sample,
                    step=0 if number == 1 else number,
                    stage=0,
                    text=self.text(problem, sample, number),
                    tokens=5,
                    finish="stop",
                    logprob=-1.5,
                )
                for problem in batch
                for sample in range(samples)
            ]


def unclosed_until(tries):
    """Each problem's first replies lack `</answer>`: as many as `tries` says by the problem's id."""

    def text(problem, sample, number):
        closed = number > tries.get(problem.id, 0)
        return f"<think> {number} </think><answer> {problem.answer}" + (" </answer>" if closed else "")

    return text


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.jsonl"))}


def folder_of(tmp_path, name):
    (tmp_path / name).mkdir()
    return tmp_path / name


def test_every_benchmark_can_be_asked_for():
    assert set(get_args(get_args(BenchmarkParameters.model_fields["benchmarks"].annotation)[0])) == set(BENCHMARKS)


@pytest.mark.parametrize("torn", [0, 1, 40])
def test_a_killed_run_goes_on_to_the_same_bytes_and_asks_nothing_twice(tmp_path, problems, torn):
    whole, killed = folder_of(tmp_path, "whole"), folder_of(tmp_path, "killed")
    answer_all(Scripted(), problems, whole, samples=2)
    with pytest.raises(KeyboardInterrupt):
        answer_all(Scripted(dies_after=2), problems, killed, samples=2)
    file = killed / "completions.jsonl"
    assert len(file.read_text().splitlines()) == 12
    file.write_bytes(file.read_bytes()[: -torn or None])
    told = []
    answerer = Scripted()
    counted = []
    answer_all(answerer, problems, killed, samples=2, tell=told.append, progress=counted.append)
    assert bytes_of(killed) == bytes_of(whole)
    first = 3 if torn else 6  # of a batch that was torn every answer is made again, the others never
    assert [name for name, _ in answerer.asked] == [problem.id for problem in problems[first:]]
    assert [("torn" in line, "unfinished batch" in line) for line in told] == (
        [(True, False), (False, True)] if torn else []
    )
    answer_all(answerer := Scripted(), problems, killed, samples=2)
    assert not answerer.asked and bytes_of(killed) == bytes_of(whole)


def test_only_replies_without_the_closing_tag_are_asked_for_again_and_the_first_closed_one_is_kept(tmp_path, problems):
    needs = {problems[0].id: 1, problems[1].id: 4, problems[2].id: 9}
    answerer = Scripted(text=unclosed_until(needs))
    answers = answer_all(answerer, problems, folder_of(tmp_path, "run"), tries=5)
    again = [(name, number) for name, number in answerer.asked if number > 1]
    first, second, third = (problem.id for problem in problems[:3])
    assert again == [(first, 2), (second, 2), (third, 2)] + [(each, n) for n in (3, 4, 5) for each in (second, third)]
    winners = {name: number for name, (number, _) in answers.winners().items()}
    assert winners == {problem.id: 1 for problem in problems} | {first: 2, second: 5, third: 5}
    assert answers.winners()[third][1].text.startswith("<think> 5"), "without any closed reply the last is kept"
    assert [row.step for row in answers.graded] == [0] * 10 and [row.format_ok for row in answers.graded[:4]] == [
        False
    ] * 3 + [True]


def test_a_kill_among_the_second_tries(tmp_path, problems):
    needs = {problem.id: number % 4 for number, problem in enumerate(problems)}
    whole, killed = folder_of(tmp_path, "whole"), folder_of(tmp_path, "killed")
    script = unclosed_until(needs)
    answer_all(Scripted(size=2, text=script), problems, whole, tries=5)
    for batches in (7, 1, 1):
        with pytest.raises(KeyboardInterrupt):
            answer_all(Scripted(size=2, dies_after=batches, text=script), problems, killed, tries=5)
    answer_all(Scripted(size=2, text=script), problems, killed, tries=5)
    assert bytes_of(killed) == bytes_of(whole) and len(bytes_of(whole)["retries.jsonl"].splitlines()) == sum(
        needs.values()
    )


def test_answers_of_other_problems_are_refused(tmp_path, problems):
    folder = folder_of(tmp_path, "run")
    answer_all(Scripted(), problems[:6], folder)
    with pytest.raises(RequestError, match=r"line 1: answers .* where .* is to be answered"):
        answer_all(Scripted(), problems[::-1], folder)
    with pytest.raises(RequestError, match="holds 3 answers too many"):
        answer_all(Scripted(), problems[:3], folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", "other"),
        ("sampling", protocol.Sampling(0.7, 0.95, 6, 0)),
        ("prompt", "official"),
        ("image_spec", "other"),
        ("judge", {"model": "j"}),
    ],
)
def test_a_run_goes_on_only_as_it_was_begun(tmp_path, key, value):
    shards.agree(tmp_path, CONDITIONS)
    shards.agree(tmp_path, CONDITIONS)
    with pytest.raises(RequestError, match=f"generation.json: {key} = "):
        shards.agree(tmp_path, replace(CONDITIONS, **{key: value}))


# --------------------------------------------------------------------------------------------------------------- shards


def select(problems, folder, shard="1/1"):
    selection = protocol.Selection("shapeworld", gather_pictures(problems, folder), [])
    protocol.keep_shard(selection, shard)
    return selection


def finish(folder, selection, answers, shard="1/1"):
    """A run folder as 40_benchmark leaves it."""
    shards.agree(folder, CONDITIONS)
    about = {**CONDITIONS.of_rows(), "shard": shard}
    winners = answers.winners()
    verdicts = authors_verdicts(selection.problems, winners)
    scores = {
        "benchmarks": [protocol.score(selection, answers.of(selection.problems), accuracy_interval, **about)],
        "authors": [score_authors(selection, winners, verdicts, accuracy_interval, None, tries=5, **about)],
    }
    write_jsonl(folder / "problems.jsonl", selection.problems)
    write_verdicts(folder, verdicts)
    (folder / "scores.json").write_text(json.dumps(scores))
    return folder


def shard_run(tmp_path, problems, name, shard="1/1"):
    folder = folder_of(tmp_path, name)
    selection = select(problems, folder, shard)
    needs = {problem.id: number % 3 for number, problem in enumerate(problems)}
    answers = answer_all(Scripted(text=unclosed_until(needs)), selection.problems, folder, tries=5)
    return finish(folder, selection, answers, shard)


def merged(tmp_path, problems, folders):
    folder = folder_of(tmp_path, "merged")
    selection = select(problems, folder)
    answers = shards.from_shards(folders, selection.problems, CONDITIONS)
    write_answers(answers, folder)
    return finish(folder, selection, answers)


def test_shards_put_together_are_the_whole_run_to_the_byte(tmp_path, problems):
    whole = shard_run(tmp_path, problems, "whole")
    parts = [shard_run(tmp_path, problems, f"part{number}", f"{number}/3") for number in (3, 1, 2)]
    together = merged(tmp_path, problems, parts)
    assert bytes_of(together) == bytes_of(whole) and "retries.jsonl" in bytes_of(whole)
    assert (together / "scores.json").read_bytes() == (whole / "scores.json").read_bytes()
    assert shards.made_by(parts[0]) == "local"


def test_shards_that_do_not_make_a_whole_are_named(tmp_path, problems):
    first, second = (shard_run(tmp_path, problems, f"part{number}", f"{number}/2") for number in (1, 2))

    def complaint(folders, asked=problems, conditions=CONDITIONS):
        with pytest.raises(RequestError) as caught:
            shards.from_shards(folders, asked, conditions)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert f"5 answered by no shard ({problems[1].id}, " in complaint([first])
    assert f"5 answered by more than one ({problems[0].id}, " in complaint([first, second, first])
    assert f"1 not to be answered here ({problems[9].id})" in complaint([first, second], problems[:9])
    changed = [problems[0].model_copy(update={"question": "How?"}), *problems[1:]]
    assert f"{problems[0].id} is another problem there" in complaint([first, second], changed)
    other = replace(CONDITIONS, samples=2)
    assert "samples = 1, here it is 2" in complaint([first, second], conditions=other)
    (second / "scores.json").unlink()
    assert "not finished" in complaint([first, second])
    assert "cannot be read" in complaint([folder_with_scores(tmp_path)])
    rows = (first / "completions.jsonl").read_text().splitlines(keepends=True)
    (first / "completions.jsonl").write_text("".join(rows[1:]))
    (second / "scores.json").write_text("{}")
    assert f"1 without all their samples ({problems[0].id})" in complaint([first, second])


def folder_with_scores(tmp_path):
    folder = folder_of(tmp_path, "old")
    (folder / "scores.json").write_text("{}")
    return folder


# -------------------------------------------------------------------------------------------- the model in this process


def local(vlm, batch_size, seed=0, temperature=1.0):
    return LocalModel(vlm, replace(SAMPLING, temperature=temperature, seed=seed), batch_size)


def texts(answerer, problems, folder, **settings):
    return [row.text for row in answer_all(answerer, problems, folder, **settings).graded]


def test_answers_come_in_order_whatever_the_batch_and_the_shard(tmp_path, problems, vlm):
    finished = []
    alone = texts(local(vlm, 1), problems[:5], folder_of(tmp_path, "alone"))
    together = texts(local(vlm, 4), problems[:5], folder_of(tmp_path, "together"), progress=finished.append)
    assert together == alone and sum(finished) == 5
    assert texts(local(vlm, 4), problems[1:5:2], folder_of(tmp_path, "shard")) == alone[1::2]


def test_seed_sample_and_try_decide_what_is_sampled(tmp_path, problems, vlm):
    def sampled(name, seed, **settings):
        torch.manual_seed(len(name))  # the global state must not matter
        return answer_all(local(vlm, 4, seed), problems[:3], folder_of(tmp_path, name), **settings)

    first, again, other = (sampled(name, seed, tries=2) for name, seed in (("first", 1), ("again", 1), ("other", 2)))
    assert first == again and [row.text for row in first.graded] != [row.text for row in other.graded]
    assert [row.text for row in first.retries] != [row.text for row in first.graded]
    assert [(row.sample, row.step) for row in first.retries] == [(0, 2)] * 3
    several = sampled("several", 1, samples=3)
    assert [row.sample for row in several.graded] == [0, 1, 2] * 3
    assert [row.text for row in several.graded[::3]] == [row.text for row in first.graded], "sample 0 is the single one"
    assert len({row.text for row in several.graded}) > 3


def test_the_official_words_are_asked_and_the_problem_itself_is_graded_against(tmp_path, problems):
    said = {}

    def text(problem, sample, number):
        said[problem.id] = problem.question
        return "<think> a </think><answer> 1 </answer>"

    asked = {problem.id: problem.model_copy(update={"question": "Official?", "answer": "1"}) for problem in problems}
    answers = answer_all(Scripted(text=text), problems, folder_of(tmp_path, "run"), asked=asked)
    assert set(said.values()) == {"Official?"}
    assert [row.reward for row in answers.graded] == [float(problem.answer == "1") for problem in problems]


# -------------------------------------------------------------------------------------------------------------- servers


def served(url, folder, in_flight=4, system=None, spec=ImageSpec(min_pixels=28 * 28, max_pixels=56 * 56), **sampling):
    asked = Sampling(SAMPLING.temperature, SAMPLING.top_p, SAMPLING.max_completion_tokens, **sampling)
    server = ModelServer([Endpoint(url, "m")], asked, spec, PromptSpec(system=system), QUICK)
    return ServedModel(server, SAMPLING, folder, in_flight)


THOUGHT = "<think>\n two  rows </think>\n<answer> 3 </answer>\n"


def test_a_server_is_asked_what_the_model_here_is_asked_and_its_words_are_kept(tmp_path, problems):
    folder = folder_of(tmp_path, "run")
    usage = {"prompt_tokens": 9, "completion_tokens": 6}
    answer = Answer(chat(THOUGHT, finish="length", usage=usage))
    two = problems[0].model_copy(
        update={"images": problems[0].images + problems[1].images, "question": "Look: <image> and <image>?"}
    )
    with ChatServer(lambda body: answer) as server:
        answerer = served(server.url, folder, system="Think.")
        answers = answer_all(answerer, [two, *problems[1:3]], folder, samples=2)
        bodies = server.bodies()
    row = answers.graded[0]
    assert (row.text, row.tokens, row.finish, row.logprob) == (THOUGHT, 6, "length", 0.0)
    assert [(row.problem_id, row.sample) for row in answers.graded[:3]] == [
        (two.id, 0),
        (two.id, 1),
        (problems[1].id, 0),
    ]
    body = next(body for body in bodies if len(body["messages"][1]["content"]) > 2)
    assert body["messages"][0] == {"role": "system", "content": "Think."}
    kinds = [part["type"] for part in body["messages"][1]["content"]]
    assert kinds == ["text", "image_url", "text", "image_url", "text"]
    assert (body["temperature"], body["top_p"], body["max_tokens"], body["model"]) == (0.6, 0.95, 6, "m")
    assert len({body["seed"] for body in bodies}) == 6 and all(0 <= body["seed"] < 2**31 for body in bodies)
    assert answerer.generated_by == "server: m"


def test_pictures_are_sent_at_the_size_of_the_image_specification(tmp_path):
    Image.effect_noise((200, 90), 60).convert("RGB").save(tmp_path / "noise.png")
    spec = ImageSpec(min_pixels=28 * 28, max_pixels=84 * 84)
    _, _, content = picture_url(tmp_path / "noise.png", spec).partition("base64,")
    sent = Image.open(io.BytesIO(base64.b64decode(content)))
    assert (sent.height, sent.width) == spec.resized(90, 200) != (90, 200)
    sent.save(tmp_path / "sent.png")
    here, there = (spec.encode([open_image(tmp_path / name)])["pixel_values"] for name in ("noise.png", "sent.png"))
    assert torch.equal(here, there)


def test_a_server_that_fails_midway_ends_the_run_and_nothing_is_paid_twice(tmp_path, problems):
    whole, killed = folder_of(tmp_path, "whole"), folder_of(tmp_path, "killed")

    def reply(body):
        picture = json.loads(body)["messages"][0]["content"][0]["image_url"]["url"]
        return Answer(chat(f"<think> {len(picture)} </think><answer> 1 </answer>"))

    def failing(body):
        return (
            Answer(b"{}", status=400)
            if picture_url(problems[4].images[0], ImageSpec()).encode() in body
            else reply(body)
        )

    spec = {"spec": ImageSpec()}
    with ChatServer(reply) as server:
        answer_all(served(server.url, whole, **spec), problems, whole)
    with (
        ChatServer(failing) as server,
        pytest.raises(RequestError, match="1 of 10 problems got no reply.*HTTP 400.*resume"),
    ):
        answer_all(served(server.url, killed, **spec), problems, killed)
    assert len((killed / "completions.jsonl").read_text().splitlines()) == 4
    with ChatServer(reply) as server:
        answer_all(served(server.url, killed, **spec), problems, killed)
        assert len(server.requests) == 1
    assert bytes_of(killed) == bytes_of(whole)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(chat("3", reasoning_content="I see.")), "without a reasoning parser"),
        (Answer(b"{}", status=401), "check the key"),
    ],
)
def test_a_server_that_takes_the_thinking_apart_or_refuses_the_key_is_told_at_once(tmp_path, problems, answer, said):
    with ChatServer(lambda body: answer) as server, pytest.raises(RequestError, match=f"{said}.*resume"):
        answer_all(served(server.url, tmp_path), problems, tmp_path)


def test_a_server_that_is_not_there_is_told_before_anything_is_asked():
    with ChatServer(lambda body: Answer(status=404)) as server:
        check_reachable([Endpoint(server.url, "m")])  # whatever it says, somebody is there
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(RequestError, match="nobody answers.*start the server"):
            check_reachable([Endpoint(f"http://127.0.0.1:{free.getsockname()[1]}/v1", "m")])


def test_a_seed_can_be_kept_back(tmp_path, problems):
    folder = folder_of(tmp_path, "run")
    with ChatServer(lambda body: Answer(chat(THOUGHT))) as server:
        answer_all(served(server.url, folder, extra={"seed": None}), problems[:2], folder)
        assert all("seed" not in body for body in server.bodies())


# ----------------------------------------------------------------------------------------------------------- parameters


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"benchmarks": "[wemath, wemath]"}, "named twice"),
        ({"benchmarks": "[wemath, mme]", "data": "a.jsonl"}, "give {NAME: path"),
        ({"data": "{wemath: a}"}, "'wemath' is none of the benchmarks"),
        ({"samples": "4"}, "greedy samples are all the same"),
        ({"shards_of": "[a]", "shard": "1/2"}, "put together whole"),
        ({"judge": "{url: http://h/v1, model: m}"}, "rules alone decide the strict one"),
    ],
)
def test_parameters_that_do_not_fit_each_other(overrides, said):
    with pytest.raises(RequestError, match=said):
        load_parameters("40_benchmark", [], overrides.items())


def test_data_is_one_place_or_one_for_each_benchmark():
    one = load_parameters("40_benchmark", [], [("data", "a.jsonl")])
    several = [("benchmarks", "[wemath, mme, mathvista]"), ("data", "{wemath: a, mathvista: AI4Math/MathVista}")]
    several = load_parameters("40_benchmark", [], several)
    assert one.data_of("shapeworld") == "a.jsonl"
    assert [several.data_of(name) for name in several.benchmarks] == ["a", None, "AI4Math/MathVista"]
