"""A browser of completions: picture, question, gold, answer as read, verdict; to filter, to search and to sort.

It is part of a page that opens offline: the completions stand in it as JSON, a picture once however often it is asked
about, and a script of its own (`browser.js`) that only ever writes text. Where there are more completions than a page
should hold, a drawn sample is shown, of every verdict × length × stage of each run alike (our choice), and said so.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

from vr1lib.analysis.completions import benchmark_of, load_saved
from vr1lib.analysis.page import page_html, thumbnail, write_page
from vr1lib.analysis.runs import AnyGraded, read_json
from vr1lib.analysis.statistics import REFLECTION_WORDS, count_words
from vr1lib.benchmarks.catalogue import BENCHMARKS
from vr1lib.records import Problem, RequestError

MOST = 1_500  # completions in one page, shared among its runs
TEXT_BYTES = 9_000_000  # of completions and problems in a page
PICTURE_BYTES = 9_000_000  # of pictures in a page: with the figures of a report below 25 MB
HEAD_CHARACTERS, TAIL_CHARACTERS = 3_000, 2_000  # of a longer text: how it begins, and its answer
SCRIPT = Path(__file__).with_name("browser.js")


Run = tuple[str, Sequence[AnyGraded], Mapping[str, Problem]]  # label, completions, problems by id


@dataclass(frozen=True)
class Picked:
    """Completions of one run chosen to be shown, in the order of its file; `total` is how many it has."""

    label: str
    graded: Sequence[AnyGraded]
    problems: Mapping[str, Problem]
    total: int


def pick(
    label: str, graded: Sequence[AnyGraded], problems: Mapping[str, Problem] = {}, count: int = MOST, seed: int = 0
) -> Picked:
    """At most `count` completions: all, or as many of each verdict × third by length × stage as there are places.

    Within such a part the order is that of a hash of problem and sample, so that of several models the same problems
    are shown.
    """
    if len(graded) <= count:
        return Picked(label, list(graded), problems, len(graded))
    lengths = sorted(row.tokens for row in graded)
    cuts = [lengths[len(lengths) * third // 3] for third in (1, 2)]
    parts: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for place, row in enumerate(graded):
        parts[row.reward == 1, row.format_ok, sum(row.tokens >= cut for cut in cuts), row.stage].append(place)
    chosen: list[int] = []
    for left, places in zip(range(len(parts), 0, -1), sorted(parts.values(), key=len)):
        places.sort(key=lambda place: drawing(graded[place], seed))
        chosen += places[: (count - len(chosen)) // left]
    return Picked(label, [graded[place] for place in sorted(chosen)], problems, len(graded))


def pick_runs(runs: Sequence[Run], most: int = MOST, seed: int = 0) -> list[Picked]:
    """At most `most` completions of several runs: all of a small run, and equal numbers of the others."""
    places = sorted(range(len(runs)), key=lambda place: len(runs[place][1]))
    picked: dict[int, Picked] = {}
    for left, place in zip(range(len(runs), 0, -1), places):
        label, graded, problems = runs[place]
        picked[place] = pick(label, graded, problems, most // left, seed)
        most -= len(picked[place].graded)
    return [picked[place] for place in range(len(runs))]


def fewer(picked: Sequence[Picked], most: int, seed: int = 0) -> list[Picked]:
    """At most `most` of what was picked, by the same rule; each `total` stays its run's."""
    again = pick_runs([(run.label, run.graded, run.problems) for run in picked], most, seed)
    return [replace(run, total=before.total) for run, before in zip(again, picked)]


def drawing(row: AnyGraded, seed: int) -> bytes:
    """A completion's place in a drawn order."""
    return hashlib.sha256(f"{seed}/{row.problem_id}/{row.sample}/{row.step}".encode()).digest()


def browser_html(picked: Sequence[Picked], seed: int = 0) -> list[str]:
    """The browser as the parts of one page; a page holds one. What the byte budgets leave out is counted in it."""
    everything = [(run, place, row) for run in picked for place, row in enumerate(run.graded)]
    everything.sort(key=lambda item: drawing(item[2], seed))
    texts = Budget(TEXT_BYTES)
    pictures = Pictures(Budget(PICTURE_BYTES))
    problems: dict[str, dict[str, Any]] = {}  # by their own JSON: a control asks the same id with other pictures
    rows = []
    for run, place, row in everything:
        problem = problem_entry(run.problems.get(row.problem_id), row.problem_id, pictures)
        key, entry = in_script(problem), row_entry(run.label, row)
        if texts.take(in_script(entry) + ("" if key in problems else key)):
            problems[key] = problem
            rows.append((picked.index(run), place, key, entry))
    rows.sort(key=lambda item: item[:2])
    places = {key: place for place, key in enumerate(dict.fromkeys(key for _, _, key, _ in rows))}
    data = {
        "rows": [row | {"place": place, "problem": places[key]} for place, (_, _, key, row) in enumerate(rows)],
        "problems": [problems[key] for key in places],
        "pictures": list(pictures.urls),
    }
    return [
        f'<section class="browser"><p>{escape(said_of(picked, len(rows), pictures.left_out))}</p>'
        '<form class="filters"></form><p class="matches" aria-live="polite"></p><div class="cards"></div>'
        '<button type="button" class="more" hidden>Show more</button>'
        "<noscript>The browser needs JavaScript, which is switched off here.</noscript></section>",
        f'<script type="application/json" class="browser-data">{in_script(data)}</script>',
        f"<script>{SCRIPT.read_text(encoding='utf-8')}</script>",
    ]


def said_of(picked: Sequence[Picked], shown: int, pictures_left_out: int) -> str:
    total = sum(run.total for run in picked)
    said = f"{shown:,} of {total:,} completions are here"
    if shown < total:
        said += ", drawn evenly over verdict, length and stage of each run: shares among them are not the run's"
    said += ". j and k step through them."
    if pictures_left_out:
        said += f" Pictures left out (not found, or beyond the size of a page): {pictures_left_out:,}."
    return said


def problem_entry(problem: Problem | None, problem_id: str, pictures: "Pictures") -> dict[str, Any]:
    """A problem as the script reads it; of one that is not found, its id alone."""
    if problem is None:
        empty = {"question": "(its problem is not found)", "gold": "?", "choices": None, "benchmark": "", "groups": []}
        return {"id": problem_id, **empty, "pictures": [], "leftOut": 0}
    name = benchmark_of(problem)
    named = BENCHMARKS[name].groups(problem) if name else {}
    shown = [place for place in map(pictures.place, problem.images) if place is not None]
    return {
        "id": problem.id,
        "question": shortened(problem.question),
        "gold": shortened(problem.answer),
        "choices": problem.choices,
        "benchmark": name or problem.source,
        "groups": [f"{kind}: {value}" for kind, values in named.items() for value in dict.fromkeys(values)],
        "pictures": shown,
        "leftOut": len(problem.images) - len(shown),
    }


def row_entry(label: str, row: AnyGraded) -> dict[str, Any]:
    """A completion as the script reads it; the words are counted in its whole text."""
    words = [word for word, occurrences in count_words([row.text], REFLECTION_WORDS).items() if occurrences]
    return {
        "model": label,
        "right": row.reward == 1,
        "wellFormed": row.format_ok,
        "cut": row.finish == "length",
        "tokens": row.tokens,
        "step": row.step,
        "stage": row.stage,
        "sample": row.sample,
        "extracted": None if row.extracted is None else shortened(row.extracted),
        "reason": shortened(row.reason),
        "words": words,
        "text": shortened(row.text),
    }


def shortened(text: str) -> str:
    left_out = len(text) - HEAD_CHARACTERS - TAIL_CHARACTERS
    if left_out <= 0:
        return text
    return f"{text[:HEAD_CHARACTERS]}\n[… {left_out:,} characters …]\n{text[-TAIL_CHARACTERS:]}"


def in_script(value: Any) -> str:
    """JSON that no text inside can break out of: `</script>` and `<!--` lose their `<`."""
    return json.dumps(value).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


class Budget:
    """Bytes that may still be spent."""

    def __init__(self, left: int) -> None:
        self.left = left

    def take(self, text: str) -> bool:
        """Whether the text, which is ASCII, still fits; it is then paid for."""
        fits = len(text) <= self.left
        self.left -= len(text) if fits else 0
        return fits


class Pictures:
    """Data URLs of pictures, each content once."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.urls: dict[str, int] = {}
        self.left_out = 0
        self.known: dict[str, int | None] = {}

    def place(self, path: str) -> int | None:
        """The picture's place among the URLs; None where it cannot be read or does not fit."""
        if path not in self.known:
            self.known[path] = self.add(path)
            self.left_out += self.known[path] is None
        return self.known[path]

    def add(self, path: str) -> int | None:
        try:
            url = thumbnail(path)
        except RequestError:
            return None
        if url not in self.urls and not self.budget.take(url):
            return None
        return self.urls.setdefault(url, len(self.urls))


def write_browser(run_folders: Sequence[str | Path], out: str | Path, seed: int = 0) -> Path:
    """The completions of run folders as one page. Raises RequestError for a folder without completions."""
    runs = []
    for folder in map(Path, run_folders):
        saved = load_saved(folder)
        runs.append((label_of(folder), saved.graded, saved.problems))
    picked = pick_runs(runs, seed=seed)
    return write_page(out, f"Completions: {', '.join(run.label for run in picked)}", browser_html(picked, seed))


def srcdoc(picked: Sequence[Picked], seed: int = 0) -> str:
    """The browser as the attribute of a frame that holds its page itself: for a notebook, wherever that is opened."""
    return f'srcdoc="{escape(page_html("Completions", browser_html(picked, seed), heading=False))}"'


def label_of(folder: Path) -> str:
    """How a run's completions are called: a scored model by its label, any other run by its folders."""
    scores = folder / "scores.json"
    return read_json(scores, "run it again")["label"] if scores.is_file() else f"{folder.parent.name}/{folder.name}"
