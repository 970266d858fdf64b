"""The GRPO loop: stages switch inside one run, gradients are the plain ones, rewards move the policy, bad steps leave
nothing behind, ids are asserted."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from accelerate.state import AcceleratorState
from grpo_case import SETTINGS, graded_by, make_case, odd_bytes, problems_of
from safetensors.torch import load_file

from vr1lib.models.vlm import load_vlm, save_vlm
from vr1lib.records import Problem, RequestError
from vr1lib.schedule import Schedule, Stage
from vr1lib.training import grpo, logprobs, rollouts
from vr1lib.training.grpo import prepare, roll_out, train_grpo
from vr1lib.training.processes import TrainingStopped, accelerator_for

STAGE = Stage(max_completion_tokens=10, group_size=3, steps=1)
PLAIN = replace(SETTINGS, prompts_per_step=2, kl_coefficient=0.0)


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """accelerate remembers the first precision it was asked for."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return make_case(tmp_path_factory.mktemp("case"))


@pytest.fixture(scope="module")
def problems(case):
    return problems_of(case)


@pytest.fixture
def vlm(case):
    return load_vlm(case / "model")


@pytest.fixture
def odd_is_right(monkeypatch):
    monkeypatch.setattr(rollouts, "grade_completion", graded_by(odd_bytes))


def run(vlm, problems, stages, settings=PLAIN, **options):
    rows = []
    train_grpo(prepare(vlm, settings), problems, Schedule(stages), log=rows.append, **options)
    return rows


def rolled_out(session, problems, stage=STAGE):
    rows = [row for group in roll_out(session, problems, range(len(problems)), stage) for row in group]
    for index, row in enumerate(rows):
        row.advantage = (-1.0) ** index * (1 + index)
    return rows


def gradients_after(session, rows):
    """The metrics and gradients of one update that isn't taken."""
    session.vlm.model.zero_grad()
    if session.reference:
        grpo.add_reference_logprobs(session, rows, rows[0])
    metrics = grpo.accumulate_gradients(session, rows, STAGE.max_completion_tokens)
    named = session.vlm.model.named_parameters()
    return metrics, {name: weight.grad.clone() for name, weight in named if weight.grad is not None}


def weights_of(vlm):
    return copy.deepcopy(vlm.model.state_dict())


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


# ------------------------------------------------------------------------------------------------------------ the loop


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


def test_updates_run_in_training_mode_so_that_checkpointing_works(case, problems):
    vlm = load_vlm(case / "model", gradient_checkpointing=True)
    modes = []
    vlm.model.model.language_model.layers[0].register_forward_pre_hook(
        lambda layer, _: modes.append((layer.training, torch.is_grad_enabled()))
    )
    run(vlm, problems, [(4, 2, 1)])
    assert (True, True) in modes and (False, False) in modes  # updates, sampling
    assert (False, True) not in modes and not vlm.model.training


def test_rewarded_completions_become_likelier(vlm, problems, monkeypatch):
    monkeypatch.setattr(rollouts, "grade_completion", graded_by(lambda text, problem: "red" in text))
    vlm.model.get_output_embeddings().weight.data[vlm.tokenizer.encode("red")[0]] = 0
    rows = run(vlm, problems, [(8, 8, 12)], replace(PLAIN, learning_rate=6e-3, prompts_per_step=4))
    rewards = [row["reward/mean"] for row in rows[1:]]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.3


def test_groups_that_agree_leave_the_policy_alone(vlm, problems):
    before = weights_of(vlm)
    rows = run(vlm, problems, [(6, 4, 2)])  # an untrained model is never right: every group is all wrong
    assert rows[-1]["groups/all_wrong"] == 1 and rows[-1]["reward/mean"] == 0 and rows[-1]["grad_norm"] == 0
    assert same(vlm.model.state_dict(), before)


def test_learning_rate_warms_up_by_the_step_and_then_stays(vlm, problems):
    session = prepare(vlm, replace(PLAIN, warmup_steps=2, learning_rate=0.5))
    told, used = [], []

    def log(row):
        told.append(row.get("learning_rate"))
        used.append(session.optimizer.param_groups[0]["lr"])

    train_grpo(session, problems, Schedule([(3, 2, 4)]), log=log)
    assert told[1:] == used[1:] == [0.25, 0.5, 0.5, 0.5]


def test_evaluation_comes_first_last_and_every_so_many_steps(vlm, problems):
    settings, answers = replace(PLAIN, evaluate_every=2), []
    options = {"evaluation_problems": problems[:3], "log_evaluation": answers.append}
    rows = run(vlm, problems, [(6, 2, 5)], settings, **options)
    assert [row["step"] for row in rows if "eval/accuracy" in row] == [0, 2, 4, 5]
    assert all(row["eval/n"] == 3 for row in rows if "eval/n" in row)
    assert [{row.step for row in graded} for graded in answers] == [{0}, {2}, {4}, {5}]
    assert all([row.problem_id for row in graded] == [each.id for each in problems[:3]] for graded in answers)
    told = [row["eval/length_mean"] for row in rows if "eval/n" in row]
    assert told == [sum(row.tokens for row in graded) / 3 for graded in answers]


@pytest.mark.parametrize(("limit", "longest"), [(None, 9), (4, 4)])
def test_evaluation_has_one_limit_the_longest_stages_or_its_own(vlm, problems, limit, longest):
    settings, answers = replace(PLAIN, evaluate_every=1, evaluation_max_completion_tokens=limit), []
    run(vlm, problems, [(6, 2, 1), (9, 2, 1)], settings, evaluation_problems=problems, log_evaluation=answers.append)
    assert [max(row.tokens for row in graded) for graded in answers] == [longest] * 3


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


def test_sharding_a_single_process_is_a_wrong_request(vlm):
    with pytest.raises(RequestError, match="sharding = 'fsdp2' in one process"):
        prepare(vlm, replace(PLAIN, sharding="fsdp2"))


# ---------------------------------------------------------------------------------------------------------- the update


def test_gradient_is_that_of_a_plain_row_by_row_computation(vlm, problems, monkeypatch):
    monkeypatch.setattr(logprobs, "LOGITS_AT_ONCE", 7 * 320)  # several pieces
    rows = rolled_out(prepare(vlm, PLAIN), problems[:2])
    _, ours = gradients_after(prepare(vlm, PLAIN), rows)
    vlm.model.zero_grad()
    total = sum(len(row.sampled.token_ids) for row in rows)
    loss = 0.0
    for row in rows:
        completion = torch.tensor(row.sampled.token_ids)
        logits = vlm.model(
            input_ids=torch.cat([row.prompt.input_ids, completion])[None],
            mm_token_type_ids=torch.cat([row.prompt.mm_token_type_ids, torch.zeros_like(completion)])[None],
            pixel_values=row.prompt.pixel_values,
            image_grid_thw=row.prompt.image_grid_thw,
        ).logits[0, len(row.prompt) - 1 : -1]
        logits = logits.index_fill(1, torch.tensor(vlm.vision_token_ids), float("-inf"))
        chosen = logits.log_softmax(-1).gather(1, completion[:, None])
        loss = loss - row.advantage * chosen.sum() / total  # at ratio 1 the surrogate's gradient is A ∇ log π
    loss.backward()
    plain = {name: weight.grad for name, weight in vlm.model.named_parameters() if weight.grad is not None}
    assert ours.keys() == plain.keys() and len(ours) > 10
    for name in plain:
        assert torch.allclose(ours[name], plain[name], rtol=1e-4, atol=1e-6), name


def test_micro_batches_add_up_to_the_whole_step(vlm, problems):
    rows = rolled_out(prepare(vlm, PLAIN), problems)
    whole, one = gradients_after(prepare(vlm, replace(PLAIN, micro_batch_tokens=10**6)), rows)
    split, many = gradients_after(prepare(vlm, replace(PLAIN, micro_batch_tokens=60)), rows)
    assert len(list(grpo.micro_batches(rows, 60))) > 3
    assert whole == pytest.approx(split, rel=1e-4, abs=1e-6)
    for name in one:
        assert torch.allclose(one[name], many[name], rtol=1e-3, atol=1e-6), name


def batch_tokens(batch):
    """Every prompt counted once."""
    return sum({id(row.prompt): len(row.prompt) for row in batch}.values()) + sum(
        len(row.sampled.token_ids) for row in batch
    )


@pytest.mark.parametrize("budget", [60, 150, 300, 10**6])
def test_micro_batches_hold_every_row_once_within_the_budget(vlm, problems, budget):
    rows = rolled_out(prepare(vlm, PLAIN), problems)
    batches = list(grpo.micro_batches(rows, budget))
    assert sorted(id(row) for batch in batches for row in batch) == sorted(map(id, rows))
    assert all(len(batch) == 1 or batch_tokens(batch) <= budget for batch in batches)
    groups = [[row for row in rows if row.draw == draw] for draw in range(len(problems))]
    for group in groups:
        parts = [batch for batch in batches if any(row in batch for row in group)]
        assert len(parts) == 1 or batch_tokens(group) > budget  # divided only where it has to be
    apart = list(grpo.micro_batches(rows, budget, several_groups=False))
    assert all(len({row.draw for row in batch}) == 1 for batch in apart) and len(apart) >= len(groups)


@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_recomputed_logprobs_equal_the_sampled_ones(vlm, problems, temperature):
    session = prepare(vlm, replace(PLAIN, temperature=temperature))
    rows = rolled_out(session, problems)
    metrics, _ = gradients_after(session, rows)
    assert metrics["logprob_gap"] < 1e-5
    assert metrics["clip/low"] == metrics["clip/high"] == 0
    for row in rows:
        assert row.policy_logprobs.tolist() == pytest.approx(row.sampled.logprobs, abs=1e-4)


def test_the_head_is_itself_again_afterwards(vlm, problems):
    session = prepare(vlm, PLAIN)
    gradients_after(session, rolled_out(session, problems[:1]))
    assert "forward" not in vars(vlm.model.get_output_embeddings())


def test_several_updates_per_step_use_every_rollout_once_and_leave_ratio_one(vlm, problems, monkeypatch):
    session = prepare(vlm, replace(PLAIN, updates_per_step=3, learning_rate=3e-2))
    rows, updates = rolled_out(session, problems), []
    accumulate = grpo.accumulate_gradients

    def remember(session, rows, *rest):
        updates.append(rows)
        return accumulate(session, rows, *rest)

    monkeypatch.setattr(grpo, "accumulate_gradients", remember)
    metrics = grpo.update_policy(session, rows, 10)
    assert [len(part) for part in updates] == [6, 6, 6]
    assert sorted(id(row) for part in updates for row in part) == sorted(map(id, rows))
    assert metrics["logprob_gap"] > 1e-4  # later parts meet a policy that has moved on
    assert metrics["clip/low"] + metrics["clip/high"] > 0


def test_the_named_losses_come_with_their_published_defaults(vlm):
    def settings(**changes):
        return [
            replace(PLAIN, **changes).own_or_published(name) for name in ("clip_low", "clip_high", "normalise_by_std")
        ]

    assert settings() == [0.2, 0.2, True]
    assert settings(loss="dapo") == [0.2, 0.28, True]
    assert settings(loss="dr_grpo") == [0.2, 0.2, False]
    assert settings(loss="gspo", clip_high=0.5, normalise_by_std=False) == [3e-4, 0.5, False]


@pytest.mark.parametrize("loss", ["equation_1", "gspo", "dr_grpo", "dapo"])
def test_every_loss_trains(vlm, problems, odd_is_right, loss):
    before = weights_of(vlm)
    rows = run(vlm, problems, [(6, 4, 1)], replace(PLAIN, loss=loss))
    assert rows[1]["grad_norm"] > 0 and not same(vlm.model.state_dict(), before)


# ------------------------------------------------------------------------------------------------------- the reference


def test_kl_is_measured_against_the_model_as_it_started(vlm, problems):
    session = prepare(vlm, replace(PLAIN, kl_coefficient=0.5))
    rows = rolled_out(session, problems)
    assert gradients_after(session, rows)[0]["kl"] == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        vlm.model.get_output_embeddings().weight.mul_(1.3)
    assert gradients_after(session, rows)[0]["kl"] > 1e-3


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_under_an_adapter_the_reference_is_the_adapter_switched_off(case, problems, method):
    vlm = load_vlm(case / "model", method=method, lora_rank=4, lora_alpha=8)
    start = {name: weights.clone() for name, weights in vlm.model.named_parameters()}
    session = prepare(vlm, replace(PLAIN, kl_coefficient=0.1, learning_rate=1e-2))
    rows = rolled_out(session, problems)
    first, second = grpo.update_policy(session, rows, 10), grpo.update_policy(session, rows, 10)
    assert first["kl"] == pytest.approx(0, abs=1e-6) and second["kl"] > 0
    moved = {name for name, weights in vlm.model.named_parameters() if not torch.equal(weights, start[name])}
    assert moved and all("lora" in name for name in moved)


def test_the_reference_has_no_dropout(case, problems, tmp_path):
    torch.manual_seed(0)
    vlm = load_vlm(case / "model", method="lora", lora_rank=4, lora_dropout=0.5)
    for name, weight in vlm.model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.1)
    save_vlm(vlm, tmp_path)
    vlm = load_vlm(tmp_path)  # goes on with an adapter, so that the reference has one too
    session = prepare(vlm, replace(PLAIN, kl_coefficient=0.1))
    rows = rolled_out(session, problems[:2])
    state = torch.get_rng_state()
    grpo.add_reference_logprobs(session, rows)
    assert torch.equal(torch.get_rng_state(), state) and vlm.model.training
    assert torch.cat([row.reference_logprobs for row in rows]).tolist() == pytest.approx(
        [value for row in rows for value in row.sampled.logprobs], abs=1e-4
    )


# ------------------------------------------------------------------------------------------------------------- in bf16


def test_bf16_samples_from_a_copy_that_follows_the_float32_policy(vlm, problems, odd_is_right):
    session = prepare(vlm, replace(PLAIN, bfloat16=True, kl_coefficient=0.1))
    with session.reference() as reference:
        assert {weight.dtype for weight in reference.parameters()} == {torch.bfloat16}
    copied, policy = session.sampler.model.lm_head.weight, vlm.model.lm_head.weight
    assert copied.dtype == torch.bfloat16 and policy.dtype == torch.float32
    before, rows = copied.clone(), []
    train_grpo(session, problems, Schedule([(6, 4, 2)]), log=rows.append)
    session.update_sampler(1)
    assert torch.equal(copied, policy.bfloat16()) and not torch.equal(copied, before)
    assert rows[1]["logprob_gap"] < 0.05 and rows[1]["kl"] < 1e-3 and rows[2]["bad_steps"] == 0


def test_float32_and_adapters_sample_from_the_model_itself(case, vlm):
    assert prepare(vlm, PLAIN).sampler.model is vlm.model
    adapted = load_vlm(case / "model", method="lora", lora_rank=2)
    assert prepare(adapted, PLAIN).sampler.model is adapted.model


# ----------------------------------------------------------------------------------------------------------- bad steps


def spoil(vlm, steps, value, steps_seen):
    """The gradient of the last norm becomes `value` in the given steps."""
    weight = vlm.model.model.language_model.norm.weight
    weight.register_hook(lambda gradient: gradient * value if steps_seen[-1] + 1 in steps else gradient)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_is_skipped_dumped_and_counted(vlm, problems, odd_is_right, tmp_path, value):
    session = prepare(vlm, PLAIN)
    rows, states = [], []

    def log(row):
        rows.append(row)
        moments = copy.deepcopy(session.optimizer.state_dict()["state"])
        states.append((weights_of(vlm), {f"{n}.{key}": m for n, held in moments.items() for key, m in held.items()}))

    spoil(vlm, {2, 4}, value, steps_seen := [0])
    train_grpo(
        session, problems, Schedule([(6, 4, 5)]), dump_folder=tmp_path,
        log=lambda row: (log(row), steps_seen.append(row["step"])),
    )  # fmt: skip
    assert [row.get("bad_steps") for row in rows] == [None, 0, 1, 1, 2, 2]
    for before, after, is_same in zip(states[1:], states[2:], [True, False, True, False], strict=False):
        assert same(before[0], after[0]) == is_same and same(before[1], after[1]) == is_same
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000002", "step-000004"]
    step = json.loads((tmp_path / "step-000002/step.json").read_text())
    assert step["metrics"]["step"] == 2 and step["metrics"]["grad_norm"] in ("nan", "inf")
    assert step["gradient_norms"]["model.language_model.norm.weight"] in ("nan", "inf")
    assert step["gradient_norms"]["lm_head.weight"] > 0
    dumped = json.loads((tmp_path / "step-000002/rows-0.json").read_text())
    assert len(dumped) == 8 and {"problem_id", "text", "reward", "advantage", "policy_logprobs"} <= dumped[0].keys()
    tensors = load_file(tmp_path / "step-000002/rows-0.safetensors")
    assert len(tensors["0.token_ids"]) == len(tensors["0.policy_logprobs"]) == dumped[0]["tokens"]


def test_after_so_many_bad_steps_in_a_row_training_stops_with_one_line(vlm, problems, odd_is_right, tmp_path):
    spoil(vlm, {1, 3, 4, 5}, float("nan"), steps_seen := [0])
    session, rows = prepare(vlm, PLAIN), []
    with pytest.raises(TrainingStopped) as stopped:
        train_grpo(
            session, problems, Schedule([(4, 4, 9)]), dump_folder=tmp_path,
            log=lambda row: (rows.append(row), steps_seen.append(row["step"])),
        )  # fmt: skip
    assert rows[-1]["step"] == 5 and rows[-1]["bad_steps"] == 4
    assert "\n" not in str(stopped.value) and str(tmp_path / "step-000005") in str(stopped.value)


def test_a_policy_that_is_nan_from_the_start_stops_too(vlm, problems):
    vlm.model.model.language_model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(TrainingStopped, match="loss nan"):
        run(vlm, problems, [(4, 2, 5)])


def test_a_bad_update_ends_its_step_and_the_next_one_starts_clean(vlm, problems, odd_is_right):
    """With several updates a step: what was accumulated before the fault must not reach the next step."""
    spoil(vlm, {1}, float("nan"), steps_seen := [0])
    session, rows = prepare(vlm, replace(PLAIN, updates_per_step=2)), []
    train_grpo(
        session, problems, Schedule([(6, 4, 2)]), log=lambda row: (rows.append(row), steps_seen.append(row["step"]))
    )
    assert [row.get("bad_steps") for row in rows] == [None, 1, 1] and rows[2]["grad_norm"] < 1e3


def test_a_kernel_may_train_again_in_another_number_type():
    model = torch.nn.Linear(2, 2)
    for bfloat16 in (False, True, False):
        assert accelerator_for(model, "none", bfloat16).mixed_precision == ("bf16" if bfloat16 else "no")
