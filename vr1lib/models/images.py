"""Pictures as a model takes them: one hashed specification for each way, and the way from PIL pictures to its inputs.

For Qwen-VL the rule is Qwen2-VL's published one ("smart resize", then patches grouped so that each merge×merge block of
patches is one image token); Llama-3.2-Vision takes tiles. transformers' default processors want torchvision, whose
bicubic is not PIL's to the last grey level; here only PIL and numpy are used, so pixels are the same on every machine,
with torchvision or without. The specification travels with every model: trained at 0.6 and evaluated at 12.8
megapixels, a model does another task.
"""

import json
import math
import os
import re
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import MllamaImageProcessorPil
from transformers.utils import cached_file

from vr1lib.prompts import spec_sha256
from vr1lib.records import RequestError

MAX_ASPECT_RATIO = 200  # Qwen2-VL's limit; a narrower picture is refused, for padding would show what no peer shows
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class ImageSpec:
    """How Qwen-VL takes pictures: as patches. `min_pixels` and `max_pixels` bound the resized area; `resample` is PIL's
    number."""

    patch_size: int = 14
    merge_size: int = 2
    temporal_patch_size: int = 2
    min_pixels: int = 56 * 56
    max_pixels: int = 12_845_056
    resample: int = int(Image.Resampling.BICUBIC)
    image_mean: tuple[float, float, float] = CLIP_MEAN
    image_std: tuple[float, float, float] = CLIP_STD

    def __post_init__(self) -> None:
        if not self.token_side**2 <= self.min_pixels <= self.max_pixels:
            raise RequestError(
                f"image spec: min_pixels = {self.min_pixels}, max_pixels = {self.max_pixels}: "
                f"need {self.token_side**2} (one image token) ≤ min_pixels ≤ max_pixels"
            )

    @property
    def token_side(self) -> int:
        """Pixels along one side of an image token (28 for Qwen2.5-VL, 32 for Qwen3-VL)."""
        return self.patch_size * self.merge_size

    @property
    def sha256(self) -> str:
        return spec_sha256(self)

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) in pixels a picture is resized to: multiples of `token_side`, area within the bounds.

        Raises RequestError for an aspect ratio above 200. Rounding is Python's (half to even), as published.
        """
        if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
            raise RequestError(
                f"picture of {width}×{height}: aspect ratio above {MAX_ASPECT_RATIO}, which Qwen-VL does not take; "
                "crop or pad it"
            )
        side = self.token_side
        resized_height, resized_width = round(height / side) * side, round(width / side) * side
        if resized_height * resized_width > self.max_pixels:
            shrink = math.sqrt(height * width / self.max_pixels)
            resized_height = max(side, math.floor(height / shrink / side) * side)
            resized_width = max(side, math.floor(width / shrink / side) * side)
        elif resized_height * resized_width < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (height * width))
            resized_height = math.ceil(height * grow / side) * side
            resized_width = math.ceil(width * grow / side) * side
        return resized_height, resized_width

    def image_tokens(self, height: int, width: int) -> int:
        """How many image tokens a picture of this size takes."""
        resized_height, resized_width = self.resized(height, width)
        return (resized_height // self.token_side) * (resized_width // self.token_side)

    def encode(self, pictures: list[Image.Image]) -> dict[str, torch.Tensor]:
        """A prompt's RGB pictures as model inputs, in order; nothing for none."""
        if not pictures:
            return {}
        patches, grids = zip(*map(self.patches, pictures))
        return {"pixel_values": torch.cat(patches), "image_grid_thw": torch.stack(grids)}

    def tokens_of(self, encoded: dict[str, torch.Tensor]) -> int:
        """How many image tokens encoded pictures stand for."""
        return int(encoded["image_grid_thw"].prod(dim=1).sum()) // self.merge_size**2 if encoded else 0

    def patches(self, picture: Image.Image) -> tuple[torch.Tensor, torch.Tensor]:
        """An RGB picture as pixel values [patches, 3·temporal·patch·patch] float32 and its grid [3] (1, rows, columns).

        Patches come in blocks of merge×merge, row by row: the block is what the model merges into one token.
        """
        height, width = self.resized(picture.height, picture.width)
        picture = picture.resize((width, height), Image.Resampling(self.resample))
        mean, std = np.array(self.image_mean, dtype=np.float32), np.array(self.image_std, dtype=np.float32)
        pixels = (np.asarray(picture, dtype=np.float32) / 255 - mean) / std  # [height, width, 3]
        patch, merge = self.patch_size, self.merge_size
        rows, columns = height // patch, width // patch
        blocks = pixels.reshape(rows // merge, merge, patch, columns // merge, merge, patch, 3)
        blocks = blocks.transpose(0, 3, 1, 4, 6, 2, 5)  # block row, block column, row, column in it, colour, y, x
        blocks = np.repeat(blocks[:, :, :, :, :, None], self.temporal_patch_size, axis=5)  # still: every frame the same
        return torch.from_numpy(blocks.reshape(rows * columns, -1)), torch.tensor([1, rows, columns])

    def preprocessor_config(self) -> dict:
        """The specification as Hugging Face's preprocessor_config.json has it."""
        return {
            "image_processor_type": "Qwen2VLImageProcessor",
            "patch_size": self.patch_size,
            "merge_size": self.merge_size,
            "temporal_patch_size": self.temporal_patch_size,
            "min_pixels": self.min_pixels,
            "max_pixels": self.max_pixels,
            "size": {"shortest_edge": self.min_pixels, "longest_edge": self.max_pixels},
            **common_steps(self),
        }


@dataclass(frozen=True)
class TileSpec:
    """How Llama-3.2-Vision takes pictures: scaled into a canvas of at most `max_tiles` square tiles, `tile_size` pixels
    a side, by transformers' own PIL processor. `resample` is PIL's number. The defaults are the published ones."""

    tile_size: int = 560
    max_tiles: int = 4
    resample: int = int(Image.Resampling.BILINEAR)
    image_mean: tuple[float, float, float] = CLIP_MEAN
    image_std: tuple[float, float, float] = CLIP_STD

    @property
    def sha256(self) -> str:
        return spec_sha256(self)

    def image_tokens(self, height: int, width: int) -> int:
        """How many image tokens a picture of this size takes: one, whatever its size."""
        return 1

    def encode(self, pictures: list[Image.Image]) -> dict[str, torch.Tensor]:
        """A prompt's RGB pictures as model inputs: pixels [1, images, tiles, 3, side, side], the canvas of each by its
        number [1, images], and which tiles it fills [1, images, tiles]; all with no image for none."""
        if not pictures:
            return {
                "pixel_values": torch.zeros(1, 0, self.max_tiles, 3, self.tile_size, self.tile_size),
                "aspect_ratio_ids": torch.zeros(1, 0, dtype=torch.long),
                "aspect_ratio_mask": torch.zeros(1, 0, self.max_tiles, dtype=torch.long),
            }
        processor = MllamaImageProcessorPil(**self.preprocessor_config())
        encoded = processor(images=[pictures], return_tensors="pt")
        return {name: encoded[name] for name in ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")}

    def tokens_of(self, encoded: dict[str, torch.Tensor]) -> int:
        """How many image tokens encoded pictures stand for."""
        return encoded["aspect_ratio_ids"].shape[1]

    def preprocessor_config(self) -> dict:
        """The specification as Hugging Face's preprocessor_config.json has it."""
        return {
            "image_processor_type": "MllamaImageProcessor",
            "size": {"height": self.tile_size, "width": self.tile_size},
            "max_image_tiles": self.max_tiles,
            **common_steps(self),
            "do_pad": True,
        }


def common_steps(spec: ImageSpec | TileSpec) -> dict:
    """What both kinds of processor do to a picture, as preprocessor_config.json has it."""
    return {
        "resample": spec.resample,
        "image_mean": list(spec.image_mean),
        "image_std": list(spec.image_std),
        "do_convert_rgb": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "do_resize": True,
    }


def image_spec_from_dict(values: dict, where: str) -> ImageSpec | TileSpec:
    return spec_from_dict(values, TileSpec if "tile_size" in values else ImageSpec, where)


def spec_from_dict(values: dict, spec_type: type, where: str):
    """A frozen specification from its JSON form; RequestError naming `where` and the fields that are odd or missing."""
    odd = sorted(values.keys() ^ {field.name for field in fields(spec_type)})
    if odd:
        raise RequestError(f"{where}: fields {odd} are missing or unknown; save the model again")
    return spec_type(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def picture_size(path: str | Path) -> tuple[int, int]:
    """(height, width) of a picture file from its header. Raises RequestError naming a file that is not a picture."""
    try:
        with Image.open(path) as picture:
            return picture.height, picture.width
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise RequestError(f"{path}: not a readable picture ({error}); replace or remove it") from None


def read_image_spec(
    path: str | Path, min_pixels: int | None = None, max_pixels: int | None = None
) -> ImageSpec | TileSpec:
    """The specification of a model (folder or hub id) from its preprocessor_config.json, bounds overridden where given.

    Raises RequestError where there is none, and for bounds on a model that takes tiles.
    """
    try:
        file = cached_file(hub_id_or_folder(path), "preprocessor_config.json")
    except OSError:
        file = None
    if file is None:
        raise RequestError(
            f"{path}: no preprocessor_config.json here or on the hub; give a vision model's folder or id"
        )
    config = json.loads(Path(file).read_text(encoding="utf-8"))
    size = config.get("size") or {}
    colours = {name: tuple(config[name]) for name in ("image_mean", "image_std") if name in config}
    if config.get("image_processor_type", "").startswith("Mllama"):
        if min_pixels or max_pixels:
            raise RequestError(
                f"{path}: min_pixels = {min_pixels}, max_pixels = {max_pixels}: this model takes pictures as "
                f"tiles of {size['height']} pixels, {config['max_image_tiles']} at most; leave both null"
            )
        return TileSpec(size["height"], config["max_image_tiles"], config.get("resample", TileSpec.resample), **colours)
    default = ImageSpec()
    return ImageSpec(
        patch_size=config.get("patch_size", default.patch_size),
        merge_size=config.get("merge_size", default.merge_size),
        temporal_patch_size=config.get("temporal_patch_size", default.temporal_patch_size),
        min_pixels=min_pixels or config.get("min_pixels") or size.get("shortest_edge") or default.min_pixels,
        max_pixels=max_pixels or config.get("max_pixels") or size.get("longest_edge") or default.max_pixels,
        resample=config.get("resample", default.resample),
        **colours,
    )


def hub_id_or_folder(path: str | Path) -> str:
    """A model's place, refused at once if it can only be a mistyped path: the hub is asked for ORGANISATION/NAME alone.

    A path is what exists, what starts as one (outputs/…, ./…, ../…, /…), and what starts in a folder that exists.
    """
    path = str(path)
    first = path.split("/")[0]
    looks_local = first in ("", ".", "..", "~", "outputs") or os.path.isdir(first)
    if not os.path.isdir(path) and (looks_local or not re.fullmatch(r"[\w-]+/[\w.-]+", path)):
        raise RequestError(f"{path}: no model here; give a model folder or a hub id such as Qwen/NAME")
    return path
