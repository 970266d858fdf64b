"""Packed rows have the logits, the loss and the gradients that they have alone, whatever stands beside them."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional

from vr1lib.models.families import FAMILIES
from vr1lib.models.tiny import build_tiny_vlm
from vr1lib.models.vlm import IGNORED_LABEL, EncodedRow, Vlm, collate_rows, load_vlm, save_vlm
from vr1lib.records import Problem, RequestError
from vr1lib.training.packing import collate_packed, pack

PACKABLE = [name for name, family in FAMILIES.items() if family.can_pack]
# pictures (height, width) before the question, and the answer; a row without pictures stands among the others
ROWS = [
    ([(64, 96)], "How many red shapes are there?", "red, blue, red. So 2."),
    ([], "What is one and one?", "2"),
    ([(96, 64), (32, 128)], "Which is larger?", "The first one is larger than the second one."),
    ([(32, 32)], "Red?", "no"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    generator = torch.Generator().manual_seed(0)
    for number, (height, width) in enumerate(size for sizes, *_ in ROWS for size in sizes):
        pixels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
    texts = [f"{question} {answer}" for _, question, answer in ROWS] * 3
    for name in FAMILIES:
        build_tiny_vlm(
            folder / name, 0, texts, family=name, vocabulary_size=290, hidden_size=32, layers=2, heads=2,
            intermediate_size=64, vision_hidden_size=32, vision_depth=2, tie_word_embeddings=False,
        )  # fmt: skip
        vlm = load_vlm(folder / name)
        with torch.no_grad():
            for weight in vlm.model.parameters():
                if weight.dim() > 1:
                    weight *= 3  # an untrained model hardly looks at anything
        save_vlm(vlm, folder / name)
    return folder


def vlm_of(folder, name="qwen2_5_vl", attention="sdpa") -> Vlm:
    vlm = load_vlm(folder / name, train_vision=True)
    vlm.model.set_attn_implementation(attention)
    return vlm


def encoded(vlm: Vlm, folder) -> list[EncodedRow]:
    files = iter(sorted(folder.glob("*.png")))
    return [
        vlm.encode_row(
            Problem(
                id=f"p{number}", source="test", split="train", question=question, answer="2",
                images=[str(next(files)) for _ in sizes],
            ),
            answer,
        )
        for number, (sizes, question, answer) in enumerate(ROWS)
    ]  # fmt: skip


def logits(vlm: Vlm, batch: dict) -> torch.Tensor:
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    return vlm.model(**inputs, use_cache=False).logits


def loss(vlm: Vlm, batch: dict) -> torch.Tensor:
    """Summed over answer tokens."""
    predicted, labels = logits(vlm, batch)[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()
    return functional.cross_entropy(predicted, labels, ignore_index=IGNORED_LABEL, reduction="sum")


@pytest.fixture(params=PACKABLE)
def name(request):
    return request.param


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_packed_row_has_the_logits_that_it_has_alone(folder, name, attention):
    vlm = vlm_of(folder, name, attention)
    rows = encoded(vlm, folder)
    with torch.no_grad():
        packed = logits(vlm, collate_packed(rows, vlm))[0].split([len(row) for row in rows])
        for row, theirs in zip(rows, packed):
            alone = logits(vlm, collate_rows([row], vlm.pad_token_id))[0]
            assert alone.std() > 0.3
            assert torch.allclose(theirs, alone, rtol=0, atol=1e-5)


def test_packed_loss_and_gradients_are_those_of_the_padded_batch(folder, name):
    vlm = vlm_of(folder, name)
    rows = encoded(vlm, folder)
    results = []
    for batch in (collate_rows(rows, vlm.pad_token_id), collate_packed(rows, vlm)):
        vlm.model.zero_grad()
        total = loss(vlm, batch)
        total.backward()
        results.append((total.item(), {n: p.grad.clone() for n, p in vlm.model.named_parameters()}))
    (padded_loss, padded), (packed_loss, packed) = results
    assert packed_loss == pytest.approx(padded_loss, rel=1e-6)
    for each, gradient in padded.items():
        assert gradient.norm() > 0, each
        assert (packed[each] - gradient).norm() < 1e-5 * gradient.norm(), each


def test_a_row_does_not_see_what_stands_before_it(folder, name):
    vlm = vlm_of(folder, name)
    first, *others = encoded(vlm, folder)
    ids = first.input_ids.clone()
    ids[-4:] = vlm.tokenizer.convert_tokens_to_ids("e")
    changed = replace(
        first, input_ids=ids, picture_inputs={**first.picture_inputs, "pixel_values": -first.pixel_values}
    )
    with torch.no_grad():
        before, after = (logits(vlm, collate_packed([row, *others], vlm))[0] for row in (first, changed))
    assert (before - after)[: len(first)].abs().max() > 0.1
    assert (before - after)[len(first) :].abs().max() <= 1e-6


def test_positions_are_each_rows_own(folder):
    vlm = vlm_of(folder)
    rows = encoded(vlm, folder)
    positions = collate_packed(rows, vlm)["position_ids"]
    assert positions.shape == (4, 1, sum(map(len, rows)))
    for row, (places, *rotary) in zip(rows, positions[:, 0].split([len(row) for row in rows], dim=1)):
        assert places.tolist() == list(range(len(row)))
        if row.image_grid_thw is None:
            assert all(axis.tolist() == places.tolist() for axis in rotary)
    # the last row's picture is a single token, so that all four count alike
    places, *rotary = positions[:, 0, -len(rows[-1]) :].tolist()
    assert rotary == [places] * 3
    # the first row's has 2×3 tokens; text goes on 3 after the picture's beginning
    start = int(rows[0].mm_token_type_ids.nonzero()[0])
    _, time, height, width = positions[:, 0, : len(rows[0])]
    assert time[start : start + 7].tolist() == [start] * 6 + [start + 3]
    assert (height[start : start + 6] - start).tolist() == [0, 0, 0, 1, 1, 1]
    assert (width[start : start + 6] - start).tolist() == [0, 1, 2, 0, 1, 2]


def test_labels_pictures_and_ids_come_in_row_order(folder):
    vlm = vlm_of(folder)
    rows = encoded(vlm, folder)
    batch = collate_packed(rows, vlm)
    assert batch["input_ids"].shape == (1, sum(map(len, rows)))
    assert torch.equal(batch["labels"][0], torch.cat([row.labels for row in rows]))
    pictures = [row.pixel_values for row in rows if row.pixel_values is not None]
    assert torch.equal(batch["pixel_values"], torch.cat(pictures)) and len(batch["image_grid_thw"]) == 4
    assert "attention_mask" not in batch
    assert "pixel_values" not in collate_packed([rows[1], rows[1]], vlm)


def test_no_row_learns_to_say_the_next_ones_first_token(folder):
    vlm = vlm_of(folder)
    rows = [replace(row, labels=row.input_ids) for row in encoded(vlm, folder)]
    batch = collate_packed(rows, vlm)
    assert batch["labels"][0, [0, len(rows[0])]].tolist() == [IGNORED_LABEL] * 2
    padded = collate_rows(rows, vlm.pad_token_id)
    with torch.no_grad():
        assert loss(vlm, batch).item() == pytest.approx(loss(vlm, padded).item(), rel=1e-6)


def test_a_model_with_cross_attention_is_refused(folder):
    vlm = vlm_of(folder, "mllama")
    with pytest.raises(RequestError, match="packing = True: Llama-3.2-Vision .* set packing: false"):
        collate_packed(encoded(vlm, folder), vlm)


# --------------------------------------------------------------------------------------------------------- the packing


def test_longest_rows_come_first_into_the_first_line_with_room():
    # 7 and 6 open lines; 4 fits beside 6, 3 beside 7; 2 opens a line
    assert pack([2, 3, 4, 6, 7], capacity=10) == [[4, 1], [3, 2], [0]]
    assert pack([5, 5, 5], capacity=10) == [[0, 1], [2]]
    assert pack([], capacity=10) == []


def test_a_row_longer_than_the_capacity_is_refused():
    assert pack([10], capacity=10) == [[0]]
    with pytest.raises(RequestError, match="a row of 11 tokens does not fit a packed line of 10; raise max_tokens"):
        pack([3, 11], capacity=10)


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(50, 120))
def test_every_row_is_in_one_line_within_the_capacity(lengths, capacity):
    lines = pack(lengths, capacity)
    assert sorted(row for line in lines for row in line) == list(range(len(lengths)))
    totals = [sum(lengths[row] for row in line) for line in lines]
    assert all(0 < total <= capacity for total in totals)
    assert sum(total * 2 <= capacity for total in totals) <= 1  # two half-empty lines would have been one
