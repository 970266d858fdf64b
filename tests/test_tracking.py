"""The run folder is complete whatever happens."""

import json
import math
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy
import pytest
from PIL import Image
from tracked import checkpoint, graded, lines, problem

from vr1lib.records import Graded, RequestError, read_jsonl
from vr1lib.workbench.params import load_parameters
from vr1lib.workbench.run_folder import find_producer, read_manifest, sha256

STEM = "50_analysis"
TRAINING = "20_cold_sft"
FIELDS = """run stem status started_at finished_at git versions hardware seed wandb inputs outputs image_spec
prompt_spec resumed_from error summary""".split()


def test_manifest_is_there_from_the_start_and_complete(begin, home):
    run = begin(seed=7)
    manifest = read_manifest(home / "outputs" / STEM / "default")
    assert list(manifest) == FIELDS
    assert (manifest["status"], manifest["seed"], manifest["finished_at"]) == ("running", 7, None)
    assert manifest["versions"]["torch"] and manifest["hardware"]["cpu_cores"] >= 1
    assert load_parameters(STEM, [run.folder / "params.yaml"]) == run.params


def test_finish_prints_and_keeps_the_summary(begin, capsys):
    run = begin()
    run.finish("three rows\nand a path")
    manifest = read_manifest(run.folder)
    assert (manifest["status"], manifest["summary"]) == ("finished", "three rows\nand a path")
    assert manifest["finished_at"] >= manifest["started_at"]
    assert "and a path" in capsys.readouterr().out


def test_metrics_are_on_disk_when_log_returns_and_valid_json(begin):
    run = begin()
    run.log({"step": 1, "loss": math.nan, "kl": numpy.float32(0.5), "seen": numpy.int64(3), "stages": (1, math.inf)})
    row = lines(run)[0]
    assert row.pop("seconds") >= 0
    assert row == {"step": 1, "loss": None, "kl": 0.5, "seen": 3, "stages": [1, None]}


def test_log_without_step_is_a_programming_error(begin):
    with pytest.raises(ValueError, match="step"):
        begin().log({"loss": 1.0})


def test_log_costs_less_than_a_millisecond(begin):
    run = begin()
    row = {f"metric/{number}": float(number) for number in range(30)}
    started = time.process_time()
    for step in range(200):
        run.log({"step": step, **row})
    assert (time.process_time() - started) / 200 < 1e-3


def test_completions_are_appended_in_order(begin, home):
    run = begin()
    Image.new("RGB", (20, 10)).save(home / "a.png")
    problems = {"a": problem("a", home / "a.png")}
    run.log_completions([graded("a", step=1), graded("a", step=2)], problems)
    run.log_completions([graded("a", step=3)], problems)
    assert [row.step for row in read_jsonl(run.folder / "completions.jsonl", Graded)] == [1, 2, 3]


def test_inputs_and_outputs_are_recorded_by_content(begin, home):
    (home / "data.jsonl").write_text("abc")
    maker = begin("10_data_building")
    model = maker.folder / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"weights")
    specs = {"image_spec_sha256": "11", "prompt_spec_sha256": "22"}
    (model / "vr1_spec.json").write_text(json.dumps(specs))
    maker.add_output(model, "model", "model")
    maker.finish()
    user = begin("20_cold_sft")
    user.add_input("data.jsonl", "dataset")
    user.add_input(model, "model")
    data, base = read_manifest(user.folder)["inputs"]
    assert data["sha256"] == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of "abc"
    assert base["path"] == "outputs/10_data_building/default/model"
    assert base["sha256"] == read_manifest(maker.folder)["outputs"][0]["sha256"] == sha256(model)
    assert (user.manifest["image_spec"], user.manifest["prompt_spec"]) == ("11", "22")
    file = model / "model.safetensors"
    assert find_producer(file, sha256(file)).artifact == "10_data_building-model"


def test_missing_input_is_a_wrong_request(begin):
    with pytest.raises(RequestError, match="nowhere.jsonl: cannot be read"):
        begin().add_input("nowhere.jsonl", "dataset")


def test_earlier_run_of_the_same_name_is_moved_aside_and_said(begin, home, capsys):
    for number in range(3):
        run = begin(seed=number)
        run.finish()
    folder = home / "outputs" / STEM
    assert sorted(path.name for path in folder.iterdir()) == ["default", "default~1", "default~2"]
    seeds = [read_manifest(folder / name)["seed"] for name in ("default~1", "default~2", "default")]
    assert seeds == [0, 1, 2]
    assert f"outputs/{STEM}/default held an earlier run; it is now outputs/{STEM}/default~2" in capsys.readouterr().err


def test_second_start_in_one_kernel_interrupts_the_first(begin, home):
    begin()
    begin(run="other")
    assert read_manifest(home / "outputs" / STEM / "default")["status"] == "interrupted"
    assert read_manifest(home / "outputs" / STEM / "other")["status"] == "running"


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ValueError("two\nlines"), "failed", "ValueError: two lines"),
        (RequestError("a.jsonl, line 3: no"), "failed", "a.jsonl, line 3: no"),
        (KeyboardInterrupt(), "interrupted", "KeyboardInterrupt"),
    ],
)
def test_cell_that_raises_marks_the_run(begin, error, status, line):
    run = begin()
    run.after_cell(SimpleNamespace(error_before_exec=None, error_in_exec=error))
    manifest = read_manifest(run.folder)
    assert (manifest["status"], manifest["error"]) == (status, line)
    run.after_cell(SimpleNamespace(error_before_exec=None, error_in_exec=None))
    run.close_at_exit()
    assert read_manifest(run.folder)["status"] == status


def test_process_that_ends_early_leaves_an_interrupted_run(home):
    code = (
        "from vr1lib.workbench.params import load_parameters\nfrom vr1lib.workbench.tracking import start_run\n"
        f"start_run({STEM!r}, load_parameters({STEM!r}))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "WANDB_MODE": "disabled"})
    assert read_manifest(home / "outputs" / STEM / "default")["status"] == "interrupted"


def test_resumed_run_keeps_folder_and_record_up_to_its_checkpoint(begin, capsys):
    run = begin(TRAINING)
    run.log({"step": 1, "loss": 3.0})
    checkpoint(run.folder, 1, run.record.sizes(), wandb_run_id="abc")
    run.log({"step": 2, "loss": 2.0})
    run.log_completions([graded("p1")], {"p1": problem("p1")})
    run.log_evaluation([graded("p1")])
    with run.record.metrics.open("a") as file:
        file.write('{"step": 3, "lo')  # killed while writing
    run.close("interrupted")
    again = begin(TRAINING, resume=True)
    assert again.folder == run.folder and not run.folder.with_name("default~1").exists()
    assert again.resume_from.name == "step-000001" and again.manifest["resumed_from"].endswith("step-000001")
    assert [row["step"] for row in lines(again)] == [1]
    assert again.record.completions.read_text() == again.record.evaluation.read_text() == ""
    assert again.manifest["started_at"] == run.manifest["started_at"] and again.manifest["status"] == "running"
    assert "resumed from outputs/20_cold_sft/default/checkpoints/step-000001" in capsys.readouterr().err


def test_run_without_a_checkpoint_resumes_from_its_start(begin, capsys):
    run = begin(TRAINING)
    run.log({"step": 1, "loss": 3.0})
    run.close("interrupted")
    again = begin(TRAINING, resume=True)
    assert again.resume_from is None and lines(again) == []
    assert "no checkpoint yet: starting anew" in capsys.readouterr().err


def test_what_cannot_be_resumed_is_refused_in_one_line(begin):
    with pytest.raises(RequestError, match="no run to resume"):
        begin(TRAINING, resume=True)
    begin(TRAINING).close("interrupted")
    with pytest.raises(RequestError, match="learning_rate = 0.5, but .* started with 0.001; .*keeps its parameters"):
        begin(TRAINING, resume=True, learning_rate=0.5)
    begin(TRAINING, resume=True, checkpoint_every=7).close("finished")  # this one may change
    with pytest.raises(RequestError, match="nothing to resume"):
        begin(TRAINING, resume=True)


def test_alert_is_said_once_and_kept_every_time(begin, capsys):
    run = begin(TRAINING)
    for step in (1, 2):
        run.log({"step": step, "loss": math.nan, "bad_steps": step})
    alerts = [json.loads(line) for line in (run.folder / "alerts.jsonl").open()]
    assert [(alert["step"], alert["kind"], alert["level"]) for alert in alerts] == [
        (1, "bad_step", "ERROR"),
        (2, "bad_step", "ERROR"),
    ]
    assert capsys.readouterr().err.count("ALERT, step 1: a step was not finite") == 1


def test_resumed_run_has_the_alerts_up_to_its_checkpoint_and_remembers_them(begin):
    run = begin(TRAINING)
    run.log({"step": 1, "loss": 1.0, "bad_steps": 1})
    checkpoint(run.folder, 1, run.record.sizes())
    run.log({"step": 2, "loss": 1.0, "bad_steps": 2})
    run.close("interrupted")
    again = begin(TRAINING, resume=True)
    again.log({"step": 2, "loss": 1.0, "bad_steps": 1})
    alerts = [json.loads(line) for line in (again.folder / "alerts.jsonl").open()]
    assert [alert["step"] for alert in alerts] == [1], "the resumed run knows of the bad step before its checkpoint"


def test_finished_runs_metrics_are_an_output(begin):
    run = begin(TRAINING)
    run.log({"step": 1, "loss": 1.0})
    run.finish()
    (entry,) = run.manifest["outputs"]
    assert (entry["kind"], entry["sha256"]) == ("metrics", sha256(run.folder / "metrics.jsonl"))
