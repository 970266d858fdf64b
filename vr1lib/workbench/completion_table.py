"""The rows of W&B's completion tables: a few problems of a step, a right and a wrong completion of each, with pictures.

Our choice: rows are added to those of earlier steps, never overwritten, and all pictures of a problem stand side by
side. completions.jsonl holds every completion.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image

from vr1lib.records import Graded, Problem, RequestError, open_image
from vr1lib.workbench.params import Parameters, PtstGrpoParameters

THUMBNAIL_PIXELS = 128  # longest side of a picture in a W&B table
PROBLEMS = 16  # problems in a table, evenly spaced over the step's
COLUMNS = "step stage id picture question gold extracted verdict reason reward advantage tokens finish text".split()


def completion_rows(
    graded: Sequence[Graded],
    problems: Mapping[str, Problem],
    picture_of: Callable[[Image.Image], Any],
    by_std: bool | None,
) -> list[list[Any]]:
    """Rows under COLUMNS of one step's completions. `picture_of` wraps a thumbnail for W&B.

    The advantage is that of training (Section 3.4), of the reward within the group, divided by its std or not; with
    `by_std` None there is none: these completions trained nothing.
    """
    groups = groups_of(graded)
    pictures: dict[str, Any] = {}
    rows = []
    for group in groups[:: max(1, -(-len(groups) // PROBLEMS))]:
        problem = problems[group[0].problem_id]
        if problem.id not in pictures:
            picture = thumbnail(problem)
            pictures[problem.id] = picture and picture_of(picture)
        advantages = advantages_of(group, by_std)
        for place in contrast(group):
            item = group[place]
            verdict = "right" if item.answer_ok else "wrong" if item.format_ok else "malformed"
            start = [item.step, item.stage, problem.id, pictures[problem.id], problem.question, problem.answer]
            middle = [item.extracted, verdict, item.reason, item.reward, advantages[place]]
            rows.append([*start, *middle, item.tokens, item.finish, item.text])
    return rows


def groups_of(graded: Sequence[Graded]) -> list[list[Graded]]:
    """Completions of one problem that were sampled together: they stand together, their samples counted up."""
    groups: list[list[Graded]] = []
    for item in graded:
        last = groups[-1][-1] if groups else None
        if last is not None and last.problem_id == item.problem_id and last.sample < item.sample:
            groups[-1].append(item)
        else:
            groups.append([item])
    return groups


def contrast(group: Sequence[Graded]) -> list[int]:
    """Places of the group's first right and first wrong completion; the first alone where all are alike."""
    verdicts = [item.answer_ok for item in group]
    return sorted(verdicts.index(verdict) for verdict in set(verdicts))


def divided_by_std(params: Parameters) -> bool | None:
    """Whether the run's advantages are divided by their group's std; None for a run without advantages."""
    if not isinstance(params, PtstGrpoParameters):
        return None
    from vr1lib.loss import LOSSES  # with torch, which a run with advantages has loaded

    return LOSSES[params.loss].normalise_by_std if params.normalise_by_std is None else params.normalise_by_std


def advantages_of(group: Sequence[Graded], by_std: bool | None) -> list[float | None]:
    if by_std is None:
        return [None] * len(group)
    import torch

    from vr1lib.advantage import group_advantages

    rewards = torch.tensor([[item.reward for item in group]])
    return group_advantages(rewards, normalise_by_std=by_std)[0].tolist()


def thumbnail(problem: Problem) -> Image.Image | None:
    """The problem's pictures side by side, each at most THUMBNAIL_PIXELS; None without readable pictures."""
    pictures = []
    for path in problem.images:
        try:
            picture = open_image(path)
        except RequestError:
            continue
        picture.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
        pictures.append(picture)
    if not pictures:
        return None
    strip = Image.new("RGB", (sum(item.width for item in pictures), max(item.height for item in pictures)), "white")
    left = 0
    for picture in pictures:
        strip.paste(picture, (left, 0))
        left += picture.width
    return strip
