"""Training in many processes from a notebook: shown in the cell, the same as in one, and told plainly when it fails."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from vr1lib.records import RequestError
from vr1lib.training.processes import TrainingStopped
from vr1lib.workbench.agent import Tail, first_failure, in_one_voice, join
from vr1lib.workbench.params import load_parameters
from vr1lib.workbench.run_folder import read_manifest

ROOT = Path(__file__).parent.parent
SMALL = {
    "20_cold_sft": {"limit": 24, "epochs": 2.0, "batch_size": 10, "micro_batch_size": 5, "checkpoint_every": 2},
    "30_ptst_grpo": {"limit": 24, "stages": "[[8, 4, 4], [16, 2, 2]]", "prompts_per_step": 4, "checkpoint_every": 2},
}
OWN_TIME = ("seconds", "time/", "tokens_per_second", "memory/", "padding_ratio")  # rows are put together otherwise


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project with the real notebooks and its own outputs/."""
    folder = tmp_path_factory.mktemp("project").resolve()
    (folder / "notebooks").symlink_to(ROOT / "notebooks")
    (folder / "params").symlink_to(ROOT / "params")
    return folder


def vr1(project, *arguments):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VR1_")}
    environment |= {"VR1_HOME": str(project), "PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled"}
    return subprocess.Popen(
        [sys.executable, "-m", "vr1lib", *arguments],
        cwd=project,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def small_run(project, stem, name, **more):
    values = {**SMALL[stem], "preflight": False, **more}
    options = [part for key, value in values.items() for part in ("-p", key, str(value))]
    return vr1(project, "run", stem, "--name", name, *options)


def finish(process):
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output[-3000:]
    return output


def metrics(project, stem, name):
    lines = (project / "outputs" / stem / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def numbers(rows):
    """Every logged number but times, memory and padding."""
    return [{key: value for key, value in row.items() if not key.startswith(OWN_TIME)} for row in rows]


def assert_alike(ours, theirs, tolerance=1e-5):
    assert [sorted(row) for row in ours] == [sorted(row) for row in theirs]
    for row, other in zip(numbers(ours), numbers(theirs), strict=True):
        for key, value in row.items():
            same = value is None or value == pytest.approx(other[key], rel=tolerance, abs=tolerance)
            assert same, f"step {row['step']}, {key}: {value} for {other[key]}"


def worker_of(process, number):
    """The process of a rank, once it is there."""
    while True:
        for child in psutil.Process(process.pid).children(recursive=True):
            try:
                if "vr1lib.workbench.worker" in child.cmdline() and child.environ().get("RANK") == str(number):
                    return child
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
        time.sleep(0.1)


def test_a_killed_process_ends_the_run_by_name_and_the_run_goes_on_as_one_process_would(project):
    stem = "30_ptst_grpo"
    finish(small_run(project, stem, "alone"))
    process = small_run(project, stem, "many", processes=2, sharding="fsdp2")
    folder = project / "outputs" / stem / "many"
    while not (folder / "checkpoints" / "step-000002").is_dir():
        assert process.poll() is None, process.communicate()[0][-3000:]
        time.sleep(0.05)
    worker_of(process, 1).send_signal(signal.SIGKILL)
    killed_at = time.monotonic()
    output, _ = process.communicate(timeout=60)
    assert time.monotonic() - killed_at < 60 and process.returncode == 1
    assert "process 1 was killed by SIGKILL" in output.splitlines()[-1] and "--resume" in output.splitlines()[-1]
    assert "PTST-GRPO" in output, "the cell shows process 0's progress"
    assert read_manifest(folder)["status"] == "failed" and "SIGKILL" in read_manifest(folder)["error"]
    again = finish(vr1(project, "run", stem, "--name", "many", "--resume"))
    assert "resumed from outputs/30_ptst_grpo/many/checkpoints/step-00000" in again
    assert read_manifest(folder)["status"] == "finished"
    assert_alike(metrics(project, stem, "many"), metrics(project, stem, "alone"))


def test_two_machines_meet_and_train_as_one_process_does(project):
    stem = "20_cold_sft"
    finish(small_run(project, stem, "alone"))
    first = small_run(project, stem, "both", nodes=2, rdzv_endpoint="localhost:29533")
    folder = project / "outputs" / stem / "both"
    while not (folder / "manifest.json").exists():
        time.sleep(0.05)
    second = vr1(project, "join", "20_cold_sft/both")
    finish(first)
    finish(second)
    assert_alike(metrics(project, stem, "both"), metrics(project, stem, "alone"))


def test_failure_in_a_worker_is_the_line_it_would_have_been_in_the_kernel(project):
    process = small_run(project, "30_ptst_grpo", "odd", processes=3)  # 4 prompts for 3 processes
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 2
    assert output.splitlines()[-1].startswith("prompts_per_step = 4: ")
    assert "Traceback" not in output


# The parts.


def failure(tmp_path, rank, exitcode, message=None, seconds=0):
    """A worker's failure as the agent reports it, its error file included."""
    file = tmp_path / f"error-{rank}.json"
    if message:
        details = {"message": message, "extraInfo": {"timestamp": str(seconds), "py_callstack": "Traceback\n  in step"}}
        file.write_text(json.dumps({"message": details}))
    return ProcessFailure(local_rank=rank, pid=1, exitcode=exitcode, error_file=str(file))


def test_the_process_that_was_killed_is_named_not_the_ones_that_lost_it(tmp_path):
    lost = failure(tmp_path, 0, 1, "RuntimeError: Connection closed by peer", seconds=1)
    killed = failure(tmp_path, 1, -signal.SIGKILL)
    stopped = failure(tmp_path, 2, -signal.SIGTERM)
    assert first_failure(SimpleNamespace(failures={0: lost, 1: killed, 2: stopped})) is killed
    earlier = failure(tmp_path, 3, 1, "ValueError: bad", seconds=0)
    assert first_failure(SimpleNamespace(failures={0: lost, 3: earlier, 2: stopped})) is earlier


def test_each_kind_of_failure_keeps_its_kind(tmp_path):
    request = in_one_voice(failure(tmp_path, 0, 1, "RequestError: limit = 0: give more"), tmp_path)
    assert type(request) is RequestError and str(request) == "limit = 0: give more"
    stopped = in_one_voice(failure(tmp_path, 0, 1, "TrainingStopped: step 7: loss nan"), tmp_path)
    assert type(stopped) is TrainingStopped and str(stopped) == "step 7: loss nan"
    other = str(in_one_voice(failure(tmp_path, 1, 1, "ValueError: bad"), tmp_path))
    assert other.startswith("process 1 failed: ValueError: bad\n    Traceback\n      in step\nall of it: ")


def test_tail_gives_what_is_appended_and_only_whole_lines_where_asked(tmp_path):
    path = tmp_path / "log"
    path.write_text("before\n")
    pieces, lines = [], []
    tails = [Tail(path, pieces.append), Tail(path, lines.append, whole_lines=True)]
    with path.open("a") as file:
        for text in ("one\ntw", "o\n"):
            file.write(text)
            file.flush()
            for tail in tails:
                tail.read()
    assert pieces == ["one\ntw", "o\n"] and lines == ["one\n", "two\n"]


def test_a_run_of_one_machine_takes_no_other(home):
    folder = home / "outputs" / "20_cold_sft" / "alone"
    folder.mkdir(parents=True)
    (folder / "params.yaml").write_text(load_parameters("20_cold_sft").to_yaml())
    with pytest.raises(RequestError, match="params.yaml: nodes = 1: this run takes no other machine"):
        join(folder)
