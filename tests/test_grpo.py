"""The GRPO loop: stages switch inside one run, gradients are the plain ones, rewards move the policy, ids are
asserted."""

import copy
from dataclasses import replace

import pytest
import torch

from vr1lib.data.shapeworld import make_problems, write_base_cot
from vr1lib.models.rollout_local import sample
from vr1lib.models.tiny import build_tiny_vlm
from vr1lib.models.vlm import load_vlm
from vr1lib.records import Problem
from vr1lib.schedule import Schedule
from vr1lib.training import grpo
from vr1lib.training.grpo import GrpoSettings, train_grpo


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    return make_problems(tmp_path_factory.mktemp("world"), "rl", 6, grid_sizes=(2, 3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, problems):
    folder = tmp_path_factory.mktemp("tiny")
    texts = [f"{p.question}\n{write_base_cot(p)}" for p in problems]
    build_tiny_vlm(folder, 0, texts, vocabulary_size=400, hidden_size=64, layers=2, tie_word_embeddings=False)
    return folder


def loud(vlm, seed=0):
    """An untrained model's samples hardly differ in probability; a louder head makes ratios and gradients matter."""
    head = vlm.model.get_output_embeddings().weight
    head.data = torch.randn(head.shape, generator=torch.Generator().manual_seed(seed)) * 0.3
    return vlm


@pytest.fixture
def vlm(folder):
    return loud(load_vlm(folder))


SETTINGS = GrpoSettings(prompts_per_step=2, learning_rate=1e-3, kl_coefficient=0.0, weight_decay=0.0)


def run(vlm, problems, stages, settings=SETTINGS, **options):
    rows = []
    train_grpo(vlm, problems, Schedule(stages), settings, log=rows.append, **options)
    return rows


def sampled_rollouts(vlm, problems, settings=SETTINGS, max_completion_tokens=10, group_size=3):
    prompts = [vlm.encode_prompt(problem) for problem in problems]
    groups = sample(
        vlm, prompts, group_size=group_size, max_completion_tokens=max_completion_tokens,
        generator=torch.Generator().manual_seed(5),
    )  # fmt: skip
    rollouts = grpo.grade_groups(vlm, problems, prompts, groups, "hard", 1, 0)
    for index, rollout in enumerate(rollouts):
        rollout.advantage = (-1.0) ** index * (1 + index)
    return rollouts


def gradients(vlm):
    return {name: p.grad.clone() for name, p in vlm.model.named_parameters() if p.grad is not None}


class Still(torch.optim.SGD):
    """Keeps the gradients for inspection instead of using them."""

    def step(self, closure=None):
        pass

    def zero_grad(self, set_to_none=True):
        pass


def update(vlm, rollouts, settings=SETTINGS, reference=None):
    from accelerate import Accelerator

    vlm.model.zero_grad()
    metrics = grpo.update_policy(vlm, rollouts, Still(vlm.model.parameters()), Accelerator(), reference, settings, 10)
    return metrics, gradients(vlm)


def test_stages_change_group_and_length_inside_one_run(vlm, problems):
    seen = []
    rows = run(
        vlm, problems, [(6, 4, 2), (12, 2, 1)],
        log_completions=lambda graded, by_id: seen.append([(g.stage, g.tokens, g.problem_id in by_id) for g in graded]),
    )  # fmt: skip
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert [row["stage"] for row in rows] == [0, 0, 0, 1]
    assert [len(step) for step in seen] == [8, 8, 4]
    assert max(tokens for step in seen[:2] for _, tokens, _ in step) <= 6
    assert {stage for stage, _, _ in seen[2]} == {1} and max(tokens for _, tokens, _ in seen[2]) > 6
    assert all(known for step in seen for _, _, known in step)


def test_updates_run_in_training_mode_so_that_checkpointing_works(folder, problems):
    vlm = loud(load_vlm(folder, gradient_checkpointing=True))
    modes = []
    vlm.model.model.language_model.layers[0].register_forward_pre_hook(
        lambda layer, _: modes.append((layer.training, torch.is_grad_enabled()))
    )
    train_grpo(vlm, problems, Schedule([(4, 2, 1)]), SETTINGS, log=lambda row: None)
    assert (True, True) in modes and (False, False) in modes  # updates, sampling
    assert (False, True) not in modes and not vlm.model.training


def test_gradient_is_that_of_a_plain_row_by_row_computation(vlm, problems):
    settings = replace(SETTINGS, max_gradient_norm=1e9)
    rollouts = sampled_rollouts(vlm, problems[:2])
    _, ours = update(vlm, rollouts, settings)
    vlm.model.zero_grad()
    total = sum(len(rollout.sampled.token_ids) for rollout in rollouts)
    loss = 0.0
    for rollout in rollouts:
        completion = torch.tensor(rollout.sampled.token_ids)
        logits = vlm.model(
            input_ids=torch.cat([rollout.prompt.input_ids, completion])[None],
            mm_token_type_ids=torch.cat([rollout.prompt.mm_token_type_ids, torch.zeros_like(completion)])[None],
            pixel_values=rollout.prompt.pixel_values,
            image_grid_thw=rollout.prompt.image_grid_thw,
        ).logits[0, len(rollout.prompt) - 1 : -1]
        logits = logits.index_fill(1, torch.tensor(vlm.vision_token_ids), float("-inf"))
        logprobs = logits.log_softmax(-1).gather(1, completion[:, None])
        loss = loss - rollout.advantage * logprobs.sum() / total  # at ratio 1 the surrogate's gradient is A ∇ log π
    loss.backward()
    plain = gradients(vlm)
    assert ours.keys() == plain.keys() and len(ours) > 10
    for name in plain:
        assert torch.allclose(ours[name], plain[name], rtol=1e-4, atol=1e-6), name


def test_micro_batches_add_up_to_the_whole_step(vlm, problems):
    rollouts = sampled_rollouts(vlm, problems)
    whole, one = update(vlm, rollouts, replace(SETTINGS, micro_batch_tokens=10**6))
    split, many = update(vlm, rollouts, replace(SETTINGS, micro_batch_tokens=60))
    assert len(list(grpo.micro_batches(rollouts, 60))) > 3
    assert whole == pytest.approx(split, rel=1e-4, abs=1e-6)
    for name in one:
        assert torch.allclose(one[name], many[name], rtol=1e-3, atol=1e-6), name


def test_micro_batches_hold_every_row_once_within_the_budget(vlm, problems):
    rollouts = sampled_rollouts(vlm, problems)
    batches = list(grpo.micro_batches(rollouts, 150))
    assert sorted(id(row) for batch in batches for row in batch) == sorted(map(id, rollouts))
    for batch in batches:
        prompt, completion = (max(map(len, part)) for part in zip(*((r.prompt, r.sampled.token_ids) for r in batch)))
        assert len(batch) == 1 or len(batch) * (prompt + completion) <= 150


def test_recomputed_logprobs_equal_the_sampled_ones(vlm, problems):
    metrics, _ = update(vlm, sampled_rollouts(vlm, problems))
    assert metrics["logprob_gap"] < 1e-5
    assert metrics["clip/low"] == metrics["clip/high"] == 0


def test_rewarded_completions_become_likelier(vlm, problems, monkeypatch):
    token = vlm.tokenizer.encode("red")[0]

    def likes_red(completion, problem, kind="hard"):
        ok = "red" in completion.text
        return grpo.Graded(
            **completion.model_dump(), reward=float(ok), format_ok=ok, answer_ok=ok, extracted=None, reason=""
        )

    monkeypatch.setattr(grpo, "grade_completion", likes_red)
    head = vlm.model.get_output_embeddings().weight
    head.data[token] = 0
    rows = run(vlm, problems, [(8, 8, 12)], replace(SETTINGS, learning_rate=3e-3, prompts_per_step=4))
    rewards = [row["reward/mean"] for row in rows[1:]]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.3


def test_groups_that_agree_leave_the_policy_alone(vlm, problems):
    before = copy.deepcopy(vlm.model.state_dict())
    rows = run(vlm, problems, [(6, 4, 2)])  # an untrained model is never right: every group is all wrong
    assert rows[-1]["groups/all_wrong"] == 1 and rows[-1]["reward/mean"] == 0 and rows[-1]["grad_norm"] == 0
    assert all(torch.equal(weights, before[name]) for name, weights in vlm.model.state_dict().items())


def test_kl_is_measured_against_the_model_as_it_started(vlm, problems):
    reference = grpo.frozen_reference(vlm)
    rollouts = sampled_rollouts(vlm, problems)
    settings = replace(SETTINGS, kl_coefficient=0.5)
    metrics, _ = update(vlm, rollouts, settings, reference)
    assert metrics["kl"] == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        vlm.model.get_output_embeddings().weight.mul_(1.3)
    metrics, _ = update(vlm, rollouts, settings, reference)
    assert metrics["kl"] > 1e-3


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_under_an_adapter_the_reference_is_the_adapter_switched_off(folder, problems, method):
    vlm = load_vlm(folder, method=method, lora_rank=4, lora_alpha=8)
    start = {name: weights.clone() for name, weights in vlm.model.named_parameters()}
    rollouts = sampled_rollouts(vlm, problems)
    settings = replace(SETTINGS, kl_coefficient=0.1)
    optimizer = torch.optim.AdamW([p for p in vlm.model.parameters() if p.requires_grad], lr=1e-2)
    from accelerate import Accelerator

    reference = grpo.frozen_reference(vlm)
    first = grpo.update_policy(vlm, rollouts, optimizer, Accelerator(), reference, settings, 10)
    second = grpo.update_policy(vlm, rollouts, optimizer, Accelerator(), reference, settings, 10)
    assert first["kl"] == pytest.approx(0, abs=1e-6) and second["kl"] > 0
    moved = {name for name, weights in vlm.model.named_parameters() if not torch.equal(weights, start[name])}
    assert moved and all("lora" in name for name in moved)


def test_several_updates_per_step_use_every_rollout_once_and_leave_ratio_one(vlm, problems):
    settings = replace(SETTINGS, updates_per_step=2, learning_rate=3e-2)
    rollouts = sampled_rollouts(vlm, problems)
    optimizer = torch.optim.SGD(vlm.model.parameters(), lr=0.5)
    from accelerate import Accelerator

    metrics = grpo.update_policy(vlm, rollouts, optimizer, Accelerator(), None, settings, 10)
    assert metrics["logprob_gap"] > 1e-4  # the second half meets a policy that has moved on


def test_a_row_of_another_problem_is_an_error(vlm, problems):
    prompts = [vlm.encode_prompt(problem) for problem in problems[:2]]
    groups = sample(vlm, prompts, group_size=2, max_completion_tokens=4)
    with pytest.raises(AssertionError, match="met"):
        grpo.grade_groups(vlm, problems[:2], prompts[::-1], groups, "hard", 1, 0)


def test_problems_come_in_a_new_seeded_order_every_epoch(problems):
    def epochs(seed):
        stream = grpo.shuffled_epochs(problems, seed)
        return [[next(stream).id for _ in problems] for _ in range(3)]

    first = epochs(1)
    assert first == epochs(1) != epochs(2)
    assert all(sorted(epoch) == sorted(p.id for p in problems) for epoch in first)
    assert first[0] != first[1]


def test_evaluation_comes_first_last_and_every_so_many_steps(vlm, problems):
    rows = run(vlm, problems, [(6, 2, 5)], replace(SETTINGS, evaluate_every=2), evaluation_problems=problems[:3])
    assert [row["step"] for row in rows if "eval/accuracy" in row] == [0, 2, 4, 5]
    assert all(row["eval/n"] == 3 for row in rows if "eval/n" in row)


def test_problems_that_cannot_teach_are_left_out_with_reasons(vlm, problems, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    good = problems[0]
    broken = good.model_copy(update={"id": "broken", "images": [str(tmp_path / "broken.png")]})
    unclear = Problem(id="unclear", images=[], question="?", answer="The answer is", source="test", split="rl")
    usable, rejects = grpo.usable_problems(vlm, [good, broken, unclear])
    assert [problem.id for problem in usable] == [good.id]
    assert {reject.id: reject.reason for reject in rejects} == {
        "broken": "cannot be shown",
        "unclear": "gold does not grade itself",
    }
