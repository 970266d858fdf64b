"""What a run is filed under in W&B: job type and tags, from its parameters alone. Our choice throughout."""

import json
import math
import re
import struct
from pathlib import Path
from typing import Any

from vr1lib.workbench.params import Parameters

JOB_TYPES = {
    "00_base_model": "base",
    "10_data_building": "data",
    "20_cold_sft": "cold",
    "30_ptst_grpo": "rl",
    "40_benchmark": "benchmark",
    "50_analysis": "analysis",
}
SIZES = ("tiny", "demo")  # runs whose name begins so carry it as a tag
PLAIN = ("method", "reward", "teacher", "control")  # parameters whose value is a tag
DATA = ("sources", "data", "problems", "benchmarks")  # parameters that name what a run reads
NAMED_SIZE = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)[bB](?![A-Za-z])")  # the 7B of Qwen2.5-VL-7B-Instruct
TAG_LENGTH = 64  # W&B's limit


def tags_of(params: Parameters) -> list[str]:
    """tiny or demo, the model's size, the method, the reward, and what is read, each once and at most 64 characters."""
    given = params.model_dump()
    tags = [size for size in SIZES if params.run.startswith(size)]
    tags += [model_size(given["model"])] if isinstance(given.get("model"), str) else []
    tags += [given[name] for name in PLAIN if given.get(name) not in (None, "none")]
    for name in DATA:
        tags += [data_tag(item) for item in as_list(given.get(name)) if isinstance(item, str)]
    return list(dict.fromkeys(tag[:TAG_LENGTH] for tag in tags if tag))


def as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def data_tag(source: str) -> str:
    """A source's name; of a file in a run folder, its run: outputs/10_data_building/demo/rl.jsonl → data: demo."""
    parts = Path(source).parts
    at = parts.index("outputs") if "outputs" in parts else len(parts)
    if len(parts) > at + 3:
        return f"{JOB_TYPES.get(parts[at + 1], parts[at + 1])}: {parts[at + 2]}"
    return Path(source).stem


def model_size(model: str) -> str:
    """7B by a name that says so, else what the folder's safetensors headers count (1.1M), else nothing."""
    named = NAMED_SIZE.search(model.replace("_", "-"))
    if named:
        return f"{named[1]}B"
    folder = Path(model)
    if (folder / "adapter_config.json").exists():
        adapter = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        base = adapter.get("base_model_name_or_path")
        return model_size(base) if base and base != model else ""
    count = sum(weights_in(file) for file in folder.glob("*.safetensors")) if folder.is_dir() else 0
    if not count:
        return "tiny" if model == "tiny" else ""
    return f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.1f}M"


def weights_in(file: Path) -> int:
    """Numbers in a safetensors file, from its header."""
    with file.open("rb") as opened:
        length = struct.unpack("<Q", opened.read(8))[0]
        header = json.loads(opened.read(length))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
