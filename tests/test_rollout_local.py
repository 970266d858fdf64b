"""Local sampling: greedy is what `generate` says, sampling follows the model, vision tokens never come, ids travel."""

import pytest
import torch

from vr1lib.data.shapeworld import make_problems, write_base_cot
from vr1lib.models.rollout_local import choose, complete, sample
from vr1lib.models.tiny import build_tiny_vlm
from vr1lib.models.vlm import collate_prompts, load_vlm


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    return make_problems(tmp_path_factory.mktemp("world"), "rl", 6, grid_sizes=(2, 3))


@pytest.fixture(scope="module")
def vlm(tmp_path_factory, problems):
    folder = tmp_path_factory.mktemp("tiny")
    build_tiny_vlm(folder, 0, [f"{p.question}\n{write_base_cot(p)}" for p in problems], vocabulary_size=400)
    vlm = load_vlm(folder)
    # an untrained model with tied embeddings repeats one token; noise in the head makes its samples differ
    vlm.model.lm_head.weight = torch.nn.Parameter(torch.randn_like(vlm.model.lm_head.weight) * 0.3)
    vlm.model.eval()
    return vlm


def test_greedy_is_token_for_token_what_generate_gives(vlm, problems):
    prompts = [vlm.encode_prompt(problem) for problem in problems]
    batch = collate_prompts(prompts, vlm.pad_token_id)
    width = batch["input_ids"].shape[1]
    expected = vlm.model.generate(
        **batch, max_new_tokens=24, do_sample=False, bad_words_ids=[[token] for token in vlm.vision_token_ids]
    )[:, width:]
    groups = sample(vlm, prompts, group_size=2, max_completion_tokens=24, temperature=0)
    for row, group in zip(expected.tolist(), groups, strict=True):
        for sampled in group:
            assert sampled.token_ids == row[: len(sampled.token_ids)]


def test_groups_of_a_prompt_do_not_depend_on_their_neighbours(vlm, problems):
    prompts = [vlm.encode_prompt(problem) for problem in problems]
    together = sample(vlm, prompts, group_size=1, max_completion_tokens=16, temperature=0)
    for prompt, group in zip(prompts, together, strict=True):
        alone = sample(vlm, [prompt], group_size=1, max_completion_tokens=16, temperature=0)
        assert alone[0][0].token_ids == group[0].token_ids
        assert alone[0][0].logprobs == pytest.approx(group[0].logprobs, abs=1e-4)


def test_kept_logprobs_are_those_of_a_plain_forward(vlm, problems):
    prompt = vlm.encode_prompt(problems[0])
    generator = torch.Generator().manual_seed(0)
    for sampled in sample(vlm, [prompt], group_size=5, max_completion_tokens=20, temperature=0.7, generator=generator)[
        0
    ]:
        completion = torch.tensor(sampled.token_ids)
        with torch.no_grad():
            logits = vlm.model(
                input_ids=torch.cat([prompt.input_ids, completion])[None],
                mm_token_type_ids=torch.cat([prompt.mm_token_type_ids, torch.zeros_like(completion)])[None],
                pixel_values=prompt.pixel_values,
                image_grid_thw=prompt.image_grid_thw,
            ).logits[0, len(prompt) - 1 : -1]
        logits[:, list(vlm.vision_token_ids)] = float("-inf")
        expected = (logits / 0.7).log_softmax(-1).gather(1, completion[:, None])[:, 0]
        assert sampled.logprobs == pytest.approx(expected.tolist(), abs=1e-4)


def test_vision_tokens_are_never_chosen_however_likely():
    logits = torch.tensor([[0.0, 50.0, 1.0, 60.0]])
    banned = torch.tensor([1, 3])
    generator = torch.Generator().manual_seed(0)
    chosen = {int(choose(logits, banned, temperature, 1.0, generator)[0]) for temperature in [0, *[1.0] * 50]}
    assert chosen == {0, 2}


def test_sampled_frequencies_follow_the_softmax():
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    logits = probabilities.log().repeat(20_000, 1)
    chosen, logprobs = choose(logits, torch.tensor([], dtype=torch.long), 1.0, 1.0, torch.Generator().manual_seed(0))
    counts = torch.bincount(chosen, minlength=4)
    chi_squared = ((counts - 20_000 * probabilities) ** 2 / (20_000 * probabilities)).sum()
    assert chi_squared < 16.27  # 99.9 % quantile, 3 degrees of freedom
    assert torch.allclose(logprobs, probabilities.log()[chosen])


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().repeat(2000, 1)
    chosen, _ = choose(logits, torch.tensor([], dtype=torch.long), 1.0, 0.7, torch.Generator().manual_seed(0))
    assert set(chosen.tolist()) == {0, 1}


def test_a_row_ends_at_its_end_token_or_at_the_limit(vlm, problems):
    generator = torch.Generator().manual_seed(2)
    prompts = [vlm.encode_prompt(problem) for problem in problems]
    samples = [
        row for group in sample(vlm, prompts, group_size=40, max_completion_tokens=30, temperature=1.5,
        generator=generator) for row in group
    ]  # fmt: skip
    finished = [row for row in samples if row.finish == "stop"]
    assert finished and len(finished) < len(samples)
    for row in samples:
        ends = [token in vlm.eos_token_ids for token in row.token_ids]
        assert not any(ends[:-1]) and ends[-1] == (row.finish == "stop")
        assert len(row.token_ids) == len(row.logprobs) <= 30
        assert row.finish == "stop" or len(row.token_ids) == 30


def test_completions_keep_order_ids_and_count_the_end_token(vlm, problems):
    done = []
    completions = complete(
        vlm, problems, max_completion_tokens=8, temperature=1.0, samples=3, batch_size=4, progress=done.append,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert [(row.problem_id, row.sample) for row in completions] == [(p.id, s) for p in problems for s in range(3)]
    assert sum(done) == len(completions)
    assert all(1 <= row.tokens <= 8 and "<|im_end|>" not in row.text for row in completions)


def test_problems_without_pictures_do_not_depend_on_their_neighbours_either(vlm, problems):
    texts = ["How many red?", "How many red are there, if all of them are blue, or green, or yellow?"]
    prompts = [vlm.encode_prompt(problems[0].model_copy(update={"images": [], "question": text})) for text in texts]
    together = sample(vlm, prompts, group_size=1, max_completion_tokens=16, temperature=0)
    for prompt, group in zip(prompts, together, strict=True):
        alone = sample(vlm, [prompt], group_size=1, max_completion_tokens=16, temperature=0)
        assert alone[0][0].token_ids == group[0].token_ids
        assert alone[0][0].logprobs == pytest.approx(group[0].logprobs, abs=1e-4)
