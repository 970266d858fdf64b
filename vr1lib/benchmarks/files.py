"""A benchmark's published files: found in a folder or fetched from the hub by id, and their rows made Problems.

Scoring what a model has already said needs no pictures, so `problems` looks at none; `load` is for generating answers,
and leaves out each row whose picture cannot be shown. A row that lacks what the score is made of is an error and not a
reject: a score over fewer rows than were published is another score.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vr1lib.data import sources
from vr1lib.data.readers.pictures import find_picture, row_pictures
from vr1lib.data.readers.rows import Place, Reject, RowFault, file_rows
from vr1lib.records import Problem, RequestError

Row = dict[str, Any]


@dataclass(frozen=True)
class At:
    """Where a row stands, and where its pictures go: None while nobody looks at them."""

    file: Path
    name: str
    pictures: Path | None = None
    looked_at: bool = False

    def text(self, row: Row, key: str) -> str:
        """A field that must be there, as text."""
        value = row.get(key)
        if value is None or isinstance(value, dict | list) or not str(value).strip():
            shown = repr(value)[:60]
            raise RequestError(f"{self.file}, {self.name}: field {key!r} = {shown}: no text; give the published file")
        return str(value)

    def picture(self, value: Any, problem_id: str) -> list[str]:
        """A row's picture: a path beside the file, or bytes, which are written out when somebody looks at them."""
        if isinstance(value, str) and value.strip():
            return [find_picture(value.strip(), self.file.parent)] if self.looked_at else []
        if value is None or not self.looked_at:
            return []
        return row_pictures(value, problem_id, Place(self.file.parent, "", self.pictures))


@dataclass(frozen=True)
class Published:
    """How one benchmark's files are found and read. `patterns`: the first that finds files below the folder is used.

    `read` makes a Problem of a row; `rows` yields a file's rows with their names in errors.
    """

    name: str
    hub: str
    patterns: tuple[str, ...]
    read: Callable[[Row, At], Problem]
    rows: Callable[[Path], Iterator[tuple[str, Row]]]

    def problems(self, data: str | Path) -> list[Problem]:
        """Every problem of the folder, file or hub id `data`, without pictures. Raises RequestError if ids repeat."""
        problems = [self.read(row, at) for row, at in self._rows(find(data, self.patterns, self.hub), None, False)]
        seen: set[str] = set()
        for problem in problems:
            if problem.id in seen:
                raise RequestError(f"data = {str(data)!r}: id {problem.id!r} occurs twice; give one split's files")
            seen.add(problem.id)
        return problems

    def load(
        self, data: str | Path | None = None, data_root: str | Path | None = None, panels: str | Path | None = None
    ) -> sources.Loaded:
        """The problems that can be shown, and the others with the reason. `panels`: folder for pictures inside rows."""
        if data is None and data_root is None:
            raise RequestError(f"benchmark {self.name} needs 'data', its folder or the hub's id {self.hub!r}; give it")
        files = find(data if data is not None else Path(data_root) / self.name, self.patterns, self.hub)
        loaded = sources.Loaded(files=files)
        for row, at in self._rows(files, Path(panels) if panels else None, True):
            name = f"{at.file.name}, {at.name}"
            try:
                problem = self.read(row, at)
                name = problem.id
                sources.check_problem(problem)
            except RowFault as fault:
                loaded.rejects.append(Reject(id=name, reason=fault.reason, detail=fault.detail, source=self.name))
            else:
                loaded.problems.append(problem)
        return loaded

    def _rows(self, files: Sequence[Path], pictures: Path | None, looked_at: bool) -> Iterator[tuple[Row, At]]:
        for file in files:
            for name, row in self.rows(file):
                if not isinstance(row, dict):
                    raise RequestError(f"{file}, {name}: not an object; give the published file")
                yield row, At(file, name, pictures, looked_at)


def find(data: str | Path, patterns: Sequence[str], hub: str) -> list[Path]:
    """The files to read: `data` itself if it is one, else the first pattern's. Raises RequestError if there is none."""
    path = Path(data)
    if path.is_file():
        return [path]
    if not path.is_dir():
        if str(data).lower() != hub.lower():
            raise RequestError(f"data = {str(data)!r}: no such file or folder; give one, or the hub's id {hub!r}")
        path = download(hub)
    for pattern in patterns:
        if found := sorted(file for file in path.glob(pattern) if file.is_file()):
            return found
    raise RequestError(f"data = {str(data)!r}: holds none of {', '.join(patterns)}; give the folder that holds one")


def download(hub: str) -> Path:
    """A data set of the hub in its local copy."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub, repo_type="dataset"))
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise RequestError(f"{hub}: cannot be downloaded ({reason}); give a folder that holds its files") from None


def json_or_file_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """The rows of a .json (an object of rows by id, or a list), .jsonl, .csv or .parquet file."""
    if path.suffix != ".json":
        yield from file_rows(path)
        return
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(f"{path}: not readable as JSON ({error}); give the published file") from None
    if isinstance(content, dict):
        yield from content.items()
    elif isinstance(content, list):
        yield from ((f"row {number}", row) for number, row in enumerate(content, start=1))
    else:
        raise RequestError(f"{path}: holds neither rows nor a list of them; give the published file")


# ------------------------------------------------------------------------------------ benchmarks that are sources too


def source_problems(name: str, data: str | Path) -> list[Problem]:
    """Every problem of a training source's published files in the folder, file or hub id `data`, without pictures.

    Raises RequestError for a row that is none, and if ids repeat.
    """
    found = sources.locate(*_source_place(name, data))
    problems: dict[str, Problem] = {}
    for file in found.files:
        for row_name, row in found.source.rows(file):
            try:
                problem = found.source.read(row, Place(found.folder, found.split))
            except RowFault as fault:
                told = f"{fault.reason} ({fault.detail})" if fault.detail else fault.reason
                raise RequestError(f"{file}, {row_name}: {told}; give the published file") from None
            if problems.setdefault(problem.id, problem) is not problem:
                raise RequestError(f"data = {str(data)!r}: id {problem.id!r} occurs twice; give one split's files")
    return list(problems.values())


def load_source(
    name: str, data: str | Path | None, data_root: str | Path | None, panels: str | Path | None
) -> sources.Loaded:
    """The problems of a training source that can be shown, and every other row with the reason."""
    place = (name, data_root, None) if data is None else _source_place(name, data)
    return sources.load(place[0], place[1], place[2], panels=panels)


def _source_place(name: str, data: str | Path) -> tuple[str, Path | None, str | None]:
    """What `sources.load` takes for a folder, one split's file, or the hub's id: source, its folder, its split."""
    path, hub = Path(data), sources.SOURCES[name].hub
    if path.is_file():
        return name, path.parent, path.stem
    if path.is_dir():
        return name, path, None
    if str(data).lower() != hub.lower():
        raise RequestError(f"data = {str(data)!r}: no such file or folder; give one, or the hub's id {hub!r}")
    return hub, None, None
