"""Out of training: a run's model as one plain Hugging Face folder that says where it comes from.

An adapter is merged into the weights it was trained over, in float32, and kept in the base's own number type (float32
or bfloat16), so that a 7B model merges in the memory of its bfloat16 weights. Under QLoRA those weights are the 4-bit
ones, unpacked: the policy that was trained and scored is adapter plus quantised base, and on the base as published it
would be another one (our choice; the paper trains in full). A model trained in full is copied byte for byte.

The model card holds the lineage, read from manifest.json: this run, the runs that made what it read, and so on. Runs
are found by the sha256 of what they made, so that a run folder that was moved aside is still the right one.
"""

import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import yaml
from transformers import AutoConfig, GenerationConfig, PreTrainedModel

from vr1lib.models.vlm import SPEC_FILE, Vlm, load_vlm, read_spec_file, save_vlm
from vr1lib.records import RequestError

if TYPE_CHECKING:
    from peft import PeftModel

Manifest = dict[str, Any]

HUB_ID = re.compile(r"[\w-]+/[\w.-]+")
UNSAID = re.compile(r"run|wandb_.*|data_root")  # parameters that say nothing about the model


def merge(source: str | Path, out: str | Path) -> Path:
    """Write the model of `source` (a run, a checkpoint or a model folder) to the new folder `out`; returns it.

    Nothing is left at `out` unless all of it is there. Raises RequestError if `out` holds something already or `source`
    holds no model of ours.
    """
    folder = model_folder(source)
    if folder is None or (own := read_spec_file(str(folder))) is None:
        raise RequestError(f"{source}: no {SPEC_FILE} here or in model/; give a run folder or a model it saved")
    out = Path(out).resolve()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise RequestError(f"{out}: already there and not an empty folder; give another OUT or remove it")
    new = out.with_name(f"{out.name}.writing")
    try:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
    except OSError as error:
        raise RequestError(f"{new}: cannot be made ({error.strerror}); give an OUT where you may write") from None
    try:
        if own["method"] == "full":
            for file in folder.iterdir():
                if file.is_file():
                    shutil.copyfile(file, new / file.name)
        else:
            save_vlm(merged(folder), new)
        vlm = load_vlm(new, device="meta")
        write_generation_config(vlm, new)
        (new / "README.md").write_text(model_card(folder, own, vlm), encoding="utf-8")
        os.replace(new, out)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    return out


def model_folder(source: str | Path) -> Path | None:
    """Where the model lies that a user means by a run, a checkpoint or a model folder; None if nowhere."""
    for place in (Path(source), Path(source, "model")):
        if (place / SPEC_FILE).is_file() or (place / "config.json").is_file():
            return place.resolve()
    return None


def own_number_type(path: str | Path) -> Literal["float32", "bfloat16"]:
    """The type a model's weights are kept in; float32 for one that we do not compute in (float16)."""
    own = read_spec_file(str(path))
    base = own["base"] if own and own["base"] else str(path)
    with suppress(OSError, ValueError):  # no model there: load_vlm says so, and what to give
        return "bfloat16" if AutoConfig.from_pretrained(base).dtype is torch.bfloat16 else "float32"
    return "float32"


def merged(folder: Path) -> Vlm:
    """The model with its adapter in the weights, on the CPU."""
    vlm = load_vlm(folder, dtype=own_number_type(folder), device="cpu")
    return Vlm(merge_adapter(vlm.model), vlm.tokenizer, vlm.image_spec, vlm.prompt_spec, "full")


@torch.no_grad()
def merge_adapter(model: "PeftModel") -> PreTrainedModel:
    """W + scale·B·A for each adapted layer, one at a time: computed in float32, kept in the base's number type."""
    from peft.tuners.lora import LoraLayer

    from vr1lib.models.adapters import POLICY

    adapted = {name: layer for name, layer in model.get_base_model().named_modules() if isinstance(layer, LoraLayer)}
    plain = model.unload()
    if getattr(plain, "is_quantized", False):
        plain = plain.dequantize()
    for name, layer in adapted.items():
        weight = plain.get_submodule(name).weight
        weight.copy_(weight.float() + layer.get_delta_weight(POLICY).float())
    return plain


def write_generation_config(vlm: Vlm, folder: Path) -> None:
    """The tokens that end an answer and those never written, as in our sampler, and no sampling habits of the base.

    Qwen2.5-VL is published with a repetition penalty of 1.05, which a server applies to every request that does not
    speak of it: greedy answers would not be those of the policy that was trained and scored without.
    """
    GenerationConfig(
        bos_token_id=vlm.model.generation_config.bos_token_id,
        eos_token_id=list(vlm.eos_token_ids),
        pad_token_id=vlm.pad_token_id,
        suppress_tokens=list(vlm.vision_token_ids) or None,
    ).save_pretrained(folder)


# The model card.


def model_card(folder: Path, own: dict[str, Any], vlm: Vlm) -> str:
    """README.md in Markdown, with the front matter that the Hugging Face hub reads."""
    lineage = list(runs_behind(folder))
    starts = [own["base"] or "", *(str(parameters_of(run).get("model", "")) for run, _ in lineage)]
    root = project_of(folder) or Path()
    hub_ids = [start for start in starts if HUB_ID.fullmatch(start) and not (root / start).exists()]
    facts = {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["vision-r1", "multimodal-reasoning"],
    } | ({"base_model": hub_ids[0]} if hub_ids else {})
    size = sum(weights.numel() for weights in vlm.model.parameters())
    parts = [
        f"---\n{yaml_text(facts)}---\n",
        f"# {name_of(lineage[0][1]) if lineage else folder.name}\n",
        f"A {vlm.family.name} of {size / 1e6:,.1f} million parameters that reasons between `<think>` and `</think>` "
        "and answers between `<answer>` and `</answer>`, made with the Vision-R1 workbench.\n",
        f"{how_made(own, folder)}\n",
        use_section(vlm),
        lineage_section(folder, lineage),
        scores_section(lineage),
        specification_section(vlm),
    ]
    return "\n".join(part for part in parts if part)


def how_made(own: dict[str, Any], folder: Path) -> str:
    if own["method"] == "full":
        return "Trained in full; the weights are here as the run saved them."
    base = Path(own["base"])
    root = project_of(folder)
    shown = base.relative_to(root) if root and base.is_relative_to(root) else base
    if own["method"] == "lora":
        return (
            f"Trained by LoRA over `{shown}`; the adapter is merged into those weights, computed in float32 and kept "
            "in their own number type."
        )
    return (
        f"Trained by QLoRA over `{shown}` in 4 bits (NF4); the adapter is merged into the 4-bit weights unpacked, "
        "computed in float32 and kept in the base's number type. These are the weights that were trained and scored; "
        "on the base as it was before its rounding to 4 bits the adapter would answer differently."
    )


def use_section(vlm: Vlm) -> str:
    banned = ", ".join(map(str, vlm.vision_token_ids))
    said = [
        "## Use\n",
        "```",
        "vr1 ask --model FOLDER --image PICTURE.png --question TEXT",
        "vllm serve FOLDER",
        "```\n",
        "A plain transformers folder: `AutoModelForImageTextToText.from_pretrained(FOLDER)`. The policy was sampled "
        "without a repetition penalty"
        + (f" and never writes vision tokens ({banned}); `logit_bias` asks a server for the same." if banned else "."),
    ]
    if vlm.prompt_spec.system is not None:
        said.append(f"\nTrained with this system message; send it too:\n\n> {vlm.prompt_spec.system}")
    if vlm.prompt_spec.instruction is not None:
        said.append(f"\nTrained with this line after the question; send it too:\n\n> {vlm.prompt_spec.instruction}")
    return "\n".join(said) + "\n"


def lineage_section(folder: Path, lineage: list[tuple[Path, Manifest]]) -> str:
    if not lineage:
        return "## Lineage\n\nThe model lay in no run folder; nothing is known of how it was trained.\n"
    said = ["## Lineage\n"]
    for place, run in lineage:
        git = run.get("git") or {}
        said += [
            f"### {name_of(run)}\n",
            f"- {run.get('status')}, {run.get('started_at')} to {run.get('finished_at')}",
            f"- commit `{git.get('commit')}`{' with uncommitted changes' if git.get('dirty') else ''}, "
            f"seed {run.get('seed')}",
        ]
        if place == lineage[0][0]:
            said.append(f"- this model: `{folder.relative_to(place)}`")
        if run.get("summary"):
            said.append(f"- {' '.join(run['summary'].split())}")
        for entry in run.get("inputs", []):
            maker = maker_of(entry, place)
            origin = f", made by {name_of(manifest_of(maker))}" if maker else ""
            said.append(f"- read {entry['kind']} `{entry['path']}`, sha256 `{entry['sha256']}`{origin}")
        said += [
            f"- made {entry['kind']} `{entry['path']}`, sha256 `{entry['sha256']}`" for entry in run.get("outputs", [])
        ]
        if parameters := parameters_of(place):
            said.append(f"\n```yaml\n{yaml_text(parameters)}```")
        said.append("")
    return "\n".join(said)


def scores_section(lineage: list[tuple[Path, Manifest]]) -> str:
    """Benchmarks of this very model, by its sha256, that lie beside its run."""
    place, run = lineage[0] if lineage else (Path(), {})
    models = {entry["sha256"] for entry in run.get("outputs", []) if entry["kind"] == "model"}
    rows = []
    for folder, benchmark in runs_beside(place) if models else []:
        scored = models & {entry["sha256"] for entry in benchmark.get("inputs", [])}
        if not scored or not (folder / "scores.json").is_file():
            continue
        for row in json.loads((folder / "scores.json").read_text(encoding="utf-8"))["benchmarks"]:
            accuracy, low, high = (f"{100 * row[key]:.1f}" for key in ("accuracy", "low", "high"))
            rows.append(
                f"| {name_of(benchmark)} | {row['benchmark']} | {accuracy} % ({low} to {high}) | {row['n']} | "
                f"{row['mean_length_tokens']:.1f} | {row['sampling']['temperature']} |"
            )
    head = ["| run | benchmark | right | problems | tokens in an answer | temperature |", "|---|---|---|---|---|---|"]
    return "\n".join(["## Scores\n", *head, *rows, ""]) if rows else ""


def specification_section(vlm: Vlm) -> str:
    said = ["## Specifications\n"]
    for name, spec in (("Image", vlm.image_spec), ("Prompt", vlm.prompt_spec)):
        said.append(f"{name} specification, sha256 `{spec.sha256}`:\n\n```yaml\n{yaml_text(asdict(spec))}```\n")
    return "\n".join(said)


def yaml_text(values: Mapping[str, Any]) -> str:
    """One line a value."""

    def line(value: Any) -> str:
        text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=math.inf)
        return text.removesuffix("\n").removesuffix("\n...")

    return "".join(
        f"{key}: {line(list(value) if isinstance(value, tuple) else value)}\n" for key, value in values.items()
    )


# Runs: folders OUTPUTS/STEM/RUN with a manifest.json.


def runs_behind(folder: Path) -> Iterator[tuple[Path, Manifest]]:
    """The run that `folder` lies in and every run behind it, nearest first, each once: (run folder, manifest)."""
    run = run_of(folder)
    waiting = [run] if run else []
    seen: set[Path] = set()
    while waiting:
        place = waiting.pop(0)
        if place in seen:
            continue
        seen.add(place)
        manifest = manifest_of(place)
        yield place, manifest
        waiting += [maker for entry in manifest.get("inputs", []) if (maker := maker_of(entry, place))]


def run_of(folder: Path) -> Path | None:
    """The run folder that a model lies in."""
    return next((parent for parent in folder.parents if manifest_of(parent)), None)


def project_of(folder: Path) -> Path | None:
    """The folder that the paths of this run's manifest start from."""
    run = run_of(folder)
    return run and run.parent.parent.parent


def maker_of(entry: Mapping[str, str], reader: Path) -> Path | None:
    """The run beside `reader` that made one of its inputs: same content, and best in the same place.

    A checkpoint is no output of its run: there the place alone counts, if that run began before the reader.
    """
    path = project_of(reader / "model") / entry["path"]
    makers = [
        place
        for place, run in runs_beside(reader)
        if place != reader and any(made["sha256"] == entry["sha256"] for made in run.get("outputs", []))
    ]
    here = [parent for parent in path.parents if parent != reader and manifest_of(parent)]
    if makers:
        return next((place for place in makers if place in here), makers[0])
    began = manifest_of(reader).get("started_at") or ""
    return next((place for place in here if (manifest_of(place).get("started_at") or began) < began), None)


def runs_beside(place: Path) -> Iterator[tuple[Path, Manifest]]:
    for file in sorted(place.parent.parent.glob("*/*/manifest.json")):
        if manifest := manifest_of(file.parent):
            yield file.parent, manifest


def manifest_of(place: Path) -> Manifest:
    """The manifest of a run folder; nothing where there is none, or another program's file of that name."""
    try:
        manifest = json.loads((place / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) and "stem" in manifest else {}


def parameters_of(place: Path) -> dict[str, Any]:
    """A run's parameters that say something about its model."""
    file = place / "params.yaml"
    values = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return {name: value for name, value in values.items() if not UNSAID.fullmatch(name)}


def name_of(run: Manifest) -> str:
    return f"{run['stem']} / {run['run']}"
