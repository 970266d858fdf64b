"""`vr1 sync` brings W&B what runs recorded offline, and says what it did for each."""

import pytest
import wandb
from tracked import checkpoint, graded, problem, wandb_records
from wandb_server import wandb_server

from vr1lib.records import RequestError
from vr1lib.workbench.sync import legs, marker, pending, sync_command

TRAINING = "20_cold_sft"


@pytest.fixture(autouse=True)
def fresh_wandb():
    """wandb reads its environment once a process; each test has its own."""
    wandb.teardown()
    yield
    wandb.teardown()


def go_online(monkeypatch):
    wandb.teardown()
    monkeypatch.setenv("WANDB_MODE", "online")


@pytest.fixture
def online(monkeypatch, home):
    """The environment of somebody who is logged in at a server of the test's own."""
    with wandb_server() as (address, received):
        monkeypatch.setenv("WANDB_BASE_URL", address)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setenv("WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL", "0.1")
        monkeypatch.setenv("WANDB_X_GRAPHQL_RETRY_MAX", "0")
        yield received


def as_if_recorded(folder, *names):
    """Offline records by name, empty."""
    for name in names:
        leg = folder / "wandb" / f"offline-run-{name}-abc" / "run-abc.wandb"
        leg.parent.mkdir(parents=True)
        leg.touch()
    return folder


def test_resumed_run_goes_up_whole_after_a_refusal_with_lineage_and_no_step_twice(
    begin, home, online, monkeypatch, capsys
):
    monkeypatch.setenv("WANDB_MODE", "offline")
    (home / "cold.jsonl").write_text("rows")
    run = begin(TRAINING)
    run.add_input(home / "cold.jsonl", "dataset")
    for step in (1, 2):
        run.log({"step": step, "loss": 1.0})
    checkpoint(run.folder, 1, {"metrics.jsonl": len((run.folder / "metrics.jsonl").read_bytes().splitlines(True)[0])})
    run.close("interrupted")
    again = begin(TRAINING, resume=True)
    for step in (2, 3):
        again.log({"step": step, "loss": float("nan") if step == 3 else 1.0})
        again.log_completions([graded("a", step)], {"a": problem("a")})
    again.finish()
    wandb_records(again)  # waits until they are whole

    go_online(monkeypatch)
    online.refuse.add("UpsertBucket")
    assert sync_command([run.folder]) == 1
    said = capsys.readouterr().out
    assert "failed   outputs/20_cold_sft/default" in said and "UpsertBucket is refused" in said
    assert pending(run.folder) == legs(run.folder)

    online.refuse.clear()
    assert sync_command([]) == 0
    said = capsys.readouterr().out
    assert "synced   outputs/20_cold_sft/default: 2 records, http://127.0.0.1" in said
    ((_, rows),) = online.history.items()
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3]
    assert [row["_step"] for row in rows] == list(range(len(rows))), "W&B's own steps must go on, too"
    assert [alert["title"] for alert in online.alerts] == ["a step was not finite"]
    assert {"input-cold", "20_cold_sft-metrics"} <= {artifact["name"] for artifact in online.artifacts.values()}
    assert len(online.used) == 1, "what the run has read"
    (about,) = online.runs.values()
    assert (about["jobType"], about["displayName"]) == ("cold", "20_cold_sft/default")

    assert sync_command([again.folder]) == 0
    assert "already  outputs/20_cold_sft/default: 2 of 2 records" in capsys.readouterr().out


def test_runs_with_nothing_to_upload_are_told_apart_without_a_login(home, begin, monkeypatch, capsys):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    outputs = home / "outputs" / TRAINING
    done = as_if_recorded(outputs / "done", "20260101_000000")
    marker(*legs(done)).touch()
    (outputs / "none").mkdir()
    (outputs / "live" / "wandb" / "run-1-abc").mkdir(parents=True)
    (outputs / "live" / "wandb" / "run-1-abc" / "run-abc.wandb").touch()
    assert sync_command([done, outputs / "none", outputs / "live"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "already  outputs/20_cold_sft/done: 1 of 1 records are in W&B",
        "nothing  outputs/20_cold_sft/none: no W&B record (wandb_mode)",
        "nothing  outputs/20_cold_sft/live: was online from the start",
        "1 already, 2 nothing",
    ]


def test_running_run_is_left_alone(begin, online, monkeypatch, capsys):
    run = begin(TRAINING)
    as_if_recorded(run.folder, "20260101_000000")
    go_online(monkeypatch)
    assert sync_command([]) == 0
    assert "running  outputs/20_cold_sft/default: is running now" in capsys.readouterr().out


def test_not_logged_in_is_one_line(home, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    go_online(monkeypatch)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    run = as_if_recorded(home / "outputs" / TRAINING / "mine", "20260101_000000")
    with pytest.raises(RequestError, match="W&B is not logged in at http://127.0.0.1:9: run `wandb login`"):
        sync_command([run])


def test_mode_offline_is_respected(home, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = as_if_recorded(home / "outputs" / TRAINING / "mine", "20260101_000000")
    with pytest.raises(RequestError, match="WANDB_MODE=offline: vr1 sync needs"):
        sync_command([run])


def test_without_any_record_it_says_so(home):
    with pytest.raises(RequestError, match="no run has a W&B record"):
        sync_command([])


def test_legs_go_up_in_the_order_of_time(home):
    run = as_if_recorded(home / "outputs" / TRAINING / "mine", "20260102_000000", "20260101_230000")
    assert [leg.parent.name for leg in legs(run)] == [
        "offline-run-20260101_230000-abc",
        "offline-run-20260102_000000-abc",
    ]
