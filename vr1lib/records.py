"""The records that flow through the workbench, and their JSONL files.

Problem → Completion → Graded is the one direction of the data flow; a ColdRow is a Problem with its bridged chain of
thought (Section 3.3 of the paper). Files are UTF-8 JSONL, one object a line. In memory `images` are absolute paths; in
a file they are relative to the file's folder and may not leave it, so a run folder can be moved or published whole.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

MAX_IMAGE_PIXELS = 100_000_000  # our choice: above any benchmark picture, below what unpacks into gigabytes


class RequestError(Exception):
    """What the user asked for cannot be done: one line naming file, key or line, value and mend."""


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class Problem(Record):
    """A question about zero or more pictures with its gold answer (an option letter, a value or a text)."""

    id: str = Field(min_length=1)
    images: list[str]
    question: str = Field(min_length=1)
    answer: str = Field(min_length=1)
    choices: list[str] | None = None
    source: str
    split: str
    meta: dict[str, Any] = Field(default_factory=dict)


class Completion(Record):
    """One sampled answer. `tokens` counts the completion's own tokens; `logprob` is their summed log-probability.

    `version`: updates behind the weights that sampled it, if a server did.
    """

    problem_id: str
    sample: int
    step: int
    stage: int
    text: str
    tokens: int
    finish: Literal["stop", "length"]
    logprob: float
    version: int | None = None


class Graded(Completion):
    """A completion with its reward and the reason the grader gave."""

    reward: float
    format_ok: bool
    answer_ok: bool
    extracted: str | None
    reason: str


class TeacherCall(Record):
    """The receipt of one call to a teacher."""

    purpose: Literal["pseudo_cot", "description", "reasoning"]
    model: str
    prompt_sha256: str
    prompt_tokens: int
    completion_tokens: int
    seconds: float


class ColdRow(Problem):
    """A row of the cold-start set: `response` is what the model is trained to say."""

    pseudo_cot: str
    description: str
    reasoning: str
    response: str
    calls: list[TeacherCall]


RecordType = TypeVar("RecordType", bound=Record)


def read_jsonl(path: str | Path, record_type: type[RecordType]) -> Iterator[RecordType]:
    """Yield the records of a JSONL file, image paths made absolute.

    Raises RequestError naming file, line and field for a line that is not JSON, lacks a field, or whose image path
    leaves the file's folder.
    """
    path = Path(path)
    root = path.resolve().parent
    try:
        file = path.open(encoding="utf-8")
    except OSError as error:
        raise RequestError(f"{path}: cannot be read ({error.strerror}); give the path of a JSONL file") from None
    with file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = record_type.model_validate_json(line)
            except ValidationError as error:
                raise RequestError(f"{path}, line {number}: {first_error(error)}") from None
            if isinstance(record, Problem):
                record.images = [str(inside(root, image, f"{path}, line {number}")) for image in record.images]
            yield record


def write_jsonl(path: str | Path, records: Iterable[Record], append: bool = False) -> int:
    """Write records, image paths made relative to the file's folder; returns how many were written."""
    path = Path(path)
    root = path.resolve().parent
    count = 0
    with path.open("a" if append else "w", encoding="utf-8") as file:
        for record in records:
            row = record.model_dump()
            if isinstance(record, Problem):
                row["images"] = [str(inside(root, image, str(path)).relative_to(root)) for image in record.images]
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def inside(root: Path, relative: str | Path, where: str) -> Path:
    """`root/relative` as an absolute path, refused if it lies outside `root` (links followed)."""
    target = Path(os.path.realpath(root / relative))
    if not target.is_relative_to(os.path.realpath(root)):
        raise RequestError(f"{where}: field 'images': {str(relative)!r} leaves {root}; keep pictures beside the file")
    return target


def open_image(path: str | Path) -> Image.Image:
    """The picture as RGB, upright (EXIF), transparency laid on white.

    Raises RequestError for anything that is not a sound picture, or is too large to unpack.
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_IMAGE_PIXELS:
                size = f"{image.width}×{image.height}"
                raise RequestError(f"{path}: picture of {size} pixels; scale it below {MAX_IMAGE_PIXELS:,} pixels")
            image = ImageOps.exif_transpose(image)
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                image = image.convert("RGBA")
                background = Image.new("RGBA", image.size, "white")
                return Image.alpha_composite(background, image).convert("RGB")
            return image.convert("RGB")
    except FileNotFoundError:
        raise RequestError(f"{path}: no such picture; check the row's 'images'") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise RequestError(f"{path}: not a readable picture ({error}); replace or remove it") from None


def write_image(image: Image.Image, path: Path) -> None:
    """Save a picture whole: neither a kill nor another process writing the same picture leaves half a file."""
    new = path.with_name(f".{os.getpid()}-{path.name}")
    image.save(new)
    os.replace(new, path)


def file_sha256(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, read piece by piece."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def first_error(error: ValidationError) -> str:
    """The first complaint of a pydantic error in one line: field, value, what was expected."""
    detail = error.errors()[0]
    field = ".".join(str(part) for part in detail["loc"]) or "the row"
    if detail["type"] == "missing":
        return f"field {field!r} is missing; add it"
    if detail["type"] == "extra_forbidden":
        return f"unknown field {field!r}; remove it"
    value = repr(detail.get("input"))
    value = value if len(value) <= 80 else value[:77] + "..."
    return f"field {field!r} = {value}: {detail['msg'][0].lower()}{detail['msg'][1:]}"
