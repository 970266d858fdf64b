"""Teachers behind OpenAI-compatible chat endpoints: vLLM, SGLang, DeepSeek, OpenAI and their like.

The paper had Qwen2.5-VL-72B and DeepSeek-R1 at hand (Section 4.1); here each is one or several endpoints that take
turns. What the network may do is expected: 429 and 5xx, silence, half a reply, another model's reply, one without end.
A request that fails is tried again, later and elsewhere, as long as that can help; then the call ends as NoReply with
its reason. Nothing is believed before it is checked and bounded, and the key comes from an environment variable and
goes nowhere but into the request.

httpx does the talking, with one client for each connection: its connection pool takes 12 ms of processor time a call
when 128 are in flight, a client of one connection 0.8 ms.
"""

import asyncio
import base64
import contextlib
import io
import itertools
import json
import math
import os
import random
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from PIL import Image

from vr1lib.data.teachers import Failure, NoReply, Purpose, Reply, TeacherStopped
from vr1lib.records import RequestError, open_image

TRY_AGAIN = {408, 409, 425, 429}  # and all of 500 to 599
NEEDS_A_PERSON = {
    401: "check the key",
    402: "no credit is left",
    403: "check the key",
    404: "check 'url' and 'model'",
}
REASONING_FIELDS = ("reasoning_content", "reasoning")
FAILURES_IN_A_ROW = 3  # after which an endpoint rests
CHARACTERS_PER_TOKEN = 4  # a guess, for endpoints that count no tokens
MAX_TOKENS_COUNTED = 10_000_000  # a larger count is none
SENT_AS_IT_IS = {"PNG": "png", "JPEG": "jpeg", "WEBP": "webp", "GIF": "gif", "MPO": "jpeg"}


@dataclass(frozen=True)
class Endpoint:
    """Where a model answers: `url` as far as `/v1`, prices per million tokens, calls at once.

    `api_key_env` names the environment variable that holds the key. `answers_as` are further names under which the
    endpoint may say it answers; a name that only adds a date or a variant ("-2024-08-06", ":free") needs none.
    """

    url: str
    model: str
    prompt_price: float = 0.0
    completion_price: float = 0.0
    concurrency: int = 32
    api_key_env: str | None = None
    answers_as: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise RequestError(f"endpoint: url = {self.url!r} is no web address; give one such as http://host:8000/v1")
        if parts.username or parts.password or parts.query:
            raise RequestError(
                f"endpoint {self.address}: the url holds a key or a query; name the key's variable in 'api_key_env'"
            )
        if self.concurrency < 1:
            raise RequestError(f"endpoint {self.address}: concurrency = {self.concurrency}; give 1 or more")
        if min(self.prompt_price, self.completion_price) < 0:
            raise RequestError(f"endpoint {self.address}: a price below 0; give it per million tokens")

    @property
    def address(self) -> str:
        """The url as far as it may be written down."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"

    def key(self) -> str:
        if self.api_key_env is None:
            return ""
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise RequestError(
                f"endpoint {self.address}: environment variable {self.api_key_env} is not set; export it"
            )
        if not (key.isascii() and key.isprintable()):
            raise RequestError(
                f"endpoint {self.address}: {self.api_key_env} holds no key, but other characters; mend it"
            )
        return key

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        return (prompt_tokens * self.prompt_price + completion_tokens * self.completion_price) / 1e6

    def may_answer_as(self, name: str) -> bool:
        return name in (self.model, *self.answers_as) or name.startswith((f"{self.model}-", f"{self.model}:"))


@dataclass(frozen=True)
class Sampling:
    """How a model is asked. `extra` goes into the request as it is; a value of None takes a field out of it.

    `extra={"seed": None}` is for servers that cannot bear a seed: vLLM 0.32 on a CPU dies of it once it cuts a prompt.
    """

    temperature: float = 0.6
    top_p: float = 0.95
    max_tokens: int = 4096
    extra: Mapping[str, Any] = field(default_factory=dict)


# Our choice; the paper says nothing. What is seen needs no chance; 0.6 and 0.95 are DeepSeek-R1's own; 16,384 tokens
# are what the cold start trains on at most.
SAMPLING: dict[Purpose, Sampling] = {
    "pseudo_cot": Sampling(0.0, 1.0),
    "description": Sampling(0.0, 1.0),
    "reasoning": Sampling(0.6, 0.95, max_tokens=16_384),
}


@dataclass(frozen=True)
class Limits:
    """How long and how often a call is tried, in seconds and requests, and how much it may bring and send, in bytes."""

    attempts: int = 8
    timeout: float = 900.0  # of one request, from connecting to the last byte
    connect_timeout: float = 20.0
    first_wait: float = 1.0  # doubled with each attempt
    longest_wait: float = 60.0
    longest_retry_after: float = 600.0  # if every endpoint asks for more, the run stops
    reply_bytes: int = 4 * 2**20
    picture_bytes: int = 4 * 2**20  # above it a picture is sent smaller


@dataclass(eq=False)
class BadReply(Exception):
    """One request that failed: whether trying `again` can help, after what `wait`, and the tokens it cost.

    `stops` says that no other request can succeed either, until a person has acted.
    """

    reason: str
    detail: str = ""
    again: bool = False
    stops: bool = False
    sent: bool = True
    wait: float | None = None
    usage: Sequence[int] = (0, 0)


class Line:
    """One endpoint at work: its connections, how many calls hold or await one, and until when it rests."""

    def __init__(self, endpoint: Endpoint, limits: Limits, tls: ssl.SSLContext):
        self.endpoint, self.limits, self.tls = endpoint, limits, tls
        self.secret = endpoint.key()
        self.slots = asyncio.Semaphore(endpoint.concurrency)
        self.idle: list[httpx.AsyncClient] = []
        self.busy = self.turn = self.failures_in_a_row = 0
        self.rests_until = 0.0

    async def post(self, content: bytes) -> tuple[int, httpx.Headers, bytes]:
        """Status, headers and body of one request, the body without the key, should the server say it back."""
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if self.secret:
            headers["Authorization"] = f"Bearer {self.secret}"
        client = self.idle.pop() if self.idle else self._client()
        try:
            url = f"{self.endpoint.url.rstrip('/')}/chat/completions"
            async with client.stream("POST", url, content=content, headers=headers) as response:
                if response.headers.get("content-encoding", "identity") != "identity":
                    raise BadReply("compressed reply", response.headers["content-encoding"], again=True)
                body = bytearray()
                async for chunk in response.aiter_raw():
                    body += chunk
                    if len(body) > self.limits.reply_bytes:
                        raise BadReply("reply too long", f"more than {self.limits.reply_bytes:,} bytes")
        finally:
            self.idle.append(client)
        if self.secret:
            body = body.replace(self.secret.encode(), b"***")
        return response.status_code, response.headers, bytes(body)

    def rest(self, bad: BadReply, wait: float) -> None:
        """Rest as long as the endpoint asks for, or a while once it fails again and again."""
        self.failures_in_a_row += 1
        if bad.wait is not None or self.failures_in_a_row >= FAILURES_IN_A_ROW:
            self.rests_until = max(self.rests_until, time.monotonic() + (wait if bad.wait is None else bad.wait))

    async def close(self) -> None:
        for client in self.idle:
            await client.aclose()
        self.idle.clear()

    def _client(self) -> httpx.AsyncClient:
        one = httpx.Limits(max_connections=1, max_keepalive_connections=1)
        patience = httpx.Timeout(None, connect=self.limits.connect_timeout)
        return httpx.AsyncClient(verify=self.tls, limits=one, timeout=patience)


class Endpoints:
    """A teacher behind one or several endpoints, which take turns; those that fail rest."""

    paid = True
    whole_text = False  # True: a reply is what the model said, word for word; a server that takes it apart is refused

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        sampling: Mapping[Purpose, Sampling] = SAMPLING,
        limits: Limits = Limits(),
    ):
        if not endpoints:
            raise RequestError("a teacher without endpoints; give at least one")
        self.endpoints, self.sampling, self.limits = tuple(endpoints), {**SAMPLING, **sampling}, limits
        for endpoint in endpoints:
            endpoint.key()
        self.models = tuple(dict.fromkeys(endpoint.model for endpoint in endpoints))
        self._lines: list[Line] = []
        self._turns = itertools.count(1)

    def settings(self, purpose: Purpose) -> dict[str, Any]:
        return asdict(self.sampling[purpose])

    async def ask(self, purpose: Purpose, prompt: str, images: Sequence[str], seed: int) -> Reply:
        if not self._lines:
            tls = httpx.create_ssl_context()
            self._lines = [Line(endpoint, self.limits, tls) for endpoint in self.endpoints]
        try:
            messages = json.dumps(await self._messages(prompt, images))
        except RequestError as error:
            raise NoReply("picture unreadable", str(error)) from None
        failures: list[Failure] = []
        line: Line | None = None
        for attempt in range(self.limits.attempts):
            line = await self._free_line(line, failures)
            start = time.perf_counter()
            try:
                reply = await self._request(line, purpose, messages, seed)
                line.failures_in_a_row = 0
                return replace(reply, failures=tuple(failures))
            except BadReply as error:
                bad = error
            finally:
                line.busy -= 1
                line.slots.release()
            seconds, cost = time.perf_counter() - start, line.endpoint.cost(*bad.usage)
            failures.append(Failure(line.endpoint.address, bad.reason, bad.sent, *bad.usage, cost, seconds))
            if bad.stops:
                where = f"endpoint {line.endpoint.address}, model {line.endpoint.model}"
                raise TeacherStopped(bad.reason, f"{where}: {bad.detail}", failures)
            if not bad.again:
                break
            wait = min(self.limits.longest_wait, self.limits.first_wait * 2**attempt) * random.uniform(0.5, 1.5)
            line.rest(bad, wait)
            if bad.wait is None and attempt + 1 < self.limits.attempts:
                await asyncio.sleep(wait)
        raise NoReply(bad.reason, f"{bad.detail} (requests: {len(failures)})".strip(), failures)

    async def close(self) -> None:
        for line in self._lines:
            await line.close()
        self._lines = []

    async def _free_line(self, avoid: Line | None, failures: Sequence[Failure]) -> Line:
        """The least busy line that doesn't rest, another than the one that has just failed if there is one.

        Its slot is taken. Raises TeacherStopped if all rest for longer than one may wait.
        """
        while True:
            now = time.monotonic()
            awake = [line for line in self._lines if line.rests_until <= now]
            if not awake:
                wait = min(line.rests_until for line in self._lines) - now
                if wait > self.limits.longest_retry_after:
                    raise TeacherStopped("endpoints rest", f"all ask to wait, the first for {wait:.0f} s", failures)
                await asyncio.sleep(wait + random.uniform(0, 0.1) * min(wait, self.limits.first_wait))
                continue
            others = [line for line in awake if line is not avoid] or awake
            line = min(others, key=lambda line: (line.busy / line.endpoint.concurrency, line.turn))
            line.busy, line.turn = line.busy + 1, next(self._turns)
            try:
                await line.slots.acquire()
            except BaseException:
                line.busy -= 1
                raise
            if line.rests_until <= time.monotonic():
                return line
            line.busy -= 1
            line.slots.release()

    async def _request(self, line: Line, purpose: Purpose, messages: str, seed: int) -> Reply:
        """One request. Raises BadReply."""
        endpoint, sampling, start = line.endpoint, self.sampling[purpose], time.perf_counter()
        fields = {
            "model": endpoint.model,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "seed": seed,
            **sampling.extra,
        }
        fields = {name: value for name, value in fields.items() if value is not None}
        try:
            async with asyncio.timeout(self.limits.timeout):
                status, headers, body = await line.post(f'{json.dumps(fields)[:-1]}, "messages": {messages}}}'.encode())
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise BadReply("no connection", str(error)[:200], again=True, sent=False) from None
        except (TimeoutError, httpx.TimeoutException):
            raise BadReply("timeout", f"nothing whole within {self.limits.timeout:g} s", again=True) from None
        except (httpx.TransportError, ssl.SSLError) as error:
            raise BadReply("connection broken", type(error).__name__, again=True) from None
        if status != 200:
            raise refusal(status, headers.get("retry-after"), body)
        reply = read_reply(body, endpoint, len(messages), self.whole_text)
        return replace(reply, seconds=time.perf_counter() - start)

    async def _messages(self, prompt: str, images: Sequence[str]) -> list[dict[str, Any]]:
        """The turns of a request."""
        return [{"role": "user", "content": await self._content(prompt, images)}]

    async def _content(self, prompt: str, images: Sequence[str]) -> str | list[dict[str, Any]]:
        """The user's turn: pictures first, numbered as in the prompt where there are several, then the prompt."""
        if not images:
            return prompt
        parts: list[dict[str, Any]] = []
        for number, image in enumerate(images, start=1):
            if len(images) > 1:
                parts.append({"type": "text", "text": f"[image {number}]"})
            url = await data_url(image, self.limits.picture_bytes)
            parts.append({"type": "image_url", "image_url": {"url": url}})
        return [*parts, {"type": "text", "text": prompt}]


def refusal(status: int, wait: str | None, body: bytes) -> BadReply:
    """What an answer other than 200 means; `wait` is its Retry-After header."""
    excerpt = " ".join(body[:300].decode("utf-8", "replace").split())
    if status in NEEDS_A_PERSON:
        return BadReply(f"HTTP {status}", f"{NEEDS_A_PERSON[status]} ({excerpt})", stops=True)
    if status in TRY_AGAIN or 500 <= status < 600:
        return BadReply(f"HTTP {status}", excerpt, again=True, wait=retry_after(wait, datetime.now(UTC)))
    return BadReply(f"HTTP {status}", excerpt)


def read_reply(body: bytes, endpoint: Endpoint, request_characters: int, whole_text: bool = False) -> Reply:
    """The reply in a chat completion's JSON, its thinking apart from its text unless `whole_text`.

    Raises BadReply for what is no sound reply of this endpoint; what it has cost is told with it. A reply without any
    text is sound: asked again, the model would say the same.
    """
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise BadReply("invalid JSON", repr(body[:80])[1:], again=True) from None
    choice = _get(content, "choices", 0)
    message = _get(choice, "message")
    if not isinstance(message, dict):
        raise BadReply("no chat completion", repr(body[:80])[1:], again=True)
    text = _string(message.get("content"))
    reasoning = next(filter(str.strip, (_string(message.get(name)) for name in REASONING_FIELDS)), "")
    if whole_text and reasoning:
        raise BadReply("reasoning apart", "start the server without a reasoning parser", stops=True)
    if not reasoning and not whole_text:
        reasoning, text = split_thinking(text)
    usage = [_get(content, "usage", name) for name in ("prompt_tokens", "completion_tokens")]
    estimated = not all(type(count) is int and 0 <= count <= MAX_TOKENS_COUNTED for count in usage)
    if estimated:
        usage = [math.ceil(size / CHARACTERS_PER_TOKEN) for size in (request_characters, len(text) + len(reasoning))]
    name, finish = content.get("model"), _get(choice, "finish_reason")
    if isinstance(name, str) and not endpoint.may_answer_as(name):
        raise BadReply("another model", f"{name[:80]!r} answered for {endpoint.model!r}", usage=usage)
    if finish == "content_filter":
        raise BadReply("content filter", text[:80], usage=usage)
    return Reply(
        text,
        reasoning,
        endpoint.model,
        *usage,
        seconds=0.0,
        finish="length" if finish == "length" else "stop",
        endpoint=endpoint.address,
        cost=endpoint.cost(*usage),
        estimated=estimated,
    )


def _get(value: Any, *path: str | int) -> Any:
    """What lies at a path of keys and places in parsed JSON; None where there is nothing."""
    for step in path:
        if isinstance(value, dict) and isinstance(step, str):
            value = value.get(step)
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            value = value[step]
        else:
            return None
    return value


def _string(value: Any) -> str:
    """A text as UTF-8 can hold it; what is no text is empty."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def split_thinking(text: str) -> tuple[str, str]:
    """Reasoning and text of a reply with inline `<think>…</think>`; the opening tag may have been in the template."""
    head, closed, tail = text.partition("</think>")
    if closed:
        return head.strip().removeprefix("<think>").strip(), tail.strip()
    opened = text.lstrip()
    return (opened.removeprefix("<think>").strip(), "") if opened.startswith("<think>") else ("", text)


def retry_after(value: str | None, now: datetime) -> float | None:
    """Seconds from now of a Retry-After header: a number of seconds or an HTTP date; None if it is neither."""
    if not value:
        return None
    with contextlib.suppress(ValueError):
        seconds = float(value)
        return max(0.0, seconds) if math.isfinite(seconds) else None
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        date = parsedate_to_datetime(value)
        return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - now).total_seconds())
    return None


async def data_url(path: str | Path, most_bytes: int) -> str:
    """A picture's own bytes as a data URL; written anew only if its format is unusual or it is too large.

    Raises RequestError for what is no readable picture.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            name = SENT_AS_IT_IS.get(image.format or "")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise RequestError(f"{path}: not a readable picture ({error}); replace or remove it") from None
    if name is None or len(content) > most_bytes:
        name, content = await asyncio.to_thread(_smaller, path, most_bytes)
    return f"data:image/{name};base64,{base64.b64encode(content).decode()}"


def _smaller(path: Path, most_bytes: int) -> tuple[str, bytes]:
    """A picture as PNG if that is small enough, else as JPEG, scaled down until it is."""
    image, buffer = open_image(path), io.BytesIO()
    image.save(buffer, "PNG")
    if buffer.tell() <= most_bytes:
        return "png", buffer.getvalue()
    while True:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=90)
        if buffer.tell() <= most_bytes or max(image.size) <= 28:
            return "jpeg", buffer.getvalue()
        image = image.resize([max(1, round(side * 0.7)) for side in image.size])
