"""What a data set is like: words of doubt, lengths, golds, descriptions that give them away, and what it shares.

`stats` reads a gigabyte of chains of thought in a stream: the word counts of the paper's Table 2 and lengths, by
source and by step of the bridging. The paper does not say how Table 2 counted ("Wait" as a word or inside "waiting",
with or without case), so both countings are made, ignoring case. Lengths are in words: tokens would depend on a
tokenizer.

`audit` asks what would spoil a training set: golds that our grader refuses from themselves, responses that would not be
rewarded, descriptions or reasoning that give the gold away, and problems that other sets (RL, benchmarks) hold too.
"""

import json
import re
import tempfile
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from vr1lib.answers import grade_answer
from vr1lib.data import sources
from vr1lib.data.filters import answer_before_thinking, states_answer
from vr1lib.data.near_duplicates import Index, fingerprints, question_words
from vr1lib.data.readers.rows import file_rows, line_rows
from vr1lib.data.sources import Reject
from vr1lib.records import ColdRow, Problem, RequestError, file_sha256, first_error, inside
from vr1lib.reward import grade

REFLECTION_WORDS = ("wait", "hmm", "mistake", "alternatively", "check")
STEPS = ("pseudo_cot", "description", "reasoning", "response", "text")  # a Completion's text is its only step
PICTURE_FOLDERS = ("mulberry_images", "llava_cot_images", "cauldron")  # above the folder that names a source
GIVEN_ANSWER = re.compile(
    r"\b(?:given|provided|reference|gold|ground[- ]truth|official|expected|known)(?: (?:final|correct|right))?"
    r" answer\b(?! (?:choice|option|format))"
    r"|\b(?:reference|provided|official) solution\b|\banswer key\b"
    r"|\banswer (?:is|was) (?:given|provided) (?:as|to be)\b",
    re.I,
)


# ----------------------------------------------------------------------------------------------------- counting words


@dataclass(frozen=True)
class WordCount:
    """How often a word occurs in a set of texts: as a whole word, as a piece of any word, and in how many texts."""

    word: int
    substring: int
    rows: int


class TextCounts:
    """Word counts and lengths of texts that come one by one."""

    def __init__(self) -> None:
        self.lengths = array("I")  # in words
        self._words = {word: [0, 0, 0] for word in REFLECTION_WORDS}

    def add(self, text: str) -> None:
        self.lengths.append(len(text.split()))
        lower = text.lower()
        for word, counts in self._words.items():
            whole, substrings = count_word(word, lower)
            counts[0] += whole
            counts[1] += substrings
            counts[2] += whole > 0

    def __add__(self, other: "TextCounts") -> "TextCounts":
        both = TextCounts()
        both.lengths = self.lengths + other.lengths
        for word, counts in both._words.items():
            counts[:] = [one + two for one, two in zip(self._words[word], other._words[word])]
        return both

    @property
    def words(self) -> dict[str, WordCount]:
        return {word: WordCount(*counts) for word, counts in self._words.items()}

    def as_dict(self) -> dict[str, Any]:
        return {
            "words": {word: asdict(count) for word, count in self.words.items()},
            "lengths": lengths_of(np.array(self.lengths)),
        }


def count_word(word: str, text: str) -> tuple[int, int]:
    """How often `word` stands in `text` between characters that belong to no word, and how often at all."""
    whole, found, at = 0, 0, text.find(word)
    while at >= 0:
        end = at + len(word)
        whole += not (_in_word(text[at - 1 : at]) or _in_word(text[end : end + 1]))
        found += 1
        at = text.find(word, end)
    return whole, found


def _in_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def count_words(texts: Iterable[str]) -> dict[str, WordCount]:
    """The reflection words of Table 2 over all texts, upper and lower case alike."""
    counts = TextCounts()
    for text in texts:
        counts.add(text)
    return counts.words


def lengths_of(lengths: np.ndarray) -> dict[str, float]:
    """Number of texts, and mean, median, 90th percentile and maximum of their lengths."""
    if not len(lengths):
        return {"texts": 0, "mean": 0.0, "median": 0.0, "p90": 0.0, "max": 0.0}
    return {
        "texts": len(lengths),
        "mean": float(lengths.mean()),
        "median": float(np.median(lengths)),
        "p90": float(np.percentile(lengths, 90)),
        "max": float(lengths.max()),
    }


# -------------------------------------------------------------------------------------------------------------- stats


def stats(path: str | Path) -> dict[str, Any]:
    """Word counts and lengths of the texts in a file of rows, by step over all sources, and by source and step.

    Read are our own rows (.jsonl: cold-start rows, completions), the released files of LLaVA-CoT, Mulberry and
    Vision-R1-cold (.json, .jsonl), and folders of these. A line that is no row, or has no text, is counted.
    Raises RequestError for what cannot be read at all.
    """
    path = Path(path)
    files = sources.locate(path).files if path.is_dir() else [path]
    by_source: dict[str, dict[str, TextCounts]] = {}
    rows, unreadable = 0, []
    for file in files:
        if not file.is_file():
            raise RequestError(f"{file}: no such file; give a file of rows or a folder of a known source")
        for name, row in file_rows(file):
            rows += 1
            texts = list(_texts(row))
            if not texts:
                unreadable.append(f"{file.name}, {name}")
                continue
            of_source = by_source.setdefault(_source_of(row, file), {})
            for step, text in texts:
                of_source.setdefault(step, TextCounts()).add(text)
    steps: dict[str, TextCounts] = {}
    for of_source in by_source.values():
        for step, counts in of_source.items():
            steps[step] = steps[step] + counts if step in steps else counts
    return {
        "file": str(path),
        "rows": rows,
        "unreadable": len(unreadable),
        "unreadable_first": unreadable[:5],
        "steps": {step: counts.as_dict() for step, counts in steps.items()},
        "sources": {
            name: {step: counts.as_dict() for step, counts in found.items()}
            for name, found in sorted(by_source.items())
        },
    }


def _texts(row: Any) -> Iterator[tuple[str, str]]:
    """A row's texts with their steps; what the assistant says in a conversation is the response."""
    if not isinstance(row, dict):
        return
    for step in STEPS:
        if isinstance(row.get(step), str) and row[step]:
            yield step, row[step]
    turns = row.get("conversations") or row.get("messages")
    for turn in turns if isinstance(turns, list) else ():
        if isinstance(turn, dict) and turn.get("from", turn.get("role")) in ("gpt", "assistant"):
            text = turn.get("value", turn.get("content"))
            if isinstance(text, str) and text:
                yield "response", text


def _source_of(row: dict[str, Any], file: Path) -> str:
    """A row's source: as it says, else the folder its picture lies in, else the file."""
    if isinstance(row.get("source"), str) and row["source"]:
        return row["source"]
    picture = row.get("image", row.get("images"))
    picture = picture[0] if isinstance(picture, list) and picture else picture
    folders = [part for part in picture.split("/")[:-1] if part] if isinstance(picture, str) else []
    return next((folder for folder in folders if folder not in PICTURE_FOLDERS), file.stem)


def table_2(found: Mapping[str, Any], paper: Sequence[Mapping[str, str]], step: str | None = None) -> list[dict]:
    """Table 2 with ours beside it: by word our two countings and the paper's sets, absolute and per 1,000 texts.

    `found` is what `stats` gives, `paper` the rows of the paper's table: a word, and a column for each set that ends
    in its size in thousands ("mulberry_260k"). `step` is the response where there is one.
    """
    step = step or next((name for name in ("response", "text") if name in found["steps"]), "")
    if step not in found["steps"]:
        raise RequestError(f"{found['file']}: holds no {step or 'response'} to count words in; check the file")
    ours = found["steps"][step]
    texts = ours["lengths"]["texts"]
    table = []
    for row in paper:
        count = ours["words"][row["word"].lower()]
        line = {"word": row["word"], "ours": count["word"], "ours_substring": count["substring"]}
        line["ours_per_1000"] = 1000 * count["word"] / texts
        line["ours_substring_per_1000"] = 1000 * count["substring"] / texts
        for name, value in row.items():
            if name != "word":
                line[name] = int(value)
                line[f"{name}_per_1000"] = int(value) / int(name.rsplit("_", 1)[1].removesuffix("k"))
        table.append(line)
    return table


def stats_text(found: Mapping[str, Any], paper: Sequence[Mapping[str, str]] = ()) -> str:
    """The statistics as lines to read: Table 2 per 1,000 texts with the paper beside it, lengths by source and step."""
    lines = [f"{found['file']}: {found['rows']:,} rows, {found['unreadable']:,} without a text"]
    lines += [f"  for instance {name}" for name in found["unreadable_first"]]
    if paper and found["steps"].keys() & {"response", "text"}:
        table = table_2(found, paper)
        sets = [name for name in paper[0] if name != "word"]
        lines.append(f"\n{'per 1,000 texts':<16}{'ours':>12}{'as substring':>14}" + "".join(f"{n:>22}" for n in sets))
        for row in table:
            values = "".join(f"{row[f'{name}_per_1000']:>22,.1f}" for name in sets)
            lines.append(
                f"{row['word']:<16}{row['ours_per_1000']:>12,.1f}{row['ours_substring_per_1000']:>14,.1f}{values}"
            )
    lines.append(f"\n{'words a text':<34}{'texts':>10}{'mean':>9}{'median':>9}{'p90':>9}{'max':>9}")
    for name, steps in {"all": found["steps"], **found["sources"]}.items():
        for step, counts in steps.items():
            spread = counts["lengths"]
            values = "".join(f"{spread[key]:>9,.0f}" for key in ("mean", "median", "p90", "max"))
            lines.append(f"{f'{name}, {step}'[:34]:<34}{spread['texts']:>10,}{values}")
    return "\n".join(lines)


def stats_command(path: str, as_json: bool = False, paper: Sequence[Mapping[str, str]] = ()) -> int:
    """`vr1 stats FILE`: print the statistics."""
    found = stats(path)
    if as_json and paper and found["steps"].keys() & {"response", "text"}:
        found["table_2"] = table_2(found, paper)
    print(json.dumps(found, indent=2, ensure_ascii=False) if as_json else stats_text(found, paper))
    return 0


# -------------------------------------------------------------------------------------------------------------- leaks


@dataclass(frozen=True)
class LeakAudit:
    """`stated`: descriptions that say outright what the answer is. `mentioned`: the gold's text is a word of them.
    `told`: reasoning that has the answer before it thinks, or speaks of an answer it was given.

    A mention need not be a leak: a description that names all lengths in a picture may well name the one that is
    asked for.
    """

    rows: int
    stated: tuple[str, ...]
    mentioned: tuple[str, ...]
    told: tuple[str, ...] = ()


def audit_leaks(rows: Iterable[ColdRow]) -> LeakAudit:
    """Which rows give the gold away, by row id."""
    count, stated, mentioned, told = 0, [], [], []
    for row in rows:
        count += 1
        if states_answer(row.description, row.answer, row.choices):
            stated.append(row.id)
        if mentions(row.description, row.answer):
            mentioned.append(row.id)
        if answer_before_thinking(row.reasoning) or GIVEN_ANSWER.search(row.reasoning):
            told.append(row.id)
    return LeakAudit(count, tuple(stated), tuple(mentioned), tuple(told))


def mentions(text: str, answer: str) -> bool:
    """The answer occurs in the text as a word of its own."""
    return re.search(rf"(?<![\w.]){re.escape(answer)}(?![\w]|\.\d)", text) is not None


# -------------------------------------------------------------------------------------------------------------- audit


@dataclass
class Against:
    """A set that is held against the audited one, and what both hold."""

    name: str
    index: Index
    rejects: int
    hits: list[dict[str, Any]] = field(default_factory=list)


def audit(path: str | Path, against: Sequence[str | Path] = ()) -> dict[str, Any]:
    """What would spoil a training set, and which of its problems the sets in `against` hold too.

    `path` and each of `against`: a .jsonl of problems or cold-start rows, a .parquet or .json of a known source, or a
    folder in a source's format. Same problems are found by `near_duplicates`; exact copies inside the set by equal
    pictures and words. Raises RequestError for what cannot be read at all.
    """
    with tempfile.TemporaryDirectory() as scratch:  # for pictures out of parquet files
        folder = Path(scratch)
        others = [_index(name, folder / str(number)) for number, name in enumerate(against, start=1)]
        report: dict[str, Any] = {"file": str(path), "rows": 0, "unreadable": [], "refused_golds": []}
        responses = {"checked": 0, "not_rewarded": []}
        leaks = {"checked": 0, "stated": [], "mentioned": [], "told": []}
        first: dict[tuple, str] = {}
        duplicates, seen = [], set()
        for outcome in rows_of(path, folder / "0"):
            report["rows"] += 1
            if isinstance(outcome, Reject):
                report["unreadable"].append(
                    {"id": outcome.id, "reason": outcome.reason, "detail": outcome.detail[:200]}
                )
                continue
            problem, response = outcome
            if problem.id in seen:
                duplicates.append({"id": problem.id, "of": problem.id, "by": "id"})
            seen.add(problem.id)
            key = _key(problem)
            if key in first:
                duplicates.append({"id": problem.id, "of": first[key], "by": "equal pictures and words"})
            first.setdefault(key, problem.id)
            verdict = grade_answer(problem.answer, problem.answer, problem.choices)
            if not verdict.ok:
                report["refused_golds"].append(
                    {"id": problem.id, "answer": problem.answer[:200], "reason": verdict.reason}
                )
            if response is not None:
                responses["checked"] += 1
                reward = grade(response, problem.answer, problem.choices)
                if reward.reward != 1.0:
                    responses["not_rewarded"].append({"id": problem.id, "reason": reward.reason})
            if isinstance(problem, ColdRow):
                found = audit_leaks([problem])
                leaks["checked"] += 1
                for kind in ("stated", "mentioned", "told"):
                    leaks[kind] += getattr(found, kind)
            pictures = fingerprints(problem) if others else []
            for other in others:
                hits = other.index.matches(problem, pictures)
                other.hits += [
                    {"id": problem.id, "of": hit.id, "by": hit.by, "picture": hit.picture, "question": hit.question}
                    for hit in hits
                ]
    contamination = [
        {
            "against": other.name,
            "problems": len(other.index.ids),
            "unreadable": other.rejects,
            "shared": len({hit["id"] for hit in other.hits}),
            "hits": other.hits,
        }
        for other in others
    ]
    return {
        **report,
        "responses": responses,
        "leaks": leaks,
        "duplicates": duplicates,
        "contamination": contamination,
    }


def _index(name: str | Path, scratch: Path) -> Against:
    index, rejects = Index(), 0
    for outcome in rows_of(name, scratch):
        if isinstance(outcome, Reject):
            rejects += 1
        else:
            index.add(outcome[0])
    return Against(str(name), index, rejects)


def _key(problem: Problem) -> tuple:
    """Equal for two problems with the same pictures, words and options."""
    pictures = tuple(file_sha256(path) for path in problem.images if Path(path).is_file())
    return pictures, " ".join(question_words(problem.question)), tuple(problem.choices or ())


def rows_of(path: str | Path, scratch: str | Path | None = None) -> Iterator[tuple[Problem, str | None] | Reject]:
    """The problems of a file or folder, with the response where there is one; what cannot be used is a Reject.

    Of our own .jsonl a wrong line is a Reject too: an audit says what is wrong and goes on. Pictures inside a parquet
    are written to `scratch`.
    """
    path = Path(path)
    if path.suffix == ".jsonl" and not path.is_file():
        raise RequestError(f"{path}: no such file; give a .jsonl of problems or cold-start rows")
    found = sources.locate(path)
    if found.source is None:
        yield from (_record(row, f"{name}", path) for name, row in line_rows(path))
        return
    if found.source.response:
        yield from sources.iterate_cold(path)
        return
    for outcome in sources.iterate(path, panels=scratch):
        yield outcome if isinstance(outcome, Reject) else (outcome, None)


def _record(row: Any, name: str, path: Path) -> tuple[Problem, str | None] | Reject:
    """A line of our own files as a Problem or ColdRow."""
    record_type = ColdRow if isinstance(row, dict) and "response" in row else Problem
    try:
        record = record_type.model_validate(row)
        record.images = [str(inside(path.resolve().parent, image, name)) for image in record.images]
    except ValidationError as error:
        return Reject(id=name, reason="row unreadable", detail=first_error(error))
    except (RequestError, ValueError) as error:
        return Reject(id=name, reason="path leaves the folder", detail=str(error))
    return record, getattr(record, "response", None)


def audit_text(report: Mapping[str, Any], shown: int = 5) -> str:
    """The audit as lines to read: a count for every question, and the first few cases of each."""

    def cases(title: str, found: Sequence[Any], checked: int | None = None) -> list[str]:
        of = "" if checked is None else f" of {checked:,}"
        lines = [f"{title:<52}{len(found):>8,}{of}"]
        for case in found[:shown]:
            lines.append("    " + (", ".join(map(str, case.values())) if isinstance(case, dict) else str(case)))
        return lines

    leaks, responses = report["leaks"], report["responses"]
    lines = [f"{report['file']}: {report['rows']:,} rows"]
    lines += cases("unreadable rows", report["unreadable"])
    lines += cases("golds that our grader refuses from themselves", report["refused_golds"])
    lines += cases("exact duplicates", report["duplicates"])
    if responses["checked"]:
        lines += cases("responses that would not be rewarded", responses["not_rewarded"], responses["checked"])
    if leaks["checked"]:
        lines += cases("descriptions that state the gold", leaks["stated"], leaks["checked"])
        lines += cases("descriptions that mention it (no leak by itself)", leaks["mentioned"], leaks["checked"])
        lines += cases("reasoning that was told the answer", leaks["told"], leaks["checked"])
    for other in report["contamination"]:
        kinds = Counter(hit["by"] for hit in other["hits"])
        by = ", ".join(f"{count} by {kind}" for kind, count in kinds.most_common())
        lines += [
            f"shared with {other['against']} ({other['problems']:,} problems): {other['shared']:,}  {by}".rstrip()
        ]
        lines += [f"    {', '.join(map(str, hit.values()))}" for hit in other["hits"][:shown]]
    return "\n".join(lines)


def audit_command(path: str, against: Sequence[str] = (), as_json: bool = False) -> int:
    """`vr1 audit FILE --against …`: print what was found."""
    report = audit(path, against)
    print(json.dumps(report, indent=2, ensure_ascii=False) if as_json else audit_text(report))
    return 0
