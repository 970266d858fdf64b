"""Original data sets as Problems: one reader each, every row accounted for, splits that share no picture.

The paper's RL set mixes We-Math, MathVision, PolyMATH, SceMQA and Geometry3K (Section 4.1); the readers here are the
first two. A row becomes a Problem or a Reject with its reason, never nothing. Our choices, where the data sets leave
them open:

- a gold must be accepted by our own grader when it is given as the answer, else nothing can ever be rewarded on that
  row;
- a picture is known by its content, not by its name: 64 of 495 We-Math pictures called `.png` are JPEG and are used;
- MathVision stacks a row's pictures in one file, blue lines between them and `<image1>:` printed on each. `load`
  keeps that file whole and says `[image 2]` in the question; with `panels` it is cut along the lines into the
  separate pictures;
- options that are only letters, because they are drawn in the picture, are no `choices`: a line under the question
  names them.
"""

import hashlib
import json
import os
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vr1lib.answers import grade_answer
from vr1lib.prompts import IMAGE_MARKER, OPTION_LETTERS, prompt_parts
from vr1lib.records import MAX_IMAGE_PIXELS, Problem, Record, RequestError, inside, open_image, read_jsonl, write_image

NUMBERED_MARKER = re.compile(r"<image(\d+)>")
SUFFIXES = {
    "PNG": ".png",
    "JPEG": ".jpg",
    "MPO": ".jpg",
    "WEBP": ".webp",
    "GIF": ".gif",
    "BMP": ".bmp",
    "TIFF": ".tiff",
}


class Reject(Record):
    """A row that was not used: where it fell (`step`), why (`reason`, one of few), and what exactly (`detail`)."""

    id: str
    reason: str
    detail: str = ""
    source: str = ""
    step: str = "source"


class RowFault(Exception):
    """What makes one row of a source unusable."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason)
        self.reason, self.detail = reason, detail


@dataclass
class Loaded:
    """Problems and rejects in the sources' order, together every row that was read, and the files that were read."""

    problems: list[Problem] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)

    @property
    def read(self) -> int:
        return len(self.problems) + len(self.rejects)

    @property
    def reasons(self) -> dict[str, int]:
        return dict(Counter(reject.reason for reject in self.rejects).most_common())


def load(
    name_or_path: str | Path,
    data_root: str | Path | None = None,
    split: str | None = None,
    limit: int | None = None,
    panels: str | Path | None = None,
) -> Loaded:
    """The problems of a known source ("wemath", "mathvision") or of a Problem .jsonl file.

    `data_root` holds the source's folder, or is it. `split` picks the source's own file (defaults: We-Math "testmini",
    MathVision "test"), or the problems of that split in a .jsonl. `limit` stops after so many problems. `panels` is
    a folder for the pieces of stacked pictures; without it they stay whole.
    Raises RequestError for an unknown name, a missing file, or a .jsonl line that is no Problem.
    """
    if Path(name_or_path).suffix == ".jsonl":
        problems = (problem for problem in read_jsonl(name_or_path, Problem) if split in (None, problem.split))
        makers = ((problem.id, problem.source, lambda problem=problem: problem) for problem in problems)
        return _checked(makers, limit, Path(name_or_path))
    if name_or_path not in SOURCES:
        known = ", ".join(SOURCES)
        raise RequestError(
            f"source {str(name_or_path)!r} is unknown; give one of {known}, or a path that ends in .jsonl"
        )
    if data_root is None:
        raise RequestError(f"source {name_or_path!r} needs 'data_root', the folder that holds {name_or_path}/; give it")
    source = SOURCES[str(name_or_path)]
    file = f"{split or source.default_split}{source.suffix}"
    folder = next((at for at in (Path(data_root) / source.name, Path(data_root)) if (at / file).is_file()), None)
    if folder is None:
        raise RequestError(
            f"{data_root}: holds neither {source.name}/{file} nor {file}; set 'data_root' to the data folder"
        )
    panels_folder = Path(panels) if panels else None

    def row_makers() -> Iterator[tuple[str, str, Callable[[], Problem]]]:
        for name, row in source.rows(folder / file):
            yield (
                name,
                source.name,
                lambda row=row: source.read(row, folder, split or source.default_split, panels_folder),
            )

    return _checked(row_makers(), limit, folder / file)


def load_all(
    names: Iterable[str | Path],
    data_root: str | Path | None = None,
    limit: int | None = None,
    panels: str | Path | None = None,
) -> Loaded:
    """Several sources one after the other, each up to `limit` problems; an id that came before is a reject."""
    together, seen = Loaded(), set()
    for name in names:
        loaded = load(name, data_root, limit=limit, panels=panels)
        for problem in loaded.problems:
            if problem.id in seen:
                together.rejects.append(Reject(id=problem.id, reason="id occurs twice", source=problem.source))
            else:
                together.problems.append(problem)
                seen.add(problem.id)
        together.rejects += loaded.rejects
        together.files += loaded.files
    return together


def _checked(makers: Iterable[tuple[str, str, Callable[[], Problem]]], limit: int | None, file: Path) -> Loaded:
    """Make each problem and check it; what fails becomes a Reject."""
    loaded, seen = Loaded(files=[file]), set()
    for name, source, make in makers:
        if limit is not None and len(loaded.problems) >= limit:
            break
        try:
            problem = make()
            name = problem.id
            if problem.id in seen:
                raise RowFault("id occurs twice", problem.id)
            check_problem(problem)
        except RowFault as fault:
            loaded.rejects.append(Reject(id=name, reason=fault.reason, detail=fault.detail, source=source))
            continue
        seen.add(problem.id)
        loaded.problems.append(problem)
    return loaded


def check_problem(problem: Problem) -> None:
    """Raise RowFault unless pictures are sound, markers fit them, and our grader accepts the gold from itself."""
    for picture in problem.images:
        picture_format(picture)
    try:
        prompt_parts(problem)
    except RequestError as error:
        raise RowFault("markers and pictures differ", str(error)) from None
    if problem.choices and problem.answer in OPTION_LETTERS[len(problem.choices) :]:
        raise RowFault("gold names no option", f"{problem.answer} of {len(problem.choices)} options")
    grade = grade_answer(problem.answer, problem.answer, problem.choices)
    if not grade.ok:
        raise RowFault("gold not accepted from itself", f"{problem.answer!r}: {grade.reason}")


def picture_format(path: str | Path) -> str:
    """The format that a picture really has. Raises RowFault for what is missing, empty, huge or no sound picture."""
    path = Path(path)
    if not path.is_file():
        raise RowFault("picture missing", path.name)
    if path.stat().st_size == 0:
        raise RowFault("picture empty", path.name)
    try:
        with Image.open(path) as image:
            name, pixels = image.format or "", image.width * image.height
    except Image.DecompressionBombError:
        raise RowFault("picture too large", path.name) from None
    except (OSError, SyntaxError, ValueError):
        raise RowFault("picture unreadable", f"{path.name} is no picture") from None
    if pixels > MAX_IMAGE_PIXELS:
        raise RowFault("picture too large", f"{path.name}: {pixels:,} pixels")
    if name not in SUFFIXES:
        raise RowFault("picture unreadable", f"{path.name}: format {name} is not supported")
    try:
        open_image(path)
    except RequestError as error:
        raise RowFault("picture unreadable", str(error)) from None
    return name


# ------------------------------------------------------------------------------------------------------- the sources


@dataclass(frozen=True)
class Source:
    """How one data set is read: `rows` yields (name for a reject, raw row), `read` makes a Problem or a RowFault."""

    name: str
    default_split: str
    suffix: str
    rows: Callable[[Path], Iterator[tuple[str, Any]]]
    read: Callable[[Any, Path, str, Path | None], Problem]


def _array_rows(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RequestError(f"{path}: not JSON ({error}); download the file again") from None
    if not isinstance(rows, list):
        raise RequestError(f"{path}: holds a {type(rows).__name__}, not a list of rows; download the file again")
    for number, row in enumerate(rows, start=1):
        yield f"row {number}", row


def _line_rows(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            yield f"line {number}", row


def _read_wemath(row: Any, folder: Path, split: str, panels: Path | None) -> Problem:
    """A row of We-Math: a picture, options in one string, a letter as gold. Rows of one ID are one problem's steps."""
    number, step = _text(row, "ID"), _text(row, "key")
    return Problem(
        id=f"wemath-{number}-{step}",
        images=[_picture_path(row, "image_path", folder)],
        question=_text(row, "question"),
        answer=_text(row, "answer"),
        choices=split_options(_text(row, "option")),
        source="wemath",
        split=split,
        meta={"task": step, "skills": [_text(row, "knowledge concept")], "group": f"wemath-{number}"},
    )


def split_options(text: str) -> list[str]:
    """We-Math's option string `A. 31.4;B. 3.14; … E. No correct answer` as a list of option texts.

    Labels are looked for in order, after a semicolon, or after a blank where the semicolon was forgotten. Raises
    RowFault if fewer than two options are found.
    """
    starts, ends = [], []
    position = 0
    for letter in OPTION_LETTERS:
        before = r"^\s*" if letter == "A" else r";\s*"
        label = re.compile(rf"{before}{letter}\s*[.:、]").search(text, position)
        if label is None and letter != "A":
            label = re.compile(rf"\s{letter}\s*\.\s").search(text, position)
        if label is None:
            break
        starts.append(label.end())
        ends.append(label.start())
        position = label.end()
    options = [text[start:end].strip(" ;\t\n") for start, end in zip(starts, [*ends[1:], len(text)])]
    if len(options) < 2 or not all(options):
        raise RowFault("options not understood", text)
    return options


def _read_mathvision(row: Any, folder: Path, split: str, panels: Path | None) -> Problem:
    """A row of MathVision: numbered markers in question or options, one file with all its pictures, letter or value."""
    name = f"mathvision-{_text(row, 'id')}"
    question, answer = _text(row, "question"), _text(row, "answer")
    if not isinstance(row.get("options"), list | None):
        raise RowFault("options not understood", repr(row["options"])[:80])
    options = [str(option) for option in row.get("options") or []]
    meta = {"level": row.get("level"), "skills": [str(row.get("subject", ""))], "group": name}
    if row.get("solution"):
        meta["solution"] = str(row["solution"])
    images = [_picture_path(row, "image", folder)]
    count = len(set(NUMBERED_MARKER.findall(" ".join([question, *options]))))
    if panels is not None and count > 1:
        images = cut_panels(images[0], count, panels, name) or images
    question, options, images = place_markers(question, options, images)
    letters = OPTION_LETTERS[: len(options)]
    if options and all(option.strip("()$. ").upper() == letter for option, letter in zip(options, letters)):
        question, options = f"{question}\nChoose from {', '.join(letters)}.", []
        if answer.upper() not in letters:
            raise RowFault("gold names no option", f"{answer} of {len(letters)} options")
    return Problem(
        id=name,
        images=images,
        question=question,
        answer=answer,
        choices=options or None,
        source="mathvision",
        split=split,
        meta=meta,
    )


def place_markers(question: str, options: list[str], images: list[str]) -> tuple[str, list[str], list[str]]:
    """Turn `<image2>` into our plain `<image>` where pictures can be put in place; returns question, options, pictures.

    Picture n belongs to marker n. If the question names pictures that are all there, each marker becomes `<image>`
    and the pictures follow the markers' order, one named twice coming twice; pictures that no marker names come
    first. Otherwise (markers in the options, or several markers for one stacked picture) all pictures come first, in
    their own order, and the text refers to `[image n]`.
    """
    numbers = [int(number) for number in NUMBERED_MARKER.findall(question)]
    in_options = any(NUMBERED_MARKER.search(option) for option in options)
    question = question.replace(IMAGE_MARKER, "").strip() if numbers else question
    in_place = numbers and not in_options and all(1 <= number <= len(images) for number in numbers)
    if in_place:
        unnamed = [index for index in range(1, len(images) + 1) if index not in numbers]
        text = IMAGE_MARKER * len(unnamed) + NUMBERED_MARKER.sub(IMAGE_MARKER, question)
        return text, options, [images[index - 1] for index in [*unnamed, *numbers]]
    return (
        NUMBERED_MARKER.sub(r"[image \1]", question),
        [NUMBERED_MARKER.sub(r"[image \1]", option) for option in options],
        images,
    )


def cut_panels(picture: str | Path, count: int, folder: Path, name: str) -> list[str] | None:
    """Cut a stacked picture along its full-width blue lines and write the pieces; None unless they are `count`."""
    picture_format(picture)
    image = open_image(picture)
    pixels = np.asarray(image).astype(np.int16)  # [height, width, 3]
    blue = ((pixels[:, :, 2] - pixels[:, :, 0]) > 40).mean(axis=1) > 0.97  # [height]
    edges = np.flatnonzero(np.diff(np.concatenate([[0], blue.astype(np.int8), [0]])))  # line starts and ends in turn
    bounds = [0, *edges.tolist(), image.height]
    panels = [(top, bottom) for top, bottom in zip(bounds[::2], bounds[1::2]) if bottom > top]
    if len(panels) != count:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, (top, bottom) in enumerate(panels, start=1):
        path = (folder / f"{_file_name(name)}-{number}.png").resolve()
        write_image(image.crop((0, top, image.width, bottom)), path)
        paths.append(str(path))
    return paths


def _text(row: Any, key: str) -> str:
    """The non-blank text under `key`."""
    if not isinstance(row, dict):
        raise RowFault("row unreadable", "not a JSON object")
    value = row.get(key)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise RowFault(f"no {key}", repr(value)[:80])
    return value.strip()


def _picture_path(row: Any, key: str, folder: Path) -> str:
    """The absolute path of a row's picture, refused outside the source's folder."""
    relative = _text(row, key)
    try:
        return str(inside(folder, relative, ""))
    except (RequestError, ValueError):
        raise RowFault("path leaves the folder", relative) from None


SOURCES = {
    "wemath": Source("wemath", "testmini", ".json", _array_rows, _read_wemath),
    "mathvision": Source("mathvision", "test", ".jsonl", _line_rows, _read_mathvision),
}

# -------------------------------------------------------------------------------------------- splits and run folders


def assign_splits(problems: Sequence[Problem], shares: Mapping[str, float], seed: int = 0) -> dict[str, list[Problem]]:
    """Problems by split, each with its `split` set; the same in every run, whatever the order of the rows.

    Problems that share a picture (equal bytes) or a `meta["group"]` are kept together, so that no split has seen
    another's pictures. `shares` are relative sizes by split name; a group's place is the hash of its first id.
    """
    leader: dict[str, str] = {}

    def find(key: str) -> str:
        while leader.setdefault(key, key) != key:
            key = leader[key]
        return key

    for problem in problems:
        keys = [f"picture {_bytes_sha256(picture)}" for picture in dict.fromkeys(problem.images)]
        keys += [f"group {problem.meta['group']}"] if "group" in problem.meta else []
        for key in keys:
            leader[find(key)] = find(f"id {problem.id}")
    members = defaultdict(list)
    for problem in problems:
        members[find(f"id {problem.id}")].append(problem.id)
    bounds = dict(zip(shares, accumulate(shares.values())))
    splits: dict[str, list[Problem]] = {name: [] for name in shares}
    for problem in problems:
        first = min(members[find(f"id {problem.id}")])
        place = int.from_bytes(hashlib.sha256(f"{seed}/{first}".encode()).digest()[:6]) / 2**48 * sum(shares.values())
        name = next(name for name, bound in bounds.items() if place < bound)
        splits[name].append(problem.model_copy(update={"split": name}))
    return splits


def gather_pictures(problems: Iterable[Problem], folder: str | Path) -> list[Problem]:
    """The problems with their pictures inside `folder`/images, unchanged but for a unique name that tells the format.

    A picture already inside stays; others are hard-linked, or copied where the file systems differ.
    """
    images = Path(folder).resolve() / "images"
    images.mkdir(parents=True, exist_ok=True)
    gathered = []
    for problem in problems:
        paths = {}
        for number, picture in enumerate(dict.fromkeys(problem.images), start=1):
            if Path(picture).is_relative_to(images):
                paths[picture] = picture
                continue
            target = images / f"{_file_name(problem.id)}-{number}{SUFFIXES[picture_format(picture)]}"
            target.unlink(missing_ok=True)
            try:
                os.link(picture, target)
            except OSError:
                shutil.copyfile(picture, target)
            paths[picture] = str(target)
        gathered.append(problem.model_copy(update={"images": [paths[picture] for picture in problem.images]}))
    return gathered


def _file_name(problem_id: str) -> str:
    """An id as a file name; ids that differ only in replaced characters stay apart."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", problem_id)[:80]
    return name if name == problem_id else f"{name}_{hashlib.sha256(problem_id.encode()).hexdigest()[:8]}"


def _bytes_sha256(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
