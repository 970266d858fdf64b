"""`vr1 run` on throwaway notebooks: what the user sees, what the manifest says, and the exit code."""

import json
import os
import signal
import subprocess
import sys
import time

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from vr1lib.workbench import launch
from vr1lib.workbench.cli import main
from vr1lib.workbench.params import PARAMETERS
from vr1lib.workbench.run_folder import read_manifest

STEM = "50_analysis"


@pytest.fixture
def notebook(home, monkeypatch):
    """Write notebooks/50_analysis.ipynb with the standard opening and the given cells."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    for name, value in {"VR1_RUN_FOLDER": "", "JUPYTER_PATH": "", "TQDM_MININTERVAL": "1"}.items():
        monkeypatch.setenv(name, value)  # so that what `vr1 run` sets in this process is undone
    monkeypatch.setattr(signal, "signal", lambda *arguments: None)

    def write(*cells, start=True):
        values = PARAMETERS[STEM]().model_dump()
        assignments = "\n".join(f"{key} = {value!r}" for key, value in values.items())
        opening = (
            "from vr1lib.workbench.params import from_notebook\nfrom vr1lib.workbench.tracking import start_run\n"
            f"params = from_notebook({STEM!r}, globals())\nrun = start_run({STEM!r}, params)"
        )
        story = [new_markdown_cell(cell) if cell.startswith("#") else new_code_cell(cell) for cell in cells]
        first = [
            new_code_cell(assignments, metadata={"tags": ["parameters"]}),
            *([new_code_cell(opening)] if start else []),
        ]
        book = new_notebook(cells=[*first, *story])
        book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(book, home / "notebooks" / f"{STEM}.ipynb")
        return home / "outputs" / STEM

    return write


def test_run_streams_the_story_and_leaves_a_complete_folder(notebook, home, capfd, monkeypatch):
    outputs = notebook(
        "## Counting sheep\nlong text",
        "from tqdm.auto import tqdm\nfor sheep in tqdm(range(3)): print('sheep', sheep)",
        "from pathlib import Path\nrun.log({'step': 1, 'examples': params.examples, 'here': str(Path.cwd())})",
        "run.finish('three sheep')",
    )
    (home / "elsewhere").mkdir()
    monkeypatch.chdir(home / "elsewhere")
    assert main(["run", STEM, "-p", "examples", "9", "--name", "mine"]) == 0
    said = capfd.readouterr()
    story = [
        said.out.index(text) for text in ("outputs/50_analysis/mine", "── Counting sheep", "sheep 2", "three sheep")
    ]
    assert story == sorted(story) and "3/3" in said.err
    assert {"manifest.json", "metrics.jsonl", "notebook.ipynb", "params.yaml"} <= {
        path.name for path in (outputs / "mine").iterdir()
    }
    manifest = read_manifest(outputs / "mine")
    assert (manifest["status"], manifest["summary"], manifest["run"]) == ("finished", "three sheep", "mine")
    row = json.loads((outputs / "mine" / "metrics.jsonl").read_text())
    assert (row["examples"], row["here"]) == (9, str(home))
    executed = nbformat.read(outputs / "mine" / "notebook.ipynb", as_version=4)
    assert "sheep 2" in str(executed) and str(executed).count("0/3") == 0  # of the bar only its last state
    assert [path.name for path in outputs.iterdir()] == ["mine"]


def test_runs_of_wandbs_agent_have_folders_of_their_own(notebook, monkeypatch):
    outputs = notebook("run.finish()")
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    monkeypatch.setenv("WANDB_RUN_ID", "abc123")
    assert main(["run", STEM, "examples=3"]) == 0
    assert "examples: 3" in (outputs / "default-abc123" / "params.yaml").read_text()


def test_failing_cell_is_one_screen_and_exit_1(notebook, capfd):
    outputs = notebook("\n# the sum\ndef add(a, b):\n    return a + b\nadd(1, 'x')", "run.finish()")
    assert main(["run", STEM]) == 1
    said = capfd.readouterr().err.splitlines()
    assert any("failed: # the sum" in line for line in said)
    assert any("TypeError: unsupported operand" in line for line in said)
    assert said[-1].endswith("outputs/50_analysis/default/notebook.ipynb") and len(said) <= 30
    manifest = read_manifest(outputs / "default")
    assert manifest["status"] == "failed" and manifest["error"].startswith("TypeError: unsupported")


def test_wrong_request_inside_the_notebook_is_one_line_and_exit_2(notebook, home, capfd):
    (home / "fake.png").write_text("no picture")
    outputs = notebook("from vr1lib.records import open_image\nopen_image('fake.png')", "run.finish()")
    assert main(["run", STEM]) == 2
    assert capfd.readouterr().err.strip().startswith("fake.png: not a readable picture")
    assert read_manifest(outputs / "default")["error"].startswith("fake.png")


def test_failure_before_the_run_starts_is_in_the_manifest(notebook, capfd):
    outputs = notebook("import no_such_module", start=False)
    assert main(["run", STEM]) == 1
    manifest = read_manifest(outputs / "default")
    assert manifest["status"] == "failed" and "no_such_module" in manifest["error"]


def test_killed_kernel_is_a_failed_run(notebook, capfd):
    outputs = notebook("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    assert main(["run", STEM]) == 1
    assert "the kernel died (out of memory?) in the cell: import os, signal; the" in capfd.readouterr().err
    assert read_manifest(outputs / "default")["status"] == "failed"


def test_notebook_that_never_finishes_its_run_has_failed(notebook, capfd):
    outputs = notebook("1 + 1")
    assert main(["run", STEM]) == 1
    assert "run.finish" in read_manifest(outputs / "default")["error"]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_says_so_and_exits_130(notebook, sent):
    outputs = notebook("import time, pathlib\npathlib.Path('asleep').touch()\ntime.sleep(60)", "run.finish()")
    command = [sys.executable, "-m", "vr1lib", "run", STEM]
    launched = subprocess.Popen(command, env=os.environ, start_new_session=True, stderr=subprocess.PIPE, text=True)
    marker = outputs.parent.parent / "asleep"
    deadline = time.monotonic() + 60
    while not marker.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    launched.send_signal(sent)
    _, said = launched.communicate(timeout=30)
    assert launched.returncode == 130 and said.strip().endswith("interrupted")
    assert read_manifest(outputs / "default")["status"] == "interrupted"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "60_unknown"], "'60_unknown' is no notebook; the notebooks are 00_base_model"),
        (["run", STEM, "-f", "none.yaml"], "none.yaml: cannot be read"),
        (["run", STEM, "-p", "exampels", "3"], "the nearest known key is 'examples'"),
        (["run", STEM], "no such notebook"),
    ],
)
def test_wrong_request_writes_nothing(home, capsys, arguments, said):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (home / "outputs").exists()


def test_launcher_imports_neither_torch_nor_transformers_nor_wandb():
    code = (
        "import sys, papermill\nimport vr1lib.workbench.cli, vr1lib.workbench.launch\n"
        "print(*[name for name in ('torch', 'transformers', 'wandb', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_resumed_run_is_checked_with_its_own_parameters_and_what_is_given_anew(home, monkeypatch):
    seen = []
    monkeypatch.setattr(launch, "execute", lambda stem, notebook, params: seen.append(params) or 0)
    monkeypatch.setattr(launch, "notebook_of", lambda stem: None)
    folder = home / "outputs" / "30_ptst_grpo" / "served"
    folder.mkdir(parents=True)
    values = {"run": "served", "rollout": "vllm", "rollout_endpoints": ["http://a:1"], "checkpoint_every": 5}
    (folder / "params.yaml").write_text(json.dumps(values))
    given = ["-p", "rollout_endpoints", "[http://b:2]", "--name", "served"]
    assert main(["run", "30_ptst_grpo", "--resume", *given]) == 0
    (params,) = seen
    assert params.resume and params.rollout == "vllm" and params.rollout_endpoints == ["http://b:2"]
