"""Sampling of ours beside transformers' `generate`: tokens a second at spread lengths, and whether they sample alike.

    python bench/rollout.py [--rounds 3] [--json]

64 completions (8 prompts with a picture of 64 tokens, 8 samples each) of log-normal lengths, their mean a quarter of
the limit of 256 tokens, by a tiny Qwen2.5-VL in one thread; both sides are given the same lengths, all rows at once,
then at most 32 at once: there ours lets waiting rows enter, and `generate` takes batch after batch. In turns, medians
of CPU time. Below, greedy text is compared token by token, and the first sampled token's frequencies with the model's
own probabilities (chi-squared, 4,096 samples). Fails below twice the tokens a second, or where the two differ.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from scipy.stats import chisquare  # noqa: E402

from bench.common.lengths import ours_ending_at, spread_lengths, theirs_ending_at  # noqa: E402
from bench.common.tiny import build, problems_of  # noqa: E402
from vr1lib.models.rollout_local import sample  # noqa: E402
from vr1lib.models.vlm import EncodedPrompt, Vlm, collate_prompts, load_vlm  # noqa: E402

PROMPTS, GROUP_SIZE, LIMIT, IMAGE_TOKENS = 8, 8, 256, 64
WANTED = 2.0
FEWEST_EXPECTED = 5  # tokens rarer than this count as one in the chi-squared test
SMALLEST_P = 0.001


def our_tokens(vlm: Vlm, prompts: list[EncodedPrompt], lengths: list[int], rows_at_once: int) -> list[list[int]]:
    with ours_ending_at(vlm, lambda seed, number: lengths[seed * GROUP_SIZE + number]):
        groups = sample(
            vlm, prompts, group_size=GROUP_SIZE, max_completion_tokens=LIMIT, seeds=range(PROMPTS),
            rows_at_once=rows_at_once,
        )  # fmt: skip
    return [sampled.token_ids for group in groups for sampled in group]


def their_tokens(vlm: Vlm, prompts: list[EncodedPrompt], lengths: list[int], rows_at_once: int) -> list[list[int]]:
    rows, repeated = [], [prompt for prompt in prompts for _ in range(GROUP_SIZE)]
    for start in range(0, len(repeated), rows_at_once):
        batch = collate_prompts(repeated[start : start + rows_at_once], vlm.pad_token_id)
        own = lengths[start : start + rows_at_once]
        ids = vlm.model.generate(
            **batch, max_new_tokens=LIMIT, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            logits_processor=theirs_ending_at(own, LIMIT, vlm.eos_token_ids),
        )  # fmt: skip
        rows += [row[:length].tolist() for row, length in zip(ids[:, batch["input_ids"].shape[1] :], own)]
    return rows


def race(vlm: Vlm, prompts: list[EncodedPrompt], rows_at_once: int, rounds: int) -> dict:
    """Both in turns, after one round for nothing."""
    sides: dict[str, Callable] = {"ours": our_tokens, "generate": their_tokens}
    speeds: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(rounds + 1):
        lengths = spread_lengths(PROMPTS * GROUP_SIZE, LIMIT, seed=number)
        for side, tokens_of in sides.items():
            started = time.process_time()
            made = tokens_of(vlm, prompts, lengths, rows_at_once)
            seconds = time.process_time() - started
            if [len(row) for row in made] != lengths:
                raise SystemExit(f"{side}: lengths {[len(row) for row in made]} in place of {lengths}")
            speeds[side].append(sum(lengths) / seconds)
    told = {side: round(statistics.median(each[1:])) for side, each in speeds.items()}
    return {"tokens_per_second": told, "times_faster": round(told["ours"] / told["generate"], 2)}


def greedy_is_equal(vlm: Vlm, prompts: list[EncodedPrompt]) -> bool:
    batch = collate_prompts(prompts, vlm.pad_token_id)
    banned = [[token] for token in vlm.vision_token_ids]
    theirs = vlm.model.generate(**batch, max_new_tokens=64, do_sample=False, bad_words_ids=banned)
    theirs = theirs[:, batch["input_ids"].shape[1] :].tolist()
    groups = sample(vlm, prompts, group_size=2, max_completion_tokens=64, temperature=0, seeds=[0] * len(prompts))
    return all(row.token_ids == own[: len(row.token_ids)] for group, own in zip(groups, theirs) for row in group)


def chi_squared(vlm: Vlm, prompt: EncodedPrompt, samples: int = 4096) -> dict:
    """The first token's counts beside the model's own probabilities, vision tokens left out."""
    (group,) = sample(vlm, [prompt], group_size=samples, max_completion_tokens=1, seeds=[1], rows_at_once=1024)
    counts = torch.bincount(torch.tensor([row.token_ids[0] for row in group]), minlength=len(vlm.tokenizer))
    with torch.no_grad():
        logits = vlm.model(**collate_prompts([prompt], vlm.pad_token_id)).logits[0, -1].double()
    logits[list(vlm.vision_token_ids)] = float("-inf")
    expected = samples * logits.softmax(dim=0)
    often = expected >= FEWEST_EXPECTED
    observed = [*counts[often].tolist(), int(counts[~often].sum())]
    wanted = [*expected[often].tolist(), float(expected[~often].sum())]
    found = chisquare(observed, wanted)
    return {"statistic": round(float(found.statistic), 1), "cells": len(observed), "p": round(float(found.pvalue), 4)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder), {IMAGE_TOKENS})
        vlm = load_vlm(Path(folder, "model"))
        prompts = [vlm.encode_prompt(problem) for problem in problems_of(Path(folder), IMAGE_TOKENS, PROMPTS)]
    report: dict = {f"{rows}_rows_at_once": race(vlm, prompts, rows, options.rounds) for rows in (64, 32)}
    noise = torch.randn(vlm.model.lm_head.weight.shape, generator=torch.Generator().manual_seed(0))
    vlm.model.lm_head.weight = torch.nn.Parameter(noise * 0.2)  # so that tokens differ in probability
    report["greedy_equals_generate"] = greedy_is_equal(vlm, prompts)
    report["first_token_chi_squared"] = chi_squared(vlm, prompts[0])
    races = [each for name, each in report.items() if name.endswith("at_once")]
    report["holds"] = (
        all(each["times_faster"] >= WANTED for each in races)
        and report["greedy_equals_generate"]
        and report["first_token_chi_squared"]["p"] > SMALLEST_P
    )
    print(
        json.dumps(report, indent=2) if options.json else "\n".join(f"{name}: {told}" for name, told in report.items())
    )
    return 0 if report["holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
