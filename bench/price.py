"""What the paper's whole run costs on three kinds of machine, by arithmetic alone. Nothing here is measured.

    python bench/price.py [--json]

Work is counted in floating-point operations and in bytes read, from the model's shape; a card's time is the larger of
operations over its peak and bytes over its bandwidth, each lowered to the share that is usually reached (assumed, in
`SHARES`). What is counted, and what the paper says its own run took, is told in docs/performance.md.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from vr1lib.training.memory import Shape, published_shape  # noqa: E402

SHARES = {"training": 0.40, "reading": 0.50, "decoding": 0.60}  # of peak operations, of those, of bandwidth
OVERHEAD_SECONDS = (
    0.0  # of a decode step beside what the card needs: a server with graphs comes near it, Python doesn't
)


@dataclass(frozen=True)
class Machine:
    """Cards, and how the model is trained on them."""

    name: str
    cards: int
    peak: float  # bf16 operations a second of a card, dense
    bandwidth: float  # bytes a second of a card
    rows: int  # completions that a card samples at once
    qlora: bool = False


MACHINES = [
    Machine("1 × 24 GB (RTX 4090), QLoRA", 1, 165e12, 1.008e12, 24, qlora=True),
    Machine("8 × 80 GB (H100 SXM)", 8, 989e12, 3.35e12, 128),
    Machine("64 × 80 GB (H100 SXM)", 64, 989e12, 3.35e12, 128),
]


@dataclass(frozen=True)
class Work:
    """A phase: rows, and tokens of each. RL samples and learns; SFT only learns; bridging only writes."""

    name: str
    prompts: int
    samples: int  # for each prompt
    prompt_tokens: int
    answer_tokens: int  # mean
    passes: float = 1.0  # epochs
    updates: int = 1  # of a step: each reads the prompts again
    reference: bool = False


PICTURE_AND_TEXT = 752 + 150  # a picture of 768 × 768 pixels in tokens of 28 × 28, and a question
SFT = Work("SFT", 200_000, 1, PICTURE_AND_TEXT, 1_000, passes=2)
STAGE_1 = Work("RL, stage 1", 100 * 512, 16, PICTURE_AND_TEXT, 1_600, updates=4, reference=True)  # Figure 1D's lengths
STAGE_2 = Work("RL, stage 2", 100 * 512, 8, PICTURE_AND_TEXT, 1_950, updates=4, reference=True)
# bridging: 72B describes and reasons (two calls), the reasoner answers from text; half of the rows survive
BRIDGING_72B = Work("bridging, 72B", 400_000, 2, PICTURE_AND_TEXT, 400)
REASONER_ACTIVE, REASONER_ALL = 37e9, 671e9  # DeepSeek-R1: weights that a token passes, weights in memory, 1 byte each
BRIDGING_REASONER = Work("bridging, R1", 400_000, 1, 700, 1_500)


def dense(shape: Shape) -> float:
    """Weights that a token of text passes: the language model with its head, without the embedding."""
    return shape.parameters - shape.vision_parameters - shape.vocabulary * shape.hidden


def operations(shape: Shape, tokens: float, context: float) -> float:
    """Forward operations of so many tokens that see `context` others on average."""
    return tokens * (2 * dense(shape) + 4 * shape.layers * shape.attention * context)


def tower_operations(shape: Shape, pictures: float) -> float:
    return pictures * 2 * shape.vision_parameters * 4 * (PICTURE_AND_TEXT - 150)  # four patches a token


def learning_seconds(machine: Machine, shape: Shape, work: Work) -> float:
    """Card seconds of forward, forward again (checkpointing) and backward, prompts read once for a group."""
    completions = work.prompts * work.samples * work.answer_tokens
    read = work.prompts * work.prompt_tokens * min(work.updates, work.samples)
    forward = operations(shape, read, work.prompt_tokens / 2)
    forward += operations(shape, completions, work.prompt_tokens + work.answer_tokens / 2)
    backward = 1 if machine.qlora else 2  # frozen weights have no gradient of their own
    whole = forward * (2 + backward) + tower_operations(shape, work.prompts)
    if work.reference:
        whole += operations(shape, work.prompts * work.prompt_tokens, work.prompt_tokens / 2)
        whole += operations(shape, completions, work.prompt_tokens + work.answer_tokens / 2)
    return work.passes * whole / (machine.peak * SHARES["training"])


def sampling_seconds(machine: Machine, shape: Shape, work: Work) -> float:
    """Card seconds of reading prompts once and writing completions, rows always full."""
    reading = operations(shape, work.prompts * work.prompt_tokens, work.prompt_tokens / 2)
    reading += tower_operations(shape, work.prompts)
    weights = dense(shape) * (4.5 if machine.qlora else 2)  # 4 bits read, written as 16, and read again
    a_token = 2 * 2 * shape.layers * shape.key_value  # bytes of keys and values
    cached = a_token * (machine.rows * work.answer_tokens / 2 + machine.rows / work.samples * work.prompt_tokens)
    by_bytes = (weights + cached) / (machine.bandwidth * SHARES["decoding"])
    by_operations = operations(shape, machine.rows, work.prompt_tokens + work.answer_tokens / 2) / (
        machine.peak * SHARES["reading"]
    )
    steps = work.prompts * work.samples * work.answer_tokens / machine.rows
    return reading / (machine.peak * SHARES["reading"]) + steps * (max(by_bytes, by_operations) + OVERHEAD_SECONDS)


def reasoner_seconds(machine: Machine, work: Work) -> float:
    """Card seconds of a mixture of experts served on 8 or more cards, bound by reading all weights."""
    reading = work.prompts * work.prompt_tokens * 2 * REASONER_ACTIVE / (machine.peak * SHARES["reading"])
    serving_cards, rows_a_card = 16, 64
    a_step = REASONER_ALL / (serving_cards * machine.bandwidth * SHARES["decoding"])
    steps = work.prompts * work.answer_tokens / (serving_cards * rows_a_card)
    return reading + steps * a_step * serving_cards


def price(machine: Machine) -> dict[str, float | None]:
    """Card hours of each phase; None: it doesn't fit there, so the data or an interface has to be bought."""
    seven, large = published_shape("Qwen2.5-VL-7B"), published_shape("Qwen2.5-VL-72B")
    seconds = {"bridging": None}
    if machine.cards >= 8:
        seconds["bridging"] = sampling_seconds(machine, large, BRIDGING_72B)
    if machine.cards >= 16:
        seconds["bridging"] += reasoner_seconds(machine, BRIDGING_REASONER)
    seconds["SFT"] = learning_seconds(machine, seven, SFT)
    for stage in (STAGE_1, STAGE_2):
        seconds[f"{stage.name}: sampling"] = sampling_seconds(machine, seven, stage)
        seconds[f"{stage.name}: learning"] = learning_seconds(machine, seven, stage)
    return {name: None if each is None else round(each / 3600, 1) for name, each in seconds.items()}


def roofline() -> dict[str, float]:
    """7B on one H200-class card: 989 Tflop/s, 4.8 TB/s, 64 rows with 1,600 tokens each behind prompts of 8 groups."""
    shape = published_shape("Qwen2.5-VL-7B")
    weights, a_token = 2 * dense(shape), 4 * shape.layers * shape.key_value
    shared = a_token * (64 * 800 + 4 * PICTURE_AND_TEXT)
    repeated = a_token * 64 * (800 + PICTURE_AND_TEXT)
    return {
        "weights_gb": weights / 1e9,
        "kv_a_token_kb": a_token / 1e3,
        "kv_shared_gb": shared / 1e9,
        "kv_repeated_gb": repeated / 1e9,
        "decode_step_ms_at_full_bandwidth": 1e3 * (weights + shared) / 4.8e12,
        "decode_step_ms_prompts_repeated": 1e3 * (weights + repeated) / 4.8e12,
        "tokens_per_second_at_full_bandwidth": 64 / ((weights + shared) / 4.8e12),
        "rows_from_which_operations_bind": 989e12 / 4.8e12,
        "learning_tokens_per_second_at_full_peak": 989e12 / (4 * operations(shape, 1, 1_700)),
        "prefill_ms_a_prompt": 1e3 * operations(shape, PICTURE_AND_TEXT, PICTURE_AND_TEXT / 2) / 989e12,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    report = {"card_hours": {machine.name: price(machine) for machine in MACHINES}, "one_h200": roofline()}
    if options.json:
        print(json.dumps(report, indent=2))
        return
    for machine in MACHINES:
        hours = report["card_hours"][machine.name]
        own = sum(each for name, each in hours.items() if name != "bridging")
        print(f"{machine.name}: {hours}; without bridging {own:.0f} card hours, {own / machine.cards / 24:.1f} days")
    print({name: round(value, 2) for name, value in report["one_h200"].items()})


if __name__ == "__main__":
    main()
