"""The run folder is complete whatever happens, and W&B can do it no harm."""

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

from vr1lib.records import Graded, Problem, RequestError, read_jsonl
from vr1lib.training.checkpoint import seal
from vr1lib.workbench import board as board_module
from vr1lib.workbench import tracking
from vr1lib.workbench.board import Board
from vr1lib.workbench.completion_table import thumbnail
from vr1lib.workbench.params import load_parameters
from vr1lib.workbench.run_folder import claim_folder, find_producer, read_manifest, sha256
from vr1lib.workbench.tracking import start_run

STEM = "50_analysis"
FIELDS = """run stem status started_at finished_at git versions hardware seed wandb inputs outputs image_spec
prompt_spec resumed_from error summary""".split()


@pytest.fixture
def begin(home, monkeypatch):
    """start_run without W&B; runs are closed after the test."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(tracking, "active", None)
    runs = []

    def begin(stem=STEM, **overrides):
        runs.append(start_run(stem, load_parameters(stem, [], [(key, str(value)) for key, value in overrides.items()])))
        return runs[-1]

    yield begin
    for run in runs:
        run.close("finished")


def lines(run):
    return [json.loads(line, parse_constant=pytest.fail) for line in (run.folder / "metrics.jsonl").open()]


def graded(problem_id, step=1, **changes):
    row = dict(
        problem_id=problem_id, sample=0, step=step, stage=0, text="<think>", tokens=3, finish="stop", logprob=-1.0
    )
    row |= dict(reward=1.0, format_ok=True, answer_ok=True, extracted="3", reason="equal")
    return Graded(**row | changes)


def problem(problem_id, *images):
    pictures = [str(image) for image in images]
    return Problem(id=problem_id, images=pictures, question="How many?", answer="3", source="s", split="t")


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
    assert find_producer(model / "model.safetensors")["artifact"] == "10_data_building-model"


def test_folder_hash_depends_on_names_and_contents(tmp_path):
    (tmp_path / "a").write_text("1")
    one = sha256(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    other = sha256(tmp_path)
    (tmp_path / "b").write_text("2")
    assert len({one, other, sha256(tmp_path)}) == 3


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


def test_folder_in_use_by_another_process_is_refused(home):
    code = (
        "import sys; from vr1lib.workbench.params import load_parameters\n"
        "from vr1lib.workbench.run_folder import claim_folder\n"
        f"held = claim_folder({STEM!r}, load_parameters({STEM!r})); print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    with pytest.raises(RequestError, match="another process is running there"):
        claim_folder(STEM, load_parameters(STEM))
    other.communicate("")
    claim_folder(STEM, load_parameters(STEM))[1].close()


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


def test_thumbnail_shows_every_picture_small_and_skips_what_is_none(home):
    Image.new("RGB", (1000, 500)).save(home / "wide.png")
    Image.new("RGB", (10, 20)).save(home / "small.png")
    (home / "none.png").write_text("no picture")
    assert thumbnail(problem("a", home / "wide.png", home / "small.png", home / "none.png")).size == (138, 64)
    assert thumbnail(problem("a", home / "none.png")) is None
    assert thumbnail(problem("a")) is None


# W&B: offline for real, and failing in every way we could think of.


def test_offline_run_keeps_wandb_in_the_run_folder(begin, home, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    Image.new("RGB", (300, 200)).save(home / "a.png")
    run = begin()
    run.log({"step": 1, "loss": 0.5})
    run.log_completions([graded("a")], {"a": problem("a", home / "a.png")})
    run.add_input(home / "a.png", "picture")
    run.add_output(home / "a.png", "picture", "copy")
    assert run.board.run is not None, "a call into W&B failed"
    run.finish()
    assert run.manifest["wandb"]["mode"] == "offline" and run.manifest["wandb"]["run_id"]
    (record,) = (run.folder / "wandb").glob("offline-run-*/run-*.wandb")
    until = time.monotonic() + 20  # another process writes it, and once in a while it was seen to come late
    while record.stat().st_size < 1000 and time.monotonic() < until:
        time.sleep(0.1)
    for trace in (b"50_analysis-copy", b"input-a", b"loss", b"completions"):
        assert trace in record.read_bytes()
    staged = [path.read_bytes()[:4] for path in (run.folder / "wandb" / "artifacts").rglob("*") if path.is_file()]
    assert b"\x89PNG" in staged, "the table's pictures are not in the run folder"


class Failing:
    """A wandb whose calls raise from the `good`-th on."""

    def __init__(self, good):
        self.good, self.calls, self.id, self.url = good, 0, "x", None

    def __getattr__(self, name):
        def call(*arguments, **options):
            self.calls += 1
            if self.calls > self.good:
                raise OSError("the server is gone")
            return self

        return call


@pytest.mark.parametrize("good", range(0, 12))
def test_failing_wandb_is_said_once_and_loses_nothing(begin, home, monkeypatch, capsys, good):
    Image.new("RGB", (30, 20)).save(home / "a.png")
    monkeypatch.setitem(sys.modules, "wandb", Failing(good))
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = begin()
    for step in range(3):
        run.log({"step": step})
    run.log_completions([graded("a")], {"a": problem("a", home / "a.png")})
    run.add_output(home / "a.png", "picture", "copy")
    run.add_input(home / "a.png", "picture")
    run.finish("done")
    assert [row["step"] for row in lines(run)] == [0, 1, 2]
    assert len(list(read_jsonl(run.folder / "completions.jsonl", Graded))) == 1
    assert read_manifest(run.folder)["status"] == "finished"
    assert capsys.readouterr().err.count("W&B failed") == 1


def test_missing_wandb_is_said_once_and_loses_nothing(begin, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = begin()
    run.log({"step": 1})
    run.finish()
    assert len(lines(run)) == 1 and read_manifest(run.folder)["wandb"]["mode"] == "disabled"
    assert capsys.readouterr().err.count("W&B is not installed") == 1


def test_not_logged_in_goes_offline_without_a_prompt(home, monkeypatch, capsys):
    started = []

    class LoggedOut:
        Settings = dict

        def login(self, prompt, verify):
            assert not prompt and not verify
            return False

        def init(self, **options):
            started.append(options["mode"])
            return SimpleNamespace(id="x", url=None, define_metric=lambda *names, **options: None)

    monkeypatch.setitem(sys.modules, "wandb", LoggedOut())
    monkeypatch.delenv("WANDB_MODE", raising=False)
    board = Board(STEM, load_parameters(STEM, [], [("wandb_mode", "online")]), home)
    assert started == ["offline"] and board.identity["mode"] == "offline"
    assert capsys.readouterr().err.count("not logged in") == 1


@pytest.mark.parametrize(
    ("wanted", "environment", "mode"), [("online", "offline", "offline"), ("offline", "online", "offline")]
)
def test_environment_lowers_the_mode_and_never_raises_it(home, monkeypatch, wanted, environment, mode):
    monkeypatch.setitem(sys.modules, "wandb", Failing(99))
    monkeypatch.setenv("WANDB_MODE", environment)
    assert Board(STEM, load_parameters(STEM, [], [("wandb_mode", wanted)]), home).identity["mode"] == mode


def test_environment_never_reaches_the_run_folder(begin, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "do-not-tell-9731")
    run = begin()
    run.log({"step": 1})
    run.finish()
    for path in run.folder.rglob("*"):
        assert path.is_dir() or b"do-not-tell-9731" not in path.read_bytes()


def test_large_output_goes_to_wandb_as_a_reference(home, monkeypatch):
    import wandb

    board = Board(STEM, load_parameters(STEM, [], [("wandb_mode", "disabled")]), home)
    board.wandb = wandb
    (home / "big.bin").write_bytes(b"12345678")
    small = board.artifact(home / "big.bin", "model", "weights", "00")
    monkeypatch.setattr(board_module, "ARTIFACT_BYTES", 4)
    large = board.artifact(home / "big.bin", "model", "weights", "00")
    assert list(small.manifest.entries) == ["big.bin"] and small.manifest.entries["big.bin"].ref is None
    assert sorted(large.manifest.entries) == ["big.bin", "sha256.txt"]
    assert large.manifest.entries["big.bin"].ref == (home / "big.bin").as_uri()


TRAINING = "20_cold_sft"


def checkpoint(folder, step, recorded, **record):
    """A checkpoint folder as the training code seals it, empty of tensors."""
    path = folder / "checkpoints" / f"step-{step:06d}"
    path.mkdir(parents=True)
    seal(path, {"step": step, "recorded": recorded, **record})
    return path


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


def test_resumed_run_goes_on_with_the_same_wandb_run(begin, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = begin(TRAINING)
    run.close("interrupted")
    again = begin(TRAINING, resume=True)
    assert run.manifest["wandb"]["run_id"] and again.manifest["wandb"]["run_id"] == run.manifest["wandb"]["run_id"]
    again.close("finished")
    records = list((run.folder / "wandb").glob(f"offline-run-*-{run.manifest['wandb']['run_id']}*"))
    assert len(records) == 2, "each leg of an offline run has its own record under the one id"
