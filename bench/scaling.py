"""How a GRPO step's time grows: with the group, with the tokens made, with the picture; the exponents of power laws.

    python bench/scaling.py [--steps 3] [--json]

Each sweep changes one thing and keeps the others: a step of two prompts on the tiny Qwen2.5-VL in one thread, its
median CPU time, the first step thrown away. An exponent is the slope of a straight line through logarithms; 1 is
linear, below 1 is what fixed costs and shared prompts make of it. Fails above 1.1 for group and tokens.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy  # noqa: E402
import torch  # noqa: E402

from bench.common.tiny import build  # noqa: E402
from bench.grpo_vs_trl import Shape, our_steps  # noqa: E402

SWEEPS: dict[str, list[tuple[int, Shape]]] = {
    "group size": [(size, Shape(64, 64, size, spread=False)) for size in (4, 8, 16, 32, 64)],
    "tokens made": [(16 * length, Shape(64, length, 8, spread=False)) for length in (32, 64, 128, 256, 512)],
    "image tokens": [(tokens, Shape(tokens, 64, 8, spread=False)) for tokens in (16, 64, 144, 256)],
}
MOST = {"group size": 1.1, "tokens made": 1.1}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3, help="measured steps at each point")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    report: dict = {}
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder), {shape.image_tokens for sweep in SWEEPS.values() for _, shape in sweep})
        for name, sweep in SWEEPS.items():
            seconds = {}
            for value, shape in sweep:
                times, _ = our_steps(Path(folder), shape, options.steps + 1)
                seconds[value] = statistics.median(times[1:])
            exponent = numpy.polyfit(numpy.log(list(seconds)), numpy.log(list(seconds.values())), 1)[0]
            told = {str(value): round(each, 3) for value, each in seconds.items()}
            report[name] = {"seconds": told, "exponent": round(float(exponent), 2)}
    report["holds"] = all(report[name]["exponent"] <= most for name, most in MOST.items())
    print(
        json.dumps(report, indent=2) if options.json else "\n".join(f"{name}: {told}" for name, told in report.items())
    )
    return 0 if report["holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
