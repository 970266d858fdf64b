"""The authors' verdicts: rules, and a judge that is asked where they are undecided, counted and never paid twice."""

import json

import pytest
from chat_server import Answer, ChatServer, chat, prompt_of
from synthetic_runs import completion_of

from vr1lib.analysis.statistics import accuracy_interval
from vr1lib.benchmarks import protocol
from vr1lib.benchmarks.judge import (
    PROMPT_SHA256,
    Judge,
    authors_verdicts,
    prompt,
    read_verdicts,
    sampling_of_judge,
    score_authors,
    write_verdicts,
)
from vr1lib.data.endpoints import Endpoint, Endpoints, Limits
from vr1lib.data.shapeworld import make_problems
from vr1lib.records import RequestError

SAMPLING = protocol.Sampling(0.6, 0.95, 64, 0)
QUICK = Limits(attempts=2, timeout=5.0, first_wait=0.01, longest_wait=0.02)


@pytest.fixture
def problems(tmp_path):
    problems = make_problems(tmp_path / "data", "test", 4)
    for problem in problems:
        problem.meta["benchmark"] = "shapeworld"
    return problems


@pytest.fixture
def winners(problems):
    """In the authors' exact form; in an answer block alone; said in a sentence; nothing said."""
    texts = (
        "<think> a </think><answer> Final Answer:{} </answer>",
        "<think> a </think><answer> {} </answer>",
        "<think> a </think> The answer is {}.",
        "<think> I see nothing and",
    )
    return {
        problem.id: (
            number,
            completion_of(problem, True, 1).model_copy(update={"text": text.format(problem.answer), "reward": 0.0}),
        )
        for number, (problem, text) in enumerate(zip(problems, texts), start=1)
    }


def judge(url, folder, asks="undecided"):
    model = Endpoints([Endpoint(url, "gpt-4o-mini")], sampling_of_judge(), QUICK)
    return Judge(model, asks, folder, 4)


def said(text):
    return lambda body: Answer(chat(text, model="gpt-4o-mini"))


def test_rules_alone(problems, winners):
    rows = authors_verdicts(problems, winners)
    assert [row["right"] for row in rows] == [True, True, True, False]
    assert [row["response_try"] for row in rows] == [1, 2, 3, 4]
    assert rows[0] | {"extracted": None} == {
        "problem_id": problems[0].id,
        "response_try": 1,
        "extracted": None,
        "right": True,
        "judged_by": "rules",
        "asked": False,
    }
    assert rows[2]["extracted"] == problems[2].answer


def test_the_judge_is_asked_where_rules_find_no_answer_block(tmp_path, problems, winners):
    with ChatServer(said(" 1\n")) as server:
        rows = authors_verdicts(problems, winners, judge(server.url, tmp_path))
        prompts = [prompt_of(body) for body, *_ in server.requests]
        assert json.loads(server.requests[0][0])["temperature"] == 0
    assert [row["asked"] for row in rows] == [False, False, True, True]
    assert [row["judged_by"] for row in rows] == ["rules", "rules", "judge", "judge"]
    assert [row["right"] for row in rows] == [True] * 4
    assert len(prompts) == 2
    assert any(f"The answer is {problems[2].answer}." in text and problems[2].question in text for text in prompts)


def test_a_judge_of_everything_overrules(tmp_path, problems, winners):
    with ChatServer(said("0")) as server:
        rows = authors_verdicts(problems, winners, judge(server.url, tmp_path, "all"))
    assert [(row["right"], row["judged_by"]) for row in rows] == [(False, "judge")] * 4


@pytest.mark.parametrize(
    "answer",
    [*(Answer(chat(text, model="gpt-4o-mini")) for text in ("", "10", "1 or 0", "Yes", "1.")), Answer(status=500)],
)
def test_what_is_no_verdict_leaves_the_rules_verdict_and_is_counted(tmp_path, problems, winners, answer):
    selection = protocol.Selection("shapeworld", problems, [])
    with ChatServer(lambda body: answer) as server:
        judging = judge(server.url, tmp_path)
        rows = authors_verdicts(problems, winners, judging)
    assert [(row["right"], row["judged_by"]) for row in rows] == [(each, "rules") for each in (True, True, True, False)]
    about = {"sampling": SAMPLING, "image_spec": "a", "prompt_spec": "b"}
    row = score_authors(selection, winners, rows, accuracy_interval, judging, tries=5, **about)
    assert row["judge"] == {
        "model": "gpt-4o-mini",
        "asks": "undecided",
        "prompt_sha256": PROMPT_SHA256,
        "calls": 2,
    }
    assert (row["judge_without_verdict"], row["later_tries_kept"], row["tries"]) == (2, 3, 5)
    assert (row["protocol"], row["accuracy"], row["n"]) == ("authors", 0.75, 4) and "tries_note" not in row


def test_a_judge_that_thinks_is_read_by_what_it_says_in_the_end(tmp_path, problems, winners):
    with ChatServer(said("<think> 0? No. </think>\n1")) as server:
        rows = authors_verdicts(problems, winners, judge(server.url, tmp_path))
    assert [row["judged_by"] for row in rows[2:]] == ["judge", "judge"]


def test_no_verdict_is_paid_twice(tmp_path, problems, winners):
    with ChatServer(said("1")) as server:
        first = authors_verdicts(problems, winners, judge(server.url, tmp_path))
        assert authors_verdicts(problems, winners, judge(server.url, tmp_path)) == first
        assert len(server.requests) == 2
        write_verdicts(tmp_path, first)
        known = read_verdicts([tmp_path])
        (tmp_path / "merged").mkdir()
        assert authors_verdicts(problems, winners, judge(server.url, tmp_path / "merged"), known) == first
        assert len(server.requests) == 2


def test_a_judge_that_cannot_answer_any_more_ends_the_run(tmp_path, problems, winners):
    with ChatServer(lambda body: Answer(b"{}", status=402)) as server, pytest.raises(RequestError, match="no credit"):
        authors_verdicts(problems, winners, judge(server.url, tmp_path))


def test_the_prompt_leaves_braces_alone_and_shows_the_end_of_a_long_reply(problems):
    text = prompt(problems[0], "x" * 9000 + r" \frac{answer}{question} <answer> 7 </answer>")
    assert r"\frac{answer}{question} <answer> 7 </answer>" in text and text.count("x" * 3000) == 1
    assert f"Right answer: {problems[0].answer}\n" in text and problems[0].question in text


def test_one_try_is_said_to_be_all_there_is_at_temperature_0(problems, winners):
    selection = protocol.Selection("shapeworld", problems, [])
    about = {"sampling": protocol.Sampling(0.0, 1.0, 64, 0), "image_spec": "a", "prompt_spec": "b"}
    rows = authors_verdicts(problems, winners)
    row = score_authors(selection, winners, rows, accuracy_interval, None, tries=1, **about)
    assert row["tries"] == 1 and "would repeat" in row["tries_note"] and row["judge"] is None
