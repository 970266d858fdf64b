"""A row's pictures: found inside the source's folder or written out of the row, and known to be what they claim.

A picture is known by its content, not by its name: of We-Math's pictures called `.png` one in eight is JPEG and is
used. What has no content, is no picture, or unpacks into more than MAX_IMAGE_PIXELS is refused with a reason.
"""

import hashlib
import io
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vr1lib.data.readers.rows import Place, RowFault, text_of
from vr1lib.records import MAX_IMAGE_PIXELS, RequestError, inside, open_image, write_image

SUFFIXES = {
    "PNG": ".png",
    "JPEG": ".jpg",
    "MPO": ".jpg",
    "WEBP": ".webp",
    "GIF": ".gif",
    "BMP": ".bmp",
    "TIFF": ".tiff",
}


def picture_format(path: str | Path, decode: bool = True) -> str:
    """The format that a picture really has. Raises RowFault for what is missing, empty, huge or no sound picture.

    Without `decode` only the picture's head is read: a picture that breaks off later passes.
    """
    path = Path(path)
    try:
        size = path.stat().st_size if path.is_file() else None
    except OSError:  # a name no file can have
        size = None
    if size is None:
        raise RowFault("picture missing", path.name[:80])
    if size == 0:
        raise RowFault("picture empty", path.name)
    name = _head(path, path.name)
    if decode:
        try:
            open_image(path)
        except RequestError as error:
            raise RowFault("picture unreadable", str(error)) from None
    return name


def _head(picture: Path | io.BytesIO, called: str) -> str:
    """The format in a picture's head, if it is one of ours and not too large."""
    try:
        with Image.open(picture) as image:
            name, pixels = image.format or "", image.width * image.height
    except Image.DecompressionBombError:
        raise RowFault("picture too large", called) from None
    except (OSError, SyntaxError, ValueError):
        raise RowFault("picture unreadable", f"{called} is no picture") from None
    if pixels > MAX_IMAGE_PIXELS:
        raise RowFault("picture too large", f"{called}: {pixels:,} pixels")
    if name not in SUFFIXES:
        raise RowFault("picture unreadable", f"{called}: format {name} is not supported")
    return name


def picture_path(row: Any, key: str, folder: Path) -> str:
    """The absolute path of a row's picture, refused outside the source's folder."""
    return find_picture(text_of(row, key), folder)


def find_picture(
    relative: str, folder: Path, below: tuple[str, ...] = ("",), suffixes: tuple[str, ...] = ("",), rooted: bool = False
) -> str:
    """The absolute path of `folder`/`relative`, or of the same in the folders `below`: the first that exists.

    `suffixes` are tried where the source leaves them out; `rooted` says that its leading slash means its own folder.
    Raises RowFault for a path that leaves the folder, by itself, through a link or through "..".
    """
    name = relative.lstrip("/") if rooted and not os.path.lexists(relative) else relative
    try:
        places = [inside(folder, os.path.join(at, name + suffix), "") for at in below for suffix in suffixes]
    except (RequestError, ValueError):
        raise RowFault("path leaves the folder", relative[:200]) from None
    return str(next((place for place in places if os.path.isfile(place)), places[0]))


def row_pictures(value: Any, name: str, place: Place) -> list[str]:
    """The pictures of a row that holds them itself: one or a list, each {bytes, path}, bytes, or a path.

    Bytes are written into `place.pictures` under the problem's name; paths are looked up in the source's folder.
    """
    pictures = value if isinstance(value, list) else [value]
    if value is None:
        raise RowFault("no images", repr(value)[:80])
    return [_row_picture(picture, f"{name}-{number}", place) for number, picture in enumerate(pictures, start=1)]


def _row_picture(picture: Any, name: str, place: Place) -> str:
    data, path = (picture.get("bytes"), picture.get("path")) if isinstance(picture, dict) else (picture, picture)
    if isinstance(data, bytes):
        return write_picture(data, name, place.pictures or place.folder / "pictures")
    if isinstance(path, str) and path.strip():
        return find_picture(path.strip(), place.folder)
    raise RowFault("picture missing", f"{name}: neither bytes nor a path")


def write_picture(data: bytes, name: str, folder: Path) -> str:
    """Write a picture's bytes, unchanged, under a name that tells its format; whole or not at all."""
    if not data:
        raise RowFault("picture empty", name)
    suffix = SUFFIXES[_head(io.BytesIO(data), name)]
    path = (folder / f"{file_name(name)}{suffix}").resolve()
    new = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        new.write_bytes(data)
        os.replace(new, path)
    except OSError as error:
        raise RequestError(
            f"{folder}: pictures cannot be written there ({error.strerror}); give 'panels', a folder for them"
        ) from None
    return str(path)


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
        path = (folder / f"{file_name(name)}-{number}.png").resolve()
        write_image(image.crop((0, top, image.width, bottom)), path)
        paths.append(str(path))
    return paths


def file_name(problem_id: str) -> str:
    """An id as a file name; ids that differ only in replaced characters stay apart."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", problem_id)[:80]
    return name if name == problem_id else f"{name}_{hashlib.sha256(problem_id.encode()).hexdigest()[:8]}"
