"""ShapeWorld: the embedded small world of pictures, questions, exact answers and a scripted teacher's words.

No weights or data sets can be downloaded in a test or on a newcomer's laptop, so the workbench carries a world that a
tiny Qwen2.5-VL learns in minutes (our choice; nothing of it is in the paper). A picture is a grid of 28-pixel cells,
one cell one image token. Five families line up with MathVista's tasks and skills:

    counting   "How many red?"                    general counting      arithmetic (ARI)
    chart      "How tall is the red bar?"         figure question       statistical (STA)
    length     "How long is the red line?"        geometry problem      geometry (GEO, GPS)
    angle      "Which angle has the red line?"    geometry problem      geometry (GEO, GPS)
    word       "Each red costs 3. Cost of red?"   math word problem     arithmetic (ARI)

The scripted teacher knows the scene. It writes each row's colours, the asked colour with its count and the running
total: without the spelt colours a tiny model learns nothing (dense supervision of what is seen teaches seeing), and
with the asked colour named beside its count it learns to count in two thirds of the steps. Its reasoning overthinks on
purpose, as DeepSeek-R1's does in the paper's Figure 1A: after a pass it says "Wait" a geometric number of times and
looks again, a part of the repeats holds a slip, and only the last pass is sure to be right.
"""

import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from vr1lib.records import Problem, RequestError, write_image

CELL = 28  # pixels: one image token of Qwen2.5-VL (patch 14, merge 2)
COLOURS = {
    "red": (214, 39, 40),
    "blue": (31, 90, 200),
    "green": (44, 160, 44),
    "yellow": (240, 200, 20),
}
EMPTY = "white"
FAMILIES = {
    "counting": {"task": "visual question answering", "skills": ["arithmetic reasoning"]},
    "chart": {"task": "figure question answering", "skills": ["statistical reasoning"]},
    "length": {"task": "geometry problem solving", "skills": ["geometry reasoning"]},
    "angle": {"task": "geometry problem solving", "skills": ["geometry reasoning"]},
    "word": {"task": "math word problem", "skills": ["arithmetic reasoning"]},
}
SPLITS = ("train", "cold", "rl", "dev", "test")
MAX_MISSES = 20_000  # draws in vain, beyond 200 for each problem found, before the world counts as exhausted
REFLECTIONS = ("Wait, let me check.", "Hmm, let me check.", "Alternatively, let me check.")


def make_problems(
    folder: str | Path,
    split: str,
    count: int,
    seed: int = 0,
    families: Sequence[str] = tuple(FAMILIES),
    grid_sizes: Sequence[int] = (2, 3),
) -> list[Problem]:
    """`count` different problems of one split, their pictures written to `folder`/images.

    A grid belongs to exactly one split, by its hash: splits never share a picture, whatever the seed and the question.
    Raises RequestError for an unknown split or family, or when the world has fewer scenes than asked.
    """
    if split not in SPLITS:
        raise RequestError(f"ShapeWorld: split {split!r} is unknown; choose one of {', '.join(SPLITS)}")
    if unknown := set(families) - set(FAMILIES):
        raise RequestError(f"ShapeWorld: family {min(unknown)!r} is unknown; choose from {', '.join(FAMILIES)}")
    if too_large := [size for size in grid_sizes if not 2 <= size <= len(COLOURS)]:
        raise RequestError(f"ShapeWorld: grid size {too_large[0]} is not drawn; choose from 2 to {len(COLOURS)}")
    images = Path(folder) / "images"
    images.mkdir(parents=True, exist_ok=True)
    rng = random.Random(f"{seed}/{split}")
    seen: set[str] = set()
    problems: list[Problem] = []
    misses = 0
    while len(problems) < count:
        scene = _draw_scene(rng, rng.choice(list(families)), rng.choice(list(grid_sizes)))
        key = _digest(scene)
        if key in seen or split_of(scene) != split:
            misses += 1
            if misses > MAX_MISSES + 200 * len(problems):
                raise RequestError(
                    f"ShapeWorld has fewer than {count} {split} scenes of families {', '.join(families)} and sizes "
                    f"{', '.join(map(str, grid_sizes))}; ask for fewer problems, or more families or sizes"
                )
            continue
        seen.add(key)
        path = (images / f"{split}_{key}.png").resolve()
        write_image(render(scene), path)
        family = scene["family"]
        problems.append(
            Problem(
                id=f"shapeworld-{split}-{key}",
                images=[str(path)],
                question=_question(scene),
                answer=str(_answer(scene)),
                source="shapeworld",
                split=split,
                meta={"family": family, **FAMILIES[family], "scene": scene},
            )
        )
    return problems


def split_of(scene: dict[str, Any]) -> str:
    """The one split that a scene's grid belongs to, by its hash: train 40 %, cold 20 %, rl 20 %, dev 5 %, test 15 %."""
    share = int(_digest(scene["grid"])[:8], 16) % 100
    bounds = {"train": 40, "cold": 60, "rl": 80, "dev": 85, "test": 100}
    return next(split for split, bound in bounds.items() if share < bound)


def render(scene: dict[str, Any]) -> Image.Image:
    """The scene as an RGB picture of `28 * grid size` pixels a side."""
    grid = scene["grid"]
    image = Image.new("RGB", (CELL * len(grid[0]), CELL * len(grid)), "white")
    draw = ImageDraw.Draw(image)
    for row, colours in enumerate(grid):
        for column, colour in enumerate(colours):
            if colour == EMPTY:
                continue
            left, top = column * CELL, row * CELL
            box = [left + 3, top + 3, left + CELL - 4, top + CELL - 4]
            if scene["family"] == "chart":
                box = [left + 5, top, left + CELL - 6, top + CELL - 1]
            elif scene["family"] == "length":
                box = [left, top + 8, left + CELL - 1, top + CELL - 9]
            if scene["family"] in ("counting", "word"):
                draw.ellipse(box, fill=COLOURS[colour])
            elif scene["family"] == "angle":
                _draw_joint(draw, grid, row, column)
            else:
                draw.rectangle(box, fill=COLOURS[colour])
    return image


def _draw_joint(draw: ImageDraw.ImageDraw, grid: list[list[str]], row: int, column: int) -> None:
    """A thick line's piece in one cell: from its centre to every neighbour of the same colour."""
    colour, half = grid[row][column], CELL // 2
    centre = (column * CELL + half, row * CELL + half)
    for down, right in ((0, 1), (1, 0), (0, -1), (-1, 0)):
        if (
            0 <= row + down < len(grid)
            and 0 <= column + right < len(grid)
            and grid[row + down][column + right] == colour
        ):
            end = (centre[0] + right * half, centre[1] + down * half)
            box = [min(centre[0], end[0]) - 5, min(centre[1], end[1]) - 5]
            draw.rectangle([*box, max(centre[0], end[0]) + 5, max(centre[1], end[1]) + 5], fill=COLOURS[colour])


# ---------------------------------------------------------------------------------------------- the teacher's words


def write_base_cot(problem: Problem) -> str:
    """The response that teaches the base model to see: one clean pass."""
    scene = problem.meta["scene"]
    return assemble(" ".join([*_pass_lines(scene, None), *_close(scene)]), problem.answer)


def write_pseudo_cot(problem: Problem, rng: random.Random) -> str:
    """A short caption and reasoning as an MLLM that sees the picture and knows the answer would write them (step 1)."""
    scene = problem.meta["scene"]
    grid = scene["grid"]
    caption = f"A {len(grid)} by {len(grid[0])} picture."
    return f"Caption: {caption} Reasoning: {' '.join(_pass_lines(scene, None))} The answer is {problem.answer}."


def write_description(problem: Problem, rng: random.Random) -> str:
    """Every detail a blind reader needs, without the answer (step 2)."""
    rows = [f"row {number}: {', '.join(row)}" for number, row in enumerate(problem.meta["scene"]["grid"], start=1)]
    return f"The image shows a grid of {len(rows)} rows. " + "; ".join(rows) + "."


def write_reasoning(
    problem: Problem,
    rng: random.Random,
    repeat_probability: float = 0.5,
    slip_probability: float = 1 / 3,
    max_passes: int = 6,
) -> str:
    """R1-style reasoning: passes over the rows, each but the last followed by a doubt; the last pass is right.

    After each pass the teacher doubts with `repeat_probability` (geometric, at most `max_passes` passes); a pass that
    is doubted holds one miscounted row with `slip_probability`.
    """
    scene = problem.meta["scene"]
    pieces: list[str] = []
    passes = 1
    while passes < max_passes and rng.random() < repeat_probability:
        slip = rng.randrange(len(scene["grid"])) if rng.random() < slip_probability else None
        pieces += [*_pass_lines(scene, slip, rng), rng.choice(REFLECTIONS)]
        passes += 1
    return " ".join([*pieces, *_pass_lines(scene, None), *_close(scene)])


def assemble(reasoning: str, answer: str) -> str:
    """Reasoning and answer in the format of the paper's Figures 5 to 7."""
    return f"<think> {reasoning} </think><answer> Final Answer:{answer} </answer>"


def _pass_lines(scene: dict[str, Any], slip_row: int | None, rng: random.Random | None = None) -> list[str]:
    """One pass over the rows: colours, the row's count of the asked colour, running total; one row miscounted if
    asked."""
    lines, total = [], 0
    for index, row in enumerate(scene["grid"]):
        count = row.count(scene["target"])
        if index == slip_row:
            count = rng.choice([value for value in range(len(row) + 1) if value != count])
        total += count
        lines.append(f"{' '.join(row)}: {scene['target']} {count}, total {total}.")
    return lines


def _close(scene: dict[str, Any]) -> list[str]:
    if scene["family"] == "angle":
        return ["It turns: the angle is 90."] if _answer(scene) == 90 else ["It goes straight: the angle is 180."]
    if scene["family"] != "word":
        return []
    count = sum(row.count(scene["target"]) for row in scene["grid"])
    return [f"{count} times {scene['price']} is {count * scene['price']}."]


# ------------------------------------------------------------------------------------------------------- the scenes


def _draw_scene(rng: random.Random, family: str, size: int) -> dict[str, Any]:
    colours = list(COLOURS)
    grid = [[EMPTY] * size for _ in range(size)]
    if family in ("counting", "word"):
        grid = [[rng.choice(colours) for _ in range(size)] for _ in range(size)]
        target = rng.choice(colours)
    elif family == "chart":
        bars = rng.sample(colours, size)
        for column, colour in enumerate(bars):
            for row in range(size - rng.randint(1, size), size):
                grid[row][column] = colour
        target = rng.choice(bars)
    elif family == "angle":
        target = rng.choice(colours)
        for row, column in _path(rng, size):
            grid[row][column] = target
    else:
        lines = rng.sample(colours, size)
        for row, colour in enumerate(lines):
            length = rng.randint(1, size)
            start = rng.randint(0, size - length)
            grid[row][start : start + length] = [colour] * length
        target = rng.choice(lines)
    scene = {"family": family, "grid": grid, "target": target}
    if family == "word":
        scene["price"] = rng.randint(2, 3)
    return scene


def _path(rng: random.Random, size: int) -> list[tuple[int, int]]:
    """The cells of a straight line, or of two arms of one to `size` - 1 cells that meet in a corner."""
    row, column = rng.randrange(size), rng.randrange(size)
    across = [(row, other) for other in _arm(rng, column, size)]
    down = [(other, column) for other in _arm(rng, row, size)]
    return rng.choice([[(row, column), *across], [(row, column), *down], [(row, column), *across, *down]])


def _arm(rng: random.Random, start: int, size: int) -> list[int]:
    """Places from the one beside `start` outwards, in a direction that has room."""
    before, after = list(range(start - 1, -1, -1)), list(range(start + 1, size))
    side = rng.choice([places for places in (before, after) if places])
    return side[: rng.randint(1, len(side))]


def _question(scene: dict[str, Any]) -> str:
    target = scene["target"]
    return {
        "counting": f"How many {target}?",
        "chart": f"How tall is the {target} bar?",
        "length": f"How long is the {target} line?",
        "angle": f"Which angle has the {target} line?",
        "word": f"Each {target} costs {scene.get('price')}. Cost of all {target}?",
    }[scene["family"]]


def _answer(scene: dict[str, Any]) -> int:
    """The gold: an angle in degrees, or the number of target cells, times the price in a word problem."""
    if scene["family"] == "angle":
        cells = [(r, c) for r, row in enumerate(scene["grid"]) for c, cell in enumerate(row) if cell == scene["target"]]
        rows, columns = ({cell[axis] for cell in cells} for axis in (0, 1))
        return 90 if len(rows) > 1 and len(columns) > 1 else 180
    return sum(row.count(scene["target"]) for row in scene["grid"]) * scene.get("price", 1)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
