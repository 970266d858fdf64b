"""How well the contamination audit finds altered copies: recall and precision on a planted set.

    python bench/contamination.py [--problems 120] [--data FOLDER --source wemath mathvision] [--json]

Half of the "training" problems are copies of "benchmark" problems: recoloured, resized, a margin of up to 4 % a side
cropped off, saved as a poor JPEG, and reworded; the other half are others, with other pictures. Recall is the share of
copies held against their original, precision the share of copies among all that were taken for one. Problems are
drawings made here, or those of real sources below `--data`. Fails below 0.95.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from test_audits import altered, planted_problem  # noqa: E402

from vr1lib.data import sources  # noqa: E402
from vr1lib.data.near_duplicates import Index  # noqa: E402

ENOUGH = 0.95


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--problems", type=int, default=120)
    options.add_argument("--data", type=Path)
    options.add_argument("--source", nargs="+", default=["mathvision", "wemath"])
    options.add_argument("--json", action="store_true")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if chosen.data:
            limit = chosen.problems // len(chosen.source)
            problems = sources.load_all(chosen.source, chosen.data, limit=limit).problems
        else:
            problems = [planted_problem(folder, seed) for seed in range(chosen.problems)]
        benchmark, others = sources.assign_splits(problems, {"benchmark": 1, "others": 1}).values()
        copies = [altered(problem, folder, number) for number, problem in enumerate(benchmark) if problem.images]
        index = Index(benchmark)
        found = {problem.id: [match.id for match in index.matches(problem)] for problem in [*copies, *others]}
    recall = sum(copy.id.removeprefix("x") in found[copy.id] for copy in copies) / len(copies)
    taken = [id for id, matches in found.items() if matches]
    wrong = sorted(set(taken) - {copy.id for copy in copies})
    precision = 1 - len(wrong) / max(1, len(taken))
    good = min(recall, precision) >= ENOUGH
    report = {"copies": len(copies), "others": len(others), "recall": recall, "precision": precision, "passed": good}
    if chosen.json:
        print(json.dumps(report))
    else:
        print(
            f"{len(copies)} altered copies among {len(copies) + len(others)} problems: recall {recall:.3f}, "
            f"precision {precision:.3f}; {'passed' if good else 'FAILED'} (at least {ENOUGH})"
        )
        for id in wrong:
            print(f"  {id} was taken for a copy of {', '.join(found[id])}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
