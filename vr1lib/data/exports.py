"""Our rows for other trainers: LLaMA-Factory, EasyR1 and verl, and a Hugging Face dataset with its card.

    llama-factory   cold-start rows as sharegpt conversations, `dataset_info.json` and the pictures beside them
    easyr1          problems as geometry3k's parquet: images, problem, answer
    verl            problems as verl's parquet: data_source, prompt, images, ability, reward_model, extra_info
    hf              all that our rows hold, as parquet with a card; `datasets.load_dataset(folder)` reads it

Every export is a folder that can be moved or uploaded whole. A row that the other side would trip over is left out and
counted with its reason: LLaMA-Factory stops at the first row whose `<image>` tokens, counted over all turns, are not as
many as its pictures.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from vr1lib.data import rl_set
from vr1lib.data.audits import rows_of
from vr1lib.data.sources import SOURCES, Reject, RowFault, gather_pictures, picture_format
from vr1lib.prompts import IMAGE_MARKER
from vr1lib.records import ColdRow, Problem, RequestError, file_sha256

Target = Literal["llama-factory", "easyr1", "verl", "hf"]
PLACEHOLDERS = (IMAGE_MARKER, "<video>", "<audio>")  # LLaMA-Factory replaces these wherever they stand
ROWS_A_FILE = 20_000  # of a Hugging Face dataset: a few gigabytes with usual pictures


def export(path: str | Path, to: Target, out: str | Path) -> dict[str, Any]:
    """Write the rows of `path` (.jsonl of cold-start rows or problems, or a known source) for another trainer.

    Returns what was written: `files`, `rows`, and `left_out` with the reasons' counts. Raises RequestError for an
    unknown target, a folder that is not empty, or rows that the target has no use for.
    """
    writers = {"llama-factory": _llama_factory, "easyr1": _easyr1, "verl": _verl, "hf": _hugging_face}
    if to not in writers:
        raise RequestError(f"'to' = {to!r}: give one of {', '.join(writers)}")
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RequestError(f"{out}: is there already; give the path of a new folder as 'out'")
    out.mkdir(parents=True, exist_ok=True)
    left_out: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as scratch:  # for pictures out of a parquet
        written, files = writers[to](_usable(path, Path(scratch), left_out), out, Path(path), left_out)
    return {"to": to, "out": str(out), "rows": written, "left_out": dict(left_out), "files": files}


def _usable(path: str | Path, scratch: Path, left_out: Counter[str]) -> Iterator[tuple[Problem, str | None]]:
    """The rows whose pictures are sound and whose markers fit them."""
    for outcome in rows_of(path, scratch):
        if isinstance(outcome, Reject):
            left_out[outcome.reason] += 1
            continue
        problem, response = outcome
        try:
            for picture in problem.images:
                picture_format(picture)
            if rl_set.marked_question(problem).count(IMAGE_MARKER) != len(problem.images):
                raise RowFault("markers and pictures differ")
        except RowFault as fault:
            left_out[fault.reason] += 1
            continue
        yield problem, response


# ----------------------------------------------------------------------------------------------------- LLaMA-Factory


def _llama_factory(
    rows: Iterable[tuple[Problem, str | None]], out: Path, path: Path, left_out: Counter[str]
) -> tuple[int, list[str]]:
    name = path.stem.replace("-", "_")
    file = f"{name}.json"
    count = 0
    with (out / file).open("w", encoding="utf-8") as target:
        target.write("[")
        for problem, response in rows:
            if response is None:
                raise RequestError(f"{path}: problem {problem.id} has no response; LLaMA-Factory takes cold-start rows")
            question = rl_set.marked_question(problem)
            if any(mark in response for mark in PLACEHOLDERS) or any(mark in question for mark in PLACEHOLDERS[1:]):
                left_out["a placeholder stands in its text"] += 1
                continue
            (gathered,) = gather_pictures([problem], out)
            row = {
                "id": problem.id,
                "messages": [
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": response},
                ],
                "images": [Path(picture).relative_to(out.resolve()).as_posix() for picture in gathered.images],
            }
            target.write(",\n" * (count > 0) + json.dumps(row, ensure_ascii=False))
            count += 1
        target.write("]\n")
    info = {
        name: {
            "file_name": file,
            "formatting": "sharegpt",
            "columns": {"messages": "messages", "images": "images"},
            "tags": {
                "role_tag": "role",
                "content_tag": "content",
                "user_tag": "user",
                "assistant_tag": "assistant",
            },
        }
    }
    (out / "dataset_info.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    return count, [file, "dataset_info.json"]


# ---------------------------------------------------------------------------------------------------- EasyR1 and verl


def _easyr1(
    rows: Iterable[tuple[Problem, str | None]], out: Path, path: Path, left_out: Counter[str]
) -> tuple[int, list[str]]:
    return rl_set.write_parquet((problem for problem, _ in rows), out / "train.parquet"), ["train.parquet"]


def _verl(
    rows: Iterable[tuple[Problem, str | None]], out: Path, path: Path, left_out: Counter[str]
) -> tuple[int, list[str]]:
    from datasets import List, Value

    text = Value("string")
    columns = {
        "data_source": text,
        "prompt": List({"role": text, "content": text}),
        "ability": text,
        "reward_model": {"style": text, "ground_truth": text},
        "extra_info": {"split": text, "index": Value("int64"), "id": text, "answer": text, "question": text},
    }

    def verl_rows() -> Iterator[dict[str, Any]]:
        for number, (problem, _) in enumerate(rows):
            question = rl_set.marked_question(problem)
            yield {
                "data_source": problem.source,
                "prompt": [{"role": "user", "content": question}],
                "images": problem.images,
                "ability": "math",
                "reward_model": {"style": "rule", "ground_truth": problem.answer},
                "extra_info": {
                    "split": problem.split,
                    "index": number,
                    "id": problem.id,
                    "answer": problem.answer,
                    "question": question,
                },
            }

    return rl_set.write_rows(verl_rows(), out / "train.parquet", columns), ["train.parquet"]


# ------------------------------------------------------------------------------------------------------- Hugging Face


def _hugging_face(
    rows: Iterable[tuple[Problem, str | None]], out: Path, path: Path, left_out: Counter[str]
) -> tuple[int, list[str]]:
    from datasets import List, Value

    text = Value("string")
    columns = {name: text for name in ("id", "question", "answer", "source", "split", "meta", "response")}
    columns |= {"choices": List(text)} | {name: text for name in ("pseudo_cot", "description", "reasoning", "calls")}
    by_source: Counter[str] = Counter()

    def hub_row(problem: Problem, response: str | None) -> dict[str, Any]:
        by_source[problem.source] += 1
        row = problem.model_dump(include={"id", "images", "question", "answer", "choices", "source", "split"})
        row |= {"meta": json.dumps(problem.meta, ensure_ascii=False), "response": response}
        for name in ("pseudo_cot", "description", "reasoning"):
            row[name] = getattr(problem, name, None)
        row["calls"] = problem.model_dump_json(include={"calls"}) if isinstance(problem, ColdRow) else None
        return row

    count, files, stream = 0, [], iter(rows)
    while True:
        part = (hub_row(*row) for _, row in zip(range(ROWS_A_FILE), stream))
        file = f"data/train-{len(files):05d}.parquet"
        written = rl_set.write_rows(part, out / file, columns)
        if not written and files:
            (out / file).unlink()
            break
        files.append(file)
        count += written
        if written < ROWS_A_FILE:
            break
    (out / "README.md").write_text(_card(path, count, by_source, left_out), encoding="utf-8")
    return count, [*files, "README.md"]


def _card(path: Path, rows: int, by_source: Counter[str], left_out: Counter[str]) -> str:
    """The dataset's card: how it is read, what is in it, from where, and under whose licences."""
    lines = ["---", "task_categories:", "- visual-question-answering", "license: other", "configs:"]
    lines += [
        "- config_name: default",
        "  data_files:",
        "  - split: train",
        "    path: data/train-*.parquet",
        "---",
        "",
    ]
    lines += [f"# {path.stem}", "", f"{rows:,} rows, written by vr1lib. Every source keeps its own licence.", ""]
    lines += ["| source | rows | from | licence |", "|---|---|---|---|"]
    for name, count in by_source.most_common():
        source = SOURCES.get(name)
        lines.append(f"| {name} | {count:,} | {source.hub if source else '–'} | {source.licence if source else '–'} |")
    if left_out:
        lines += [
            "",
            "Left out: " + ", ".join(f"{count:,} × {reason}" for reason, count in left_out.most_common()) + ".",
        ]
    if path.is_file():
        lines += ["", f"Made from `{path.name}`, SHA-256 `{file_sha256(path)}`."]
    lines += ["", "`meta` and `calls` are JSON; `response` is what a cold start learns, empty for plain problems.", ""]
    return "\n".join(lines)


def export_command(path: str, to: str, out: str) -> int:
    """`vr1 export FILE --to TARGET --out FOLDER`: write the folder and say what is in it."""
    done = export(path, to, out)
    print(f"{done['rows']:,} rows for {done['to']} in {done['out']}: {', '.join(done['files'])}")
    for reason, count in done["left_out"].items():
        print(f"  left out: {count:,} × {reason}")
    return 0
