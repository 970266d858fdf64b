"""Cold SFT: which rows are trained on, in which order, with which loss; and that training does what it says."""

import json
import math
import random
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from vr1lib.data import shapeworld
from vr1lib.models.tiny import build_tiny_vlm
from vr1lib.models.vlm import load_vlm
from vr1lib.records import ColdRow, Problem, RequestError, write_jsonl
from vr1lib.training import sft
from vr1lib.training.checkpoint import Checkpoints, gathered_moments, newest_checkpoint, read_state, trained_parameters
from vr1lib.training.processes import TrainingStopped
from vr1lib.training.sft import (
    MicroBatches,
    RowDataset,
    RowOrder,
    StepOrder,
    assistant_loss,
    collate_for_loss,
    load_rows,
    train_sft,
    without_labels,
)

SMALL = {"hidden_size": 32, "layers": 2, "heads": 2, "key_value_heads": 1, "intermediate_size": 64, "vision_depth": 1}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """An untrained tiny model's folder and eight rows, of which one has no picture."""
    folder = tmp_path_factory.mktemp("sft")
    rng = random.Random(0)
    problems = shapeworld.make_problems(folder, "cold", 8, seed=0)
    problems[3] = problems[3].model_copy(update={"images": []})
    rows = [(problem, shapeworld.assemble(shapeworld.write_reasoning(problem, rng), "2")) for problem in problems]
    build_tiny_vlm(folder / "tiny", 0, [response for _, response in rows], **SMALL)
    return folder / "tiny", rows


def train(world, tmp_path, rows=None, load=None, **settings):
    """A short training: (model, result, logged metrics)."""
    folder, all_rows = world
    logged = []
    vlm = load_vlm(folder, **(load or {}))
    defaults = {"steps": 3, "batch_size": 4, "learning_rate": 1e-3, "warmup_ratio": 0.0, "output_dir": tmp_path}
    result = train_sft(vlm, rows or all_rows, log=logged.append, **{**defaults, **settings})
    return vlm, result, logged


# ------------------------------------------------------------------------------------------------------------ the rows


def test_row_over_the_limit_is_left_out_and_counted_never_cut(world):
    vlm = load_vlm(world[0])
    lengths = sorted(len(vlm.encode_row(*row)) for row in world[1])
    dataset = RowDataset(vlm, world[1], max_tokens=lengths[5], cache_gib=1)
    kept = sum(length <= lengths[5] for length in lengths)
    assert len(dataset) == kept < 8
    assert sorted(len(dataset[index]) for index in range(kept)) == lengths[:kept]
    assert [reject.reason for reject in dataset.rejects] == ["too long"] * (8 - kept)
    assert f"{lengths[-1]} tokens > max_tokens {lengths[5]}" in [reject.detail for reject in dataset.rejects]


def test_rows_out_of_the_cache_have_the_same_lengths_and_contents(world):
    vlm = load_vlm(world[0])
    kept, anew = (RowDataset(vlm, world[1], max_tokens=4096, cache_gib=gib) for gib in (1, 0))
    assert kept.lengths == anew.lengths == [len(row) for row in kept]
    assert len(kept.cache) == 8
    assert not anew.cache
    assert all(torch.equal(kept[index].labels, anew[index].labels) for index in range(8))
    assert torch.equal(kept[0].pixel_values, anew[0].pixel_values)


def test_cache_stops_at_its_size(world):
    vlm = load_vlm(world[0])
    row_bytes = vlm.encode_row(*world[1][0]).pixel_values.nbytes
    dataset = RowDataset(vlm, world[1], max_tokens=4096, cache_gib=2.5 * row_bytes / 2**30)
    kept_bytes = sum(row.pixel_values.nbytes for row in dataset.cache.values() if row.pixel_values is not None)
    assert 0 < kept_bytes <= 2.5 * row_bytes
    assert len(dataset) == 8


def test_broken_picture_is_counted_whether_found_early_or_late(world, tmp_path):
    vlm = load_vlm(world[0])
    problem, response = world[1][0]
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not a picture")
    rows = [(problem.model_copy(update={"id": "broken", "images": [str(broken)]}), response), world[1][1]]
    dataset = RowDataset(vlm, rows, max_tokens=4096, cache_gib=1)
    assert [(reject.id, reject.reason) for reject in dataset.rejects] == [("broken", "picture unreadable")]

    Image.new("RGB", (56, 56)).save(broken)
    dataset = RowDataset(vlm, rows, max_tokens=4096, cache_gib=0)
    broken.write_bytes(b"spoilt after the lengths were taken")
    assert dataset[0].problem_id == dataset[0].problem_id == dataset[1].problem_id == world[1][1][0].id != "broken"
    assert dataset.rejects == []
    assert {index: reject.id for index, reject in dataset.broken.items()} == {0: "broken"}


def test_rows_of_one_id_are_counted_each(world):
    vlm = load_vlm(world[0])
    short, *_, long = sorted(world[1], key=lambda row: len(vlm.encode_row(*row)))
    dataset = RowDataset(vlm, [long, long, short], max_tokens=len(vlm.encode_row(*short)), cache_gib=1)
    assert (len(dataset), [reject.id for reject in dataset.rejects]) == (1, [long[0].id] * 2)


def test_no_row_left_is_one_line_with_reasons(world):
    with pytest.raises(RequestError, match="no row to train on: 8 given, left out: 8 × too long"):
        RowDataset(load_vlm(world[0]), world[1], max_tokens=5, cache_gib=1)


def test_order_visits_every_row_once_an_epoch_and_changes_with_epoch_and_seed():
    order = RowOrder(list(range(103)), batch_size=10, seed=1)
    first, again = list(order), list(order)
    order.set_epoch(1)
    second = list(order)
    assert sorted(first) == sorted(second) == list(range(103))
    assert first == again != second
    assert first != list(RowOrder(list(range(103)), batch_size=10, seed=2))


def test_rows_stand_by_length_within_a_step_and_the_shuffle_alone_decides_which_share_it():
    lengths = [10 + (index * 7919) % 490 for index in range(400)]
    plain = RowOrder([0] * 400, batch_size=20, seed=0)  # rows of one length stay as they were shuffled

    def steps(order: RowOrder) -> list[list[int]]:
        indices = list(order)
        return [indices[at : at + 20] for at in range(0, 400, 20)]

    def padded_places(indices: list[int], rows: int) -> int:
        return sum(rows * max(lengths[i] for i in indices[at : at + rows]) for at in range(0, 400, rows))

    by_length = RowOrder(lengths, batch_size=20, seed=0)
    assert [set(step) for step in steps(by_length)] == [set(step) for step in steps(plain)]
    assert steps(by_length)[0] == sorted(steps(plain)[0], key=lengths.__getitem__) != steps(plain)[0]
    # micro-batches of 5: a quarter of each sorted step, instead of any 5 rows
    assert padded_places(list(by_length), 5) < 1.25 * sum(lengths) < 1.5 * sum(lengths) < padded_places(list(plain), 5)


def test_processes_share_out_every_step_in_as_many_micro_batches_each():
    order = RowOrder([5, 4, 3, 2, 1, 6, 7], batch_size=4, seed=0)
    alone = list(StepOrder(order, micro_batch_size=1))
    assert [[row for [row] in step] for step in alone] == [list(order)[:4], list(order)[4:]]
    first, second = (list(StepOrder(order, 1, processes=2, process=process)) for process in (0, 1))
    assert first == [[alone[0][0], alone[0][2]], [alone[1][0], alone[1][2]]]
    assert second == [[alone[0][1], alone[0][3]], [alone[1][1], []]]


def test_passes_count_micro_batches_and_end_on_whole_numbers():
    order = StepOrder(RowOrder([1] * 8, batch_size=6, seed=0), micro_batch_size=2)
    assert [order.passes(step) for step in range(5)] == [0, 0.75, 1, 1.75, 2]


def test_filler_stands_in_for_an_empty_micro_batch_and_brings_a_picture_where_none_is(world):
    vlm = load_vlm(world[0])
    dataset = RowDataset(vlm, world[1], max_tokens=4096, cache_gib=1)
    filler = without_labels(dataset)
    assert len(filler) == min(dataset.lengths[:3] + dataset.lengths[4:])
    batches = MicroBatches(dataset, vlm, filler=filler)
    empty, blind, seeing = batches[[]], batches[[3]], batches[[0, 3]]
    assert [len(batch.inputs["input_ids"]) for batch in (empty, blind, seeing)] == [1, 2, 2]
    assert all("pixel_values" in batch.inputs for batch in (empty, blind, seeing))
    assert (empty.inputs["labels"] == -100).all()
    assert (empty.tokens, empty.answer_tokens, empty.problem_ids) == (0, 0, [])
    assert (blind.tokens, blind.problem_ids) == (dataset.lengths[3], [world[1][3][0].id])
    loss = assistant_loss(vlm.model(**{**empty.inputs, "labels": None}), empty.inputs["labels"], 5)
    loss.backward()
    assert loss.item() == 0
    assert all((value.grad == 0).all() for value in vlm.model.parameters() if value.grad is not None)

    blind_rows = [row for row in world[1] if not row[0].images]
    dataset = RowDataset(vlm, blind_rows, max_tokens=4096, cache_gib=1)
    batches = MicroBatches(dataset, vlm, filler=without_labels(dataset))
    assert [len(batches[indices].inputs["input_ids"]) for indices in ([], [0])] == [1, 1]


def test_rows_come_from_cold_rows_or_from_a_named_source(world, tmp_path):
    problem = world[1][0][0]
    spoken = {"pseudo_cot": "p", "description": "d", "reasoning": "r", "response": "<think> r"}
    cold = ColdRow(**problem.model_dump(), **spoken, calls=[])
    file = tmp_path / "cold.jsonl"
    picture = tmp_path / "picture.png"
    Image.open(problem.images[0]).save(picture)
    write_jsonl(file, [cold.model_copy(update={"id": str(n), "images": [str(picture)]}) for n in range(3)])
    rows, rejects = load_rows(file, limit=2)
    assert [(row.id, response) for row, response in rows] == [("0", "<think> r"), ("1", "<think> r")]
    assert rejects == []

    (tmp_path / "wemath").mkdir()
    picture.rename(tmp_path / "wemath" / "a.png")
    row = {
        "ID": "7",
        "key": "one",
        "question": "How many?",
        "option": "A. 1;B. 2",
        "answer": "B",
        "image_path": "a.png",
    }
    row["knowledge concept"] = "counting"
    missing = {**row, "ID": "8", "image_path": "missing.png"}
    (tmp_path / "wemath" / "testmini.json").write_text(json.dumps([row, missing]))
    rows, rejects = load_rows("wemath", data_root=tmp_path)
    assert [response for _, response in rows] == ["<answer> Final Answer:B </answer>"]
    assert [reject.reason for reject in rejects] == ["picture missing"]


# ------------------------------------------------------------------------------------------------------------ the loss


def test_loss_is_the_mean_over_the_step_of_answer_tokens_by_hand():
    # the last 3 of 4 positions are kept; two of the next tokens are learnt: −log 3/4 and −log 1/4, of 4 in the step
    class Output:
        logits = torch.tensor([[[0.0, math.log(3)], [0.0, math.log(3)], [9.0, 9.0]]])

    loss = assistant_loss(Output, torch.tensor([[-100, -100, 1, 0]]), num_items_in_batch=4)
    assert loss.item() == pytest.approx((math.log(4 / 3) + math.log(4)) / 4)


def test_loss_equals_the_models_own_on_all_positions(world):
    vlm = load_vlm(world[0])
    batch = collate_for_loss([vlm.encode_row(*row) for row in world[1]], vlm)
    kept, labels = batch.pop("logits_to_keep"), batch.pop("labels")
    with torch.no_grad():
        own = vlm.model(**batch, labels=labels).loss
        output = vlm.model(**batch, logits_to_keep=kept)
    assert output.logits.shape[1] == kept < labels.shape[1] - 10
    loss = assistant_loss(output, labels, (labels != -100).sum())
    assert loss.item() == pytest.approx(own.item(), rel=1e-5)


class Tally(TorchDispatchMode):
    """The largest float32 tensor that is made."""

    largest = 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        made = function(*arguments, **(named or {}))
        if isinstance(made, torch.Tensor) and made.dtype == torch.float32:
            self.largest = max(self.largest, made.numel())
        return made


def test_logits_are_never_in_float32_all_at_once_and_the_loss_stays(monkeypatch):
    def loss_and_gradient(at_once):
        monkeypatch.setattr(sft, "LOGITS_AT_ONCE", at_once)
        torch.manual_seed(0)
        logits = torch.randn(2, 41, 100, dtype=torch.bfloat16).requires_grad_()
        labels = torch.randint(0, 100, (2, 50)).masked_fill(torch.rand(2, 50) < 0.3, -100)
        kept = []

        def keep(tensor):
            kept.append(tensor.numel() if tensor.dtype == torch.float32 else 0)
            return tensor

        with Tally() as tally, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = assistant_loss(SimpleNamespace(logits=logits), labels, 7)
            loss.backward()
        return loss, logits.grad, tally.largest, sum(kept)

    whole, chunked = loss_and_gradient(2**26), loss_and_gradient(1000)
    assert whole[0].item() == pytest.approx(chunked[0].item(), rel=1e-6)
    assert torch.equal(whole[1], chunked[1])
    assert (whole[2], chunked[2]) == (2 * 40 * 100, 2 * 5 * 100)
    assert chunked[3] < 10 < 2 * 40 * 100 <= whole[3]


# ------------------------------------------------------------------------------------------------------------ training


def test_training_lowers_the_loss_and_logs_every_step(world, tmp_path):
    vlm, result, logged = train(world, tmp_path, steps=30, batch_size=8, learning_rate=1e-2, warmup_ratio=0.1)
    assert [metrics["step"] for metrics in logged] == list(range(1, 31))
    assert logged[0]["loss"] > 5
    assert result.loss < 3.5
    assert result.losses == [metrics["loss"] for metrics in logged]
    assert result.loss == pytest.approx(sum(result.losses[-3:]) / 3)
    assert (result.steps, result.rows, result.epochs) == (30, 8, 30.0)
    # 3 warm-up steps from 0, then half a cosine: the rate before step k is 1e-2 · (1 + cos(π (k − 3) / 27)) / 2
    rates = [metrics["learning_rate"] for metrics in logged]
    assert rates[:4] == pytest.approx([0.0, 1e-2 / 3, 2e-2 / 3, 1e-2])
    assert rates[12] == pytest.approx(1e-2 * (1 + math.cos(math.pi * 9 / 27)) / 2)
    answers = [len(vlm.encode_row(*row).labels[vlm.encode_row(*row).labels != -100]) for row in world[1]]
    assert logged[0]["length/mean"] == pytest.approx(sum(answers) / 8)
    assert not vlm.model.training


def test_muon_learns_too_and_its_rate_follows_the_schedule(world, tmp_path):
    muon = {"optimizer": "muon", "learning_rate": 1e-2, "steps": 20, "batch_size": 8}
    _, result, logged = train(world, tmp_path, load={"train_vision": True}, **muon)
    assert result.loss < 3.5
    # the matrices' rate is five times the given one: half of it after half of the cosine
    assert [logged[step]["learning_rate"] for step in (0, 10)] == pytest.approx([5e-2, 2.5e-2])


def test_same_seed_same_weights_and_another_seed_others(world, tmp_path):
    runs = [train(world, tmp_path, seed=seed) for seed in (0, 0, 1)]
    weights = [torch.cat([value.flatten() for value in vlm.model.state_dict().values()]) for vlm, _, _ in runs]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert [m["loss"] for m in runs[0][2]] == [m["loss"] for m in runs[1][2]]


def test_micro_batches_change_nothing_but_memory(world, tmp_path):
    whole, parts = (train(world, tmp_path, batch_size=8, micro_batch_size=size) for size in (None, 2))
    for key in ("loss", "grad_norm", "length/mean"):
        assert [m[key] for m in parts[2]] == pytest.approx([m[key] for m in whole[2]], rel=1e-4)


def test_packing_changes_no_loss_and_leaves_no_padding(world, tmp_path):
    padded, packed = (
        train(world, tmp_path, batch_size=8, micro_batch_size=2, packing=flag)[2] for flag in (False, True)
    )
    for key in ("loss", "grad_norm"):
        assert [m[key] for m in packed] == pytest.approx([m[key] for m in padded], rel=1e-4)
    for key in ("length/mean", "epoch"):
        assert [m[key] for m in packed] == [m[key] for m in padded]
    assert [m["padding_ratio"] for m in packed] == [0, 0, 0]
    assert all(m["padding_ratio"] > 0 for m in padded)


def test_packed_lines_hold_a_step_within_the_tokens_of_the_longest_micro_batch():
    order = RowOrder([10, 9, 2, 5, 4, 3, 8, 1], batch_size=4, seed=0)
    for packed, rows in zip(StepOrder(order, micro_batch_size=2, packing=True), StepOrder(order, 4)):
        assert sorted(row for line in packed for row in line) == sorted(rows[0])
        assert len(packed) < 3
        assert all(sum(order.lengths[row] for row in line) <= 2 * 10 for line in packed)


@pytest.mark.parametrize("most", [0.25, 0.0])
def test_gradient_is_clipped_to_its_norm_unless_that_is_0_and_told_unclipped(world, tmp_path, most):
    checkpoints = Checkpoints(tmp_path / "checkpoints", every=0)
    *_, [metrics] = train(world, tmp_path, steps=1, max_gradient_norm=most, checkpoints=checkpoints)
    moments = load_file(newest_checkpoint(checkpoints.folder, print) / "optimizer.safetensors")
    first = torch.cat([value.flatten() for name, value in moments.items() if name.endswith(".exp_avg")])
    assert metrics["grad_norm"] > 1
    assert first.norm().item() == pytest.approx(0.1 * (most or metrics["grad_norm"]), rel=1e-4)  # 1 − β₁ = 0.1


def test_batch_that_does_not_divide_is_refused(world, tmp_path):
    with pytest.raises(RequestError, match="batch_size = 8 is no multiple of micro_batch_size = 3"):
        train(world, tmp_path, batch_size=8, micro_batch_size=3)


def test_epochs_count_steps_and_the_last_batch_may_be_smaller(world, tmp_path):
    _, result, logged = train(world, tmp_path, steps=None, epochs=2, batch_size=3, micro_batch_size=3)
    assert result.steps == 6  # two epochs of 3 + 3 + 2 rows
    assert [m["epoch"] for m in logged] == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2])


def test_every_epoch_meets_every_row_in_another_order(world, tmp_path):
    _, _, logged = train(world, tmp_path, steps=None, epochs=2, batch_size=1)
    lengths = [m["length/mean"] for m in logged]
    assert sorted(lengths[:8]) == sorted(lengths[8:])
    assert len(set(lengths)) > 4
    assert lengths[:8] != lengths[8:]


def changed_names(world, vlm) -> set[str]:
    before = dict(load_vlm(world[0]).model.named_parameters())
    return {name for name, value in vlm.model.named_parameters() if not torch.equal(value, before[name])}


def test_vision_tower_moves_only_when_asked(world, tmp_path):
    frozen = changed_names(world, train(world, tmp_path)[0])
    free = changed_names(world, train(world, tmp_path, load={"train_vision": True})[0])
    assert frozen
    assert not any("visual" in name for name in frozen)
    assert any("visual" in name for name in free)


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_adapter_methods_train_the_adapter_alone(world, tmp_path, method):
    vlm = load_vlm(world[0], method=method, lora_rank=4)
    before = {name: value.clone() for name, value in vlm.model.named_parameters()}
    logged = []
    train_sft(vlm, world[1], log=logged.append, output_dir=tmp_path, steps=2, batch_size=4, warmup_ratio=0.0)
    changed = {name for name, value in vlm.model.named_parameters() if not torch.equal(value, before[name])}
    assert changed
    assert all("lora_" in name for name in changed)
    assert all(math.isfinite(metrics["loss"]) for metrics in logged)


def test_bf16_computes_nearly_the_same_and_leaves_weights_in_float32(world, tmp_path):
    (_, _, exact), (vlm, _, rough) = (train(world, tmp_path, bfloat16=flag) for flag in (False, True))
    assert [m["loss"] for m in rough] != [m["loss"] for m in exact]
    assert [m["loss"] for m in rough] == pytest.approx([m["loss"] for m in exact], rel=0.02)
    assert {value.dtype for value in vlm.model.parameters()} == {torch.float32}


def test_gradient_checkpointing_gives_the_same_losses(world, tmp_path):
    plain, saving = (train(world, tmp_path, load={"gradient_checkpointing": flag})[2] for flag in (False, True))
    assert [m["loss"] for m in saving] == pytest.approx([m["loss"] for m in plain], rel=1e-5)


def test_trained_model_generates_with_its_cache(world, tmp_path):
    config = train(world, tmp_path)[0].model.config
    assert config.use_cache
    assert config.text_config.use_cache


def test_problem_without_pictures_trains_alone(world, tmp_path):
    rows = [(Problem(id="t", images=[], question="1 + 1?", answer="2", source="s", split="cold"), "2")]
    _, result, logged = train(world, tmp_path, rows=rows, steps=2, batch_size=1)
    assert result.rows == 1
    assert logged[1]["loss"] < logged[0]["loss"]


# ----------------------------------------------------------------------------------------------- bad steps and resuming


def spoilt(steps, where):
    """An on_ready that spoils the loss or one weight's gradient in these steps with NaN or Inf."""

    def on_ready(trainer):
        def now(bad, fine):
            return bad if trainer.state.global_step + 1 in steps else fine

        if where == "gradient":
            weight = next(value for value in trainer.model.parameters() if value.requires_grad)
            weight.register_hook(lambda gradient: gradient + now(math.inf, 0.0))
        else:
            plain = trainer.compute_loss_func
            trainer.compute_loss_func = lambda *given, **named: plain(*given, **named) * now(math.nan, 1.0)

    return on_ready


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_bad_step_changes_nothing_is_counted_and_laid_out(world, tmp_path, where, optimizer):
    logged, states, watched = [], [], []

    def watch(trainer):
        spoilt([2, 4], where)(trainer)
        watched.append(trainer)

    def log(metrics):
        logged.append(metrics)
        moments = gathered_moments(watched[0].optimizer, trained_parameters(vlm))
        states.append({name: value.clone() for name, value in [*vlm.model.named_parameters(), *moments.items()]})

    vlm = load_vlm(world[0])
    settings = {"steps": 5, "batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-3, "optimizer": optimizer}
    settings["warmup_ratio"] = 0.0
    result = train_sft(
        vlm, world[1], log=log, output_dir=tmp_path, dump_folder=tmp_path / "bad", on_ready=watch, **settings
    )
    changed = [any(not torch.equal(before[name], after[name]) for name in after) for before, after in pairwise(states)]
    assert changed == [False, True, False, True]
    assert [metrics["bad_steps"] for metrics in logged] == [0, 1, 1, 2, 2]
    assert result.bad_steps == 2
    assert math.isfinite(result.loss)
    *_, plain = train(world, tmp_path / "plain", **settings)
    assert [m["learning_rate"] for m in logged] == [m["learning_rate"] for m in plain]
    assert [math.isfinite(m["loss"]) for m in logged] == [True, where != "loss", True, where != "loss", True]
    assert [math.isfinite(m["grad_norm"]) for m in logged] == [True, False, True, False, True]

    assert sorted(path.name for path in (tmp_path / "bad").iterdir()) == ["step-000002", "step-000004"]
    told = json.loads((tmp_path / "bad" / "step-000002" / "step.json").read_text())
    assert told["metrics"]["step"] == 2
    assert told["metrics"]["grad_norm"] in ("nan", "inf")
    norms = told["gradient_norms"].values()
    assert [isinstance(norm, str) for norm in norms] == [True] * len(norms) if where == "loss" else [True, False]
    rows = json.loads((tmp_path / "bad" / "step-000002" / "rows-0.json").read_text())
    assert {row[0].id for row in world[1]} >= {name for batch in rows for name in batch["problem_ids"]}
    assert [len(batch["problem_ids"]) for batch in rows] == [2, 2]
    tensors = load_file(tmp_path / "bad" / "step-000002" / "rows-0.safetensors")
    assert tensors["1.labels"].shape == tensors["1.input_ids"].shape


def test_so_many_bad_steps_in_a_row_stop_the_run_with_one_line(world, tmp_path):
    logged = []
    settings = {"log": logged.append, "output_dir": tmp_path, "steps": 9, "batch_size": 4, "warmup_ratio": 0.0}
    with pytest.raises(
        TrainingStopped, match=r"^step 7: .*NaN or Inf in 3 steps in a row; .*bad holds their rows; .*$"
    ):
        train_sft(
            load_vlm(world[0]),
            world[1],
            max_bad_steps=3,
            dump_folder=tmp_path / "bad",
            on_ready=spoilt([1, 2, 5, 6, 7, 8], "loss"),
            **settings,
        )
    assert [metrics["bad_steps"] for metrics in logged] == [1, 2, 2, 2, 3, 4, 5]


DROPPING = {"method": "lora", "lora_rank": 2, "lora_dropout": 0.5}


class Halt(Exception):
    pass


def halted_and_resumed(world, tmp_path, load, after, **settings):
    """(logged metrics, result, weights) of a run that stops after a step and is resumed from its newest checkpoint."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", every=2)
    logged = []

    def halt(metrics):
        logged.append(metrics)
        if metrics["step"] == after:
            raise Halt

    with pytest.raises(Halt):
        train_sft(load_vlm(world[0], **load), world[1], log=halt, checkpoints=checkpoints, **settings)
    newest = newest_checkpoint(checkpoints.folder, print)
    vlm, logged = load_vlm(world[0], **load), logged[: read_state(newest)["step"]]
    torch.rand(100)  # another process has drawn other random numbers
    result = train_sft(vlm, world[1], log=logged.append, checkpoints=checkpoints, resume_from=newest, **settings)
    return logged, result, vlm


@pytest.mark.parametrize(
    "load, optimizer, after",
    [({"train_vision": True}, "muon", 5), (DROPPING, "adamw", 3), (DROPPING, "adamw", 7)],
)
def test_resumed_run_goes_on_bit_for_bit_within_and_between_epochs(world, tmp_path, load, optimizer, after):
    """Three steps an epoch, a checkpoint every two: resumed after 2 and 4, within an epoch, and 6, between two."""
    settings = {"steps": 7, "batch_size": 3, "micro_batch_size": 1, "learning_rate": 1e-3, "optimizer": optimizer}
    settings |= {"output_dir": tmp_path, "weight_decay": 0.1}
    torch.manual_seed(0)
    straight, logged = load_vlm(world[0], **load), []
    whole = train_sft(straight, world[1], log=logged.append, **settings)
    torch.manual_seed(0)
    resumed_log, result, resumed = halted_and_resumed(world, tmp_path, load, after, **settings)
    times = ("seconds", "time/data", "time/update", "tokens_per_second", "memory/rss_gib", "memory/vram_gib")
    assert [{k: v for k, v in m.items() if k not in times} for m in resumed_log] == [
        {k: v for k, v in m.items() if k not in times} for m in logged
    ]
    weights = dict(resumed.model.named_parameters())
    assert all(torch.equal(weights[name], value) for name, value in straight.model.named_parameters())
    assert (result.losses, result.steps, result.epochs) == (whole.losses, 7, 2.375)


def test_run_resumed_from_its_last_checkpoint_has_nothing_left_to_do(world, tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", every=0)
    vlm, first, _ = train(world, tmp_path, steps=3, checkpoints=checkpoints)
    again, result, logged = train(world, tmp_path, steps=3, resume_from=newest_checkpoint(checkpoints.folder, print))
    assert logged == []
    assert (result.steps, result.epochs, result.losses) == (first.steps, first.epochs, first.losses)
    assert all(torch.equal(one, other) for one, other in zip(vlm.model.parameters(), again.model.parameters()))


@pytest.mark.parametrize("change", [{"seed": 1}, {"batch_size": 2}, {"max_tokens": 60}])
def test_checkpoint_of_other_rows_is_refused_in_one_line(world, tmp_path, change):
    checkpoints = Checkpoints(tmp_path / "checkpoints", every=0)
    train(world, tmp_path, steps=1, checkpoints=checkpoints)
    lengths = sorted(len(load_vlm(world[0]).encode_row(*row)) for row in world[1])
    change = {"max_tokens": lengths[-2]} if "max_tokens" in change else change
    with pytest.raises(RequestError, match="made from other rows, batch_size or seed; resume with the same ones"):
        train(world, tmp_path, steps=2, resume_from=newest_checkpoint(checkpoints.folder, print), **change)


def test_sharding_needs_several_processes(world, tmp_path):
    with pytest.raises(RequestError, match="sharding = 'fsdp2' in one process"):
        train(world, tmp_path, sharding="fsdp2")


def test_on_ready_gets_the_trainer_once_all_prepared_before_the_first_step(world, tmp_path):
    seen = []

    def on_ready(trainer):
        seen.append((trainer.state.global_step, trainer.state.max_steps, trainer.optimizer.param_groups[0]["lr"]))

    train(world, tmp_path, on_ready=on_ready)
    assert seen == [(0, 3, 1e-3)]
