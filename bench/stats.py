"""How fast `vr1 stats` reads a whole cold-start set, and in how little memory: 200,000 chains of thought, about 1 GB.

    python bench/stats.py [--rows 200000] [--json]

The file is made in a temporary folder: cold-start rows with English, LaTeX and line breaks, the doubting words as often
as in the paper's data. Fails above 60 seconds or 1 GB of memory; the reading is done by a process of its own, so that
making the file doesn't count.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

MAX_SECONDS, MAX_BYTES = 60.0, 1 << 30
SENTENCES = [
    "Okay, so I need to find the length of the side that is marked with a question mark in the picture.",
    "Wait, let me check that again, because the angle at B might not be a right angle.",
    "Using the law of cosines, $c^2 = a^2 + b^2 - 2ab\\cos(\\gamma)$, which gives $c \\approx 7.21$.",
    "Hmm, the bar for 2014 is slightly above the line at 30, so it is maybe 32.",
    "Alternatively, I could look at the triangle ABC and see that it is similar to ADE.\n\n",
    "Therefore the area is half of the product, $\\frac{1}{2} \\cdot 6 \\cdot 8 = 24$ cm².",
    "I made a mistake there: the radius is half of that, so the circle is smaller than I thought.",
    "The options are (A) 12, (B) 24, (C) 36 and (D) 48, so the second one fits.\n",
]


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rows", type=int, default=200_000)
    options.add_argument("--json", action="store_true")
    options.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.read:
        return read(chosen.read)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cold.jsonl"
        made = make(path, chosen.rows)
        command = [sys.executable, __file__, "--read", str(path)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        size = path.stat().st_size
    good = found["rows"] == chosen.rows and found["wait"] == made
    good = good and found["seconds"] <= MAX_SECONDS and found["peak_bytes"] <= MAX_BYTES
    report = {"rows": found["rows"], "bytes": size, "seconds": found["seconds"], "peak_bytes": found["peak_bytes"]}
    if chosen.json:
        print(json.dumps({**report, "passed": good}))
    else:
        print(
            f"{found['rows']:,} rows, {size / 1e9:.2f} GB: {found['seconds']:.1f} s "
            f"({size / 1e6 / found['seconds']:.0f} MB/s), peak memory {found['peak_bytes'] / 1e6:.0f} MB; "
            f"{'passed' if good else 'FAILED'} (at most {MAX_SECONDS:.0f} s, {MAX_BYTES / 1e6:.0f} MB)"
        )
    return 0 if good else 1


def make(path: Path, rows: int, seed: int = 0) -> int:
    """Write the rows; returns how often "wait" stands in their responses."""
    dice = random.Random(seed)
    waits = 0
    texts = []
    for _ in range(200):
        chain = " ".join(dice.choices(SENTENCES, k=dice.randrange(14, 36)))
        description = " ".join(dice.choices(SENTENCES[5:], k=4))
        texts.append((chain, description, chain.lower().count("wait")))
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            chain, description, count = texts[dice.randrange(len(texts))]
            waits += count
            row = {
                "id": f"bench-{number}",
                "images": [f"images/{number}.png"],
                "question": "What is the area of the triangle?",
                "answer": "24",
                "source": ("geometry", "charts", "science")[number % 3],
                "split": "cold",
                "pseudo_cot": description,
                "description": description,
                "reasoning": chain,
                "response": f"<think> {chain} </think><answer> Final Answer:24 </answer>",
                "calls": [],
            }
            file.write(json.dumps(row, ensure_ascii=number % 2 == 0) + "\n")
    return waits


def read(path: Path) -> int:
    from vr1lib.data.audits import stats

    start = time.perf_counter()
    found = stats(path)
    seconds = time.perf_counter() - start
    wait = found["steps"]["response"]["words"]["wait"]["word"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"rows": found["rows"], "wait": wait, "seconds": seconds, "peak_bytes": peak}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
