"""How fast the bridging asks, how much memory many problems take, how soon it is at work again, and what kills cost.

    python bench/bridging.py [--calls 6000] [--problems 200000] [--kills 20] [--json]

A stub in a process of its own answers every call after 200 ms, as two teachers would; pictures are PNGs of 30 KB.

- calls: 128 in flight, through endpoints, store, filters and files; calls per second, and this process's own time.
- memory: many problems with a teacher in the process that is paid, so that every reply is stored; resident memory at
  each tenth of the way. Chains of thought of 2,000 characters.
- resume: another process in the same folder, with everything finished: seconds from the call to its return.
- kills: a run against the stub is killed with SIGKILL at random moments, then finished.
"""

import argparse
import json
import multiprocessing
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.chat_server import Answer, ChatServer, chat, prompt_of, step_of  # noqa: E402
from vr1lib.data.bridging import Bridged, bridge  # noqa: E402
from vr1lib.data.calls import KILLED  # noqa: E402
from vr1lib.data.endpoints import Endpoint, Endpoints  # noqa: E402
from vr1lib.data.teachers import Reply  # noqa: E402
from vr1lib.records import ColdRow, Problem, read_jsonl  # noqa: E402

LATENCY = 0.2  # seconds
IN_FLIGHT = 128
THOUGHT = " ".join(f"Row {row} holds {row % 4} cells, so the total is {row * 3 % 17}." for row in range(50)) + " So 5."
TEXTS = {"pseudo_cot": "Caption: two and three. Reasoning: add. 5.", "description": "A row of two and a row of three."}


def answer(request: bytes) -> Answer:
    step = step_of(request)
    body = chat("Final Answer: 5", reasoning_content=THOUGHT) if step == "reasoning" else chat(TEXTS[step])
    return Answer(body, delay=LATENCY)


def serve(pipe: Any) -> None:
    """The stub, until it is told to end: from "count" on it counts how often each prompt was answered."""
    with ChatServer(answer, keep=False) as server:
        pipe.send(server.url)
        paid: Counter[str] = Counter()
        while (word := pipe.recv()) != "end":
            if word == "count":
                server.seen, server.answered = 0, lambda body: paid.update([prompt_of(body)])
            else:
                pipe.send({"requests_the_stub_saw": server.seen, "paid_twice": sum(paid.values()) - len(paid)})


class Instant:
    """A paid teacher that answers at once, so that the run's own work is all there is."""

    models, paid = ("instant",), True

    def settings(self, purpose: str) -> dict:
        return {}

    async def ask(self, purpose: str, prompt: str, images: list[str], seed: int) -> Reply:
        text, reasoning = ("Final Answer: 5", THOUGHT) if purpose == "reasoning" else (TEXTS[purpose], "")
        return Reply(text, reasoning, "instant", 500, 500, 0.0)

    async def close(self) -> None:
        pass


def problems(folder: Path, count: int) -> Iterator[Problem]:
    picture = str(folder / "picture.png")
    for number in range(count):
        yield Problem(
            id=f"problem-{number}",
            images=[picture],
            question=f"How many cells are there in rows {number} and {number + 1}?",
            answer="5",
            source="bench",
            split="cold",
        )


def draw(folder: Path) -> None:
    """A PNG of 30 KB."""
    Image.effect_noise((177, 177), 60).save(folder / "picture.png")


def calls_per_second(folder: Path, url: str, count: int) -> dict:
    teacher = Endpoints([Endpoint(url, "m", concurrency=IN_FLIGHT)])
    started, worked = time.perf_counter(), time.process_time()
    done = bridge(problems(folder, count // 3), teacher, teacher, folder, seed=0, in_flight=IN_FLIGHT)
    seconds = time.perf_counter() - started
    total = done.ledger.as_dict()["total"]
    return {
        "calls": total["calls"],
        "failed": total["failed"],
        "calls_per_second": round(total["calls"] / seconds),
        "own_milliseconds_per_call": round(1000 * (time.process_time() - worked) / total["calls"], 2),
        "picture_bytes": (folder / "picture.png").stat().st_size,
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def build(folder: Path, count: int) -> dict:
    """Bridge `count` problems with the instant teacher; run in a process of its own."""
    process, rss = psutil.Process(), []

    def log(metrics: dict) -> None:
        if metrics["step"] % max(100, count // 10) == 0:
            rss.append(round(process.memory_info().rss / 2**20))

    started = time.perf_counter()
    done: Bridged = bridge(problems(folder, count), Instant(), Instant(), folder, seed=0, log=log)
    seconds = time.perf_counter() - started
    return {
        "problems": count,
        "kept": done.kept,
        "finished_before": done.before,
        "seconds": round(seconds, 1),
        "problems_per_second": round(count / seconds),
        "rss_mb": rss,
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def killed(folder: Path, url: str, count: int, kills: int, seen: Callable[[], int]) -> dict:
    """Kill and resume a run against the stub until it was killed `kills` times, then let it finish."""
    dice, done = random.Random(0), 0
    while done < kills:
        before = seen()
        run = subprocess.Popen([sys.executable, __file__, "--run", url, str(folder), str(count)])
        while run.poll() is None and seen() == before:
            time.sleep(0.02)
        time.sleep(dice.uniform(0, 1.0))
        run.send_signal(signal.SIGKILL)
        done += run.wait() == -signal.SIGKILL
        if run.returncode == 0:
            raise SystemExit(f"the run of {count} problems was over after {done} kills; give more problems")
    subprocess.run([sys.executable, __file__, "--run", url, str(folder), str(count)], check=True)
    ids = [row.id for row in read_jsonl(folder / "cold.jsonl", ColdRow)]
    book = json.loads((folder / "ledger.json").read_text(encoding="utf-8"))
    lost = sum(row["requests"] for row in book["failures"] if row["reason"] == KILLED)
    return {
        "kills": kills,
        "problems": count,
        "ids_unique_and_complete": sorted(ids) == sorted(f"problem-{number}" for number in range(count)),
        "calls_in_the_ledger": book["total"]["calls"],
        "calls_in_flight_when_killed": lost,
    }


def one_run(url: str, folder: Path, count: int) -> None:
    teacher = Endpoints([Endpoint(url, "m", concurrency=IN_FLIGHT)])
    bridge(problems(folder, count), teacher, teacher, folder, seed=0, in_flight=IN_FLIGHT, tell=lambda line: None)


def apart(work: Any, *arguments: Any) -> Any:
    """Do something in a fresh process, so that its memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=6000, help="calls to the stub, 0 for none")
    parser.add_argument("--problems", type=int, default=200_000, help="problems for memory and resume, 0 for none")
    parser.add_argument("--kills", type=int, default=20, help="kills, 0 for none")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--run", nargs=3, metavar=("URL", "FOLDER", "PROBLEMS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        return one_run(options.run[0], Path(options.run[1]), int(options.run[2]))

    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    stub = context.Process(target=serve, args=(there,), daemon=True)
    stub.start()
    url = here.recv()
    report: dict = {}
    with tempfile.TemporaryDirectory() as temporary:
        folders = {name: Path(temporary) / name for name in ("calls", "problems", "kills")}
        for folder in folders.values():
            folder.mkdir()
            draw(folder)
        if options.calls:
            report["calls"] = apart(calls_per_second, folders["calls"], url, options.calls)
        if options.problems:
            report["memory"] = apart(build, folders["problems"], options.problems)
            report["resume"] = apart(build, folders["problems"], options.problems)
            report["resume"]["cold_jsonl_mb"] = round((folders["problems"] / "cold.jsonl").stat().st_size / 2**20)
        if options.kills:

            def say() -> dict:
                here.send("say")
                return here.recv()

            here.send("count")
            count = 150 * options.kills  # of which a run does at most 107 in the second it may have
            report["kills"] = killed(
                folders["kills"], url, count, options.kills, lambda: say()["requests_the_stub_saw"]
            )
            report["kills"] |= say()
    here.send("end")
    stub.join()
    print(json.dumps(report, indent=2) if options.json else in_words(report))


def in_words(report: dict) -> str:
    return "\n".join(
        f"{name}: " + ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in part.items())
        for name, part in report.items()
    )


if __name__ == "__main__":
    main()
