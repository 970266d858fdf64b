"""The tiny model and pictures that benchmarks of speed run on."""

import math
from pathlib import Path

import torch
from PIL import Image

from vr1lib.models.tiny import build_tiny_vlm
from vr1lib.records import Problem

QUESTION = "How many red shapes are there?"
PIXELS_PER_TOKEN = 28  # a side


def build(folder: Path, image_tokens: set[int]) -> None:
    """An untrained tiny Qwen2.5-VL in model/, and a square picture of noise for each number of image tokens."""
    build_tiny_vlm(folder / "model", 0, [QUESTION] * 3, vocabulary_size=768, tie_word_embeddings=False)
    for tokens in image_tokens:
        side = PIXELS_PER_TOKEN * math.isqrt(tokens)
        pixels = torch.randint(0, 256, (side, side, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{tokens}.png")


def problems_of(folder: Path, image_tokens: int, count: int) -> list[Problem]:
    """So many problems with the picture of this size."""
    image = str(folder / f"{image_tokens}.png")
    return [
        Problem(id=str(number), source="bench", split="train", question=QUESTION, answer="2", images=[image])
        for number in range(count)
    ]
