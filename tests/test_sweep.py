"""`vr1 sweep`: the points of a W&B sweep file, what becomes of them, and what a user is told.

Most tests put a small script in place of `vr1 run`; one runs throwaway notebooks.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_notebook
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from vr1lib.records import RequestError
from vr1lib.workbench import sweep
from vr1lib.workbench.cli import main, parse
from vr1lib.workbench.params import PARAMETERS, load_parameters
from vr1lib.workbench.sweep_file import points_of, read_sweep, seed_of

ROOT = Path(__file__).parent.parent
STEM = "50_analysis"
PROGRAM = {"program": f"notebooks/{STEM}.ipynb"}
WANDB_POINTS = [
    {"cat": "a", "fixed": 5, "int": 9, "log": 7.425092525192516e-05, "normal": 0.0, "share": 2,
     "uniform": 1.4201240725197366},
    {"cat": "b", "fixed": 5, "int": 9, "log": 0.00010862498095310536, "normal": 1.0, "share": 1,
     "uniform": 0.46174515337609723},
]  # fmt: skip
SCRIPT = """
import json, os, pathlib, signal, sys, time
name, seed, resumed = sys.argv[1], int(sys.argv[2]), '--resume' in sys.argv
folder = pathlib.Path('outputs/50_analysis', name)
folder.mkdir(parents=True, exist_ok=True)
(folder / 'metrics.jsonl').write_text(json.dumps({'step': 1, 'score': seed / 12}) + '\\n')
def manifest(**entries): (folder / 'manifest.json').write_text(json.dumps(entries))
manifest(status='running')
with open('ran.txt', 'a') as file: file.write(f'{seed}{"+" * resumed} ')
mended = os.path.exists('mended')
if seed == 3 and not mended:
    manifest(status='failed', error='ValueError: three')
    print('cell In [4] failed: work(3)\\n    Cell In[4], line 1\\n    ValueError: three\\nthe notebook so far: x')
    sys.exit(1)
if seed == 7 and not mended:
    notebook = {'cells': [{'metadata': {'papermill': {'status': 'running'}}, 'source': ['\\n', 'train(run)']}]}
    (folder / 'notebook.ipynb').write_text(json.dumps(notebook))
    (folder / 'checkpoints/step-000001').mkdir(parents=True)
    os.kill(os.getpid(), signal.SIGKILL)
if seed == 99:
    pathlib.Path('asleep').touch()
    time.sleep(60)
manifest(status='finished')
"""


@pytest.fixture
def project(home, monkeypatch):
    """A project with a notebook and a script in place of `vr1 run`; gives a function that writes a sweep file."""
    (home / "notebooks" / f"{STEM}.ipynb").write_text("{}")
    monkeypatch.setattr(signal, "signal", lambda *arguments: None)
    (home / "script.py").write_text(SCRIPT)

    def command(self, row):
        resume = ["--resume"] if any((home / row.run / "checkpoints").glob("step-*")) else []
        return [sys.executable, "-S", str(home / "script.py"), row.name, str(row.values["seed"]), *resume]

    monkeypatch.setattr(sweep.Runner, "command", command)

    def write(seeds, file="twelve", **more):
        config = {**PROGRAM, "method": "grid", "parameters": {"seed": {"values": list(seeds)}}, **more}
        path = home / f"{file}.yaml"
        path.write_text(yaml.safe_dump(config))
        return str(path)

    return write


def rows_of(home, name="twelve"):
    lines = (home / "outputs/sweeps" / name / "points.jsonl").read_text().splitlines()
    return {row["values"]["seed"]: row for row in map(json.loads, lines)}


# ------------------------------------------------------------------------------------------------------- the running


def test_of_twelve_points_one_fails_one_is_killed_ten_finish_and_resume_runs_just_those_two(project, home, capsys):
    file = project(range(12), metric={"name": "score"})
    assert main(["sweep", file, "--jobs", "3"]) == 1
    said = capsys.readouterr()
    rows = rows_of(home)
    assert [rows[seed]["status"] for seed in range(12)].count("finished") == 10
    assert (rows[3]["status"], rows[3]["error"], rows[3]["cell"]) == (
        "failed", "ValueError: three", "cell In [4] failed: work(3)",
    )  # fmt: skip
    assert (rows[7]["status"], rows[7]["error"], rows[7]["cell"]) == (
        "killed", "killed by SIGKILL", "in the cell: train(run)",
    )  # fmt: skip
    assert "10 finished, 1 failed, 1 killed" in said.out and "vr1 sweep" in said.err and "--resume" in said.err
    failures = (home / "outputs/sweeps/twelve/failures.md").read_text()
    assert failures.count("## twelve-seed") == 2 and "Cell In[4], line 1" in failures

    (home / "mended").touch()
    (home / "ran.txt").unlink()
    assert main(["sweep", file, "--jobs", "3", "--resume"]) == 0
    assert sorted((home / "ran.txt").read_text().split()) == ["3", "7+"]  # 7 goes on from its checkpoint
    assert {row["status"] for row in rows_of(home).values()} == {"finished"}
    assert rows_of(home)[3]["error"] is None and not (home / "outputs/sweeps/twelve/failures.md").exists()
    lines = (home / "outputs/sweeps/twelve/comparison.md").read_text().splitlines()
    assert len([line for line in lines if "| finished |" in line]) == 12
    assert (home / "outputs/sweeps/twelve/comparison.png").stat().st_size > 5000
    assert (home / "outputs/sweeps/twelve/sweep.yaml").read_text() == Path(file).read_text()


def test_sweep_runs_notebooks_and_finds_the_cell_that_failed(home, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(signal, "signal", lambda *arguments: None)
    values = "\n".join(f"{key} = {value!r}" for key, value in PARAMETERS[STEM]().model_dump().items())
    work = (
        "from vr1lib.workbench.params import from_notebook\nfrom vr1lib.workbench.tracking import start_run\n"
        f"params = from_notebook({STEM!r}, globals())\nrun = start_run({STEM!r}, params)\n"
        "import os; print(os.environ['OMP_NUM_THREADS'], params.runs, params.wandb_group)\n"
        "assert params.seed != 1, 'not one'\nrun.finish('done')"
    )
    cells = [new_code_cell(values, metadata={"tags": ["parameters"]}), new_code_cell(work)]
    book = new_notebook(cells=cells)
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, home / "notebooks" / f"{STEM}.ipynb")
    parameters = {"seed": {"values": [0, 1]}, "runs": {"value": {"a b": "c"}}}
    (home / "two.yaml").write_text(yaml.safe_dump({**PROGRAM, "method": "grid", "parameters": parameters}))
    assert main(["sweep", "two.yaml", "--jobs", "2"]) == 1
    rows = rows_of(home, "two")
    assert rows[0]["status"] == "finished" and rows[1]["status"] == "failed"
    assert rows[1]["error"] == "AssertionError: not one" and rows[1]["cell"].startswith(
        "cell In [3] failed: from vr1lib"
    )
    assert rows[0]["run"] == f"outputs/{STEM}/two-seed0" and (home / rows[0]["run"] / "notebook.ipynb").exists()
    assert "{'a b': 'c'} two" in (home / "outputs/sweeps/two/logs/two-seed0.log").read_text()
    assert "two-seed1: failed: cell In [3]" in capsys.readouterr().err


def test_interrupted_sweep_ends_its_runs_and_can_be_resumed(project, home):
    file = project([99, 0, 1], file="long")
    code = (
        "import sys, signal; from vr1lib.workbench import sweep\nfrom vr1lib.workbench.cli import main\n"
        f"sweep.Runner.command = lambda self, row: [sys.executable, {str(home / 'script.py')!r}, row.name, "
        "str(row.values['seed'])]\n"
        f"sys.exit(main(['sweep', {file!r}]))"
    )
    running = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 30
    while not (home / "asleep").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    running.send_signal(signal.SIGTERM)
    _, said = running.communicate(timeout=30)
    assert running.returncode == 130 and "--resume" in said
    rows = rows_of(home, "long")
    assert [rows[seed]["status"] for seed in (99, 0, 1)] == ["interrupted", "waiting", "waiting"]
    assert (home / "ran.txt").read_text() == "99 "
    again = project([99, 0, 1, 2], file="long")
    with pytest.raises(RequestError, match="is not as it was"):
        sweep.sweep_command(again, 1, resume=True)


def test_resume_runs_what_is_gone_and_not_what_ended_after_the_sweep_was_killed(project, home):
    file = project([0, 1, 2], file="lost")
    assert main(["sweep", file]) == 0
    points = home / "outputs/sweeps/lost/points.jsonl"
    points.write_text(points.read_text().replace('"finished"', '"running"', 1))  # killed -9 while the run went on
    for path in (home / f"outputs/{STEM}/lost-seed2").iterdir():
        path.unlink()
    (home / "ran.txt").unlink()
    assert main(["sweep", file, "--resume"]) == 0
    assert (home / "ran.txt").read_text() == "2 "


def test_a_sweep_started_again_moves_the_earlier_one_aside(project, home, capsys):
    file = project([0], file="one")
    assert main(["sweep", file]) == main(["sweep", file]) == 0
    assert (home / "outputs/sweeps/one~1/points.jsonl").exists() and (home / "ran.txt").read_text() == "0 0 "
    assert main(["sweep", project([0], file="other"), "--resume"]) == 2
    assert "no sweep to resume" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- what is refused, at once


def test_all_wrong_points_are_named_together_and_nothing_runs(project, home, capsys):
    file = project([0, -1, 2], parameters={"seed": {"values": [0, -1]}, "exampels": {"values": [1]}})
    assert main(["sweep", file]) == 2
    assert "unknown key 'exampels'" in capsys.readouterr().err
    file = project([0], parameters={"seed": {"values": [0, -1, "x"]}, "examples": {"values": [1, 2]}})
    assert main(["sweep", file]) == 2
    error = capsys.readouterr().err
    assert "seed = -1" in error and "seed = 'x'" in error and "2 points" in error
    assert not (home / "outputs").exists() and not (home / "ran.txt").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"method": "bayes"}, "wandb agent"),
        ({"method": "hill"}, "method = 'hill'; give grid or random"),
        ({"method": "random"}, "give run_cap"),
        ({"run_cap": 0}, "run_cap = 0"),
        ({"early_terminate": {"type": "hyperband"}}, "W&B's server"),
        ({"methd": "grid"}, "the nearest known key is 'method'"),
        ({"parameters": {}}, "parameters = {}"),
        ({"parameters": {"a": {"parameters": {"b": {"value": 1}}}}}, "parameters.a: nested parameters"),
        ({"parameters": {"a": {"min": 0.0, "max": 1.0}}}, "parameters.a is uniform, which a grid cannot walk"),
        ({"parameters": {"a": {"min": 2, "max": 1}}}, "min = 2 is not below max = 1"),
        ({"parameters": {"a": {"distribution": "beta"}}}, "distribution = 'beta'; known here"),
        ({"parameters": {"a": {"values": [1], "q": 2}}}, "categorical does not know q"),
        ({"parameters": {"a": [1, 2]}}, "parameters.a = [1, 2]; give value"),
        ({"parameters": {"run": {"values": ["a"]}}}, "the sweep names its runs"),
        ({"command": ["python", "train.py"]}, "give [vr1, run, STEM"),
        ({"command": ["vr1", "run", STEM, "${args}"]}, "give ${args_no_hyphens} alone"),
        ({"command": ["vr1", "run", STEM, "--name", "x", "${args_no_hyphens}"]}, "the sweep does that"),
        ({"program": "train.py"}, "give notebooks/STEM.ipynb"),
        ({"name": "a/b"}, "name = 'a/b'"),
        ({"metric": "score"}, "metric = 'score'"),
    ],
)
def test_a_wrong_sweep_file_is_one_line_and_exit_2(project, home, capsys, change, said):
    assert main(["sweep", project([0], file="wrong", **change)]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and "wrong.yaml" in error
    assert not (home / "outputs").exists()


def test_what_points_read_and_is_not_there_is_told_as_commands_in_order(home, capsys, monkeypatch):
    for folder in ("params", "notebooks"):
        (home / folder).rmdir()
        (home / folder).symlink_to(ROOT / folder)
    assert main(["sweep", "params/sweeps/ablation_shapeworld.yaml"]) == 2
    error = capsys.readouterr().err
    stems = ["00_base_model", "10_data_building", "20_cold_sft"]
    commands = [f"vr1 run {stem} -f params/{stem}/demo.yaml" for stem in stems]
    assert [error.count(command) for command in commands] == [1, 1, 1]
    assert sorted(commands, key=error.index) == commands and error.count("\n") == 1


# --------------------------------------------------------------------------------------------------------- the points


def test_grid_walks_parameters_by_name_the_last_one_fastest():
    parameters = {"c": {"value": 1}, "b": {"values": [5, 4]}, "a": {"min": 0, "max": 1}}
    points = points_of({"method": "grid", "parameters": parameters}, "", "F")
    assert [(point["a"], point["b"], point["c"]) for point in points] == [(0, 5, 1), (0, 4, 1), (1, 5, 1), (1, 4, 1)]
    twice = {"method": "grid", "run_cap": 2, "parameters": {"a": {"values": [1, 1, 2, 3]}}}
    assert points_of(twice, "", "F") == [{"a": 1}, {"a": 2}]


def test_random_gives_the_points_of_wandbs_own_code():
    """Against `sweeps` 0.3.0 after random.seed(seed_of("text")): next_runs(config, [], n=2)."""
    parameters = {
        "cat": {"values": ["a", "b", "c"]},
        "fixed": {"value": 5},
        "int": {"min": -3, "max": 9},
        "log": {"distribution": "log_uniform_values", "min": 1e-6, "max": 1e-2},
        "normal": {"distribution": "q_normal", "mu": 3, "sigma": 2.5},
        "share": {"values": [1, 2, 3], "probabilities": [0.2, 0.3, 0.5]},
        "uniform": {"min": 0.0, "max": 2.0},
    }
    points = points_of({"method": "random", "run_cap": 2, "parameters": parameters}, "text", "F")
    for point, theirs in zip(points, WANDB_POINTS, strict=True):
        assert point.keys() == theirs.keys() and point["cat"] == theirs["cat"]
        numbers = [key for key in theirs if key != "cat"]
        assert [point[key] for key in numbers] == pytest.approx([theirs[key] for key in numbers], rel=1e-9)
    assert seed_of("text") != seed_of("text ")


def test_names_are_readable_short_and_unlike(home):
    points = read_sweep(ROOT / "params/sweeps/ablation_shapeworld.yaml").points
    names = [point.name for point in points]
    assert names[0] == "ablation_shapeworld-00_base_model-seed0-52x16x30_104x8x20"
    assert len(set(names)) == len(names) == 18 and max(map(len, names)) <= 60
    long = {"a": {"values": ["x" * 70, "x" * 71]}, "b": {"values": [0.1, 0.10000001]}}
    (home / "s.yaml").write_text(yaml.safe_dump({**PROGRAM, "method": "grid", "parameters": long}))
    names = [point.name for point in read_sweep("s.yaml").points]
    assert len(set(names)) == 4 and max(map(len, names)) <= 60
    assert all(load_parameters(STEM, (), [("run", name)]).run == name for name in names)


@pytest.mark.parametrize(
    "values",
    [
        {"stages": [[52, 16, 30], [104, 8, 20]], "seed": 3, "limit": None, "train_vision": True, "learning_rate": 1e-6},
        {"model": "outputs/a b/model", "evaluation": None, "clip_low": 0.25, "wandb_group": "g7"},
    ],
)
def test_run_takes_arguments_as_wandbs_agent_writes_them(values):
    args = create_sweep_command_args({"args": {key: {"value": value} for key, value in values.items()}})
    options = parse(["run", "30_ptst_grpo", "-p", "seed", "9", *args["args_no_hyphens"], "--name", "x"])
    params = load_parameters(options.stem, options.files, options.overrides)
    assert {key: getattr(params, key) for key in values} == values and options.name == "x"
    ours = parse(["run", "30_ptst_grpo", *sweep.as_arguments(sweep.Point("x", values))])
    again = load_parameters(ours.stem, ours.files, ours.overrides)
    assert {key: getattr(again, key) for key in values} == values


def test_the_ablation_is_at_equal_token_budget_and_measured_alike():
    read = read_sweep(ROOT / "params/sweeps/ablation_shapeworld.yaml")
    options = parse(read.command)
    arms = [load_parameters(options.stem, [ROOT / options.files[0]], [
        *options.overrides, *(argument.split("=", 1) for argument in sweep.as_arguments(point)),
    ]) for point in read.points]  # fmt: skip
    assert {length * group for params in arms for length, group, _ in params.stages} == {832}
    assert {sum(steps for *_, steps in params.stages) for params in arms} == {50}
    longest = max(length for params in arms for length, *_ in params.stages)
    assert {params.evaluation_max_completion_tokens for params in arms} == {longest}
    assert len({json.dumps(params.model_dump() | {"model": 0, "seed": 0, "stages": 0}) for params in arms}) == 1


def test_threads_are_shared_between_jobs(monkeypatch, tmp_path):
    read = read_sweep(ROOT / "params/sweeps/ablation_shapeworld.yaml")
    monkeypatch.setattr(sweep, "cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS")
    threads = [sweep.Runner(read, {}, jobs).environment.get("OMP_NUM_THREADS") for jobs in (1, 2, 16)]
    assert threads == [None, "4", "1"] and "OMP_NUM_THREADS" not in os.environ
