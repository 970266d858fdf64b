"""A benchmark's questions put to models behind OpenAI-compatible endpoints: many at once, replies in order, each kept.

The model to be scored is shown exactly what a model in this process is shown: text and pictures in the same order, each
picture already at the size of the model's image specification and without loss (PNG), the specification's system
prompt or none. The judge is asked through the same door. Every reply lies in the run folder's store of calls before it
is used, so that a run that was killed pays for nothing twice.
"""

import asyncio
import base64
import io
import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from PIL import Image

from vr1lib.data.calls import CallStore
from vr1lib.data.endpoints import Endpoint, Endpoints, Limits, Sampling
from vr1lib.data.teachers import NoReply, Reply, Teacher, TeacherStopped
from vr1lib.models.images import ImageSpec, TileSpec
from vr1lib.prompts import PromptSpec, prompt_parts
from vr1lib.records import Problem, RequestError, file_sha256, open_image

PURPOSE = "answer"


class Question(NamedTuple):
    """One request. `prompt` is a text, or for ModelServer the JSON list of its parts, null where a picture stands."""

    prompt: str
    images: Sequence[str]
    seed: int


def check_reachable(endpoints: Sequence[Endpoint], timeout: float = 20.0) -> None:
    """Raises RequestError for an endpoint where nobody answers at all: it would be waited for, again and again."""
    for endpoint in endpoints:
        try:
            httpx.get(f"{endpoint.url.rstrip('/')}/models", timeout=timeout)
        except httpx.TransportError as error:
            raise RequestError(f"endpoint {endpoint.address}: nobody answers ({error}); start the server") from None


class ModelServer(Endpoints):
    """The model to be scored. Its replies are what it said, word for word: `<think>` is not taken apart."""

    whole_text = True

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        sampling: Sampling,
        image_spec: ImageSpec | TileSpec,
        prompt_spec: PromptSpec,
        limits: Limits = Limits(),
    ):
        super().__init__(endpoints, {PURPOSE: sampling}, limits)
        self.image_spec, self.prompt_spec = image_spec, prompt_spec

    def question(self, problem: Problem, seed: int) -> Question:
        """A problem as it is asked. Servers take seeds below 2^31."""
        parts = prompt_parts(problem, self.prompt_spec)
        prompt = json.dumps([None if isinstance(part, Path) else part for part in parts], ensure_ascii=False)
        return Question(prompt, [str(part) for part in parts if isinstance(part, Path)], seed % 2**31)

    def settings(self, purpose: str) -> dict[str, Any]:
        system = self.prompt_spec.system
        return {**super().settings(purpose), "image_spec": self.image_spec.sha256, "system": system}

    async def _messages(self, prompt: str, images: Sequence[str]) -> list[dict[str, Any]]:
        pictures = iter(images)
        content = []
        for part in json.loads(prompt):
            if part is None:
                url = await asyncio.to_thread(picture_url, next(pictures), self.image_spec)
                content.append({"type": "image_url", "image_url": {"url": url}})
            else:
                content.append({"type": "text", "text": part})
        system = self.prompt_spec.system
        return [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": content}]


def picture_url(path: str, spec: ImageSpec | TileSpec) -> str:
    """A picture as a data URL (PNG), at the size that a model in this process would be shown.

    Raises RequestError for what is no readable picture.
    """
    picture = open_image(path)
    if isinstance(spec, ImageSpec):
        height, width = spec.resized(picture.height, picture.width)
        picture = picture.resize((width, height), Image.Resampling(spec.resample))
    content = io.BytesIO()
    picture.save(content, "PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def ask_all(
    teacher: Teacher, purpose: str, questions: Sequence[Question], folder: str | Path, in_flight: int
) -> Iterator[Reply | NoReply]:
    """The replies in the questions' order, `in_flight` requests at a time; a NoReply stands for itself.

    What `folder`/calls.sqlite holds is not asked again. The requests run in a thread of their own, for a notebook's
    has an event loop already. Raises RequestError once no request can succeed before a person has acted.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name=f"asking: {purpose}", daemon=True)
    thread.start()
    calls: CallStore | None = None
    futures: list[Future[Reply | NoReply]] = []
    try:
        calls = asyncio.run_coroutine_threadsafe(_open(folder), loop).result()
        room = asyncio.Semaphore(in_flight)
        for question in questions:
            work = _ask(calls, teacher, purpose, question, room)
            futures.append(asyncio.run_coroutine_threadsafe(work, loop))
        for future in futures:
            outcome = future.result()
            if isinstance(outcome, TeacherStopped):
                raise RequestError(f"{outcome}; mend it and go on with resume (--resume)")
            yield outcome
    finally:
        for future in futures:
            future.cancel()
        asyncio.run_coroutine_threadsafe(_close(loop, teacher, calls), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _open(folder: str | Path) -> CallStore:
    return CallStore(Path(folder) / "calls.sqlite")  # in the loop's thread: SQLite's connections stay in theirs


async def _ask(
    calls: CallStore, teacher: Teacher, purpose: str, question: Question, room: asyncio.Semaphore
) -> Reply | NoReply:
    async with room:
        hashes = [await asyncio.to_thread(file_sha256, image) for image in question.images]
        try:
            return await calls.ask(teacher, purpose, question.prompt, question.images, hashes, question.seed)
        except NoReply as failure:
            return failure


async def _close(loop: asyncio.AbstractEventLoop, teacher: Teacher, calls: CallStore | None) -> None:
    """Wait for whatever is still running, then let go of connections and of the store."""
    others = asyncio.all_tasks(loop) - {asyncio.current_task()}
    await asyncio.gather(*others, return_exceptions=True)
    await teacher.close()
    if calls:
        calls.close()
    await loop.shutdown_default_executor()
