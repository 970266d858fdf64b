"""Completions in one line with their prompt score, and teach every weight, exactly what rows of their own do."""

import pytest
import torch
from torch.nn.attention.bias import causal_lower_right

from vr1lib.data.shapeworld import make_problems
from vr1lib.models.families import FAMILIES
from vr1lib.models.shared_prompt import ATTENTION, group_of, let_share_prompts, line_of
from vr1lib.models.tiny import build_tiny_vlm
from vr1lib.models.vlm import collate_prompts, load_vlm, save_vlm, with_completions
from vr1lib.training import logprobs
from vr1lib.training.logprobs import completion_logprobs

LENGTHS = [[5, 1, 9, 8], [3], [2, 7]]  # tokens of each group's completions


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    for name in FAMILIES:
        build_tiny_vlm(
            folder / name, 0, ["How many red shapes are there? Which is the largest one?"] * 3, family=name,
            vocabulary_size=300, hidden_size=32, layers=2, heads=2, key_value_heads=1, intermediate_size=32,
            vision_hidden_size=32,
        )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def problems(folder):
    """One with two pictures, one without any, one with one."""
    first, second, third = make_problems(folder, "rl", 3, grid_sizes=(2, 3))
    first.images, second.images = [*first.images, *third.images], []
    second.question += " Which is the largest one?"
    return [first, second, third]


def loaded(folder, name, **options):
    """A model with all of its weights at work (an adapter starts at 0)."""
    torch.manual_seed(0)
    vlm = load_vlm(folder / name, lora_rank=4, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in vlm.model.parameters():
            if weight.requires_grad:
                weight += 0.1 * torch.randn(weight.shape, generator=generator)
    vlm.model.train()
    return vlm


def rows_of(vlm, problems, lengths=LENGTHS):
    """Prompts and completions: groups mixed, those of one share their prompt."""
    generator, rows = torch.Generator().manual_seed(2), []
    for problem, group in zip(problems, lengths, strict=True):
        prompt = vlm.encode_prompt(problem)
        rows += [(prompt, torch.randint(10, 250, (length,), generator=generator).tolist()) for length in group]
    return [list(column) for column in zip(*rows[::2], *rows[1::2], strict=False)]


def plainly(vlm, prompts, completions, temperature):
    """Log-probabilities, entropies and gradients row by row, from transformers' own forward pass and all logits."""
    vlm.model.zero_grad()
    logprobs = torch.zeros(len(completions), max(map(len, completions)))
    entropies, weights = torch.zeros_like(logprobs), uneven(logprobs)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        ids = torch.tensor([completion])
        batch = collate_prompts([prompt], vlm.pad_token_id)
        logits = vlm.model(**with_completions(batch, ids, torch.ones_like(ids)), use_cache=False).logits
        logits = logits[0, len(prompt) - 1 : -1].index_fill(1, torch.tensor(vlm.vision_token_ids).long(), float("-inf"))
        scores = (logits / temperature).log_softmax(dim=-1)
        chosen = scores.gather(1, ids.T)[:, 0]
        (chosen * weights[row, : len(completion)]).sum().backward()
        logprobs[row, : len(completion)] = chosen.detach()
        entropies[row, : len(completion)] = torch.special.entr(scores.exp()).sum(dim=1).detach()
    return logprobs, entropies, kept_gradients(vlm)


def uneven(values):
    return torch.linspace(-1, 2, values.numel()).view_as(values)


def gradients(vlm, values):
    """Of an uneven sum of the log-probabilities."""
    vlm.model.zero_grad()
    (values * uneven(values)).sum().backward()
    return kept_gradients(vlm)


def kept_gradients(vlm):
    return {name: weight.grad.clone() for name, weight in vlm.model.named_parameters() if weight.grad is not None}


def assert_same_gradients(ours, theirs):
    assert ours.keys() == theirs.keys() and len(theirs) > 10
    scale = max(gradient.norm() for gradient in theirs.values())
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).norm() <= 1e-5 * max(gradient.norm(), 1e-2 * scale), name


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "recomputed"])
@pytest.mark.parametrize(
    "options",
    [{}, {"train_vision": True}, {"method": "lora"}, {"method": "qlora"}],
    ids=["full", "tower", "lora", "qlora"],
)
@pytest.mark.parametrize("name", FAMILIES)
def test_scores_and_gradients_are_those_of_rows_of_their_own(folder, problems, name, options, checkpointing):
    vlm = loaded(folder, name, gradient_checkpointing=checkpointing, **options)
    prompts, completions = rows_of(vlm, problems)
    theirs, their_entropies, expected = plainly(vlm, prompts, completions, 0.7)
    ours, entropies = completion_logprobs(vlm, vlm.model, prompts, completions, 0.7)
    assert torch.allclose(ours, theirs, atol=2e-5) and torch.allclose(entropies, their_entropies, atol=2e-5)
    assert_same_gradients(gradients(vlm, ours), expected)


def test_a_shared_prompt_goes_through_the_model_once(folder, problems):
    vlm = loaded(folder, "qwen2_5_vl")
    prompts, completions = rows_of(vlm, problems)
    read, seen = [], []
    vlm.model.model.language_model.layers[0].register_forward_pre_hook(lambda layer, args: read.append(args[0].shape))
    vlm.model.model.visual.register_forward_pre_hook(lambda tower, args: seen.append(len(args[0])))
    completion_logprobs(vlm, vlm.model, prompts, completions, 1.0)
    distinct = list({id(prompt): prompt for prompt in prompts}.values())
    tokens = sum(map(len, distinct)) + sum(len(row) - 1 for row in completions)  # the last one predicts nothing
    assert read == [(1, tokens, 32)]
    assert seen == [sum(len(prompt.pixel_values) for prompt in distinct if prompt.pixel_values is not None)]


def test_equal_prompts_that_are_not_one_object_are_kept_apart(folder, problems):
    vlm = loaded(folder, "qwen2_5_vl")
    one, other = vlm.encode_prompt(problems[0]), vlm.encode_prompt(problems[0])
    apart, together = line_of(vlm, [one, other], [[5, 6], [7]]), line_of(vlm, [one, one], [[5, 6], [7]])
    assert len(apart) == len(together) + len(one)


def test_all_logits_are_never_there_at_once(folder, problems, monkeypatch):
    vlm = loaded(folder, "qwen2_5_vl")
    prompts, completions = rows_of(vlm, problems)
    whole, _ = completion_logprobs(vlm, vlm.model, prompts, completions, 1.0)
    expected = gradients(vlm, whole)
    at_once, head = [], vlm.model.lm_head
    monkeypatch.setattr(logprobs, "LOGITS_AT_ONCE", 7 * head.out_features)
    plain = torch.nn.functional.linear
    monkeypatch.setattr(
        torch.nn.functional,
        "linear",
        lambda hidden, weight, bias=None: (
            (at_once.append(len(hidden)) if weight is head.weight else None) or plain(hidden, weight, bias)
        ),
    )
    pieces, _ = completion_logprobs(vlm, vlm.model, prompts, completions, 1.0)
    assert torch.allclose(pieces, whole, atol=1e-6)
    assert_same_gradients(gradients(vlm, pieces), expected)
    assert max(at_once) == 7 and sum(at_once) == 2 * sum(map(len, completions))  # forward, and again in backward


def test_completions_of_like_length_attend_together():
    group = group_of(10, [8, 8, 7, 5, 4, 1, 0, 0], torch.device("cpu"))
    assert [part.lengths for part in group.completions] == [(8, 8, 7), (5, 4), (1,)]
    whole, padded, one = group.completions
    assert padded.places.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8] and one.places is None
    line = torch.randn(1, 3, whole.tokens, 4)
    rows = whole.as_rows(line)
    assert rows.shape == (3, 3, 8, 4) and not rows[2, :, 7].any() and torch.equal(rows[1], line[0, :, 8:16])
    assert torch.equal(whole.as_line(rows.transpose(1, 2)), line.transpose(1, 2))
    assert one.mask is None and padded.mask.sum(dim=1).tolist() == [11, 12, 13, 14, 15]


def test_the_pattern_a_gpu_knows_by_name_is_the_mask_of_a_cpu(folder, problems, monkeypatch):
    vlm = loaded(folder, "qwen2_5_vl")
    prompts, completions = rows_of(vlm, problems)
    expected, _ = completion_logprobs(vlm, vlm.model, prompts, completions, 1.0)
    line = line_of(vlm, prompts, completions)
    for group in line.inputs["layout"].groups:
        for part in (part for part in group.completions if part.mask is not None):
            named = causal_lower_right(*part.mask.shape)
            assert torch.equal(named._materialize(torch.device("cpu")), part.mask)
            object.__setattr__(part, "mask", named)
    monkeypatch.setattr(logprobs, "line_of", lambda *arguments: line)
    named, _ = completion_logprobs(vlm, vlm.model, prompts, completions, 1.0)
    assert torch.equal(named, expected)


def test_a_model_that_can_share_prompts_is_otherwise_as_it_was(folder, problems, tmp_path):
    vlm = load_vlm(folder / "qwen2_5_vl")
    batch = collate_prompts([vlm.encode_prompt(problem) for problem in problems], vlm.pad_token_id)
    with torch.no_grad():
        before = vlm.model(**batch).logits
        let_share_prompts(vlm.model)
        assert torch.equal(vlm.model(**batch).logits, before)
    save_vlm(vlm, tmp_path)
    assert ATTENTION not in (tmp_path / "config.json").read_text()
