"""A chat endpoint for tests and benches: answers as it is told, keeps its own count, misbehaves on request."""

import asyncio
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Answer:
    """One HTTP answer: `sent` of its bytes are written after `delay` seconds, all if None; then perhaps it closes."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    sent: int | None = None
    close: bool = False

    def wire(self) -> bytes:
        lines = {"Content-Type": "application/json", "Content-Length": str(len(self.body)), **self.headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        return f"HTTP/1.1 {self.status} Status\r\n{head}\r\n".encode() + self.body


HANG = Answer(delay=3600)


def chat(
    text: str | None,
    model: str = "m",
    finish: str = "stop",
    usage: object = {"prompt_tokens": 10, "completion_tokens": 20},
    **message: object,
) -> bytes:
    """A chat completion's JSON."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}
    return json.dumps({"object": "chat.completion", "model": model, "choices": [choice], "usage": usage}).encode()


def step_of(request: bytes) -> str:
    """Which of the three calls a request is, by the prompts' own words."""
    words = {b"Look at the image": "pseudo_cot", b"Given a image": "description", b"Following the above": "reasoning"}
    return next(step for word, step in words.items() if word in request)


class ChatServer:
    """Answers on 127.0.0.1 from a thread of its own.

    `requests` holds each request's body, the answer to it, and whether that was sent in full.
    """

    def __init__(self, answer: Callable[[bytes], Answer], keep: bool = True):
        self.answer, self.keep = answer, keep
        self.requests: list[list] = []
        self.seen = 0
        self.answered: Callable[[bytes], None] = lambda body: None  # told of every request that was answered in full
        self.headers: list[bytes] = []

    def __enter__(self) -> "ChatServer":
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.server = asyncio.run_coroutine_threadsafe(self.start(), self.loop).result()
        return self

    async def start(self, port: int = 0) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Connection(self), "127.0.0.1", port, backlog=512)
        self.port = server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        return server

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.server.close)
        self.loop.call_soon_threadsafe(self.loop.stop)

    def bodies(self) -> list[dict]:
        return [json.loads(body) for body, *_ in self.requests]


def prompt_of(request: bytes) -> str:
    """The text of the user's turn."""
    content = json.loads(request)["messages"][0]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


class Connection(asyncio.Protocol):
    """One keep-alive connection, one request after the other."""

    def __init__(self, server: ChatServer):
        self.server, self.received, self.awaited = server, bytearray(), None

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        if self.received.startswith(b"\x16"):  # the beginning of TLS, which is not spoken here
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            self.transport.close()
            return
        if self.awaited is None:
            head, found, _ = bytes(self.received[:65536]).partition(b"\r\n\r\n")
            if not found:
                return
            length = next((line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), b":0")
            self.head, self.awaited = head, len(head) + 4 + int(length.split(b":")[1])
        if len(self.received) >= self.awaited:
            body = bytes(self.received[len(self.head) + 4 : self.awaited])
            del self.received[: self.awaited]
            self.awaited = None
            self.server.seen += 1
            answer = self.server.answer(body)
            entry = [body, answer, False]
            if self.server.keep:
                self.server.requests.append(entry)
                self.server.headers.append(self.head)
            asyncio.get_running_loop().call_later(answer.delay, self.write, body, answer, entry)

    def write(self, body: bytes, answer: Answer, entry: list) -> None:
        if self.transport.is_closing():
            return
        self.transport.write(answer.wire()[: answer.sent])
        entry[2] = answer.sent is None
        if entry[2]:
            self.server.answered(body)
        if answer.close or answer.sent is not None:
            self.transport.close()
