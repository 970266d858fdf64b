"""Controls: what a score is worth when its pictures or its order of options are taken away.

blank_pictures     each picture becomes one of the same size in one grey ("blind"): what the text alone gives away
shuffled_pictures  each problem gets the pictures of another one with as many: the same, with pictures to look at
shuffled_options   the options change places, and a gold letter with them: what the order of options gives away

Ids stay, so that a control is paired with the score itself. What a control could not be applied to is returned with the
reason; such a problem is blanked where its pictures must go, else unchanged. `clean_subset` tells which problems
training cannot have seen. All are our own: the paper has no controls.
"""

import random
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from PIL import Image

from vr1lib.data.audits import rows_of
from vr1lib.data.near_duplicates import Index
from vr1lib.data.readers.rows import Reject
from vr1lib.prompts import IMAGE_MARKER, OPTION_LETTERS
from vr1lib.records import Problem, RequestError, file_sha256, open_image, write_image

Control = Literal["blank_pictures", "shuffled_pictures", "shuffled_options"]
GREY = (128, 128, 128)
_REFERS_BY_LETTER = re.compile(
    r"\b(?:both|either|neither|only|options?|choices?|answers?)\s+\(?[A-J]\)?(?![\w'])"
    r"|(?<![\w'])\(?[A-J]\)?\s*(?:,|and|or|&)\s*\(?[A-J]\)?(?![\w'])"
)
_REFERS_TO_ALL = re.compile(
    r"\b(?:all|none|any|both|neither|either)(?: of)?(?: the)? (?:above|below|these|them|others?|options|choices)\b"
    r"|\b(?:the above|of the other)\b|\bno (?:correct|right) (?:answer|option)\b|\bnot (?:given|listed)\b"
    r"|^\W*(?:none|all|neither|both)\W*$",
    re.IGNORECASE,
)


@dataclass
class Controlled:
    """The problems in their order, each with `meta["control"]`, and the ids a control was not wholly applied to."""

    control: str
    problems: list[Problem]
    not_applied: dict[str, list[str]] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """How many problems by reason."""
        return {reason: len(ids) for reason, ids in self.not_applied.items()}


def apply_control(problems: Sequence[Problem], control: str, seed: int, folder: str | Path) -> Controlled:
    """The problems under a control; new pictures are written under `folder`. The same seed gives the same problems.

    `meta["control"]` names the control and what was done: {"name": …, "pictures_of": id}, {"name": …, "order": "CAB"}
    (where the options now shown as A, B, C came from), {"name": …, "not_applied": reason}. Raises RequestError for an
    unknown control or a picture that cannot be read.
    """
    if control not in get_args(Control):
        raise RequestError(f"control = {control!r}: unknown; give one of {', '.join(get_args(Control))}")
    if control == "shuffled_options":
        changed = [_with_options_shuffled(problem, seed) for problem in problems]
    elif control == "shuffled_pictures":
        changed = _with_pictures_shuffled(problems, seed, Path(folder))
    else:
        changed = [_blanked(problem, Path(folder)) for problem in problems]
    controlled = Controlled(control, [])
    for problem, (update, done) in zip(problems, changed, strict=True):
        meta = {**problem.meta, "control": {"name": control, **done}}
        controlled.problems.append(problem.model_copy(update={**update, "meta": meta}))
        if reason := done.get("not_applied"):
            controlled.not_applied.setdefault(reason, []).append(problem.id)
    return controlled


Change = tuple[dict, dict]  # what of the problem is new, and what `meta["control"]` says


# ------------------------------------------------------------------------------------------------------------- pictures


def _blanked(problem: Problem, folder: Path) -> Change:
    if not problem.images:
        return {}, {"not_applied": "no picture"}
    return {"images": [blank_picture(path, folder) for path in problem.images]}, {}


def blank_picture(path: str | Path, folder: Path) -> str:
    """A grey picture of the same size, one file for each size."""
    width, height = open_image(path).size
    blank = folder.resolve() / f"blank-{width}x{height}.png"
    if not blank.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_image(Image.new("RGB", (width, height), GREY), blank)
    return str(blank)


def _with_pictures_shuffled(problems: Sequence[Problem], seed: int, folder: Path) -> list[Change]:
    """A derangement among problems with as many pictures: nobody keeps its own, nor gets those of its own group.

    Problems with the same pictures or group stand together in a circle in random order, and each takes the pictures
    from as many places on as the largest of these classes has members. If that is more than half of the circle, some
    would meet their own class: they are blanked and counted.
    """
    drawn = random.Random(seed)
    shown = [tuple(file_sha256(path) for path in problem.images) for problem in problems]
    classes = [str(problem.meta.get("group") or pictures) for problem, pictures in zip(problems, shown)]
    by_count: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for place, problem in enumerate(problems):
        by_count[len(problem.images)][classes[place]].append(place)
    changes: list[Change] = [({}, {"not_applied": "no picture"}) for _ in problems]
    for count, members in by_count.items():
        if not count:
            continue
        blocks = list(members.values())
        drawn.shuffle(blocks)
        for block in blocks:
            drawn.shuffle(block)
        circle = [place for block in blocks for place in block]
        largest = max(map(len, blocks))
        for at, place in enumerate(circle):
            other = circle[(at + largest) % len(circle)]
            if classes[other] == classes[place] or shown[other] == shown[place]:
                images, _ = _blanked(problems[place], folder)
                changes[place] = images, {"not_applied": "no other problem with as many pictures: blanked"}
            else:
                changes[place] = {"images": list(problems[other].images)}, {"pictures_of": problems[other].id}
    return changes


# -------------------------------------------------------------------------------------------------------------- options


def _with_options_shuffled(problem: Problem, seed: int) -> Change:
    """Uniformly random, so some keep their order. An option that speaks of all others keeps its place."""
    choices = problem.choices or []
    if not choices:
        return {}, {"not_applied": "no choices"}
    letters = OPTION_LETTERS[: len(choices)]
    if len(letters) < len(choices):
        return {}, {"not_applied": f"more than {len(OPTION_LETTERS)} options"}
    if all(choice.strip("()[]. ").upper() in letters for choice in choices):
        return {}, {"not_applied": "options are letters drawn in the picture"}
    if any(_REFERS_BY_LETTER.search(choice) for choice in choices):
        return {}, {"not_applied": "an option names others by letter"}
    movable = [place for place, choice in enumerate(choices) if not _REFERS_TO_ALL.search(choice)]
    if len(movable) < 2:
        return {}, {"not_applied": "options refer to all others"}
    drawn = movable.copy()
    random.Random(f"{seed}/{problem.id}").shuffle(drawn)
    order = list(range(len(choices)))  # order[new place] = old place
    for place, source in zip(movable, drawn):
        order[place] = source
    update = {"choices": [choices[place] for place in order], "images": _images_in_order(problem, order)}
    if problem.answer in letters and problem.answer not in choices:
        update["answer"] = letters[order.index(letters.index(problem.answer))]
    done = {"order": "".join(letters[place] for place in order)}
    return update, done if len(movable) == len(choices) else done | {"kept_in_place": len(choices) - len(movable)}


def _images_in_order(problem: Problem, order: Sequence[int]) -> list[str]:
    """The pictures, those inside options moved with them."""
    start = problem.question.count(IMAGE_MARKER)
    inside = []
    for choice in problem.choices or []:
        end = start + choice.count(IMAGE_MARKER)
        inside.append(problem.images[start:end])
        start = end
    if not any(inside):
        return problem.images
    before = problem.images[: problem.question.count(IMAGE_MARKER)]
    return [*before, *(path for place in order for path in inside[place])]


# --------------------------------------------------------------------------------------------------------- clean subset


@dataclass
class CleanSubset:
    """Ids that no training file holds, the others with the reason, and how many training rows could not be read."""

    clean: list[str]
    contaminated: dict[str, str]
    unreadable: int


def clean_subset(problems: Sequence[Problem], training_files: Iterable[str | Path]) -> CleanSubset:
    """Which problems are in none of the training files: by id, group, pictures and question (`near_duplicates`).

    `training_files`: whatever `vr1 audit` reads. Finds recoloured, resized and reworded copies too.
    """
    contaminated: dict[str, str] = {}
    unreadable = 0
    with tempfile.TemporaryDirectory() as scratch:  # for pictures out of parquet files
        for number, file in enumerate(training_files):
            index, groups, name = Index(), {}, Path(file).name
            for outcome in rows_of(file, Path(scratch) / str(number)):
                if isinstance(outcome, Reject):
                    unreadable += 1
                    continue
                index.add(outcome[0])
                if group := outcome[0].meta.get("group"):
                    groups.setdefault(str(group), outcome[0].id)
            ids = set(index.ids)
            for problem in problems:
                if problem.id in contaminated:
                    continue
                if problem.id in ids:
                    contaminated[problem.id] = f"itself in {name}"
                elif (group := str(problem.meta.get("group"))) in groups:
                    contaminated[problem.id] = f"same group as {groups[group]} in {name}"
                elif hits := index.matches(problem):
                    contaminated[problem.id] = f"{hits[0].by} of {hits[0].id} in {name}"
    return CleanSubset([problem.id for problem in problems if problem.id not in contaminated], contaminated, unreadable)
