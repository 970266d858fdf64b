"""Endpoints against a server that misbehaves in every way it can think of."""

import asyncio
import base64
import json
import socket
import time
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from chat_server import HANG, Answer, ChatServer, chat
from PIL import Image

from vr1lib.data.endpoints import Endpoint, Endpoints, Limits, Sampling, data_url, retry_after, split_thinking
from vr1lib.data.teachers import NoReply, TeacherStopped
from vr1lib.records import RequestError

QUICK = Limits(
    attempts=3, timeout=1.0, connect_timeout=0.8, first_wait=0.01, longest_wait=0.02, longest_retry_after=5.0
)
GOOD = Answer(chat("Fine."))


def in_turn(*answers: Answer):
    """The answers one after the other, the last one for ever."""
    left = list(answers)
    return lambda request: left.pop(0) if len(left) > 1 else left[0]


def ask(*urls: str, limits: Limits = QUICK, sampling=None, images=(), **endpoint):
    async def call():
        teacher = Endpoints([Endpoint(url, "m", **endpoint) for url in urls], sampling or {}, limits)
        try:
            return await teacher.ask("pseudo_cot", "Why?", images, 7)
        finally:
            await teacher.close()

    return asyncio.run(call())


@contextmanager
def no_reply(reason: str):
    with pytest.raises(NoReply) as caught:
        yield caught
    assert caught.value.reason == reason


def test_a_reply_comes_with_its_tokens_and_its_cost():
    with ChatServer(in_turn(Answer(chat("A row.", reasoning_content="I see.")))) as server:
        reply = ask(server.url, prompt_price=3.0, completion_price=5.0)
    assert (reply.text, reply.reasoning, reply.model, reply.finish) == ("A row.", "I see.", "m", "stop")
    assert (reply.prompt_tokens, reply.completion_tokens, reply.estimated) == (10, 20, False)
    assert reply.cost == pytest.approx((10 * 3 + 20 * 5) / 1e6)
    assert (reply.endpoint, reply.attempts, reply.cached) == (server.url, 1, False)


def test_a_request_says_what_was_asked_and_nothing_more(tmp_path):
    pictures = []
    for number, name in enumerate(("a.png", "b.jpg")):
        Image.new("RGB", (28, 28), (number, 0, 0)).save(tmp_path / name)
        pictures.append(str(tmp_path / name))
    sampling = {"pseudo_cot": Sampling(0.5, 0.9, 99, {"top_k": 3, "seed": None})}
    with ChatServer(in_turn(GOOD)) as server:
        ask(server.url, sampling=sampling, images=pictures)
    [request] = server.bodies()
    [message] = request.pop("messages")
    assert request == {"model": "m", "temperature": 0.5, "top_p": 0.9, "max_tokens": 99, "top_k": 3}
    texts = [part["text"] for part in message["content"] if part["type"] == "text"]
    urls = [part["image_url"]["url"] for part in message["content"] if part["type"] == "image_url"]
    assert texts == ["[image 1]", "[image 2]", "Why?"]
    for url, picture, kind in zip(urls, pictures, ("png", "jpeg"), strict=True):
        assert url.startswith(f"data:image/{kind};base64,")
        with open(picture, "rb") as file:
            assert base64.b64decode(url.partition(",")[2]) == file.read()
    assert b"authorization" not in server.headers[0].lower()


@pytest.mark.parametrize(
    ("body", "text", "reasoning"),
    [
        (chat("5", reasoning_content="2 and 3."), "5", "2 and 3."),
        (chat("5", reasoning="2 and 3."), "5", "2 and 3."),
        (chat("<think>\n2 and 3.\n</think>\n\n5"), "5", "2 and 3."),
        (chat("2 and 3.</think>5"), "5", "2 and 3."),
        (chat("<think>2 and"), "", "2 and"),
        (chat(None, reasoning_content="2 and"), "", "2 and"),
        (chat("5", reasoning_content=None), "5", ""),
        (chat("\ud800 5"), "? 5", ""),
    ],
)
def test_reasoning_is_found_wherever_a_server_puts_it(body, text, reasoning):
    with ChatServer(in_turn(Answer(body))) as server:
        reply = ask(server.url)
    assert (reply.text, reply.reasoning) == (text, reasoning)


def test_a_reply_cut_at_its_length_says_so_and_any_other_end_is_an_end():
    for finish, known in (("length", "length"), ("stop", "stop"), ("tool_calls", "stop"), (None, "stop")):
        with ChatServer(in_turn(Answer(chat("5", finish=finish)))) as server:
            assert ask(server.url).finish == known


def test_thinking_is_split_at_the_first_closing_tag():
    assert split_thinking("<think>a</think>b</think>c") == ("a", "b</think>c")
    assert split_thinking("No thinking.") == ("", "No thinking.")


@pytest.mark.parametrize(
    ("answer", "reason", "requests"),
    [
        (Answer(b"busy", 429), "HTTP 429", 3),
        (Answer(b"oops", 500), "HTTP 500", 3),
        (Answer(b"<html>", 502), "HTTP 502", 3),
        (Answer(b"too long", 400), "HTTP 400", 1),
        (Answer(b"", 302, {"Location": "http://127.0.0.1/"}), "HTTP 302", 1),
        (HANG, "timeout", 3),
        (Answer(chat("Fine."), sent=150), "connection broken", 3),
        (Answer(chat("Fine."), sent=0), "connection broken", 3),
        (Answer(b"not http at all", headers={"Content-Length": "x"}), "connection broken", 3),
        (Answer(b'{"choices": [{"mess'), "invalid JSON", 3),
        (Answer(b"[" * 100_000), "invalid JSON", 3),
        (Answer(b"\xff\xfe"), "invalid JSON", 3),
        (Answer(b'{"error": "overloaded"}'), "no chat completion", 3),
        (Answer(b'{"choices": []}'), "no chat completion", 3),
        (Answer(b'["choices"]'), "no chat completion", 3),
        (Answer(b"null"), "no chat completion", 3),
        (Answer(chat("x" * 10_000_000)), "reply too long", 1),
        (Answer(chat("Fine."), headers={"Content-Encoding": "gzip"}), "compressed reply", 3),
        (Answer(chat("Fine.", model="other")), "another model", 1),
        (Answer(chat("", finish="content_filter")), "content filter", 1),
    ],
)
def test_each_misbehaviour_ends_with_its_reason_after_so_many_requests(answer, reason, requests):
    with ChatServer(in_turn(answer)) as server, no_reply(reason) as caught:
        ask(server.url)
    assert server.seen == requests == len(caught.value.failures)
    assert all(failure.reason == reason and failure.sent for failure in caught.value.failures)
    assert len(caught.value.detail) < 400 and "\n" not in caught.value.detail


@pytest.mark.parametrize("answer", [Answer(b"", 429), Answer(b"", 503), HANG, Answer(chat("x"), sent=9), Answer(b"{")])
def test_what_passes_is_tried_again_and_counted(answer):
    with ChatServer(in_turn(answer, answer, GOOD)) as server:
        reply = ask(server.url)
    assert reply.text == "Fine." and reply.attempts == server.seen == 3


def test_a_reply_of_another_model_is_paid_all_the_same():
    with ChatServer(in_turn(Answer(chat("x", model="other")))) as server, no_reply("another model") as caught:
        ask(server.url, completion_price=1e6)
    [failure] = caught.value.failures
    assert (failure.prompt_tokens, failure.completion_tokens, failure.cost) == (10, 20, 20.0)


@pytest.mark.parametrize("name", ["m", "m-2025-01-20", "m:free", "org/m"])
def test_a_model_may_be_called_by_a_variant_or_by_a_name_that_was_told(name):
    with ChatServer(in_turn(Answer(chat("x", model=name)))) as server:
        assert ask(server.url, answers_as=("org/m",)).model == "m"


@pytest.mark.parametrize(
    "usage", [None, {}, {"prompt_tokens": -1, "completion_tokens": 5}, "many", {"prompt_tokens": 1e99}]
)
def test_tokens_nobody_counted_are_estimated_and_said_to_be(usage):
    with ChatServer(in_turn(Answer(chat("x" * 40, usage=usage)))) as server:
        reply = ask(server.url)
    assert reply.estimated and reply.completion_tokens == 10 and reply.prompt_tokens > 0


@pytest.mark.parametrize("status", [401, 402, 403, 404])
def test_what_only_a_person_can_mend_stops_the_run(status):
    with ChatServer(in_turn(Answer(b"no such model", status))) as server, pytest.raises(TeacherStopped) as caught:
        ask(server.url)
    assert server.seen == 1 and server.url in str(caught.value) and "no such model" in str(caught.value)


@pytest.mark.parametrize("dated", [False, True])
def test_retry_after_is_waited_for_in_seconds_and_as_a_date(dated):
    times = []

    def answer(request):
        times.append(time.monotonic())
        date = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)  # whole seconds: 1 to 2 from now
        return GOOD if times[1:] else Answer(b"", 429, {"Retry-After": date if dated else "0.5"})

    with ChatServer(answer) as server:
        assert ask(server.url).attempts == 2
    assert times[1] - times[0] >= (0.95 if dated else 0.5)


def test_endpoints_that_ask_for_hours_stop_the_run_and_one_of_several_does_not():
    hours = Answer(b"", 429, {"Retry-After": "99999"})
    with ChatServer(in_turn(hours)) as server, ChatServer(in_turn(GOOD)) as good:
        with pytest.raises(TeacherStopped, match="9999[89] s") as caught:
            ask(server.url)
        assert (server.seen, len(caught.value.failures)) == (1, 1)
        assert ask(server.url, good.url).endpoint == good.url


def test_retry_after_is_read_in_both_forms_and_nonsense_is_none():
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert retry_after("120", now) == 120
    assert retry_after("1.5", now) == 1.5
    assert retry_after("Thu, 01 Jan 2026 00:00:30 GMT", now) == 30
    assert retry_after("Wed, 31 Dec 2025 00:00:30 GMT", now) == 0
    for nonsense in (None, "", "soon", "nan", "inf", "Thu, 99 Jan 2026"):
        assert retry_after(nonsense, now) is None


def test_nobody_listens_and_nobody_speaks_tls():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with no_reply("no connection") as caught:
            ask(f"http://127.0.0.1:{free.getsockname()[1]}/v1")
    assert [failure.sent for failure in caught.value.failures] == [False] * 3
    with ChatServer(in_turn(GOOD)) as server, no_reply("no connection") as caught:
        ask(server.url.replace("http:", "https:"))
    assert server.seen == 0 and "SSL" in caught.value.detail


def test_a_failing_endpoint_rests_while_the_others_work():
    limits = replace(QUICK, attempts=4, first_wait=0.01, longest_wait=0.02)
    slow_to_wake = replace(limits, first_wait=30, longest_wait=30)
    with ChatServer(in_turn(Answer(b"", 429, {"Retry-After": "4"}))) as bad, ChatServer(in_turn(GOOD)) as good:

        async def calls(limits):
            teacher = Endpoints([Endpoint(bad.url, "m"), Endpoint(good.url, "m")], {}, limits)
            replies = [await teacher.ask("pseudo_cot", "Why?", (), seed) for seed in range(20)]
            await teacher.close()
            return replies

        start = time.monotonic()
        replies = asyncio.run(calls(slow_to_wake))
        assert time.monotonic() - start < 3
    assert (bad.seen, good.seen) == (1, 20) and {reply.endpoint for reply in replies} == {good.url}
    with ChatServer(in_turn(Answer(b"", 500))) as bad, ChatServer(in_turn(GOOD)) as good:
        replies = asyncio.run(calls(limits))
    assert all(reply.text == "Fine." for reply in replies) and good.seen == 20
    assert bad.seen == sum(len(reply.failures) for reply in replies)


def test_a_call_that_failed_goes_elsewhere_even_where_more_are_waiting():
    with ChatServer(in_turn(Answer(b"", 500))) as bad, ChatServer(in_turn(Answer(chat("Fine."), delay=0.1))) as good:

        async def calls():
            limits = replace(QUICK, attempts=2, timeout=10)
            teacher = Endpoints([Endpoint(bad.url, "m"), Endpoint(good.url, "m")], {}, limits)
            await asyncio.gather(*(teacher.ask("pseudo_cot", "Why?", (), seed) for seed in range(12)))
            await teacher.close()

        asyncio.run(calls())
    assert bad.seen > 0 and good.seen == 12


def test_endpoints_take_turns():
    with ChatServer(in_turn(GOOD)) as one, ChatServer(in_turn(GOOD)) as two:

        async def calls():
            teacher = Endpoints([Endpoint(server.url, "m") for server in (one, two)], {}, QUICK)
            for seed in range(10):
                await teacher.ask("pseudo_cot", "Why?", (), seed)
            await asyncio.gather(*(teacher.ask("pseudo_cot", "Why?", (), seed) for seed in range(10)))
            await teacher.close()

        asyncio.run(calls())
    assert (one.seen, two.seen) == (10, 10)


def test_no_more_calls_are_in_flight_than_an_endpoint_bears():
    most = now = 0

    def answer(request):
        nonlocal most, now
        now += 1
        most = max(most, now)
        asyncio.get_running_loop().call_later(0.05, leave)
        return Answer(chat("x"), delay=0.05)

    def leave():
        nonlocal now
        now -= 1

    with ChatServer(answer) as server:

        async def calls():
            teacher = Endpoints([Endpoint(server.url, "m", concurrency=3)], {}, Limits())
            await asyncio.gather(*(teacher.ask("pseudo_cot", "Why?", (), seed) for seed in range(12)))
            await teacher.close()

        asyncio.run(calls())
    assert most == 3 and server.seen == 12


def test_the_key_goes_into_the_request_and_nowhere_else(monkeypatch):
    monkeypatch.setenv("A_KEY", "sk-secret")
    for echo in (Answer(b"bad key sk-secret", 400), Answer(b"sk-secret", 500)):
        with ChatServer(in_turn(echo)) as server, pytest.raises(NoReply) as caught:
            ask(server.url, api_key_env="A_KEY")
        assert b"Bearer sk-secret" in server.headers[0]
        assert "sk-secret" not in str(caught.value) + repr(caught.value.failures)
    with ChatServer(in_turn(Answer(chat("your key is sk-secret")))) as server:
        assert ask(server.url, api_key_env="A_KEY").text == "your key is ***"


@pytest.mark.parametrize(
    ("endpoint", "complaint"),
    [
        ({"url": "http://h/v1", "api_key_env": "NOT_SET_ANYWHERE"}, "NOT_SET_ANYWHERE is not set"),
        ({"url": "http://h/v1", "api_key_env": "BROKEN_KEY"}, "BROKEN_KEY holds no key"),
        ({"url": "http://user:secret@h/v1"}, "api_key_env"),
        ({"url": "http://h/v1?key=secret"}, "api_key_env"),
        ({"url": "h:8000/v1"}, "no web address"),
        ({"url": "http://h/v1", "concurrency": 0}, "concurrency = 0"),
        ({"url": "http://h/v1", "prompt_price": -1.0}, "price below 0"),
    ],
)
def test_an_endpoint_that_cannot_work_is_refused_before_anything_is_asked(endpoint, complaint, monkeypatch):
    monkeypatch.setenv("BROKEN_KEY", "line one\nline two")
    with pytest.raises(RequestError, match=complaint) as caught:
        Endpoints([Endpoint(model="m", **endpoint)])
    assert "secret" not in str(caught.value) and "line one" not in str(caught.value)


def test_a_picture_is_made_smaller_only_if_it_is_too_large_or_unusual(tmp_path):
    noise = Image.effect_noise((200, 200), 80).convert("RGB")
    noise.save(tmp_path / "a.png")
    noise.save(tmp_path / "a.bmp")

    def sent(name, most_bytes):
        return asyncio.run(data_url(tmp_path / name, most_bytes))

    kept = sent("a.png", 10**6)
    assert base64.b64decode(kept.partition(",")[2]) == (tmp_path / "a.png").read_bytes()
    assert sent("a.bmp", 10**6).startswith("data:image/png;")
    small = sent("a.png", 5_000)
    assert small.startswith("data:image/jpeg;") and len(base64.b64decode(small.partition(",")[2])) <= 5_000


def test_what_is_no_picture_is_a_call_without_a_reply(tmp_path):
    for name, content in (("empty.png", b""), ("text.png", b"not a picture")):
        (tmp_path / name).write_bytes(content)
        with ChatServer(in_turn(GOOD)) as server, no_reply("picture unreadable"):
            ask(server.url, images=[str(tmp_path / name)])
        assert server.seen == 0


def test_settings_are_what_decides_a_reply():
    teacher = Endpoints([Endpoint("http://h/v1", "m"), Endpoint("http://h/v1", "n"), Endpoint("http://i/v1", "m")])
    assert teacher.models == ("m", "n") and teacher.paid
    assert json.dumps(teacher.settings("reasoning")) == json.dumps(
        {"temperature": 0.6, "top_p": 0.95, "max_tokens": 16384, "extra": {}}
    )
