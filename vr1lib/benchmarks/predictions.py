"""A model's predictions as JSONL rows `{id, response, extraction?, variant?}`, matched with a benchmark's problems.

`response` is what the model said, `extraction` an answer that somebody has already taken out of it (any JSON value, for
the published files have odd ones); DynaMath's rows say which `variant` they answer. The benchmarks' own output files
are read too: a .json that is a list of rows or an object of rows by id, ids under their published names (`pid`,
`sample_index`, We-Math's `ID` with `key`), MathVision's `model_answer` as extraction. A file that does not fit its
benchmark is the commonest silent error of a score: problems without a prediction, second predictions and predictions
for no problem are named and counted, and `strict` refuses them. Our choice where they are let pass: a problem without a
prediction is wrong, and of several predictions the first counts.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from vr1lib.records import Problem, RequestError

NAMED_IN_ERRORS = 5  # ids; the score's JSON names all
_NAMES = ("id", "pid", "sample_index")
_EXTRACTIONS = ("extraction", "model_answer")


class Prediction(NamedTuple):
    """`given`: the row has an extraction, which may be null."""

    response: str
    extraction: Any
    given: bool


@dataclass
class Matched:
    """For each problem its prediction or None, in the problems' order, and the ids that do not fit, as they stand."""

    predictions: list[Prediction | None]
    rows: int
    missing: list[str] = field(default_factory=list)
    duplicate: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    def counts(self) -> dict[str, Any]:
        """For the score's JSON: how many rows, how many of them were scored, and every id that does not fit."""
        scored = len(self.predictions) - len(self.missing)
        faults = {kind: getattr(self, kind) for kind in _FAULTS}
        return {
            "rows": self.rows,
            "scored": scored,
            **{kind: {"count": len(ids), "ids": ids} for kind, ids in faults.items()},
        }


_FAULTS = {
    "missing": "problems without a prediction (wrong)",
    "duplicate": "second predictions (not scored)",
    "unknown": "predictions for no problem (not scored)",
}


def in_phrases(counts: Mapping[str, Any]) -> list[str]:
    """One phrase for each kind of fault in `Matched.counts`: how many and which."""
    faults = {what: counts[kind]["ids"] for kind, what in _FAULTS.items()}
    return [f"{len(ids)} {what}: {shortened(ids)}" for what, ids in faults.items() if ids]


def read_predictions(path: str | Path) -> list[tuple[str, int | None, Prediction]]:
    """The rows of a predictions file as (id, variant, prediction). Raises RequestError naming a row that is none."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path}: cannot be read ({error}); give a JSONL file of predictions") from None
    rows = _published_rows(text, path) if Path(path).suffix == ".json" else None
    return [_prediction(row, f"{path}, {name}") for name, row in (_lines(text, path) if rows is None else rows)]


def _lines(text: str, path: str | Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield f"line {number}", json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{path}, line {number}: not JSON ({error}); write one object a line") from None


def _published_rows(text: str, path: str | Path) -> list[tuple[str, Any]] | None:
    """The rows of a whole JSON file: a list of them, or an object of rows by id; None leaves lines of rows to `_lines`.

    Of an object the keys are the ids: a row's own name for itself may be another data set's.
    """
    try:
        content = json.loads(text, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:
        if text.lstrip()[:1] == "{" and "Extra data" in str(error):
            return None
        raise RequestError(f"{path}: not JSON ({error}); give rows one a line, a list of them, or rows by id") from None
    if isinstance(content, list):
        return [(f"row {number}", _plain(row)) for number, row in enumerate(content, start=1)]
    if isinstance(content, _Pairs) and all(isinstance(row, _Pairs) for _, row in content.pairs):
        return [(f"row {name!r:.60}", {**_plain(row), "id": name}) for name, row in content.pairs]
    if isinstance(content, _Pairs):
        return [("line 1", _plain(content))]
    raise RequestError(f"{path}: holds no rows; give rows one a line, a list of them, or rows by id")


class _Pairs:
    """A JSON object as its pairs, so that an id that occurs twice is not lost."""

    def __init__(self, pairs: list[tuple[str, Any]]):
        self.pairs = pairs


def _plain(value: Any) -> Any:
    """The same without `_Pairs`, two levels deep: a row and the lists in it."""
    if isinstance(value, _Pairs):
        return {key: _plain(inner) for key, inner in value.pairs}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def _prediction(row: Any, where: str) -> tuple[str, int | None, Prediction]:
    if not isinstance(row, dict):
        raise RequestError(f"{where}: not an object; write {{id, response}}")
    name, variant = _name(row), row.get("variant")
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise RequestError(f"{where}: field 'id' = {name!r:.60}: not a text; give the data's own id")
    if isinstance(variant, str) and variant.isdecimal():
        variant = int(variant)
    if variant is not None and (isinstance(variant, bool) or not isinstance(variant, int)):
        raise RequestError(f"{where}: field 'variant' = {variant!r:.60}: not a whole number; give 1 to 10")
    if "response" not in row and "extraction" not in row:
        raise RequestError(f"{where}: field 'response' is missing; add it")
    response = row.get("response")
    if response is not None and not isinstance(response, str):
        raise RequestError(f"{where}: field 'response' = {response!r:.60}: not a text; put it in quotes")
    given = next((key for key in _EXTRACTIONS if key in row), None)
    return str(name).strip(), variant, Prediction(response or "", row.get(given), given is not None)


def _name(row: Mapping[str, Any]) -> Any:
    if "id" not in row and "ID" in row and "key" in row:
        return f"{row['ID']}-{row['key']}"
    return next((row[key] for key in _NAMES if key in row), None)


def match(
    problems: Sequence[Problem], rows: Iterable[tuple[str, int | None, Prediction]], strict: bool = False
) -> Matched:
    """Give each problem its prediction, by the data's own id (`meta["id"]`) and variant, or by our id of the problem.

    `strict` raises RequestError if anything is missing, comes twice or belongs to no problem.
    """
    places: dict[tuple[str, int | None], int] = {}
    for place, problem in enumerate(problems):
        places[problem.id, None] = place
    for place, problem in enumerate(problems):
        places[str(problem.meta.get("id", problem.id)), problem.meta.get("variant")] = place
    matched = Matched([None] * len(problems), 0)
    for name, variant, prediction in rows:
        matched.rows += 1
        place = places.get((name, variant))
        if place is None:
            matched.unknown.append(_named(name, variant))
        elif matched.predictions[place] is not None:
            matched.duplicate.append(_named(name, variant))
        else:
            matched.predictions[place] = prediction
    for problem, prediction in zip(problems, matched.predictions):
        if prediction is None:
            matched.missing.append(_named(str(problem.meta.get("id", problem.id)), problem.meta.get("variant")))
    if strict and (faults := in_phrases(matched.counts())):
        raise RequestError(f"predictions do not fit the data: {'; '.join(faults)}; mend the file or leave out --strict")
    return matched


def _named(name: str, variant: int | None) -> str:
    return name if variant is None else f"{name} variant {variant}"


def shortened(ids: Sequence[str]) -> str:
    """The first few ids in one line."""
    shown = ", ".join(name[:60].encode("unicode_escape").decode() for name in ids[:NAMED_IN_ERRORS])
    return f"{shown}, …" if len(ids) > NAMED_IN_ERRORS else shown
