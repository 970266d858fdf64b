"""Original data sets as Problems: every row accounted for, pictures checked, splits that share no picture.

The paper's cold start is made from LLaVA-CoT-100k and Mulberry-SFT, its RL set from We-Math, MathVision, PolyMATH,
SceMQA and Geometry3K (Section 4.1); both were released, as Vision-R1-cold and Vision-R1-rl. Each has its reader in
`readers/`. A row becomes a Problem or a Reject with its reason, never nothing and never a crash. Our choices, where
the data sets leave them open:

- a gold must be accepted by our own grader when it is given as the answer, else nothing can ever be rewarded on that
  row;
- a picture is refused if its path leaves the source's folder, if it has no content, is no picture, or unpacks into
  too many pixels.
"""

import hashlib
import os
import shutil
import tarfile
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

from pydantic import ValidationError

from vr1lib.answers import grade_answer
from vr1lib.data.readers.geometry3k import GEOMETRY3K, VISION_R1_RL
from vr1lib.data.readers.llava_cot import LLAVA_COT
from vr1lib.data.readers.mathvision import MATHVISION, place_markers
from vr1lib.data.readers.mulberry import MULBERRY
from vr1lib.data.readers.pictures import SUFFIXES, file_name, picture_format
from vr1lib.data.readers.polymath import POLYMATH
from vr1lib.data.readers.rows import Place, Reject, RowFault, Source, file_rows
from vr1lib.data.readers.scemqa import SCEMQA
from vr1lib.data.readers.table import is_table, table
from vr1lib.data.readers.vision_r1_cold import VISION_R1_COLD
from vr1lib.data.readers.wemath import WEMATH, split_options
from vr1lib.prompts import OPTION_LETTERS, prompt_parts
from vr1lib.records import ColdRow, Problem, RequestError, file_sha256, first_error, read_jsonl

__all__ = [
    "Loaded",
    "LoadedCold",
    "Reject",
    "RowFault",
    "SOURCES",
    "assign_splits",
    "check_problem",
    "gather_pictures",
    "iterate",
    "iterate_cold",
    "load",
    "load_all",
    "load_cold",
    "picture_format",
    "place_markers",
    "split_options",
]
SOURCES = {
    source.name: source
    for source in (
        WEMATH,
        MATHVISION,
        LLAVA_COT,
        MULBERRY,
        VISION_R1_COLD,
        VISION_R1_RL,
        GEOMETRY3K,
        POLYMATH,
        SCEMQA,
    )
}
ARCHIVES = ("*.zip", "*.tar", "*.tar.gz")  # what the hub's data sets keep their pictures in, beside split zips


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


@dataclass
class LoadedCold:
    """Rows to learn from, (problem, response), and rejects, together every row that was read."""

    rows: list[tuple[Problem, str]] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)


def load(
    name_or_path: str | Path,
    data_root: str | Path | None = None,
    split: str | None = None,
    limit: int | None = None,
    panels: str | Path | None = None,
) -> Loaded:
    """The problems of a source, or of a Problem .jsonl file.

    `name_or_path`: a source's name, with `data_root`, the folder that holds the source's folder or is it; a folder in
    a source's format, or one of its files; a table of one's own (.csv, readers/table.py) or the folder that holds it;
    a source's id on the hub, which is downloaded; or a Problem .jsonl.
    `split` picks the source's own files (default: what the paper used), or the problems of that split in a .jsonl.
    `limit` stops after so many problems. `panels` is a folder for pictures that the source has in no file of their
    own: pieces of stacked ones (whole without it) and those inside a parquet (`pictures/` beside it without it).
    Raises RequestError for an unknown name, a missing file, or a .jsonl line that is no Problem.
    """
    found = locate(name_or_path, data_root, split)
    loaded = Loaded(files=found.files)
    for outcome in _outcomes(found, limit, panels):
        (loaded.rejects if isinstance(outcome, Reject) else loaded.problems).append(outcome)
    return loaded


def iterate(
    name_or_path: str | Path,
    data_root: str | Path | None = None,
    split: str | None = None,
    limit: int | None = None,
    panels: str | Path | None = None,
) -> Iterator[Problem | Reject]:
    """The same one by one: a source of 200,000 rows in little memory."""
    return _outcomes(locate(name_or_path, data_root, split), limit, panels)


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


def load_cold(
    name_or_path: str | Path, data_root: str | Path | None = None, split: str | None = None, limit: int | None = None
) -> LoadedCold:
    """Question and response of cold-start rows: a ColdRow .jsonl, or Vision-R1-cold, LLaVA-CoT, Mulberry like `load`.

    The response is the source's own, word for word. Of a picture only the head is checked: the training that reads it
    whole leaves out what breaks off later.
    """
    loaded = LoadedCold(files=locate(name_or_path, data_root, split).files)
    for outcome in iterate_cold(name_or_path, data_root, split, limit):
        (loaded.rejects if isinstance(outcome, Reject) else loaded.rows).append(outcome)
    return loaded


def iterate_cold(
    name_or_path: str | Path, data_root: str | Path | None = None, split: str | None = None, limit: int | None = None
) -> Iterator[tuple[Problem, str] | Reject]:
    """The same one by one."""
    found = locate(name_or_path, data_root, split)
    if found.source is None:
        rows = (row for row in read_jsonl(found.folder, ColdRow) if split in (None, row.split))
        return ((row, row.response) for number, row in enumerate(rows) if limit is None or number < limit)
    if found.source.response is None:
        cold = ", ".join(source.name for source in SOURCES.values() if source.response)
        raise RequestError(f"source {found.source.name!r} has problems but no responses; give one of {cold}")
    return _checked(_makers(found, None, found.source.response), limit, decode=False)


# ------------------------------------------------------------------------------------------------- finding and reading


@dataclass
class Found:
    """The files of a source's split; without a source, `folder` is a .jsonl of our own records."""

    source: Source | None
    folder: Path
    split: str | None
    files: list[Path]


def locate(name_or_path: str | Path, data_root: str | Path | None = None, split: str | None = None) -> Found:
    """What `load` would read. Raises RequestError where there is nothing to read."""
    name, path = str(name_or_path), Path(name_or_path)
    if path.suffix == ".jsonl" and not _holds_conversations(path):
        return Found(None, path, split, [path])
    if name in SOURCES:
        if data_root is None:
            raise RequestError(f"source {name!r} needs 'data_root', the folder that holds {name}/; give it")
        return _in_folders(SOURCES[name], [Path(data_root) / name, Path(data_root)], split, f"{data_root}")
    if path.is_dir():
        return _recognised(path, split)
    if path.is_file():
        return _recognised_file(path, split)
    if path.suffix == ".csv":
        raise RequestError(f"source {name!r}: no such file; give the path of a table of problems (docs/own_data.md)")
    on_hub = {source.hub.lower(): source for source in SOURCES.values()}
    if name.lower() in on_hub:
        source = on_hub[name.lower()]
        return _in_folders(source, [_download(source)], split, name)
    known = ", ".join(SOURCES)
    raise RequestError(
        f"source {name!r} is unknown; give one of {known}, a folder in the format of one, its id on the hub, or a path "
        "that ends in .jsonl or .csv"
    )


def _in_folders(source: Source, folders: Sequence[Path], split: str | None, where: str) -> Found:
    for folder in folders:
        if files := source.find(folder, split):
            return Found(source, folder, split or source.default_split, files)
    wanted = source.files(split or source.default_split)[0][0]
    raise RequestError(
        f"{where}: holds neither {source.name}/{wanted} nor {wanted}; set 'data_root' to the data folder"
    )


def _recognised(folder: Path, split: str | None) -> Found:
    """The source that a folder is called like, or the only one whose files it holds."""
    called = folder.resolve().name.lower().replace("-", "_")
    by_name = [s for s in SOURCES.values() if called in (s.name, s.hub.split("/")[1].lower().replace("-", "_"))]
    fitting = by_name or [source for source in SOURCES.values() if source.find(folder, split)]
    if len(fitting) > 1 and all(source.extracts for source in fitting):  # parquet columns tell them apart
        fitting = [POLYMATH if _has_polymath_columns(fitting[0].find(folder, split)[0]) else VISION_R1_RL]
    if not fitting and len(tables := sorted(folder.glob("*.csv"))) == 1:
        return _recognised_file(tables[0], split)
    if len(fitting) != 1:
        names = ", ".join(source.name for source in fitting) or "none"
        raise RequestError(f"{folder}: holds the files of {names} of our sources; name the source and give 'data_root'")
    return _in_folders(fitting[0], [folder], split, f"{folder}")


def _recognised_file(path: Path, split: str | None) -> Found:
    """One file of a source: a parquet or a table of one's own by its columns, another by its name."""
    if path.suffix == ".parquet":
        source = POLYMATH if _has_polymath_columns(path) else VISION_R1_RL
        return Found(source, path.parent, split or path.stem, [path])
    if path.suffix == ".csv" and is_table(path):
        return Found(table(path), path.parent, split or "all", [path])
    for source in SOURCES.values():
        if path in source.find(path.parent, split):
            return Found(source, path.parent, split or source.default_split, [path])
    if path.suffix == ".csv":
        return Found(table(path), path.parent, split or "all", [path])  # says which column is missing
    raise RequestError(f"{path}: is called like no file of our sources; name the source and give 'data_root'")


def _holds_conversations(path: Path) -> bool:
    """A .jsonl that is a source's own, not of our records."""
    if not path.is_file():
        return False
    for _, row in file_rows(path):
        return isinstance(row, dict) and bool(row.keys() & {"conversations", "messages"})
    return False


def _has_polymath_columns(path: Path) -> bool:
    for _, row in POLYMATH.rows(path):
        return isinstance(row, dict) and "problem" not in row
    return False


def _download(source: Source) -> Path:
    """A data set of the hub in its local copy, archives unpacked beside its files."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        folder = Path(snapshot_download(source.hub, repo_type="dataset"))
    except (OSError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RequestError(
            f"{source.hub}: cannot be downloaded ({reason}); check the network, or give its folder as 'data_root'"
        ) from None
    if source is VISION_R1_COLD and not any(
        (folder / name).is_dir() for name in ("llava_cot_images", "mulberry_images")
    ):
        raise RequestError(
            f"{source.hub}: comes without pictures; unpack those of {LLAVA_COT.hub} and {MULBERRY.hub} into "
            "llava_cot_images/ and mulberry_images/ beside its files and give that folder"
        )
    _unpack(folder)
    return folder


def _unpack(folder: Path) -> None:
    """Unpack archives, once; members that would leave the folder are refused by the libraries' own filters."""
    first = sorted(folder.glob("*.part-aa"))
    for part in first:
        whole = part.with_suffix("")  # image.zip of image.zip.part-aa
        if not whole.exists():
            with whole.with_suffix(".joining").open("wb") as target:
                for piece in sorted(folder.glob(f"{whole.name}.part-*")):
                    with piece.open("rb") as content:
                        shutil.copyfileobj(content, target)
            whole.with_suffix(".joining").rename(whole)
    for archive in sorted(path for pattern in ARCHIVES for path in folder.glob(pattern)):
        done = archive.with_name(f".{archive.name}.unpacked")
        if done.exists():
            continue
        try:
            if archive.suffix == ".zip":
                with zipfile.ZipFile(archive) as content:
                    content.extractall(folder)
            else:
                with tarfile.open(archive) as content:
                    content.extractall(folder, filter="data")
        except (zipfile.BadZipFile, tarfile.TarError) as error:
            raise RequestError(f"{archive}: cannot be unpacked ({error}); download it again") from None
        done.touch()


def _outcomes(found: Found, limit: int | None, panels: str | Path | None) -> Iterator[Problem | Reject]:
    if found.source is None:
        problems = (p for p in read_jsonl(found.folder, Problem) if found.split in (None, p.split))
        makers = ((p.id, p.source, lambda p=p: (p, None)) for p in problems)
    else:
        makers = _makers(found, Path(panels) if panels else None, lambda row: None)
    for outcome in _checked(makers, limit):
        yield outcome if isinstance(outcome, Reject) else outcome[0]


Maker = Callable[[], tuple[Problem, str | None]]


def _makers(found: Found, pictures: Path | None, response: Callable) -> Iterator[tuple[str, str, Maker]]:
    """For every row its name in a reject, its source, and how it becomes a problem with a response."""
    source, place = found.source, Place(found.folder, found.split, pictures)

    def make(row: object) -> tuple[Problem, str | None]:
        try:
            return source.read(row, place), response(row)
        except ValidationError as error:
            raise RowFault("row unreadable", first_error(error)) from None

    for file in found.files:
        for name, row in source.rows(file):
            yield name, source.name, lambda row=row: make(row)


def _checked(
    makers: Iterable[tuple[str, str, Maker]], limit: int | None, decode: bool = True
) -> Iterator[tuple[Problem, str | None] | Reject]:
    """Make each problem and check it; what fails becomes a Reject."""
    seen: set[str] = set()
    for name, source, make in makers:
        if limit is not None and len(seen) >= limit:
            return
        try:
            problem, response = make()
            name = problem.id
            if problem.id in seen:
                raise RowFault("id occurs twice", problem.id)
            check_problem(problem, decode)
        except RowFault as fault:
            yield Reject(id=name, reason=fault.reason, detail=fault.detail, source=source)
            continue
        seen.add(problem.id)
        yield problem, response


def check_problem(problem: Problem, decode: bool = True) -> None:
    """Raise RowFault unless pictures are sound, markers fit them, and our grader accepts the gold from itself."""
    for picture in problem.images:
        picture_format(picture, decode)
    try:
        prompt_parts(problem)
    except RequestError as error:
        raise RowFault("markers and pictures differ", str(error)) from None
    if problem.choices and problem.answer in OPTION_LETTERS[len(problem.choices) :]:
        raise RowFault("gold names no option", f"{problem.answer} of {len(problem.choices)} options")
    grade = grade_answer(problem.answer, problem.answer, problem.choices)
    if not grade.ok:
        raise RowFault("gold not accepted from itself", f"{problem.answer!r}: {grade.reason}")


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
        keys = [f"picture {file_sha256(picture)}" for picture in dict.fromkeys(problem.images)]
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
            target = images / f"{file_name(problem.id)}-{number}{SUFFIXES[picture_format(picture)]}"
            target.unlink(missing_ok=True)
            try:
                os.link(picture, target)
            except OSError:
                shutil.copyfile(picture, target)
            paths[picture] = str(target)
        gathered.append(problem.model_copy(update={"images": [paths[picture] for picture in problem.images]}))
    return gathered
