"""Checkpoints: what is saved comes back bit for bit; what is damaged or half-written never does."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
from pathlib import Path

import numpy
import pytest
import torch
from accelerate import Accelerator

from vr1lib.models.tiny import TINY_FAMILIES as FAMILIES
from vr1lib.models.tiny import build_tiny_vlm
from vr1lib.models.vlm import load_vlm
from vr1lib.records import RequestError
from vr1lib.training import checkpoint
from vr1lib.training.checkpoint import (
    Checkpoints,
    load_checkpoint,
    load_generators,
    newest_checkpoint,
    read_state,
    save_trained,
    trained_parameters,
)
from vr1lib.training.optimizers import MuonWithAdamW

SMALL = {"hidden_size": 32, "layers": 1, "heads": 2, "key_value_heads": 1, "intermediate_size": 64, "vision_depth": 1}
METHODS = {
    "full": {},
    "lora": {"method": "lora", "lora_rank": 2, "lora_dropout": 0.5},
    "qlora": {"method": "qlora", "lora_rank": 2, "lora_dropout": 0.5},
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    build_tiny_vlm(folder, 0, ["one two three"], **SMALL)
    return folder


def prepared(tiny, method="full", optimizer="adamw"):
    """A model in training with its optimizer: (vlm, optimizer, accelerator)."""
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)
    vlm = load_vlm(tiny, **METHODS[method])
    trained = [parameter for parameter in vlm.model.parameters() if parameter.requires_grad]
    made = MuonWithAdamW(vlm.model, 1e-2) if optimizer == "muon" else torch.optim.AdamW(trained, lr=1e-2)
    vlm.model, made = accelerator.prepare(vlm.model, made)
    vlm.model.train()
    return vlm, made, accelerator


def take_steps(vlm, optimizer, count):
    """Losses of `count` steps on random tokens, the learning rate falling."""
    losses = []
    for _ in range(count):
        ids = torch.randint(0, 100, (2, 8))
        loss = vlm.model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        for group in optimizer.param_groups:
            group["lr"] *= 0.9
        losses.append((loss.item(), random.random(), random.gauss(0, 1), numpy.random.normal()))
    return losses


def trained_weights(vlm):
    return {name: value.detach().clone() for name, value in vlm.model.named_parameters() if value.requires_grad}


def checkpoints(folder, **settings):
    return Checkpoints(folder, **{"every": 1, **settings})


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):
    """A folder with the checkpoint of step 2, never changed."""
    folder = tmp_path_factory.mktemp("saved")
    vlm, optimizer, accelerator = prepared(tiny)
    take_steps(vlm, optimizer, 2)
    checkpoints(folder).save(2, vlm, optimizer, accelerator, {"cursor": 7})
    return folder


# ------------------------------------------------------------------------------------------------ what is saved returns


@pytest.mark.parametrize(
    "method, optimizer", [("full", "adamw"), ("full", "muon"), ("lora", "adamw"), ("qlora", "adamw")]
)
def test_training_goes_on_bit_for_bit(tiny, tmp_path, method, optimizer):
    vlm, made, accelerator = prepared(tiny, method, optimizer)
    random.gauss(0, 1)  # Python keeps every second gaussian number
    numpy.random.normal()
    take_steps(vlm, made, 2)
    folder = checkpoints(tmp_path).save(2, vlm, made, accelerator, {"cursor": [1, 0.1]})
    expected, weights = take_steps(vlm, made, 3), trained_weights(vlm)

    vlm, made, accelerator = prepared(tiny, method, optimizer)
    assert load_checkpoint(folder, vlm, made, accelerator) == {"cursor": [1, 0.1]}
    assert take_steps(vlm, made, 3) == expected
    again = trained_weights(vlm)
    assert weights.keys() == again.keys()
    assert all(torch.equal(weights[name], again[name]) for name in weights)


@pytest.mark.parametrize("method", METHODS)
def test_model_of_a_checkpoint_loads_by_itself_with_the_trained_weights(tiny, tmp_path, method):
    vlm, optimizer, accelerator = prepared(tiny, method)
    before = trained_weights(vlm)
    take_steps(vlm, optimizer, 1)
    folder = checkpoints(tmp_path).save(1, vlm, optimizer, accelerator, {})
    save_trained(vlm, tmp_path / "final")
    for model in (folder / "model", tmp_path / "final"):
        weights = trained_weights(load_vlm(model))
        assert weights.keys() == before.keys()
        assert all(torch.equal(value, weights[name]) for name, value in trained_weights(vlm).items())
        assert not all(torch.equal(value, weights[name]) for name, value in before.items())


def test_a_run_that_started_from_an_adapter_goes_on_from_its_policy_not_its_start(tiny, tmp_path):
    def started():
        vlm = load_vlm(tmp_path / "cold")
        trained = [parameter for parameter in vlm.model.parameters() if parameter.requires_grad]
        return vlm, torch.optim.AdamW(trained, lr=1e-2), Accelerator(cpu=True)

    vlm, optimizer, _ = prepared(tiny, "lora")
    take_steps(vlm, optimizer, 1)
    save_trained(vlm, tmp_path / "cold")
    cold = trained_weights(vlm)
    vlm, optimizer, accelerator = started()
    take_steps(vlm, optimizer, 1)
    folder = checkpoints(tmp_path / "checkpoints").save(1, vlm, optimizer, accelerator, {})
    again, *rest = started()
    load_checkpoint(folder, again, *rest)
    policy, weights = trained_weights(vlm), dict(again.model.named_parameters())
    assert all(torch.equal(weights[name], policy[name]) for name in policy)
    assert all(torch.equal(weights[name.replace(".default.", ".start.")], cold[name]) for name in cold)
    assert not all(torch.equal(cold[name], policy[name]) for name in policy)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_comes_back_under_its_own_names(tmp_path, family):
    build_tiny_vlm(tmp_path / "tiny", 0, ["one two three"], family=family, **SMALL)

    def started():
        vlm = load_vlm(tmp_path / "tiny", train_vision=True)
        return vlm, torch.optim.AdamW(trained_parameters(vlm).values()), Accelerator(cpu=True)

    vlm, optimizer, accelerator = started()
    for parameter in trained_parameters(vlm).values():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    folder = checkpoints(tmp_path / "checkpoints").save(1, vlm, optimizer, accelerator, {})
    again = started()
    load_checkpoint(folder, *again)
    expected, weights = trained_parameters(vlm), trained_parameters(again[0])
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    assert again[1].state_dict()["state"].keys() == set(range(len(expected)))


def test_record_tells_step_score_specifications_and_more(tiny, tmp_path):
    vlm, optimizer, accelerator = prepared(tiny)
    made = checkpoints(tmp_path, extra=lambda: {"recorded": {"metrics.jsonl": 512}, "wandb_run_id": "abc"})
    record = read_state(made.save(3, vlm, optimizer, accelerator, {"cursor": 7}, score=0.25))
    assert (record["step"], record["score"], record["processes"], record["state"]) == (3, 0.25, 1, {"cursor": 7})
    assert (record["recorded"], record["wandb_run_id"]) == ({"metrics.jsonl": 512}, "abc")
    assert record["image_spec_sha256"] == vlm.image_spec.sha256
    assert record["prompt_spec_sha256"] == vlm.prompt_spec.sha256


def test_nothing_is_pickled(saved):
    suffixes = {path.suffix for path in saved.rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".safetensors", ".jinja", ".txt"}


def test_generators_come_back_alone(saved):
    load_generators(saved / "step-000002", Accelerator(cpu=True))
    first = (random.random(), numpy.random.normal(), torch.rand(3).tolist())
    load_generators(saved / "step-000002", Accelerator(cpu=True))
    assert first == (random.random(), numpy.random.normal(), torch.rand(3).tolist())


# ------------------------------------------------------------------------------------------------ what does not fit


def test_checkpoint_of_other_parameters_is_refused_in_one_line(tiny, saved):
    with pytest.raises(RequestError, match="its optimizer trains other parameters"):
        vlm, _, accelerator = prepared(tiny)
        load_checkpoint(saved / "step-000002", vlm, MuonWithAdamW(vlm.model, 1e-2), accelerator)
    with pytest.raises(RequestError, match=r"lora_A.weight is missing, the model's \[2, 32\].*method it was made with"):
        load_checkpoint(saved / "step-000002", *prepared(tiny, "lora"))


@pytest.mark.parametrize("key", ["image_spec_sha256", "prompt_spec_sha256", "processes"])
def test_checkpoint_of_other_specifications_or_processes_is_refused(tiny, saved, tmp_path, key):
    record = json.loads((saved / "step-000002" / "checkpoint.json").read_text())
    (tmp_path / "checkpoint.json").write_text(json.dumps({**record, key: 8}))
    with pytest.raises(RequestError, match=f"{key} is 8, this run's"):
        load_checkpoint(tmp_path, *prepared(tiny))


# ------------------------------------------------------------------------------------------- which are kept and trusted


def copy_of(saved, tmp_path):
    subprocess.run(["cp", "-r", str(saved) + "/.", str(tmp_path)], check=True)
    return tmp_path


def test_newest_whole_checkpoint_is_found(tiny, tmp_path):
    assert newest_checkpoint(tmp_path / "none", print) is None
    vlm, optimizer, accelerator = prepared(tiny)
    made, told = checkpoints(tmp_path), []
    for step in (999_999, 1_000_000):
        folder = made.save(step, vlm, optimizer, accelerator, {})
    assert newest_checkpoint(made.folder, told.append) == folder == tmp_path / "step-1000000"
    assert told == []


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "harm, reason",
    [
        (lambda folder: flip_a_bit(folder / "optimizer.safetensors"), "optimizer.safetensors has another checksum"),
        (lambda folder: os.truncate(folder / "random-0.safetensors", 100), "random-0.safetensors has 100 of"),
        (lambda folder: (folder / "model" / "model.safetensors").unlink(), "model/model.safetensors is missing"),
        (lambda folder: (folder / "checkpoint.json").unlink(), "no readable checkpoint.json"),
        (lambda folder: os.truncate(folder / "checkpoint.json", 50), "no readable checkpoint.json"),
    ],
)
def test_damaged_checkpoint_is_passed_over_with_a_line_that_says_why(saved, tmp_path, harm, reason):
    folder = copy_of(saved, tmp_path)
    subprocess.run(["cp", "-r", folder / "step-000002", folder / "step-000004"], check=True)
    assert newest_checkpoint(folder, print) == folder / "step-000004"
    harm(folder / "step-000004")
    told = []
    assert newest_checkpoint(folder, told.append) == folder / "step-000002"
    [line] = told
    assert f"{folder / 'step-000004'}: damaged ({reason}" in line
    harm(folder / "step-000002")
    with pytest.raises(RequestError, match="every checkpoint is damaged"):
        newest_checkpoint(folder, told.append)


def test_foreign_folders_are_passed_over_with_a_line_and_left_alone(tiny, saved, tmp_path):
    folder = copy_of(saved, tmp_path)
    (folder / "step-ten").mkdir()
    (folder / "notes.txt").write_text("mine")
    made, told = checkpoints(folder), []
    assert newest_checkpoint(made.folder, told.append) == folder / "step-000002"
    assert [line.split(": ")[1] for line in told] == ["not a checkpoint; passed over"] * 2
    made.save(3, *prepared(tiny), {})
    assert (folder / "step-ten").is_dir()
    assert (folder / "notes.txt").read_text() == "mine"


def steps_in(folder):
    return [int(path.name.split("-")[1]) for path in sorted(folder.iterdir())]


def test_last_ones_and_the_best_are_kept(tiny, tmp_path):
    session = prepared(tiny)
    made = checkpoints(tmp_path, keep_last=2)
    for step, score in enumerate([0.1, 0.7, None, 0.3, 0.2, 0.7, None, 0.6], start=1):
        made.save(step, *session, {}, score=score)
    assert steps_in(tmp_path) == [6, 7, 8]  # of two equal scores the later is the best
    made.save(9, *session, {}, score=float("nan"))
    made.save(10, *session, {})
    assert steps_in(tmp_path) == [6, 9, 10]


def test_saving_again_replaces_what_an_abandoned_future_left(tiny, tmp_path):
    session = prepared(tiny)
    made = checkpoints(tmp_path, keep_last=3)
    for step in (2, 4, 6):
        made.save(step, *session, {"life": 1})
    (tmp_path / "step-000006.writing").mkdir()
    flip_a_bit(tmp_path / "step-000006" / "optimizer.safetensors")
    flip_a_bit(tmp_path / "step-000004" / "optimizer.safetensors")
    assert newest_checkpoint(made.folder, print) == tmp_path / "step-000002"
    made.save(4, *session, {"life": 2})
    assert steps_in(tmp_path) == [2, 4]
    assert read_state(newest_checkpoint(made.folder, print))["state"] == {"life": 2}


def test_due_every_so_many_steps_and_after_the_last():
    assert [step for step in range(1, 8) if Checkpoints("x", every=3).due(step, 7)] == [3, 6, 7]
    assert [step for step in range(1, 8) if Checkpoints("x", every=0).due(step, 7)] == [7]


def save_and_die(tiny, folder, place, name):
    session = prepared(tiny)
    checkpoints(folder).save(1, *session, {})
    setattr(place, name, lambda *arguments: os.kill(os.getpid(), signal.SIGKILL))
    checkpoints(folder).save(2, *session, {})


@pytest.mark.parametrize(
    "place, name", [(checkpoint, "save_file"), (checkpoint, "seal"), (os, "fsync"), (Path, "rename")]
)
def test_killed_while_saving_leaves_the_checkpoint_before(tiny, tmp_path, place, name):
    child = multiprocessing.get_context("fork").Process(target=save_and_die, args=(tiny, tmp_path, place, name))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    made, told = checkpoints(tmp_path), []
    assert newest_checkpoint(made.folder, told.append) == tmp_path / "step-000001"
    assert told == [f"{tmp_path / 'step-000002.writing'}: half-written (its run was stopped while saving); passed over"]
    made.save(2, *prepared(tiny), {})
    assert steps_in(tmp_path) == [1, 2]
