"""What a GRPO run works with: its settings, and the policy with all that stands around it, ready to train."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from accelerate.utils.fsdp_utils import fsdp2_prepare_model

from vr1lib.loss import LOSSES, LossName
from vr1lib.models.inference_copy import fill, whole_copy
from vr1lib.models.rollout_vllm import SamplerLost, VllmSampler
from vr1lib.models.vlm import Vlm
from vr1lib.records import RequestError
from vr1lib.reward import RewardKind
from vr1lib.training.processes import Sharding, accelerator_for

Result = TypeVar("Result")


@dataclass(frozen=True)
class GrpoSettings:
    """What the loop needs beside the schedule. Sources are given with each notebook parameter of the same name.

    `prompts_per_step` is over all processes. None for clipping and normalisation: as the loss was published.
    `mask_truncated` keeps cut completions out of the loss; a cut completion's reward of 0 is how PTST suppresses
    overthinking, so that this switches suppression off. `dynamic_sampling_refills`: the most extra rounds of sampling
    in a step, each for the groups so far whose rewards were all equal. `bfloat16` computes in bf16 over float32 weights
    (full fine-tuning; an adapter's base is loaded in bf16 instead). `rollout_correction_gap`: from this mean difference
    of a completion's log-probabilities, sampler's and trainer's, its tokens are weighed by their ratio, at most
    `rollout_correction_cap` (None: never).
    """

    prompts_per_step: int = 16
    updates_per_step: int = 1
    learning_rate: float = 1e-6
    warmup_steps: int = 0
    weight_decay: float = 0.01
    max_gradient_norm: float = 1.0
    max_bad_steps: int = 3
    loss: LossName = "grpo"
    clip_low: float | None = None
    clip_high: float | None = None
    normalise_by_std: bool | None = None
    kl_coefficient: float = 0.01
    mask_truncated: bool = False
    dynamic_sampling_refills: int = 0
    reward: RewardKind = "hard"
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    rollout_rows: int = 64
    micro_batch_tokens: int = 16384
    bfloat16: bool = False
    sharding: Sharding = "none"
    evaluate_every: int = 0
    evaluation_temperature: float = 0.6
    evaluation_top_p: float = 0.95
    evaluation_max_completion_tokens: int | None = None
    evaluation_batch_size: int = 64
    seed: int = 0
    rollout_correction_gap: float | None = None
    rollout_correction_cap: float = 2.0

    def own_or_published(self, name: Literal["clip_low", "clip_high", "normalise_by_std"]) -> float | bool:
        """The setting if it is given, else the loss's own."""
        given = getattr(self, name)
        return getattr(LOSSES[self.loss], name) if given is None else given


@dataclass
class Session:
    """A prepared policy. `sampler` is the same model without its wrapping, or its inference copy; `servers` sample in
    its place if there are any."""

    vlm: Vlm
    sampler: Vlm
    reference: Callable[[], AbstractContextManager[torch.nn.Module]] | None
    optimizer: torch.optim.Optimizer
    accelerator: Accelerator
    settings: GrpoSettings
    servers: VllmSampler | None = None

    def update_sampler(self, version: int) -> None:
        """Let the sampler have the policy's weights of now, after `version` updates. Every process must call."""
        self.fill_sampler()
        if self.servers and self.servers.version != version:
            first = self.accelerator.is_main_process
            self.agreed(lambda: self.servers.update(self.sampler, version) if first else None)
            if not first:
                self.servers.follow(version)

    def fill_sampler(self) -> None:
        """The inference copy's weights, if there is one. Every process must call."""
        if self.sampler.model is not self.accelerator.unwrap_model(self.vlm.model):
            fill(self.sampler.model, self.vlm.model)

    def agreed(self, work: Callable[[], Result]) -> Result:
        """What `work` gives; if the servers are lost to one process, every process hears of it. Every one must call."""
        if self.servers is None:
            return work()
        result, lost = None, None
        try:
            result = work()
        except SamplerLost as error:
            lost = str(error)
        if losses := [each for each in gather_object([lost]) if each]:
            raise SamplerLost(losses[0])
        return result


def prepare(vlm: Vlm, settings: GrpoSettings) -> Session:
    """Make `vlm`, the model that training starts from, ready to train, spread over the processes there are.

    The KL reference is that start model, also of a run that a checkpoint is laid over later. Raises RequestError if the
    settings don't fit the processes or the method.
    """
    accelerator = accelerator_for(vlm.model, settings.sharding, settings.bfloat16)
    if settings.prompts_per_step % accelerator.num_processes:
        raise RequestError(
            f"prompts_per_step = {settings.prompts_per_step}: not divisible by {accelerator.num_processes} processes; "
            "give a multiple"
        )
    sharded = settings.sharding != "none"
    if sharded and vlm.method == "qlora":
        raise RequestError(f"sharding = {settings.sharding!r}: 4-bit weights can't be sharded; set sharding: none")
    number_type = torch.bfloat16 if settings.bfloat16 else None
    reference = reference_of(vlm, accelerator, number_type, sharded) if settings.kl_coefficient > 0 else None
    copied = whole_copy(vlm.model, number_type) if sharded or settings.bfloat16 else None
    parameters = [parameter for parameter in vlm.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    vlm.model, optimizer = accelerator.prepare(vlm.model, optimizer)
    vlm.model.train()  # gradient checkpointing works in training mode only; the sampler leaves it for its own time
    sampler = replace(vlm, model=copied or accelerator.unwrap_model(vlm.model))
    return Session(vlm, sampler, reference, optimizer, accelerator, settings)


def reference_of(
    vlm: Vlm, accelerator: Accelerator, number_type: torch.dtype | None, sharded: bool
) -> Callable[[], AbstractContextManager[torch.nn.Module]]:
    """A context that gives the model as training starts: the adapter as it was, or a frozen copy, sharded as the policy
    is. The copy is in the number type that is computed in: bf16 halves it (7B: 16.6 GB over all processes)."""
    if vlm.method == "full":
        frozen = whole_copy(vlm.model, number_type)
        if sharded:
            frozen = fsdp2_prepare_model(accelerator, frozen)
        return lambda: nullcontext(frozen)

    @contextmanager
    def adapter_off() -> Iterator[torch.nn.Module]:
        with vlm.reference():
            yield accelerator.unwrap_model(vlm.model)

    return adapter_off
