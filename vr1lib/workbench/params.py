"""Parameters of the six notebooks: typed, bounded, and refused in one line when wrong.

One class per notebook; a field's description says what it means, in which unit, and where the value comes from (a
section of the paper, or "our choice"). The notebook's cell tagged "parameters", its class here and every
params/STEM/*.yaml hold the same names; a test keeps them together. YAML 1.1 reads `1e-6` as text: it is accepted
wherever a number is meant. Relative paths in parameters are relative to the project root, the folder that holds
notebooks/ and params/.
"""

import ast
import difflib
import math
import os
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

import vr1lib
from vr1lib.records import RequestError
from vr1lib.reward import RewardKind

SECRET_NAME = re.compile(r"(^|_)(key|token|secret|password|passwd|credential|credentials)$", re.IGNORECASE)
BOUNDS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤", "min_length": "", "max_length": "", "pattern": ""}
PLAIN_TYPES = (bool, int, float, str, list, tuple, dict, type(None))

Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]
EndpointFields = dict[str, str | int | float | list[str] | None]  # an endpoint's fields
Stage = Annotated[list[Count], Field(min_length=3, max_length=3)]


class Parameters(BaseModel):
    """What every notebook takes. Unknown names, wrong types and numbers that are not finite are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=())

    run: str = Field(
        "default",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._~-]*$",
        description="Name of the run: its folder is outputs/STEM/RUN.",
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of every random choice in the run.")
    wandb_mode: Literal["offline", "online", "disabled"] = Field(
        "offline", description="offline writes the run folder's wandb/ only (upload later with `vr1 sync`)."
    )
    wandb_project: str = Field("vision-r1", min_length=1, description="W&B project.")
    wandb_group: str | None = Field(None, description="W&B group, for runs that belong together; null for none.")

    @field_validator("*", mode="before")
    @classmethod
    def text_that_means_a_number(cls, value: Any, info: typing.Any) -> Any:
        return as_numbers(value, cls.model_fields[info.field_name].annotation)

    def to_yaml(self) -> str:
        """One line a parameter, as the files in params/ are written."""

        def value(item: Any) -> str:
            text = yaml.safe_dump(item, default_flow_style=True, allow_unicode=True, sort_keys=False, width=math.inf)
            return text.removesuffix("\n...\n").removesuffix("\n")

        return "".join(f"{name}: {value(item)}\n" for name, item in self.model_dump().items())


class BaseModelParameters(Parameters):
    """00_base_model: the tiny Qwen2.5-VL that the other notebooks start from, trained on ShapeWorld."""

    families: list[Text] = Field(
        ["counting", "chart", "length", "word"], min_length=1, description="ShapeWorld families; our choice."
    )
    grid_sizes: list[Count] = Field([2, 3], min_length=1, description="Sides of the grids, in cells; our choice.")
    problems: int = Field(3000, ge=1, description="Training problems drawn; our choice.")
    held_out_problems: int = Field(200, ge=1, description="Problems the accuracy is measured on; our choice.")
    hidden_size: int = Field(128, ge=32, le=4096, description="Width of the language model; our choice.")
    layers: int = Field(4, ge=1, le=64, description="Layers of the language model; our choice.")
    vocabulary_size: int = Field(768, ge=300, description="Tokens at most, special ones counted; our choice.")
    optimizer: Literal["muon", "adamw"] = Field("muon", description="muon: for matrices, AdamW beside it; our choice.")
    steps: int = Field(300, ge=1, description="Optimizer steps; our choice.")
    batch_size: int = Field(32, ge=1, description="Rows per optimizer step; our choice.")
    learning_rate: float = Field(3e-3, gt=0, le=1, description="AdamW's peak learning rate (Muon's is 5×); our choice.")
    warmup_ratio: float = Field(0.05, ge=0, lt=1, description="Share of the steps that warm up (as the authors' SFT).")
    weight_decay: float = Field(0.01, ge=0, description="Weight decay; our choice.")
    max_completion_tokens: int = Field(96, ge=1, description="Longest answer when measuring, in tokens; our choice.")


class DataBuildingParameters(Parameters):
    """10_data_building: cold-start rows by modality bridging (Section 3.3.1), RL problems and held-out problems."""

    resume: bool = Field(
        False, description="Go on with the run of this name: no paid call is repeated (`vr1 run … --resume`)."
    )
    sources: list[Text] = Field(
        ["shapeworld"],
        min_length=1,
        description="shapeworld, data sets by name (docs/data.md), folders, hub ids, or .jsonl files of problems; "
        "dealt out by the shares below.",
    )
    rl_sources: list[Text] = Field(
        [], description="Data sets for GRPO alone, in whole (paper, Section 4.1: five of them); [] for none."
    )
    data_root: str | None = Field(None, description="Folder of the original data sets, for sources given by name.")
    limit: int | None = Field(None, ge=1, description="Take at most this many problems per source; null for all.")
    cut_panels: bool = Field(
        True, description="Cut MathVision's stacked pictures into the pictures that their question names; our choice."
    )
    cold_share: float = Field(0.5, gt=0, description="Share of a read source for the cold start; our choice.")
    rl_share: float = Field(0.3, gt=0, description="Share of a read source for GRPO; our choice.")
    test_share: float = Field(0.2, gt=0, description="Share of a read source that is never trained on; our choice.")
    families: list[Text] = Field(["counting"], min_length=1, description="ShapeWorld families; our choice.")
    grid_sizes: list[Count] = Field([2, 3], min_length=1, description="Sides of the grids, in cells; our choice.")
    cold_problems: int = Field(1600, ge=1, description="ShapeWorld problems for the cold start (paper: 200K).")
    rl_problems: int = Field(1500, ge=1, description="ShapeWorld problems for GRPO (paper: about 10K, Section 4.1).")
    test_problems: int = Field(600, ge=1, description="ShapeWorld problems never trained on; our choice.")
    deduplicate: bool = Field(
        False, description="Of RL problems that are the same (pictures alike, question and gold equal) keep one; ours."
    )
    pass_rates: str | None = Field(
        None, description="A model's graded completions (.jsonl) of the RL problems; null: no choice by difficulty."
    )
    lowest_pass_rate: float = Field(0.0, ge=0, le=1, description="RL problems solved no more often are left out; ours.")
    highest_pass_rate: float = Field(
        1.0, ge=0, le=1, description="RL problems solved no less often are left out; ours."
    )
    teacher: Literal["scripted", "reference", "endpoints"] = Field(
        "scripted",
        description="endpoints: the models below, as in the paper. scripted knows ShapeWorld's scenes. reference, for "
        "any source, copies the data set's solution or restates the gold: plumbing, no reasoning.",
    )
    mllm: list[EndpointFields] = Field(
        [], description="Endpoints of the model that sees: url, model, prices, concurrency, api_key_env (docs/data.md)."
    )
    reasoner: list[EndpointFields] = Field([], description="Endpoints of the model that reasons (paper: DeepSeek-R1).")
    mllm_temperature: float = Field(0.0, ge=0, le=2, description="Its temperature; what is seen needs no chance; ours.")
    mllm_max_tokens: int = Field(4096, ge=1, description="Its longest reply, in tokens; our choice.")
    reasoner_temperature: float = Field(0.6, ge=0, le=2, description="The reasoner's (DeepSeek-R1's own: 0.6).")
    reasoner_max_tokens: int = Field(16384, ge=1, description="Its longest reply (the cold start's cut-off: 16384).")
    send_seed: bool = Field(True, description="Send each call's seed along; some servers don't take one.")
    show_gold: bool = Field(
        True, description="Show the teachers the right answer for the pseudo-CoT (paper: silent; its sources did)."
    )
    in_flight: int = Field(64, ge=1, le=4096, description="Problems in the making at once; our choice.")
    token_budget: int | None = Field(None, ge=1, description="Tokens after which the run stops, to go on later.")
    cost_budget: float | None = Field(None, gt=0, description="Money after which it stops, in the prices' currency.")
    retry_failed: bool = Field(False, description="Ask again for problems that got no reply; with resume.")
    repeat_probability: float = Field(0.5, ge=0, le=1, description="Scripted: chance of one more pass; our choice.")
    slip_probability: float = Field(1 / 3, ge=0, le=1, description="Scripted: chance of a slip in it; our choice.")
    max_passes: int = Field(6, ge=1, le=20, description="Scripted: most passes over a picture; our choice.")
    fault_rate: float = Field(0.1, ge=0, le=1, description="Scripted: share of problems with a planted fault.")


class TrainingParameters(Parameters):
    """What both training notebooks take: the policy, where and how it is trained, checkpoints, held-out problems."""

    resume: bool = Field(
        False, description="Go on with the run of this name from its newest whole checkpoint (`vr1 run … --resume`)."
    )
    model: str = Field("tiny", min_length=1, description="Model folder or hub name; tiny builds an untrained one.")
    method: Literal["full", "lora", "qlora"] = Field("full", description="What is trained (paper: full fine-tuning).")
    lora_rank: int = Field(64, ge=1, description="Rank of the adapter; EasyR1's, our choice.")
    lora_alpha: int = Field(64, ge=1, description="Scale of the adapter; EasyR1's, our choice.")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapter's input; our choice.")
    train_vision: bool = Field(
        False, description="Train the vision tower too (the authors' cold start froze it; EasyR1's RL trains it)."
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="Number type of the computation; under full the weights stay float32 (authors: bf16)."
    )
    gradient_checkpointing: bool = Field(False, description="Recompute activations to save memory; our choice.")
    min_pixels: int | None = Field(None, ge=1, description="Smallest picture area; null: as the model was trained.")
    max_pixels: int | None = Field(
        None, ge=1, description="Largest picture area; null: as the model was trained (authors' framework: 589824)."
    )
    data_root: str | None = Field(None, description="Folder of the original data sets, for data given by source name.")
    limit: int | None = Field(None, ge=1, description="Take at most this many rows or problems; null for all.")
    processes: int = Field(1, ge=1, description="Processes on each machine, one per GPU; 1 trains in the kernel.")
    nodes: int = Field(1, ge=1, description="Machines; each other one runs `vr1 join RUN` (torchrun's rendezvous).")
    rdzv_endpoint: str | None = Field(
        None, pattern=r"^[^:\s]+:\d+$", description="HOST:PORT where several machines meet; null for one machine."
    )
    sharding: Literal["none", "fsdp2"] = Field(
        "none", description="none: each process holds the whole model (DDP). fsdp2: it is spread over the processes."
    )
    checkpoint_every: int | None = Field(
        None, ge=1, description="Optimizer steps between two checkpoints; null for none (authors' cold start: 1000)."
    )
    checkpoints_kept: int = Field(2, ge=1, description="The newest so many are kept, and the best; our choice.")
    max_bad_steps: int = Field(
        3, ge=1, description="Steps in a row whose loss or gradient is not finite before the run stops; our choice."
    )
    preflight: bool = Field(
        True, description="Rehearse one worst-case step before the first: memory by part, time, ETA; our choice."
    )
    evaluation: str | None = Field(
        None, description="Held-out problems (.jsonl): does it overthink (20), accuracy over steps (30); null: none."
    )
    evaluation_temperature: float = Field(0.6, ge=0, description="Its temperature; 0 is greedy (authors: 0.6).")
    evaluation_top_p: float = Field(0.95, gt=0, le=1, description="Its nucleus (authors: 0.95).")

    @model_validator(mode="after")
    def fit_each_other(self) -> "TrainingParameters":
        if self.nodes > 1 and self.rdzv_endpoint is None:
            raise ValueError(f"nodes = {self.nodes}, rdzv_endpoint = null: give HOST:PORT of the first machine")
        if self.sharding != "none" and self.processes * self.nodes == 1:
            raise ValueError(f"sharding = {self.sharding!r}, processes = 1: raise processes, or take sharding: none")
        if self.sharding != "none" and self.method == "qlora":
            raise ValueError("sharding = 'fsdp2', method = 'qlora': 4-bit weights are not sharded; take sharding: none")
        return self


class ColdSftParameters(TrainingParameters):
    """20_cold_sft: supervised fine-tuning on the cold-start rows (Section 3.3.2), giving Vision-R1-CI."""

    data: str = Field(
        "shapeworld",
        min_length=1,
        description="Cold-start rows: a .jsonl file, shapeworld, or a source by name, then without chain of thought.",
    )
    epochs: float = Field(2.0, gt=0, description="Passes over the rows (authors: 2).")
    steps: int | None = Field(None, ge=1, description="Optimizer steps, in place of epochs; null: epochs hold.")
    batch_size: int = Field(32, ge=1, description="Rows per optimizer step, all processes together (authors: 32).")
    micro_batch_size: int = Field(8, ge=1, description="Rows per forward pass in one process (authors: 1).")
    packing: bool = Field(
        False, description="Put several rows of a step into one line without padding, each blind to the rest; ours."
    )
    learning_rate: float = Field(1e-3, gt=0, le=1, description="Peak learning rate, cosine (authors: 5e-6 for 7B).")
    warmup_ratio: float = Field(0.05, ge=0, lt=1, description="Share of the steps that warm up (authors: 0.05).")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay (authors: not set).")
    max_gradient_norm: float = Field(1.0, gt=0, description="Gradients are scaled down to this norm (LLaMA-Factory's).")
    max_tokens: int = Field(4096, ge=1, description="Longer rows are left out and counted, never cut (authors: 16384).")
    evaluation_limit: int = Field(200, ge=1, description="At most so many held-out problems; our choice.")
    max_completion_tokens: int = Field(128, ge=1, description="Longest answer to them, in tokens; our choice.")


class PtstGrpoParameters(TrainingParameters):
    """30_ptst_grpo: GRPO with Progressive Thinking Suppression Training (Section 3.4), giving Vision-R1."""

    problems: str = Field(
        "shapeworld", min_length=1, description="RL problems: a .jsonl file, or a source by name (paper: 10K, 4.1)."
    )
    stages: list[Stage] = Field(
        [[32, 4, 4], [64, 2, 2]],
        min_length=1,
        description="PTST's stages as [max completion tokens, group size, steps] (paper: [4096, 16, 100] and so on).",
    )
    prompts_per_step: int = Field(
        8, ge=1, description="Problems per optimizer step, all processes together (not in the paper; EasyR1: 512)."
    )
    updates_per_step: int = Field(1, ge=1, description="Optimizer steps that share a step's samples (EasyR1: 4).")
    reward: RewardKind = Field(
        "hard", description="hard: 1 iff format and answer are right (Section 3.4); format_plus_result: Zero's 1:1."
    )
    system_prompt: Literal["none", "zero"] = Field(
        "none", description="none after the cold start (Section 3.4); zero: the DeepSeek-R1-Zero template's words."
    )
    learning_rate: float = Field(1e-6, gt=0, le=1, description="Learning rate (not in the paper; EasyR1: 1e-6).")
    warmup_steps: int = Field(0, ge=0, description="Steps over which the learning rate rises (EasyR1: 0).")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's weight decay (EasyR1: 0.01).")
    max_gradient_norm: float = Field(1.0, gt=0, description="Gradients are scaled down to this norm (EasyR1: 1.0).")
    loss: Literal["grpo", "equation_1", "gspo", "dr_grpo", "dapo"] = Field(
        "grpo", description="grpo: ratio per token (EasyR1). equation_1: per sequence, as printed. docs/losses.md."
    )
    kl_coefficient: float = Field(0.01, ge=0, description="β, weight of the KL to the reference (Section 3.4: 1e-2).")
    clip_low: float | None = Field(
        None, gt=0, lt=1, description="ε of the clipped ratio below 1; null: the loss's own (Section 3.4: 0.2)."
    )
    clip_high: float | None = Field(
        None, gt=0, description="ε of the clipped ratio above 1; null: the loss's own (Section 3.4: 0.2)."
    )
    normalise_by_std: bool | None = Field(
        None, description="Divide advantages by the group's std; null: as the loss has it (Section 3.4: yes)."
    )
    mask_truncated: bool = Field(
        False, description="Completions cut by the limit give no loss (DAPO): that takes PTST's suppression away."
    )
    dynamic_sampling_refills: int = Field(
        0, ge=0, description="More sampling rounds a step at most, to replace groups of equal rewards (DAPO; paper: 0)."
    )
    temperature: float = Field(1.0, gt=0, description="Sampling temperature of the rollouts (EasyR1: 1.0).")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus of the rollouts; 1 samples from the policy itself.")
    top_k: int = Field(0, ge=0, description="Only the likeliest so many tokens of a rollout; 0: all, as EasyR1.")
    rollout: Literal["local", "vllm"] = Field(
        "local", description="Who samples: this process, or vLLM servers that get each step's weights."
    )
    rollout_endpoints: list[Text] = Field([], description="vllm: their addresses, such as http://127.0.0.1:8000.")
    rollout_folder: str | None = Field(
        None, min_length=1, description="vllm: where weights lie for them, seen by all; null: in the run folder."
    )
    rollout_wait_seconds: float = Field(
        600.0, gt=0, description="vllm: silence after which the run stops with a checkpoint; our choice."
    )
    rollout_correction_gap: float | None = Field(
        0.01,
        ge=0,
        description="vllm: from this mean gap in nats, importance weights correct a completion; null: never.",
    )
    rollout_rows: int = Field(64, ge=1, description="local: completions sampled at once in one process; our choice.")
    micro_batch_tokens: int = Field(
        8192, ge=1, description="Tokens per forward pass of an update, each prompt counted once; our choice."
    )
    evaluation_limit: int = Field(96, ge=1, description="At most so many held-out problems; our choice.")
    evaluation_max_completion_tokens: int | None = Field(
        None, ge=1, description="Longest answer to them; null: the longest stage's. One number makes schedules alike."
    )
    evaluate_every: int = Field(25, ge=1, description="Steps between two evaluations (Figure 1E: 25 to 50).")

    @model_validator(mode="after")
    def fit_the_sampler(self) -> "PtstGrpoParameters":
        if self.rollout == "vllm" and not self.rollout_endpoints:
            raise ValueError("rollout = 'vllm', rollout_endpoints = []: give the servers' addresses, or rollout: local")
        if self.rollout == "local" and self.rollout_endpoints:
            raise ValueError("rollout = 'local', rollout_endpoints given: take rollout: vllm, or leave them out")
        if self.rollout == "vllm" and self.checkpoint_every is None:
            raise ValueError("rollout = 'vllm', checkpoint_every = null: a server may be lost; give checkpoint_every")
        by_sequence = self.loss in ("equation_1", "gspo")
        if self.rollout == "vllm" and by_sequence and self.rollout_correction_gap is not None:
            raise ValueError(
                f"loss = {self.loss!r}, rollout_correction_gap = {self.rollout_correction_gap}: importance weights are "
                "a token's, this loss's ratio a completion's; set rollout_correction_gap: null"
            )
        return self


class BenchmarkParameters(Parameters):
    """40_benchmark: one model, several benchmarks (Section 4)."""

    resume: bool = Field(False, description="Go on with the run of this name: no answer is asked for twice (--resume).")
    model: str = Field("tiny", min_length=1, description="Model folder or hub name; tiny builds an untrained one.")
    label: str = Field("tiny", min_length=1, description="How tables and figures call the model.")
    benchmarks: list[
        Literal[
            "mathvista",
            "mathverse",
            "mmmath",
            "dynamath",
            "mmstar",
            "chartqa",
            "mme",
            "hallusionbench",
            "mathvision",
            "wemath",
            "shapeworld",
        ]
    ] = Field(["shapeworld"], min_length=1, description="What is scored, each benchmark with a row of its own.")
    data: dict[str, Text] | Text | None = Field(
        None,
        description="One benchmark's folder, file or hub id; of several NAME → one each. Where none is given: "
        "data_root/NAME, and new problems of shapeworld.",
    )
    data_root: str | None = Field(None, min_length=1, description="Folder that holds a folder for each benchmark.")
    exclude: list[Text] = Field([], description="Files (.jsonl) whose rows were trained on and may not be scored.")
    clean_against: list[Text] = Field(
        [], description="Training files (.jsonl): a second score over the problems that none of them comes near; ours."
    )
    limit: int | None = Field(
        200, ge=1, description="At most so many problems per benchmark, evenly spaced; null: all."
    )
    shard: str = Field(
        "1/1", pattern=r"^[1-9]\d*/[1-9]\d*$", description="i/n: every n-th problem from the i-th; put together later."
    )
    shards_of: list[Text] = Field(
        [], description="Run folders of finished shards, whose answers are scored together; nothing is generated."
    )
    protocols: list[Literal["strict", "authors"]] = Field(
        ["strict"], min_length=1, description="strict: one try, rules. authors: beside it theirs, five tries and judge."
    )
    prompt: Literal["ours", "official"] = Field(
        "ours", description="ours: question and options as trained. official: the benchmark's own words (as theirs)."
    )
    control: Literal["none", "blank_pictures", "shuffled_pictures", "shuffled_options"] = Field(
        "none", description="What the score owes to pictures or to the options' order; our choice."
    )
    samples: int = Field(1, ge=1, description="Answers to each problem, for pass@k and majority@k (authors: 1).")
    temperature: float = Field(0.0, ge=0, le=10, description="0 is greedy (authors: 0.6).")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus of the sampling (authors: 0.95).")
    max_completion_tokens: int = Field(128, ge=1, description="Longest answer, in tokens (authors: 16000).")
    batch_size: int = Field(64, ge=1, description="Completions sampled together in this process; our choice.")
    min_pixels: int | None = Field(
        None, ge=1, description="Smallest picture area shown; null: as the model was trained."
    )
    max_pixels: int | None = Field(
        None, ge=1, description="Largest picture area shown; null: as the model was trained."
    )
    accept_other_spec: bool = Field(
        False, description="Score under other pixels than the model was trained with; else they are refused."
    )
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Number type of the weights; our choice.")
    endpoints: list[EndpointFields] = Field(
        [], description="Servers of the model (vLLM): url, model, …, as in docs/data.md; [] answers in this process."
    )
    in_flight: int = Field(64, ge=1, le=4096, description="Requests at once, to servers and judge (authors: 128).")
    send_seed: bool = Field(True, description="Send each request's seed along; some servers don't take one.")
    judge: EndpointFields | None = Field(
        None, description="Endpoint of the judge in the authors' protocol: url, model, …; null: rules alone."
    )
    judge_asks: Literal["undecided", "all"] = Field(
        "undecided", description="Ask the judge where rules find no sure answer, or on all replies (authors)."
    )

    @model_validator(mode="after")
    def fit_each_other(self) -> "BenchmarkParameters":
        if len(set(self.benchmarks)) < len(self.benchmarks):
            raise ValueError(f"benchmarks = {self.benchmarks}: one is named twice; name each once")
        if isinstance(self.data, str) and len(self.benchmarks) > 1:
            raise ValueError(
                f"data = {self.data!r}, but {len(self.benchmarks)} benchmarks: give {{NAME: path, …}}, or data_root"
            )
        if isinstance(self.data, dict) and (unknown := sorted(self.data.keys() - set(self.benchmarks))):
            raise ValueError(f"data: {unknown[0]!r} is none of the benchmarks {self.benchmarks}; name it there too")
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(f"samples = {self.samples}, temperature = 0: greedy samples are all the same; raise it")
        if self.shards_of and self.shard != "1/1":
            raise ValueError(f"shards_of is given, shard = {self.shard!r}: shards are put together whole; leave it 1/1")
        if self.judge and "authors" not in self.protocols:
            raise ValueError("judge is given, but not protocol 'authors': rules alone decide the strict one; add it")
        return self

    def data_of(self, benchmark: str) -> str | None:
        """Where a benchmark's problems are, if `data` says."""
        return self.data.get(benchmark) if isinstance(self.data, dict) else self.data


class AnalysisParameters(Parameters):
    """50_analysis: the paper's tables and Figure 1 over several runs."""

    runs: dict[str, Text] = Field({}, description="Label → run folder of 40_benchmark; {} for all finished ones.")
    training_runs: dict[str, Text] = Field(
        {}, description="Label → run folder of 30_ptst_grpo; {} for all finished ones."
    )
    cold_sets: dict[str, Text] = Field(
        {}, description="Name → cold-start file (.jsonl) counted in Table 2; {} for none."
    )
    sweep: str | None = Field(
        None,
        min_length=1,
        description="Folder of a finished ablation (vr1 sweep); null: no board.",
    )
    cold_started: str = Field("CI", min_length=1, description="Label of the model whose overthinking Figure 1A shows.")
    examples: int = Field(6, ge=0, le=100, description="Completions with pictures in the report; our choice.")


PARAMETERS: dict[str, type[Parameters]] = {
    "00_base_model": BaseModelParameters,
    "10_data_building": DataBuildingParameters,
    "20_cold_sft": ColdSftParameters,
    "30_ptst_grpo": PtstGrpoParameters,
    "40_benchmark": BenchmarkParameters,
    "50_analysis": AnalysisParameters,
}


# Where things are.


def project_root() -> Path:
    """The folder that holds notebooks/ and params/: VR1_HOME, or one above the working directory, or the checkout.

    Raises RequestError if there is none.
    """
    home = os.environ.get("VR1_HOME")
    working = Path.cwd()
    candidates = [Path(home)] if home else [working, *working.parents, Path(vr1lib.__file__).parent.parent]
    for folder in candidates:
        if (folder / "notebooks").is_dir() and (folder / "params").is_dir():
            return folder.resolve()
    where = f"VR1_HOME={home}" if home else f"{working} and the folders above it"
    raise RequestError(f"{where}: no notebooks/ and params/ here; change into the project folder or set VR1_HOME to it")


def parameters_class(stem: str) -> type[Parameters]:
    if stem not in PARAMETERS:
        raise RequestError(f"{stem!r} is no notebook; the notebooks are {', '.join(PARAMETERS)}")
    return PARAMETERS[stem]


# The three ways in: files and overrides (`vr1 run`), a notebook's own names (papermill, JupyterLab), and plain values.


def load_parameters(
    stem: str, files: Sequence[str | Path] = (), overrides: Iterable[tuple[str, str]] = ()
) -> Parameters:
    """The notebook's parameters from YAML files, merged left to right, then KEY VALUE overrides, then its defaults.

    An override's value is read as YAML, but stays text where only text is allowed (`-p label 7`).
    Raises RequestError naming the file (or `-p KEY`), the key and what is allowed.
    """
    fields = parameters_class(stem).model_fields
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for file in files:
        for key, value in read_yaml(stem, file).items():
            values[key], origins[key] = value, str(file)
    for key, text in overrides:
        origin = "-p"
        only_text = key in fields and set(kinds(fields[key].annotation)) <= {str}
        values[key], origins[key] = text if only_text else parse_yaml(text, f"-p {key}"), origin
    return build(stem, values, origins)


def from_notebook(stem: str, namespace: Mapping[str, Any]) -> Parameters:
    """The parameters that the notebook's cells and papermill have put into `namespace` (its `globals()`).

    Moves to the project root, so that relative paths mean the same from JupyterLab, papermill and `vr1 run`. A name
    that the parameters cell or papermill's injected cell assigns but the notebook does not know is refused: papermill
    only warns.
    """
    fields = parameters_class(stem).model_fields
    os.chdir(project_root())
    given = parameter_names(namespace["In"], fields) if "In" in namespace else plain_names(namespace)
    values = {name: namespace[name] for name in [*fields, *given] if name in namespace}
    if not isinstance(values.get("run", ""), str):  # the notebook's `run = start_run(...)` on a second pass
        values["run"] = getattr(values["run"], "name", values["run"])
    return build(stem, values, dict.fromkeys(values, f"notebooks/{stem}.ipynb"))


def build(stem: str, values: dict[str, Any], origins: Mapping[str, str]) -> Parameters:
    """Validate plain values; `origins` says for each key which file to name in an error."""
    known = parameters_class(stem)
    for key in values:
        if key in known.model_fields:
            continue
        if SECRET_NAME.search(str(key)):
            raise RequestError(f"{origins[key]}: {key!r} looks like a secret; give secrets in the environment only")
        nearest = difflib.get_close_matches(str(key), known.model_fields, n=1, cutoff=0.0)[0]
        raise RequestError(f"{origins[key]}: unknown key {key!r} for {stem}; the nearest known key is {nearest!r}")
    try:
        return known.model_validate(values)
    except ValidationError as error:
        raise RequestError(one_line(known, error, values, origins)) from None


# Reading.


class UniqueKeyLoader(yaml.SafeLoader):
    """YAML in which a key given twice is an error instead of a silent last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"{key!r} is given twice", problem_mark=key_node.start_mark
                )
            seen.add(str(key))
        return super().construct_mapping(node, deep)


def read_yaml(stem: str, path: str | Path) -> dict[str, Any]:
    """One flat parameter file; a path that is not below the working directory is looked for below the project root."""
    found = Path(path) if Path(path).exists() else project_root() / path
    try:
        text = found.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise RequestError(f"{path}: not UTF-8 text; give a YAML file") from None
    except OSError as error:
        known = ", ".join(sorted(file.name for file in (project_root() / "params" / stem).glob("*.yaml"))) or "none yet"
        message = f"{path}: cannot be read ({error.strerror}); files in params/{stem}: {known}"
        raise RequestError(message) from None
    values = parse_yaml(text, str(path))
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise RequestError(f"{path}: holds no `key: value` lines; see params/{stem}/ for examples")
    return values


def parse_yaml(text: str, origin: str) -> Any:
    try:
        return yaml.load(text, UniqueKeyLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RequestError(f"{origin}, line {line}: not valid YAML ({error.problem or error.context})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RequestError(f"{origin}: not valid YAML ({str(error).splitlines()[0]})") from None


def parameter_names(cells: Sequence[str], fields: Mapping[str, FieldInfo]) -> list[str]:
    """Names assigned by parameter cells among the executed `cells`.

    A parameter cell holds nothing but `name = plain value` lines, and either is papermill's ("# Parameters") or assigns
    a known field.
    """
    names: list[str] = []
    for cell in cells:
        try:
            statements = ast.parse(cell).body
        except SyntaxError:  # a cell with IPython magic
            continue
        assigned = [assigned_name(statement) for statement in statements]
        if assigned and all(assigned) and (cell.startswith("# Parameters") or any(name in fields for name in assigned)):
            names += [name for name in assigned if name]
    return names


def assigned_name(statement: ast.stmt) -> str | None:
    """The name that `name = plain value` assigns (no calls, no other names in it), None for any other statement."""
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    value = getattr(statement, "value", None)
    if len(targets) != 1 or not isinstance(targets[0], ast.Name) or value is None:
        return None
    return None if any(isinstance(node, ast.Call | ast.Name) for node in ast.walk(value)) else targets[0].id


def plain_names(namespace: Mapping[str, Any]) -> list[str]:
    return [name for name, value in namespace.items() if not name.startswith("_") and isinstance(value, PLAIN_TYPES)]


# Types: what a field may hold, as a conversion and in words.


def kinds(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a type: `int | None` → (int, NoneType); Annotated is looked through."""
    if typing.get_origin(annotation) is Annotated:
        return kinds(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(kind for part in typing.get_args(annotation) for kind in kinds(part))
    return (annotation,)


def as_numbers(value: Any, annotation: Any) -> Any:
    """`value` with text such as "1e-6" read as a number wherever `annotation` allows a number and no text."""
    allowed = kinds(annotation)
    for kind in allowed:
        arguments = typing.get_args(kind)
        if typing.get_origin(kind) is list and isinstance(value, list | tuple):
            return [as_numbers(item, arguments[0]) for item in value]
        if typing.get_origin(kind) is dict and isinstance(value, dict):
            return {key: as_numbers(item, arguments[1]) for key, item in value.items()}
    if not isinstance(value, str) or str in allowed or not {int, float} & set(allowed):
        return value
    try:
        number = float(value)
    except ValueError:
        return value
    whole = int in allowed and math.isfinite(number) and number == int(number)
    return int(number) if whole else number if float in allowed else value


def one_line(
    known: type[Parameters], error: ValidationError, values: Mapping[str, Any], origins: Mapping[str, str]
) -> str:
    """The first complaint: file, key, value, and what is allowed."""
    detail = error.errors()[0]
    complaint = detail["msg"].removeprefix("Value error, ")
    if not detail["loc"]:  # fields that do not fit each other
        return f"{', '.join(dict.fromkeys(origins.values())) or 'the defaults'}: {complaint}"
    key, *inner = detail["loc"]
    path, value = str(key), values[key]
    for part in inner:  # pydantic also lists the alternatives it tried: only real indices and keys are followed
        if isinstance(value, dict) and part in value or isinstance(value, list) and isinstance(part, int):
            path, value = f"{path}[{part}]", value[part]
    shown = repr(value) if len(repr(value)) <= 80 else repr(value)[:77] + "..."
    if detail["type"] == "value_error":
        return f"{origins[key]}: {path} = {shown}: {complaint}"
    field = known.model_fields[key]
    return f"{origins[key]}: {path} = {shown} is not allowed; {key} is {in_words(field.annotation, field.metadata)}"


def in_words(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """A type and its bounds as a reader would say them: `a number > 0`, `one of offline, online`."""
    if typing.get_origin(annotation) is Annotated:
        base, *more = typing.get_args(annotation)
        inner = [item for part in more for item in (part.metadata if isinstance(part, FieldInfo) else [part])]
        return in_words(base, [*inner, *metadata])
    arguments = typing.get_args(annotation)
    origin = typing.get_origin(annotation) or annotation
    if origin in (typing.Union, types.UnionType):
        return " or ".join(in_words(part, metadata if part is not type(None) else ()) for part in arguments)
    if origin is Literal:
        return "one of " + ", ".join(str(choice) for choice in arguments)
    bounds = bounds_in_words(metadata)
    if origin is list:
        return f"a list{bounds} of ({in_words(arguments[0])})"
    if origin is dict:
        return f"a mapping{bounds} of ({in_words(arguments[0])}) to ({in_words(arguments[1])})"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "null"}
    return names[origin] + bounds


def bounds_in_words(metadata: Sequence[Any]) -> str:
    """` > 0 and ≤ 1`, ` (length 3)`, or nothing."""
    bound = {name: getattr(item, name) for item in metadata for name in BOUNDS if getattr(item, name, None) is not None}
    signs = [f"{BOUNDS[name]} {value}" for name, value in bound.items() if name in ("gt", "ge", "lt", "le")]
    shortest, longest = bound.get("min_length"), bound.get("max_length")
    if shortest is not None or longest is not None:
        length = f"length {shortest}" if shortest == longest else f"length {shortest or 0} to {longest or 'any'}"
        signs.append("(not empty)" if (shortest, longest) == (1, None) else f"({length})")
    if "pattern" in bound:
        signs.append(f"of the form {bound['pattern']}")
    return " " + " and ".join(signs) if signs else ""
