"""Live curves, and a training cell that is interrupted: in a real kernel, as a front end talks to it."""

import io
import json
import shutil
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from jupyter_client.manager import start_new_kernel
from PIL import Image

from vr1lib.workbench import live
from vr1lib.workbench.tracking import read_manifest

ROOT = Path(__file__).parent.parent
TINY = {
    "run": "stopped",
    "wandb_mode": "disabled",
    "limit": 6,
    "stages": [[4, 2, 30], [8, 2, 4]],
    "prompts_per_step": 1,
    "preflight": False,
    "checkpoint_every": 1,
    "kl_coefficient": 0.0,
}


@pytest.fixture
def run(tmp_path):
    return SimpleNamespace(record=SimpleNamespace(metrics=tmp_path / "metrics.jsonl"))


def add(run, *rows, end="\n"):
    with run.record.metrics.open("a") as file:
        file.write("\n".join(json.dumps(row) for row in rows) + end)


def test_a_picture_is_drawn_of_whole_new_lines_only(run):
    curves = live.Curves(run, ["loss", "length/mean"])
    assert curves.draw() is None, "no file yet"
    add(run, {"step": 0, "stage": 0}, {"step": 1, "loss": 2.0, "stage": 0}, {"step": 2, "loss": None, "stage": 1})
    assert Image.open(io.BytesIO(curves.draw())).size[0] == 2 * live.PANEL_INCHES * 80
    assert [list(values) for values in curves.lines[0].get_data()] == [[1], [2.0]]
    assert curves.stages == {2} and curves.draw() is None, "nothing new"
    add(run, {"step": 3}, end="")
    with run.record.metrics.open("a") as file:
        file.write('\n{"step": 4, "lo')
    assert curves.draw() is None, "half a line"
    with run.record.metrics.open("a") as file:
        file.write('ss": 1.0}\n')
    assert curves.draw() and list(curves.lines[0].get_data()[1]) == [2.0, 1.0]


def test_drawing_takes_at_most_its_share():
    assert live.pause_after(0.001) == live.REDRAW_SECONDS
    assert live.pause_after(0.2) == pytest.approx(10.0)


def test_without_a_front_end_nothing_is_shown_and_nothing_runs(run, monkeypatch):
    monkeypatch.setattr(live, "Curves", None)
    before = threading.active_count()
    with live.live_curves(run, ["loss"]):
        assert threading.active_count() == before


class Kernel:
    """A kernel in a project of its own; cells run as JupyterLab runs them, with the cell's id."""

    def __init__(self, folder):
        self.manager, self.client = start_new_kernel(kernel_name="python3", cwd=str(folder))

    def run(self, source, cell_id=None, stop_when=None):
        """The replies a cell publishes; with `stop_when` it is interrupted as soon as that is true."""
        content = {"code": source, "silent": False, "store_history": True, "stop_on_error": True}
        message = self.client.session.msg("execute_request", content, metadata={"cellId": cell_id} if cell_id else {})
        self.client.shell_channel.send(message)
        replies, stopped, ends = [], False, time.monotonic() + 120
        while time.monotonic() < ends:
            if stop_when and not stopped and stop_when():
                self.manager.interrupt_kernel()
                stopped = True
            try:
                reply = self.client.get_iopub_msg(timeout=0.05)
            except Exception as error:  # queue.Empty of whichever queue the client has
                assert type(error).__name__ == "Empty"
                continue
            if reply["parent_header"].get("msg_id") != message["header"]["msg_id"]:
                continue
            if reply["msg_type"] == "status" and reply["content"]["execution_state"] == "idle":
                return replies
            replies.append((reply["msg_type"], reply["content"]))
        raise AssertionError("the cell did not end")


def cells_of(changes):
    """The notebook's code cells up to its training, parameters as given."""
    book = nbformat.read(ROOT / "notebooks" / "30_ptst_grpo.ipynb", as_version=4)
    for cell in book.cells:
        if cell.cell_type == "code":
            source = cell.source
            if "parameters" in cell.metadata.get("tags", []):
                source += "".join(f"\n{name} = {value!r}" for name, value in changes.items())
            yield cell.id, source
            if "train(run" in source:
                return


def errors_of(replies):
    return [content["ename"] for kind, content in replies if kind == "error"]


def test_an_interrupted_cell_leaves_a_run_to_go_on_with_in_the_same_kernel(tmp_path, monkeypatch):
    for folder in ("notebooks", "params"):
        (tmp_path / folder).mkdir()
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("VR1_HOME", raising=False)
    folder = tmp_path / "outputs" / "30_ptst_grpo" / "stopped"
    metrics = folder / "metrics.jsonl"
    kernel = Kernel(tmp_path)
    try:
        *before, (training_id, training) = cells_of(TINY)
        for cell_id, source in before:
            assert errors_of(kernel.run(source, cell_id)) == []
        replies = kernel.run(training, training_id, lambda: metrics.exists() and metrics.read_text().count("\n") > 4)
        said = "".join(content["text"] for kind, content in replies if kind == "stream")
        assert errors_of(replies) == ["KeyboardInterrupt"] and "resume = True" in said
        drawn = [content["data"].get("image/png") for kind, content in replies if kind == "update_display_data"]
        assert drawn and all(drawn), "the curves"
        assert read_manifest(folder)["status"] == "interrupted"
        (step,) = {len(metrics.read_text().splitlines())} - {0}
        assert step < 34

        held = "import gc\nfrom vr1lib.training.session import Session\ngc.collect()\n"
        held += "print(sum(type(each) is Session for each in gc.get_objects()))"
        ((_, printed),) = [reply for reply in kernel.run(held) if reply[0] == "stream"]
        assert printed["text"] == "0\n", "the traceback holds the optimizer and the copies of the model"

        (error,) = errors_of(kernel.run(training, training_id))
        assert error == "RequestError", "the policy is no longer the one that the run began with"
        for cell_id, source in cells_of(TINY | {"resume": True}):
            assert errors_of(kernel.run(source, None)) == [], cell_id
        assert read_manifest(folder)["resumed_from"].startswith("outputs/30_ptst_grpo/stopped/checkpoints/step-")
        assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == list(range(35))
    finally:
        kernel.client.stop_channels()
        kernel.manager.shutdown_kernel(now=True)
        shutil.rmtree(folder, ignore_errors=True)
