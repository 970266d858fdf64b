"""What real shapes take on a GPU: peak memory and tokens a second of rollout and update, from random weights.

    python bench/gpu/run.py [--shape published|tiny] [--json FILE]

Three cases, each in a process of its own: QLoRA GRPO of Qwen2.5-VL-7B's shape at group 8 and 2,048 tokens, which is to
stay within 24 GB; full fine-tuning of the 3B shape, by GRPO and by SFT. Nothing is downloaded: the model is built from
its published configuration with random weights (quantised one layer at a time), the tokenizer is the tiny model's, and
the pictures are ShapeWorld's, enlarged to 768 × 768. Random weights end a completion once in 152,000 tokens, so
that every one runs to its limit, which is the worst case and not the usual one. With a GPU RESULTS.md is written anew;
without one nothing is measured, and it is said. `--shape tiny` goes the same way with a tiny model on any machine, to
see that it works; its numbers mean nothing and are not kept.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from vr1lib.data.shapeworld import make_problems, write_base_cot  # noqa: E402
from vr1lib.models.adapters import add_adapter, keep_trainable  # noqa: E402
from vr1lib.models.families import FAMILIES  # noqa: E402
from vr1lib.models.images import ImageSpec  # noqa: E402
from vr1lib.models.tiny import train_tokenizer  # noqa: E402
from vr1lib.models.vlm import Vlm  # noqa: E402
from vr1lib.prompts import PromptSpec  # noqa: E402
from vr1lib.schedule import Schedule  # noqa: E402
from vr1lib.training.grpo import GrpoSettings, prepare, train_grpo  # noqa: E402
from vr1lib.training.memory import CUDA_CONTEXT, GIB, PUBLISHED, language  # noqa: E402
from vr1lib.training.preflight import preflight_grpo, preflight_sft  # noqa: E402
from vr1lib.training.sft import train_sft  # noqa: E402

NOT_MEASURED = "Not measured: no GPU was at hand. `python bench/gpu/run.py` on one writes this page."
RESULTS = Path(__file__).parent / "RESULTS.md"
FAMILY = FAMILIES["qwen2_5_vl"]
TINY_SHAPE = {
    "model_type": "qwen2_5_vl",
    "text_config": language(768, 64, 128, 2, 4, 2),
    "vision_config": {
        "depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "out_hidden_size": 64,
        "fullatt_block_indexes": [0],
    },
    "tie_word_embeddings": True,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One measurement. `most_gib` is what its peak is to stay below, None where nothing is promised."""

    shape: str
    method: str
    task: str
    most_gib: float | None = None


@dataclass(frozen=True)
class Scale:
    """How large rows and pictures are."""

    completion_tokens: int
    group_size: int
    prompts: int
    picture_pixels: int
    micro_batch_tokens: int


CASES = {
    "qlora_grpo_7b": Case("Qwen2.5-VL-7B", "qlora", "grpo", 24e9 / GIB),
    "full_grpo_3b": Case("Qwen2.5-VL-3B", "full", "grpo"),
    "full_sft_3b": Case("Qwen2.5-VL-3B", "full", "sft"),
}
PUBLISHED_SCALE = Scale(2048, 8, 4, 768 * 768, 8192)
TINY_SCALE = Scale(12, 2, 2, 56 * 56, 128)


def random_policy(case: Case, tiny: bool, texts: list[str]) -> Vlm:
    """The case's shape with random weights, ready to train; the base quantised layer by layer under QLoRA."""
    scale, device = TINY_SCALE if tiny else PUBLISHED_SCALE, "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = train_tokenizer(texts, 768)
    values = TINY_SHAPE if tiny else PUBLISHED[case.shape]
    text = values["text_config"]
    sixteenth = text["hidden_size"] // text["num_attention_heads"] // 16
    rotary = {
        "rope_type": "default", "rope_theta": 1e6, "mrope_section": [2 * sixteenth, 3 * sixteenth, 3 * sixteenth],
    }  # fmt: skip
    token = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad")}
    config = AutoConfig.for_model(
        **{**values, "text_config": {**text, "rope_parameters": rotary}},
        image_token_id=token["image_pad"],
        video_token_id=token["video_pad"],
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    )
    number_type = torch.float32 if case.method == "full" else torch.bfloat16
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=number_type)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
    model.activation_checkpointing_enable({"use_reentrant": False})
    model.model.visual.requires_grad_(False)
    if case.method == "qlora":
        into_four_bits(model)
        model = add_adapter(model, 64, 64, 0.0, FAMILY.lora_linear("language"))
    spec = ImageSpec(min_pixels=scale.picture_pixels, max_pixels=scale.picture_pixels)
    return Vlm(model.eval(), tokenizer, spec, PromptSpec(), case.method, base=case.shape)


def into_four_bits(model: torch.nn.Module) -> None:
    """Put each linear layer of the language model into NF4 with double quantisation, one after another."""
    for name, module in list(model.named_modules()):
        if type(module) is not torch.nn.Linear or name.startswith(tuple(FAMILY.unquantised)):
            continue
        device, options = module.weight.device, {"compress_statistics": True, "quant_type": "nf4"}
        small = Linear4bit(
            module.in_features, module.out_features, bias=False, compute_dtype=torch.bfloat16, device="meta", **options
        )
        small.weight = Params4bit(module.weight.data, requires_grad=False, module=small, **options).to(device)
        small.bias = module.bias
        model.set_submodule(name, small)
    model.requires_grad_(False)
    model.is_loaded_in_4bit = True
    keep_trainable(model)


def measure(name: str, tiny: bool) -> dict[str, Any]:
    """One case in this process."""
    case, scale = CASES[name], TINY_SCALE if tiny else PUBLISHED_SCALE
    with tempfile.TemporaryDirectory() as folder:
        problems = make_problems(Path(folder), "rl", 8, grid_sizes=(2, 3))
        vlm = random_policy(case, tiny, [f"{each.question}\n{write_base_cot(each)}" for each in problems])
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        run = run_grpo if case.task == "grpo" else run_sft
        found = run(vlm, problems, scale, Path(folder))
    peak = (torch.cuda.max_memory_allocated() + CUDA_CONTEXT) / GIB if torch.cuda.is_available() else None
    return {"case": name, "shape": "tiny" if tiny else case.shape, "peak_gib": peak, "most_gib": case.most_gib, **found}


def run_grpo(vlm: Vlm, problems: list, scale: Scale, folder: Path) -> dict[str, Any]:
    """One step as `train_grpo` does it, after its rehearsal."""
    settings = GrpoSettings(
        prompts_per_step=scale.prompts,
        rollout_rows=scale.prompts * scale.group_size,
        micro_batch_tokens=scale.micro_batch_tokens,
        bfloat16=vlm.method == "full" and vlm.device.type == "cuda",
    )
    schedule, rows = Schedule([(scale.completion_tokens, scale.group_size, 1)]), []
    session = prepare(vlm, settings)
    rehearsal = preflight_grpo(session, problems, schedule)
    train_grpo(session, problems, schedule, log=rows.append)
    step = rows[-1]
    tokens = step["length/mean"] * scale.prompts * scale.group_size
    return {
        "rollout_tokens_per_second": tokens / step["time/rollout"],
        "update_tokens_per_second": tokens / step["time/update"],
        "completion_tokens": tokens,
        "preflight": rehearsal.to_dict(),
    }


def run_sft(vlm: Vlm, problems: list, scale: Scale, folder: Path) -> dict[str, Any]:
    """Two steps as `train_sft` does them, after their rehearsal; the second is told."""
    rows, rehearsals = [], []
    words = "red " * scale.completion_tokens
    train_sft(
        vlm,
        [(problem, words) for problem in problems],
        log=rows.append,
        output_dir=folder / "trainer",
        steps=2,
        batch_size=4,
        micro_batch_size=1,
        bfloat16=vlm.device.type == "cuda",
        on_ready=lambda trainer: rehearsals.append(preflight_sft(trainer)),
    )
    return {
        "update_tokens_per_second": rows[-1]["tokens_per_second"],
        "completion_tokens": rows[-1]["length/mean"] * 4,
        "preflight": rehearsals[0].to_dict(),
    }


def everything(tiny: bool) -> dict[str, Any]:
    """All cases, each in a new process, so that none finds another's memory."""
    cases = []
    for name in CASES:
        started = time.perf_counter()
        command = [sys.executable, __file__, "--case", name, *(["--shape", "tiny"] if tiny else [])]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        found = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {"case": name, "failed": True}
        cases.append(found | {"seconds": time.perf_counter() - started})
        print(in_words(cases[-1]), flush=True)
    return {"measured": not tiny, **where(), "cases": cases}


def where() -> dict[str, Any]:
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "date": date.today().isoformat(),
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "bitsandbytes", "accelerate")},
    }


def in_words(found: dict[str, Any]) -> str:
    """A case as one row of the table."""
    if found.get("failed"):
        return f"| {found['case']} | failed | | | |"

    def number(key: str) -> str:
        return f"{found[key]:.1f}" if found.get(key) is not None else "–"

    kept = "" if not (found["most_gib"] and found["peak_gib"]) else f" of {found['most_gib']:.1f}"
    return (
        f"| {found['case']} | {found['shape']} | {number('peak_gib')}{kept} | {number('rollout_tokens_per_second')} "
        f"| {number('update_tokens_per_second')} |"
    )


def page(found: dict[str, Any]) -> str:
    """RESULTS.md."""
    if not found["measured"]:
        return f"# GPU measurements\n\n{NOT_MEASURED}\n"
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    return (
        f"# GPU measurements\n\n`python bench/gpu/run.py` on one {found['device']}, {found['date']}; {versions}.\n\n"
        "| case | shape | peak, GiB | rollout, tokens/s | update, tokens/s |\n|---|---|---|---|---|\n"
        + "\n".join(map(in_words, found["cases"]))
        + "\n"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=("published", "tiny"), default="published")
    parser.add_argument("--json", type=Path, help="write what was found here too")
    parser.add_argument("--case", choices=CASES, help="one case in this process, its result as a line of JSON")
    options = parser.parse_args()
    tiny = options.shape == "tiny"
    if options.case:
        print(json.dumps(measure(options.case, tiny)))
        return 0
    if tiny or torch.cuda.is_available():
        found = everything(tiny)
    else:
        print(NOT_MEASURED)
        found = {"measured": False, **where(), "cases": []}
    if found["measured"]:
        RESULTS.write_text(page(found), encoding="utf-8")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 1 if any(case.get("failed") for case in found["cases"]) else 0


if __name__ == "__main__":
    sys.exit(main())
