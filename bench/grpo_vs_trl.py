"""A GRPO step of ours beside one of TRL's GRPOTrainer: same model, prompts, pictures, group and completion lengths.

    python bench/grpo_vs_trl.py [--shapes 256x64x16 …] [--steps 4] [--rounds 3] [--json]

A shape is IMAGE_TOKENSxMAX_NEW_TOKENSxGROUP, with `s` behind it where lengths are spread as a policy's are: log-normal,
their mean a quarter of the limit. Otherwise every completion is as long as it may be, which favours whoever pads. Both
sample at temperature 1 from the same tiny Qwen2.5-VL, grade, and take one optimizer step, without KL, in one thread
(OMP_NUM_THREADS=1 unless set otherwise). Times are the process's CPU time, which other work on the machine disturbs
less than the clock's. Lengths are given to both: here by the chance that picks the last token of the
vocabulary, there by a logits processor. Each side runs in a process of its own, in turns; the first step is thrown
away. TRL takes the whole step in one micro-batch, its fastest. What is shown are medians over all rounds.
"""

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

SHAPES = ["256x64x16", "64x128x16", "64x512x8s", "64x64x4", "16x32x2", "16x256x8s"]
WANTED = {"256x64x16": 4.0, "64x128x16": 2.0, "64x512x8s": 1.5}  # at every other shape: never slower
PROMPTS = 2


@dataclass(frozen=True)
class Shape:
    """What a step consists of."""

    image_tokens: int
    max_new_tokens: int
    group_size: int
    spread: bool

    @classmethod
    def of(cls, text: str) -> "Shape":
        found = re.fullmatch(r"(\d+)x(\d+)x(\d+)(s?)", text)
        if not found:
            raise SystemExit(f"--shapes {text}: give IMAGE_TOKENSxMAX_NEW_TOKENSxGROUP, such as 256x64x16 or 64x512x8s")
        return cls(*map(int, found.groups()[:3]), spread=bool(found[4]))

    def lengths(self, step: int) -> list[int]:
        """Tokens of each completion of a step, its end token included."""
        from bench.common.lengths import spread_lengths

        rows = PROMPTS * self.group_size
        return spread_lengths(rows, self.max_new_tokens, step) if self.spread else [self.max_new_tokens] * rows


def our_steps(folder: Path, shape: Shape, steps: int) -> tuple[list[float], list[int]]:
    """CPU seconds of each step, and the tokens that were sampled in it."""
    from bench.common.lengths import ours_ending_at
    from bench.common.tiny import problems_of
    from vr1lib.models.rollout_local import seed_of
    from vr1lib.models.vlm import load_vlm
    from vr1lib.schedule import Schedule
    from vr1lib.training.grpo import GrpoSettings, prepare, train_grpo

    draws = {seed_of(0, draw): draw for draw in range(PROMPTS * steps)}

    def length_of(seed: int, number: int) -> int:
        step, prompt = divmod(draws[seed], PROMPTS)
        return shape.lengths(step)[prompt * shape.group_size + number]

    def log(metrics: dict) -> None:
        times.append(time.process_time())
        tokens.append(round(metrics.get("length/mean", 0) * PROMPTS * shape.group_size))

    times, tokens = [], []
    settings = GrpoSettings(prompts_per_step=PROMPTS, kl_coefficient=0.0, rollout_rows=256)
    session = prepare(load_vlm(folder / "model"), settings)
    schedule = Schedule([(shape.max_new_tokens, shape.group_size, steps)])
    with ours_ending_at(session.sampler, length_of):
        train_grpo(session, problems_of(folder, shape.image_tokens, PROMPTS), schedule, log=log)
    return [after - before for before, after in zip(times, times[1:])], tokens[1:]


def their_steps(folder: Path, shape: Shape, steps: int) -> tuple[list[float], list[int]]:
    """The same by TRL."""
    from datasets import Dataset
    from PIL import Image
    from transformers import Qwen2_5_VLProcessor, TrainerCallback
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
    from trl import GRPOConfig, GRPOTrainer

    from bench.common.lengths import theirs_ending_at
    from bench.common.tiny import problems_of
    from vr1lib.models.vlm import load_vlm

    class Processor(Qwen2_5_VLProcessor):
        """Its video part wants torchvision."""

        @classmethod
        def get_attributes(cls):
            return ["image_processor", "tokenizer"]

    class Times(TrainerCallback):
        def on_step_begin(self, *_, **__):
            times.append(time.process_time())

        on_train_end = on_step_begin

    vlm = load_vlm(folder / "model")
    tokenizer, times, tokens = vlm.tokenizer, [], []
    tokenizer.padding_side = "left"
    generate = vlm.model.generate

    def generate_to_length(*arguments, **options):
        ending = theirs_ending_at(shape.lengths(len(tokens)), shape.max_new_tokens, vlm.eos_token_ids)
        return generate(*arguments, **options, logits_processor=ending)

    def reward(completion_ids, **_):
        tokens.append(sum(map(len, completion_ids)))
        return [float(number % 2) for number in range(len(completion_ids))]

    vlm.model.generate = generate_to_length
    rows = PROMPTS * shape.group_size
    with tempfile.TemporaryDirectory() as out:
        trainer = GRPOTrainer(
            model=vlm.model,
            args=GRPOConfig(
                output_dir=out,
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                report_to="none",
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                learning_rate=1e-6,
                beta=0.0,
                max_completion_length=shape.max_new_tokens,
                num_generations=shape.group_size,
                per_device_train_batch_size=rows,
                gradient_accumulation_steps=1,
                max_steps=steps,
            ),
            reward_funcs=reward,
            train_dataset=Dataset.from_list(
                [
                    {
                        "prompt": [{"role": "user", "content": problem.question}],
                        "images": [Image.open(problem.images[0])],
                    }
                    for problem in problems_of(folder, shape.image_tokens, PROMPTS)
                ]
            ),
            processing_class=Processor(
                Qwen2VLImageProcessorPil.from_pretrained(folder / "model"),
                tokenizer,
                chat_template=tokenizer.chat_template,
            ),
            callbacks=[Times()],
        )
        trainer.train()
    return [after - before for before, after in zip(times, times[1:])], tokens


SIDES: dict[str, Callable[[Path, Shape, int], tuple[list[float], list[int]]]] = {"ours": our_steps, "trl": their_steps}


def run_side(side: str, folder: Path, shape: Shape, steps: int) -> None:
    """One side in this process; prints its figures as the last line."""
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    seconds, tokens = SIDES[side](folder, shape, steps + 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds[1:], "tokens": tokens[1:], "peak_rss_mib": round(peak)}))


def compare(folder: Path, text: str, steps: int, rounds: int) -> dict:
    """Both sides in turns at one shape."""
    runs: dict[str, list[dict]] = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side, told in runs.items():
            command = [sys.executable, __file__, "--side", side, "--folder", str(folder)]
            command += ["--shapes", text, "--steps", str(steps)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{side} failed at {text}:\n{done.stderr}")
            told.append(json.loads(done.stdout.splitlines()[-1]))
    if len({str(run["tokens"]) for told in runs.values() for run in told}) > 1:
        raise SystemExit(f"{text}: the two sides sampled different numbers of tokens: {runs}")
    report: dict = {"shape": text, "prompts": PROMPTS, "tokens_a_step": statistics.mean(runs["ours"][0]["tokens"])}
    for side, told in runs.items():
        seconds = [each for run in told for each in run["seconds"]]
        tokens = [each for run in told for each in run["tokens"]]
        report[side] = {
            "step_seconds": round(statistics.median(seconds), 4),
            "tokens_per_second": round(statistics.median(n / each for n, each in zip(tokens, seconds, strict=True))),
            "peak_rss_mib": statistics.median(run["peak_rss_mib"] for run in told),
        }
    report["times_faster"] = round(report["trl"]["step_seconds"] / report["ours"]["step_seconds"], 2)
    report["holds"] = (
        report["times_faster"] >= WANTED.get(text, 1.0)
        and report["ours"]["peak_rss_mib"] <= report["trl"]["peak_rss_mib"]
    )
    return report


def in_words(report: dict) -> str:
    ours, theirs = report["ours"], report["trl"]
    return (
        f"{report['shape']}: {report['times_faster']}× faster ({ours['step_seconds']} s against "
        f"{theirs['step_seconds']} s, {ours['tokens_per_second']} against {theirs['tokens_per_second']} tokens/s), "
        f"peak RSS {ours['peak_rss_mib']:.0f} against {theirs['peak_rss_mib']:.0f} MiB, at least "
        f"{WANTED.get(report['shape'], 1.0)}× wanted: {'holds' if report['holds'] else 'FALLS SHORT'}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=SHAPES)
    parser.add_argument("--steps", type=int, default=4, help="measured steps of a run")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        run_side(options.side, options.folder, Shape.of(options.shapes[0]), options.steps)
        return 0
    from bench.common.tiny import build

    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder), {Shape.of(text).image_tokens for text in options.shapes})
        reports = []
        for text in options.shapes:
            reports.append(compare(Path(folder), text, options.steps, options.rounds))
            if not options.json:
                print(in_words(reports[-1]), flush=True)
    if options.json:
        print(json.dumps({"shapes": reports, "holds": all(report["holds"] for report in reports)}, indent=2))
    return 0 if all(report["holds"] for report in reports) else 1


if __name__ == "__main__":
    sys.exit(main())
