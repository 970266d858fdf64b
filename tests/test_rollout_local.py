"""Local sampling: greedy is what `generate` says, sampling follows the model, vision tokens never come, ids travel."""

import pytest
import torch

from vr1lib.data.shapeworld import make_problems, write_base_cot
from vr1lib.models.rollout_local import choose, complete, sample, seed_of, uniforms
from vr1lib.models.tiny import build_tiny_vlm
from vr1lib.models.vlm import collate_prompts, load_vlm
from vr1lib.training.logprobs import completion_logprobs


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    return make_problems(tmp_path_factory.mktemp("world"), "rl", 6, grid_sizes=(2, 3))


@pytest.fixture(scope="module")
def vlm(tmp_path_factory, problems):
    folder = tmp_path_factory.mktemp("tiny")
    build_tiny_vlm(folder, 0, [f"{p.question}\n{write_base_cot(p)}" for p in problems], vocabulary_size=400)
    vlm = load_vlm(folder)
    # an untrained model with tied embeddings repeats one token; noise in the head makes its samples differ
    noise = torch.randn(vlm.model.lm_head.weight.shape, generator=torch.Generator().manual_seed(0))
    vlm.model.lm_head.weight = torch.nn.Parameter(noise * 0.3)
    vlm.model.eval()
    return vlm


def test_greedy_is_token_for_token_what_generate_gives(vlm, problems):
    prompts = [vlm.encode_prompt(problem) for problem in problems]
    batch = collate_prompts(prompts, vlm.pad_token_id)
    width = batch["input_ids"].shape[1]
    expected = vlm.model.generate(
        **batch, max_new_tokens=24, do_sample=False, bad_words_ids=[[token] for token in vlm.vision_token_ids]
    )[:, width:]
    groups = sample(vlm, prompts, group_size=2, max_completion_tokens=24, temperature=0, seeds=[0] * 6)
    for row, group in zip(expected.tolist(), groups, strict=True):
        for sampled in group:
            assert sampled.token_ids == row[: len(sampled.token_ids)]


def test_groups_of_a_prompt_do_not_depend_on_their_neighbours(vlm, problems):
    prompts = [vlm.encode_prompt(problem) for problem in problems]
    together = sample(vlm, prompts, group_size=1, max_completion_tokens=16, temperature=0, seeds=[0] * len(prompts))
    for prompt, group in zip(prompts, together, strict=True):
        alone = sample(vlm, [prompt], group_size=1, max_completion_tokens=16, temperature=0, seeds=[0])
        assert alone[0][0].token_ids == group[0].token_ids
        assert alone[0][0].logprobs == pytest.approx(group[0].logprobs, abs=1e-4)


@pytest.fixture
def soon_at_an_end(vlm, monkeypatch):
    """One token in ten ends a row."""
    monkeypatch.setattr(vlm, "eos_token_ids", tuple(range(40)))


def test_kept_logprobs_are_those_of_a_plain_forward(vlm, problems, soon_at_an_end):
    """Also of rows that go on when others of other prompts have left the batch."""
    prompts = [vlm.encode_prompt(problem) for problem in problems]
    groups = sample(vlm, prompts, group_size=3, max_completion_tokens=25, temperature=1.5, seeds=range(6))
    assert len({len(sampled.token_ids) for group in groups for sampled in group}) > 3
    for prompt, sampled in ((prompt, sampled) for prompt, group in zip(prompts, groups) for sampled in group):
        completion = torch.tensor(sampled.token_ids)
        with torch.no_grad():
            logits = vlm.model(
                input_ids=torch.cat([prompt.input_ids, completion])[None],
                mm_token_type_ids=torch.cat([prompt.mm_token_type_ids, torch.zeros_like(completion)])[None],
                pixel_values=prompt.pixel_values,
                image_grid_thw=prompt.image_grid_thw,
            ).logits[0, len(prompt) - 1 : -1]
        logits[:, list(vlm.vision_token_ids)] = float("-inf")
        expected = (logits / 1.5).log_softmax(-1).gather(1, completion[:, None])[:, 0]
        assert sampled.logprobs == pytest.approx(expected.tolist(), abs=1e-4)


NOTHING = torch.tensor([], dtype=torch.long)


def test_vision_tokens_are_never_chosen_however_likely():
    logits = torch.tensor([[70.0, 0.0, 50.0, 1.0, 60.0]])
    banned = torch.tensor([0, 2, 4])
    for temperature, chance in [(0, 0.0), *((1.0, number) for number in [0.0, 0.2, 0.5, 0.9, 1 - 2**-53])]:
        chosen, _ = choose(logits, banned, temperature, 1.0, torch.tensor([chance], dtype=torch.float64))
        assert int(chosen) in (1, 3)


def test_the_token_is_the_one_at_which_the_probabilities_pass_the_chance():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).double().log().repeat(6, 1)
    chances = torch.tensor([0.0, 0.499, 0.501, 0.799, 0.949, 0.999], dtype=torch.float64)
    chosen, logprobs = choose(logits, NOTHING, 1.0, 1.0, chances)
    assert chosen.tolist() == [0, 0, 1, 1, 2, 3]
    assert logprobs.exp().tolist() == pytest.approx([0.5, 0.5, 0.3, 0.3, 0.15, 0.05])


def test_sampled_frequencies_follow_the_softmax():
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    logits = probabilities.log().repeat(20_000, 1)
    chosen, _ = choose(logits, NOTHING, 1.0, 1.0, torch.cat([uniforms(0, number, 100) for number in range(200)]))
    counts = torch.bincount(chosen, minlength=4)
    chi_squared = ((counts - 20_000 * probabilities) ** 2 / (20_000 * probabilities)).sum()
    assert chi_squared < 16.27  # 99.9 % quantile, 3 degrees of freedom


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().repeat(2000, 1)
    chosen, _ = choose(logits, NOTHING, 1.0, 0.7, uniforms(0, 0, 2000))
    assert set(chosen.tolist()) == {0, 1}


def test_top_k_keeps_the_likeliest_and_top_p_is_of_what_it_leaves():
    logits = torch.tensor([0.15, 0.5, 0.05, 0.3]).log().repeat(2000, 1)
    chosen, logprobs = choose(logits, NOTHING, 1.0, 1.0, uniforms(0, 0, 2000), top_k=3)
    assert set(chosen.tolist()) == {0, 1, 3}
    assert logprobs[chosen == 1][0].exp() == pytest.approx(0.5)  # of all tokens, as the trainer has it
    chosen, _ = choose(logits, NOTHING, 1.0, 0.6, uniforms(0, 0, 2000), top_k=2)
    assert set(chosen.tolist()) == {1}  # 0.5 of 0.8 is 0.625
    chosen, _ = choose(logits, NOTHING, 1.0, 0.63, uniforms(0, 0, 2000), top_k=2)
    assert set(chosen.tolist()) == {1, 3}


def test_chances_are_a_samples_own_and_a_longer_limit_only_goes_on():
    assert uniforms(1, 0, 8).tolist() == uniforms(1, 0, 20)[:8].tolist()
    streams = [tuple(uniforms(seed, number, 4).tolist()) for seed in (1, 2, seed_of(1, "a")) for number in (0, 1)]
    assert len(set(streams)) == 6
    assert seed_of(1, 23) != seed_of(12, 3) and seed_of(0, "a") != seed_of(0, "b")


def test_each_token_comes_from_its_own_chance(vlm, problems):
    """Where all tokens are equally likely, token t is number ⌊u_t · count⌋ of those that may be sampled."""
    head = vlm.model.lm_head.weight
    kept, head.data = head.data, torch.zeros_like(head)
    prompts = [vlm.encode_prompt(problem) for problem in problems[:2]]
    groups = sample(vlm, prompts, group_size=2, max_completion_tokens=9, seeds=[5, 6])
    head.data = kept
    allowed = [token for token in range(len(kept)) if token not in vlm.vision_token_ids]
    for seed, group in zip([5, 6], groups, strict=True):
        for number, sampled in enumerate(group):
            chances = uniforms(seed, number, len(sampled.token_ids)).tolist()
            assert sampled.token_ids == [allowed[int(chance * len(allowed))] for chance in chances]


def ids(groups):
    return [[sampled.token_ids for sampled in group] for group in groups]


def test_samples_do_not_depend_on_how_many_rows_are_sampled_at_once(vlm, problems):
    prompts = [vlm.encode_prompt(problem) for problem in problems[:3]]
    options = {"group_size": 5, "max_completion_tokens": 12, "temperature": 1.3}
    whole = sample(vlm, prompts, seeds=[7, 8, 9], **options)
    for rows_at_once in (1, 3, 10):
        assert ids(sample(vlm, prompts, seeds=[7, 8, 9], rows_at_once=rows_at_once, **options)) == ids(whole)
    assert ids(sample(vlm, prompts[::-1], seeds=[9, 8, 7], **options))[::-1] == ids(whole)
    assert ids(sample(vlm, prompts[:1], seeds=[8], **options))[0] != ids(whole)[0]
    larger = sample(vlm, prompts[1:2], seeds=[8], **{**options, "group_size": 9})
    assert ids(larger)[0][:5] == ids(whole)[1]
    assert len({tuple(sampled.token_ids) for group in whole for sampled in group}) > 10


def test_a_group_larger_than_the_batch_reads_its_prompt_once_for_each_piece(vlm, problems, monkeypatch):
    from vr1lib.models import rollout_local

    widths, read_prompts = [], rollout_local.read_prompts
    monkeypatch.setattr(
        rollout_local,
        "read_prompts",
        lambda vlm, prompts, size: (widths.append((len(prompts), size)), read_prompts(vlm, prompts, size))[1],
    )
    prompts = [vlm.encode_prompt(problem) for problem in problems[:3]]
    sample(vlm, prompts, group_size=5, max_completion_tokens=2, seeds=[0, 1, 2], rows_at_once=4)
    assert widths == [(1, 4), (1, 1)] * 3
    widths.clear()
    sample(vlm, prompts, group_size=2, max_completion_tokens=2, seeds=[0, 1, 2], rows_at_once=4)
    assert widths == [(2, 2), (1, 2)]


def test_waiting_rows_enter_as_others_end(vlm, problems, soon_at_an_end, monkeypatch):
    """Forward passes follow the tokens made, not the longest row of each batch; samples stay what they were."""
    from vr1lib.models.decoding import SharedReading

    prompts = [vlm.encode_prompt(problem) for problem in problems] * 4
    options = {"group_size": 2, "max_completion_tokens": 40, "temperature": 1.5, "seeds": range(24)}
    read, plain = [], SharedReading.read
    monkeypatch.setattr(SharedReading, "read", lambda *given: read.append(len(given[1])) or plain(*given))
    groups = sample(vlm, prompts, rows_at_once=8, **options)
    assert ids(groups) == ids(sample(vlm, prompts, rows_at_once=48, **options))
    lengths = [
        [max(len(row.token_ids) for group in groups[start : start + 4] for row in group)] for start in range(0, 24, 4)
    ]
    one_after_another = sum(longest - 1 for (longest,) in lengths)
    passes = [rows for rows in read if rows <= 8]
    assert max(passes) == 8 and len(passes) < 0.75 * one_after_another


def test_a_family_whose_cache_is_repeated_samples_batch_after_batch(tmp_path, problems):
    build_tiny_vlm(tmp_path, 0, ["How many red shapes?"] * 3, family="mllama", vocabulary_size=300)
    llama = load_vlm(tmp_path)
    prompts = [llama.encode_prompt(problem) for problem in problems[:3]]
    options = {"group_size": 2, "max_completion_tokens": 6, "seeds": [1, 2, 3]}
    assert ids(sample(llama, prompts, rows_at_once=3, **options)) == ids(sample(llama, prompts, **options))


def test_a_frozen_tower_sees_a_picture_once_a_step(vlm, problems):
    """Sampling, and two passes over its completions; a prompt encoded anew is seen anew, and a trained tower asked."""
    seen = []
    tower = vlm.model.model.visual
    hook = tower.register_forward_pre_hook(lambda tower, pixels: seen.append(len(pixels[0])))
    prompts = [vlm.encode_prompt(problem) for problem in problems[:3]]
    sample(vlm, prompts, group_size=2, max_completion_tokens=2, seeds=[0, 1, 2])
    fresh = [vlm.encode_prompt(problem) for problem in problems[:3]]
    before, _ = completion_logprobs(vlm, vlm.model, prompts[::-1], [[5, 6]] * 3, 1.0)
    completion_logprobs(vlm, vlm.model, prompts[:1], [[5, 6]], 1.0)
    assert seen == [sum(len(prompt.pixel_values) for prompt in prompts)]
    after, _ = completion_logprobs(vlm, vlm.model, fresh[::-1], [[5, 6]] * 3, 1.0)
    assert len(seen) == 2 and torch.allclose(before, after, atol=1e-5)
    tower.requires_grad_(True)
    completion_logprobs(vlm, vlm.model, fresh, [[5, 6]] * 3, 1.0)
    assert len(seen) == 3
    tower.requires_grad_(False)
    hook.remove()


def test_a_problem_is_completed_alike_whatever_problems_stand_beside_it(vlm, problems):
    options = {"max_completion_tokens": 10, "temperature": 1.0, "samples": 2}
    together = complete(vlm, problems, seed=3, **options)
    alone = complete(vlm, problems[4:5], seed=3, batch_size=1, **options)
    assert [row.text for row in alone] == [row.text for row in together[8:10]]
    assert [row.text for row in alone] != [row.text for row in complete(vlm, problems[4:5], seed=4, **options)]


def test_a_model_that_has_broken_ends_its_rows_at_once(vlm, problems):
    head = vlm.model.lm_head.weight
    kept, head.data = head.data, torch.full_like(head, float("nan"))
    (group,) = sample(
        vlm, [vlm.encode_prompt(problems[0])], group_size=2, max_completion_tokens=9, seeds=[0], temperature=1.0
    )
    head.data = kept
    assert [(len(row.token_ids), row.finish) for row in group] == [(1, "stop")] * 2
    assert all(row.logprobs[0] != row.logprobs[0] for row in group)


def test_a_row_ends_at_its_end_token_or_at_the_limit(vlm, problems, soon_at_an_end):
    prompts = [vlm.encode_prompt(problem) for problem in problems]
    samples = [
        row for group in sample(vlm, prompts, group_size=6, max_completion_tokens=12, temperature=1.5,
        seeds=range(6)) for row in group
    ]  # fmt: skip
    finished = [row for row in samples if row.finish == "stop"]
    assert finished and len(finished) < len(samples)
    for row in samples:
        ends = [token in vlm.eos_token_ids for token in row.token_ids]
        assert not any(ends[:-1]) and ends[-1] == (row.finish == "stop")
        assert len(row.token_ids) == len(row.logprobs) <= 12
        assert row.finish == "stop" or len(row.token_ids) == 12


def test_completions_keep_order_ids_and_count_the_end_token(vlm, problems):
    done = []
    completions = complete(
        vlm, problems, max_completion_tokens=8, temperature=1.0, samples=3, batch_size=4, progress=done.append,
    )  # fmt: skip
    assert [(row.problem_id, row.sample) for row in completions] == [(p.id, s) for p in problems for s in range(3)]
    assert sum(done) == len(completions)
    assert all(1 <= row.tokens <= 8 and "<|im_end|>" not in row.text for row in completions)


def test_problems_without_pictures_do_not_depend_on_their_neighbours_either(vlm, problems):
    texts = ["How many red?", "How many red are there, if all of them are blue, or green, or yellow?"]
    prompts = [vlm.encode_prompt(problems[0].model_copy(update={"images": [], "question": text})) for text in texts]
    together = sample(vlm, prompts, group_size=1, max_completion_tokens=16, temperature=0, seeds=[0] * len(prompts))
    for prompt, group in zip(prompts, together, strict=True):
        alone = sample(vlm, [prompt], group_size=1, max_completion_tokens=16, temperature=0, seeds=[0])
        assert alone[0][0].token_ids == group[0].token_ids
        assert alone[0][0].logprobs == pytest.approx(group[0].logprobs, abs=1e-4)
