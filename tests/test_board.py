"""W&B gets all of a run, twice nothing, and can do it no harm."""

import json
import math
import sys
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from tracked import checkpoint, graded, lines, problem, wandb_records

from vr1lib.advantage import group_advantages
from vr1lib.records import Graded, read_jsonl
from vr1lib.workbench import board as board_module
from vr1lib.workbench import tracking
from vr1lib.workbench.board import TABLE_EVERY, Board
from vr1lib.workbench.completion_table import COLUMNS, completion_rows, thumbnail
from vr1lib.workbench.params import load_parameters
from vr1lib.workbench.run_folder import read_manifest

STEM = "50_analysis"
TRAINING = "20_cold_sft"


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


def test_thumbnail_shows_every_picture_small_and_skips_what_is_none(home):
    Image.new("RGB", (1000, 500)).save(home / "wide.png")
    Image.new("RGB", (10, 20)).save(home / "small.png")
    (home / "none.png").write_text("no picture")
    assert thumbnail(problem("a", home / "wide.png", home / "small.png", home / "none.png")).size == (138, 64)
    assert thumbnail(problem("a", home / "none.png")) is None
    assert thumbnail(problem("a")) is None


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
        Settings = Table = dict

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


# What stands in a completion table.


def group(problem_id, rewards, step=1):
    """A group with one completion for each reward; right is what has reward 1."""
    return [
        graded(problem_id, step, sample=sample, reward=reward, answer_ok=reward == 1.0)
        for sample, reward in enumerate(rewards)
    ]


def table(rows):
    return [dict(zip(COLUMNS, row, strict=True)) for row in rows]


def test_table_shows_a_right_and_a_wrong_completion_with_their_advantages():
    rewards = [0.0, 0.0, 1.0, 1.0, 1.0]
    rows = table(completion_rows(group("a", rewards), {"a": problem("a")}, lambda picture: picture, True))
    expected = group_advantages(torch.tensor([rewards]))[0]
    assert [(row["verdict"], row["reward"]) for row in rows] == [("wrong", 0.0), ("right", 1.0)]
    assert [row["advantage"] for row in rows] == pytest.approx([expected[0].item(), expected[2].item()])


def test_table_shows_one_completion_of_a_group_whose_verdicts_are_equal():
    rows = table(completion_rows(group("a", [1.0] * 8), {"a": problem("a")}, lambda picture: picture, True))
    assert [(row["verdict"], row["advantage"]) for row in rows] == [("right", 0.0)]


def test_problem_drawn_twice_in_a_step_has_two_groups():
    twice = group("a", [1.0, 0.0]) + group("a", [1.0, 1.0])
    rows = table(completion_rows(twice, {"a": problem("a")}, lambda picture: picture, False))
    assert [row["advantage"] for row in rows] == [0.5, -0.5, 0.0]


def test_table_stays_small_and_shows_all_pictures(home):
    Image.new("RGB", (400, 200)).save(home / "a.png")
    problems = {name: problem(name, home / "a.png", home / "a.png") for name in map(str, range(100))}
    of_all = [row for name in problems for row in group(name, [1.0, 0.0])]
    rows = table(completion_rows(of_all, problems, lambda picture: picture, None))
    assert len(rows) <= 32 and len({row["id"] for row in rows}) == len(rows) / 2 > 10
    assert rows[0]["picture"].size == (256, 64)
    assert {row["advantage"] for row in rows} == {None}


# W&B's own record of a run, read by W&B's own reader.


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """An RL run of 2 TABLE_EVERY + 3 steps with everything that a run can log, closed, and what is in its record."""
    home = tmp_path_factory.mktemp("home")
    (home / "notebooks").mkdir()
    (home / "params").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VR1_HOME", str(home))
        patch.setenv("WANDB_MODE", "offline")
        patch.setattr(tracking, "active", None)
        Image.new("RGB", (300, 200), "red").save(home / "a.png")
        (home / "rl.jsonl").write_text("problems")
        given = {"run": "demo", "wandb_group": "mine", "model": "Qwen/Qwen2.5-VL-7B-Instruct"}
        run = tracking.start_run("30_ptst_grpo", load_parameters("30_ptst_grpo", [], list(given.items())))
        run.add_input(home / "rl.jsonl", "dataset")
        for step in range(1, 2 * TABLE_EVERY + 4):
            run.log({"step": step, "stage": 0, "loss": 1.0 / step, "reward/mean": 0.5})
            run.log_completions(group("a", [1.0, 0.0], step), {"a": problem("a", home / "a.png", home / "a.png")})
        run.log({"step": step + 1, "stage": 0, "loss": math.nan})
        figures = run.folder / "figures"
        figures.mkdir()
        Image.new("RGB", (30, 20)).save(figures / "curve.png")
        run.board.log_figure("curve", figures / "curve.png")
        run.log_table("scores", ["model", "accuracy"], [["base", 0.5]])
        run.add_output(home / "a.png", "picture", "copy")
        assert run.board.run is not None, "a call into W&B failed"
        run.finish()
        return run, wandb_records(run)


def test_offline_run_folder_carries_everything(whole_run):
    run, found = whole_run
    (started,) = found["run"]
    assert (started["job_type"], started["run_group"], started["display_name"]) == ("rl", "mine", "30_ptst_grpo/demo")
    assert started["tags"][:2] == ["demo", "7B"]
    assert started["config"]["update"]["learning_rate"] == run.params.learning_rate
    assert [entry.get("step_metric") for entry in found["metric"] if entry.get("glob_name") == "*"] == ["step"]

    history = [entry["item"] for entry in found["history"]]
    losses = {row["step"]: row["loss"] for row in history if "loss" in row}
    assert len(losses) == 2 * TABLE_EVERY + 4 and losses[4] == 0.25
    assert [row["step"] for row in history if "figures/curve._type" in row] == [2 * TABLE_EVERY + 4]
    assert any(key.startswith("tables/scores") for row in history for key in row)
    (alert,) = found["alert"]
    assert alert["title"] == "a step was not finite" and alert["level"] == "ERROR"

    artifacts = {entry["name"]: entry for entry in found["artifact"]}
    assert artifacts["input-rl"].get("use_after_commit") and not artifacts["30_ptst_grpo-copy"].get("use_after_commit")
    assert "30_ptst_grpo-metrics" in artifacts


def test_every_completion_table_adds_rows_with_pictures(whole_run):
    run, found = whole_run
    history = [entry["item"] for entry in found["history"]]
    logged = [row for row in history if "completions._type" in row]
    assert [row["step"] for row in logged] == [1, 1 + TABLE_EVERY, 1 + 2 * TABLE_EVERY, 3 + 2 * TABLE_EVERY]
    assert all(row["completions._type"] == "incremental-table-file" for row in logged)
    artifacts = [entry for entry in found["artifact"] if entry["type"] == "wandb-run-incremental-table"]
    steps, problems_seen = set(), set()
    for entry in artifacts:
        files = {file["path"]: file["local_path"] for file in entry["manifest"]["contents"]}
        assert all(path.startswith(str(run.folder)) for path in files.values()), "outside the run folder"
        (table_file,) = [path for name, path in files.items() if name.endswith(".table.json")]
        with open(table_file, encoding="utf-8") as file:
            content = json.load(file)
        types = content["column_types"]["params"]["type_map"]
        assert "image-file" in {kind["wb_type"] for kind in types["picture"]["params"]["allowed_types"]}
        rows = [dict(zip(content["columns"], row)) for row in content["data"]]
        assert [row["verdict"] for row in rows] == ["right", "wrong"], "rows of other steps again"
        assert [row["advantage"] > 0 for row in rows] == [True, False]
        assert rows[0]["picture"]["width"] == 256, "both pictures of the problem"
        assert Image.open(files[rows[0]["picture"]["path"]]).size[0] == 256
        steps |= {row["step"] for row in rows}
        problems_seen |= {(row["question"], row["gold"], row["extracted"], row["stage"]) for row in rows}
    assert steps == {row["step"] for row in logged} and problems_seen == {("How many?", "3", "3", 0)}


# Lineage.


class Sent:
    """In place of a W&B run: the artifacts that it was given, by name and digest, which W&B links runs by."""

    def __init__(self):
        self.made, self.used = {}, {}

    def log_artifact(self, artifact, aliases):
        self.made[artifact.name] = artifact.digest

    def _log_artifact(self, artifact, is_user_created, use_after_commit):
        self.used[artifact.name] = artifact.digest

    def __getattr__(self, name):
        return lambda *arguments, **options: None


@pytest.fixture
def make(begin, monkeypatch):
    """A finished run that has read files and written others; returns its folder and what W&B was sent."""
    import wandb

    def make(stem, inputs, outputs):
        run = begin(stem, run="mine")
        run.board.wandb, run.board.run = wandb, Sent()
        sent = run.board.run
        for path, kind in inputs:
            run.add_input(path, kind)
        for name, kind in outputs.items():
            (run.folder / name).write_text(f"{stem} {name}")
            run.add_output(run.folder / name, kind, name.partition(".")[0])
        run.log({"step": 1, "reward/mean": 0.5})
        run.finish()
        return run.folder, sent

    return make


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("renamed", [False, True])
def test_lineage_leads_from_data_to_scores(make, monkeypatch, renamed, large):
    monkeypatch.setattr(board_module, "ARTIFACT_BYTES", 3 if large else 100)
    place = (lambda folder: folder.rename(folder.with_name("renamed"))) if renamed else lambda folder: folder
    folder, data = make("10_data_building", [], {"cold.jsonl": "dataset", "rl.jsonl": "dataset"})
    at = place(folder)
    folder, cold = make("20_cold_sft", [(at / "cold.jsonl", "dataset")], {"model": "model"})
    folder, rl = make(
        "30_ptst_grpo", [(at / "rl.jsonl", "dataset"), (place(folder) / "model", "model")], {"model": "model"}
    )
    trained = place(folder)
    folder, scores = make("40_benchmark", [(trained / "model", "model")], {"completions.jsonl": "completions"})
    inputs = [(place(folder) / "completions.jsonl", "completions"), (trained / "metrics.jsonl", "metrics")]
    _, analysis = make("50_analysis", inputs, {})

    def link(maker, *names):
        return {name: maker.made[name] for name in names}

    assert cold.used == link(data, "10_data_building-cold")
    assert rl.used == link(data, "10_data_building-rl") | link(cold, "20_cold_sft-model")
    assert scores.used == link(rl, "30_ptst_grpo-model")
    assert analysis.used == link(scores, "40_benchmark-completions") | link(rl, "30_ptst_grpo-metrics")


def test_large_output_goes_to_wandb_by_its_sha256(home, monkeypatch):
    import wandb

    board = Board(STEM, load_parameters(STEM, [], [("wandb_mode", "disabled")]), home)
    board.wandb = wandb
    (home / "big.bin").write_bytes(b"12345678")
    small = board.artifact(home / "big.bin", "model", "weights", "00")
    monkeypatch.setattr(board_module, "ARTIFACT_BYTES", 4)
    large = board.artifact(home / "big.bin", "model", "weights", "00")
    assert list(small.manifest.entries) == ["weights.bin"]
    assert list(large.manifest.entries) == ["sha256.txt"] and large.metadata["path"] == "big.bin"


# Resuming.


def test_resumed_run_goes_on_with_the_same_wandb_run_and_logs_no_step_twice(begin, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = begin(TRAINING)
    for step in (1, 2, 3):
        run.log({"step": step, "loss": 1.0})
        run.log_completions(group("a", [1.0, 0.0], step), {"a": problem("a")})
        if step == 1:
            checkpoint(run.folder, 1, run.record.sizes())
    run.close("interrupted")
    again = begin(TRAINING, resume=True)
    for step in (2, 3, 4):
        again.log({"step": step, "loss": 1.0})
        again.log_completions(group("a", [1.0, 0.0], step), {"a": problem("a")})
    again.log({"step": 3, "eval/accuracy": 0.5})  # of a step that W&B has, and yet not there
    again.finish()
    assert [row["step"] for row in lines(again)] == [1, 2, 3, 4, 3], "the folder has every row"
    found = wandb_records(again)
    assert len({entry["run_id"] for entry in found["run"]}) == 1 and len(found["run"]) == 2
    assert [entry.get("resume") for entry in found["run"]] == [None, True], "W&B must know that the second goes on"
    rows = [entry["item"] for entry in found["history"]]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    assert [row["step"] for row in rows if "eval/accuracy" in row] == [3]
    assert [row["step"] for row in rows if "completions._type" in row] == [1, 3, 4]
