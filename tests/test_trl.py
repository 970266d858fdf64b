"""One step of ours and of TRL's GRPOTrainer on the same model, prompts, pictures, completions and rewards.

TRL's `train` runs as it is, with its own rendering, pictures, log-probabilities, advantages, loss and accumulation;
only its sampling gives the completions that it is told, and its shuffle leaves rows in order. Ours is `update_policy`.
Losses and gradients are compared to 1e-4 relative where both mean the same thing; where they don't, the difference is
shown. What differs, and why, is listed in docs/losses.md.
"""

from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessorPil
from trl import GRPOConfig, GRPOTrainer
from trl.trainer import grpo_trainer

from vr1lib.advantage import group_advantages
from vr1lib.models.rollout_local import Sampled
from vr1lib.models.tiny import build_tiny_vlm
from vr1lib.models.vlm import Vlm, load_vlm, save_vlm
from vr1lib.records import Graded, Problem
from vr1lib.training.grpo import GrpoSettings, Session, prepare, update_policy
from vr1lib.training.logprobs import completion_logprobs
from vr1lib.training.rollouts import Rollout

GROUP_SIZE, MAX_TOKENS = 4, 9
LENGTHS = [9, 9, 7, 1, 2, 2, 8, 2, 6, 6, 4, 4]  # tokens of each completion, 30 in each half
REWARDS = [1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.5, 0.0, 1.0, 0.0]
TRL_EPSILON = 1e-4  # beside the std of a group's rewards; ours is 1e-6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    build_tiny_vlm(
        folder, 0, ["How many red shapes are there? Which is the largest one?"] * 3, vocabulary_size=290,
        hidden_size=32, layers=2, heads=2, intermediate_size=64, vision_hidden_size=32, vision_depth=2,
        tie_word_embeddings=False,
    )  # fmt: skip
    vlm = load_vlm(folder)
    with torch.no_grad():
        vlm.model.lm_head.weight *= 10  # an untrained model finds all tokens about equally likely
    save_vlm(vlm, folder)
    generator = torch.Generator().manual_seed(3)
    for name, (height, width) in {"a": (56, 84), "b": (28, 56), "c": (84, 28)}.items():
        pixels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{name}.png")
    return folder


def problems_with(folder, pictures: list[str]) -> list[Problem]:
    questions = ["How many red shapes are there?", "Which is the largest one?", "How many?"]
    return [
        Problem(
            id=f"p{number}", source="test", split="train", question=question, answer="2",
            images=[str(folder / f"{name}.png") for name in names],
        )
        for number, (question, names) in enumerate(zip(questions, pictures))
    ]  # fmt: skip


@pytest.fixture(scope="module")
def problems(folder):
    return problems_with(folder, ["a", "bc", "c"])


def policy(folder) -> Vlm:
    """TRL scores vision tokens too, though it never samples them; so that both do the same, ours doesn't ban them."""
    vlm = load_vlm(folder, train_vision=True)
    vlm.vision_token_ids = ()
    return vlm


def leave_reference(vlm: Vlm) -> None:
    """The model in the folder is the reference; the policy is another."""
    move(vlm.model, seed=1, scale=0.3)


def move(model, seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in model.parameters():
            noise = torch.randn(weights.shape, generator=generator)
            weights += scale * (weights.std() if weights.dim() > 1 else 0.1) * noise


class Recorder(torch.optim.SGD):
    """Keeps each update's gradients; instead of following them it moves the weights at random, the same for all."""

    def __init__(self, model):
        super().__init__(model.parameters(), lr=0.0)
        self.model, self.gradients = model, []

    def step(self, closure=None):
        self.gradients.append({name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None})
        move(self.model, seed=7, scale=0.3)


# --------------------------------------------------------------------------------------------------------------- theirs


class Processor(Qwen2_5_VLProcessor):
    """Its video part wants torchvision."""

    @classmethod
    def get_attributes(cls):
        return ["image_processor", "tokenizer"]


class ToldTrainer(GRPOTrainer):
    """TRL's trainer with its completions given to it. Keeps what it makes of them."""

    def _generate_single_turn(self, prompt_ids, *_, **__):
        self.prompt_ids = prompt_ids
        return self.completions, None

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        self.advantages = output["advantages"]
        return output

    def compute_loss(self, *arguments, **named):
        loss = super().compute_loss(*arguments, **named)
        self.losses.append(loss.item())
        return loss


@pytest.fixture(autouse=True)
def rows_in_order(monkeypatch):
    monkeypatch.setattr(grpo_trainer, "shuffle_sequence_dict", lambda batch: batch)


def trained_by_trl(folder, problems, completions, *, rewards=REWARDS, updates=1, micro_batches=1, **settings):
    """TRL's trainer after so many updates, each in so many micro-batches."""
    vlm = policy(folder)
    tokenizer = vlm.tokenizer
    tokenizer.padding_side = "left"  # as TRL asks; else it would see pictures at other tokens
    arguments = GRPOConfig(
        output_dir=str(folder / "trl"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        max_grad_norm=0.0,
        shuffle_dataset=False,
        max_completion_length=MAX_TOKENS,
        num_generations=GROUP_SIZE,
        per_device_train_batch_size=len(completions) // updates // micro_batches,
        gradient_accumulation_steps=micro_batches,
        steps_per_generation=updates * micro_batches,
        max_steps=updates,
        **{"use_bias_correction_kl": False, **settings},
    )
    rows = [
        {"prompt": [{"role": "user", "content": problem.question}]}
        | ({"images": [Image.open(image) for image in problem.images]} if problem.images else {})
        for problem in problems
    ]
    recorder = Recorder(vlm.model)
    trainer = ToldTrainer(
        model=vlm.model,
        args=arguments,
        reward_funcs=lambda completions, **_: list(rewards),
        train_dataset=Dataset.from_list(rows),
        processing_class=Processor(
            Qwen2VLImageProcessorPil.from_pretrained(folder), tokenizer, chat_template=tokenizer.chat_template
        ),
        optimizers=(recorder, torch.optim.lr_scheduler.ConstantLR(recorder)),
    )
    leave_reference(vlm)
    trainer.completions, trainer.losses = [row.token_ids for row in completions], []
    trainer.train()
    trainer.gradients = recorder.gradients
    return trainer


# ----------------------------------------------------------------------------------------------------------------- ours


def our_session(folder, **settings) -> Session:
    vlm = policy(folder)
    session = prepare(vlm, GrpoSettings(max_gradient_norm=1e9, **settings))
    leave_reference(vlm)
    return replace(session, optimizer=Recorder(vlm.model))


def updated_by_us(
    session, problems, completions, *, rewards=REWARDS, epsilon=TRL_EPSILON
) -> tuple[dict[str, float], list[dict[str, torch.Tensor]]]:
    """The step's metrics and each update's gradients."""
    settings = session.settings
    rewards = torch.tensor(rewards).view(-1, GROUP_SIZE)
    advantages = group_advantages(rewards, epsilon, settings.own_or_published("normalise_by_std")).flatten().tolist()
    rollouts = []
    for index, completion in enumerate(completions):
        problem = problems[index // GROUP_SIZE]
        update = index * settings.updates_per_step // len(completions)  # the draw's number decides it: the first half …
        graded = Graded(
            problem_id=problem.id, sample=0, step=1, stage=0, text="", tokens=len(completion.token_ids),
            finish=completion.finish, logprob=sum(completion.logprobs), reward=0.0, format_ok=True, answer_ok=True,
            extracted=None, reason="",
        )  # fmt: skip
        has_loss = not (settings.mask_truncated and completion.finish == "length")
        prompt = session.vlm.encode_prompt(problem)
        rollouts.append(Rollout(update, prompt, completion, graded, advantages[index], has_loss=has_loss))
    metrics = update_policy(session, rollouts, MAX_TOKENS)
    return metrics, session.optimizer.gradients


def scored(folder, problems, token_ids: list[list[int]], temperature=1.0) -> list[Sampled]:
    """Completions with the log-probabilities that the policy has for them as the step starts."""
    vlm = our_session(folder).vlm
    prompts = [vlm.encode_prompt(problems[index // GROUP_SIZE]) for index in range(len(token_ids))]
    with torch.no_grad():
        logprobs, _ = completion_logprobs(vlm, vlm.model, prompts, token_ids, temperature)
    return [
        Sampled(ids, values[: len(ids)].tolist(), "stop" if ids[-1] == vlm.end_of_turn_id else "length")
        for ids, values in zip(token_ids, logprobs)
    ]


def random_ids(folder, lengths: list[int]) -> list[list[int]]:
    """Text tokens; every third completion comes to its end by itself."""
    vlm, generator = policy(folder), torch.Generator().manual_seed(0)
    rows = [torch.randint(0, 256, (length,), generator=generator).tolist() for length in lengths]
    return [[*row[:-1], vlm.end_of_turn_id] if number % 3 == 0 else row for number, row in enumerate(rows)]


@pytest.fixture(scope="module")
def completions(folder, problems):
    return scored(folder, problems, random_ids(folder, LENGTHS))


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


def largest_difference(ours: dict, theirs: dict) -> float:
    """Relative, of any weight's gradient."""
    assert ours.keys() == theirs.keys() and len(theirs) > 20
    return max(difference(ours[name], theirs[name]) for name in theirs)


def assert_same(ours, trainer) -> None:
    metrics, gradients = ours
    updates = len(trainer.gradients)
    assert metrics["loss"] == pytest.approx(sum(trainer.losses) / updates, rel=1e-4, abs=1e-7)
    for ours, theirs in zip(gradients, trainer.gradients, strict=True):
        assert largest_difference(ours, theirs) < 1e-4


# -------------------------------------------------------------------------------------- pairs that mean the same thing

PAIRS = {
    "grpo is bnpo": ({"loss": "grpo"}, {"loss_type": "bnpo"}),
    "grpo is dapo with even bounds": ({"loss": "grpo"}, {"loss_type": "dapo"}),
    "dapo": ({"loss": "dapo"}, {"loss_type": "dapo", "epsilon_high": 0.28}),
    "dr_grpo": ({"loss": "dr_grpo"}, {"loss_type": "dr_grpo", "scale_rewards": "none"}),
    "gspo": (
        {"loss": "gspo"},
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
    ),
}
EVERY_PAIR = pytest.mark.parametrize(("ours", "theirs"), PAIRS.values(), ids=PAIRS)


@EVERY_PAIR
def test_an_update_and_one_away_from_the_sampling_policy_are_the_same(folder, problems, completions, ours, theirs):
    """The first half of the completions before, the second half after the weights have moved."""
    trainer = trained_by_trl(folder, problems, completions, updates=2, beta=0.1, **theirs)
    session = our_session(folder, updates_per_step=2, kl_coefficient=0.1, **ours)
    metrics, gradients = updated_by_us(session, problems, completions)
    assert_same((metrics, gradients), trainer)
    assert metrics["clip/low"] > 0 and metrics["clip/high"] > 0 and metrics["kl"] > 0.01


@pytest.mark.parametrize(
    ("ours", "theirs", "micro_batches"),
    [(*pair, 1 if pair[1]["loss_type"] == "bnpo" else 3) for pair in PAIRS.values()],
    ids=PAIRS,
)
def test_one_step_is_the_same_in_micro_batches(folder, problems, completions, ours, theirs, micro_batches):
    """Here without a KL term and at a temperature. TRL cuts the rows in order, ours by length."""
    trainer = trained_by_trl(
        folder, problems, completions, micro_batches=micro_batches, beta=0.0, temperature=0.7, **theirs
    )
    session = our_session(folder, kl_coefficient=0.0, temperature=0.7, micro_batch_tokens=60, **ours)
    assert_same(updated_by_us(session, problems, completions), trainer)


@EVERY_PAIR
def test_truncated_completions_are_left_out_alike(folder, problems, completions, ours, theirs):
    trainer = trained_by_trl(folder, problems, completions, mask_truncated_completions=True, **theirs)
    session = our_session(folder, kl_coefficient=0.0, mask_truncated=True, **ours)
    assert_same(updated_by_us(session, problems, completions), trainer)


def test_prompts_without_pictures_are_the_same(folder):
    problems = problems_with(folder, ["", "", ""])
    completions = scored(folder, problems, random_ids(folder, LENGTHS))
    trainer = trained_by_trl(folder, problems, completions, loss_type="dapo", beta=0.1)
    assert not any("visual" in name for name in trainer.gradients[0])
    assert_same(updated_by_us(our_session(folder, kl_coefficient=0.1), problems, completions), trainer)


def test_prompts_are_rendered_to_the_same_tokens(folder, problems, completions):
    trainer = trained_by_trl(folder, problems, completions)
    ours = [policy(folder).encode_prompt(problem).input_ids.tolist() for problem in problems]
    assert trainer.prompt_ids == [ids for ids in ours for _ in range(GROUP_SIZE)]


@pytest.mark.parametrize("normalise_by_std", [True, False])
def test_advantages_are_the_same_but_for_epsilon(folder, problems, completions, normalise_by_std):
    scale_rewards = "group" if normalise_by_std else "none"
    trainer = trained_by_trl(folder, problems, completions, scale_rewards=scale_rewards)
    rewards = torch.tensor(REWARDS).view(-1, GROUP_SIZE)
    ours = group_advantages(rewards, TRL_EPSILON, normalise_by_std).flatten()
    assert torch.allclose(ours, trainer.advantages, rtol=1e-6, atol=0)
    # one right of four: std 1/2; 1e-4 beside it makes TRL's advantage 2e-4 smaller than ours, which has 1e-6 there
    ours = group_advantages(rewards, normalise_by_std=normalise_by_std).flatten()
    expected = (0.5 + 1e-4) / (0.5 + 1e-6) if normalise_by_std else 1.0
    assert (ours / trainer.advantages)[0].item() == pytest.approx(expected, rel=1e-6)


# ---------------------------------------------------------------------------------------------------- the differences


def test_trl_weighs_the_kl_by_the_ratio_unless_told_not_to(folder, problems, completions):
    settings = {"rewards": [0.0] * 12, "loss_type": "dapo", "beta": 1.0}  # the KL term alone
    trainer = trained_by_trl(folder, problems, completions, use_bias_correction_kl=True, **settings)
    ours = updated_by_us(our_session(folder, kl_coefficient=1.0), problems, completions, rewards=[0.0] * 12)
    assert ours[0]["loss"] == pytest.approx(trainer.losses[0], rel=1e-4)  # the ratio is 1 in value, but has a gradient
    assert largest_difference(ours[1][0], trainer.gradients[0]) > 0.1
    assert_same(ours, trained_by_trl(folder, problems, completions, **settings))


def test_trl_scores_vision_tokens_that_it_never_samples(folder, problems, completions):
    trainer = trained_by_trl(folder, problems, completions, loss_type="dapo")
    session = our_session(folder, kl_coefficient=0.0)
    session.vlm.vision_token_ids = load_vlm(folder).vision_token_ids
    _, gradients = updated_by_us(session, problems, completions)
    assert 1e-3 < difference(gradients[0]["lm_head.weight"], trainer.gradients[0]["lm_head.weight"]) < 0.1


def test_trl_grpo_takes_each_completions_mean_first(folder, problems, completions):
    """The same where all completions are equally long."""
    trainer = trained_by_trl(folder, problems, completions, loss_type="grpo")
    _, gradients = updated_by_us(our_session(folder, kl_coefficient=0.0), problems, completions)
    assert largest_difference(gradients[0], trainer.gradients[0]) > 0.1
    completions = scored(folder, problems, random_ids(folder, [5] * 12))
    trainer = trained_by_trl(folder, problems, completions, loss_type="grpo", beta=0.1)
    assert_same(updated_by_us(our_session(folder, kl_coefficient=0.1), problems, completions), trainer)


def test_trl_bnpo_depends_on_the_micro_batches(folder, problems, completions):
    session = our_session(folder, kl_coefficient=0.0, micro_batch_tokens=60)
    _, ours = updated_by_us(session, problems, completions)
    whole, parts = (
        trained_by_trl(folder, problems, completions, loss_type="bnpo", micro_batches=count) for count in (1, 3)
    )
    assert largest_difference(ours[0], whole.gradients[0]) < 1e-4
    assert largest_difference(ours[0], parts.gradients[0]) > 0.01


def test_trl_dapo_divides_by_the_mean_tokens_of_the_steps_updates(folder, problems):
    """Ours divides by the tokens of the update: 12 in the first, 36 in the second; theirs by 24 in both."""
    completions = scored(folder, problems, random_ids(folder, [2] * 6 + [6] * 6))
    trainer = trained_by_trl(folder, problems, completions, loss_type="dapo", updates=2)
    _, ours = updated_by_us(our_session(folder, updates_per_step=2, kl_coefficient=0.0), problems, completions)
    for gradients, theirs, factor in zip(ours, trainer.gradients, (24 / 12, 24 / 36)):
        assert largest_difference(gradients, {name: factor * gradient for name, gradient in theirs.items()}) < 1e-4


def test_trl_counts_clipped_completions_where_ours_counts_their_tokens(folder, problems, completions):
    ours, theirs = PAIRS["gspo"]
    trainer = trained_by_trl(folder, problems, completions, updates=2, **theirs)
    session = our_session(folder, updates_per_step=2, kl_coefficient=0.0, **ours)
    metrics, _ = updated_by_us(session, problems, completions)
    told = trainer.state.log_history[-1]
    assert told["clip_ratio/low_mean"] == told["clip_ratio/high_mean"] == pytest.approx(2 / 12)
    assert metrics["clip/low"] == pytest.approx(10 / 60) and metrics["clip/high"] == pytest.approx(8 / 60)


def test_equation_1_has_no_pair_but_starts_like_luspo(folder, problems, completions):
    """TRL has no ratio of whole completions. At ratio 1 its gradient is the sum over tokens that luspo takes."""
    trainer = trained_by_trl(folder, problems, completions, loss_type="luspo", micro_batches=3)
    session = our_session(folder, loss="equation_1", kl_coefficient=0.0)
    _, gradients = updated_by_us(session, problems, completions)
    assert largest_difference(gradients[0], trainer.gradients[0]) < 1e-4


def test_trl_refuses_prompts_with_and_without_pictures_in_one_batch(folder):
    problems = problems_with(folder, ["a", "", "c"])
    completions = scored(folder, problems, random_ids(folder, LENGTHS))
    with pytest.raises(TypeError, match="NoneType"):
        trained_by_trl(folder, problems, completions)
    metrics, _ = updated_by_us(our_session(folder), problems, completions)
    assert metrics["grad_norm"] > 0
