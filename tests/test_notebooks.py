"""Every notebook executed at tiny size, in the order of the chain: each finds what its predecessors wrote."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import nbformat
import pytest

from vr1lib.records import ColdRow, Graded, Problem, read_jsonl
from vr1lib.workbench.params import PARAMETERS
from vr1lib.workbench.run_folder import read_manifest

ROOT = Path(__file__).parent.parent
CHAIN = list(PARAMETERS)
SECONDS = 60  # each tiny run, on two cores; here a run may have one of them, so the tests allow twice as long
ARTEFACTS = {
    "00_base_model": ["model/model.safetensors", "model/vr1_spec.json", "metrics.jsonl"],
    "10_data_building": ["cold.jsonl", "rl.jsonl", "test.jsonl", "rejects.jsonl", "ledger.json", "images"],
    "20_cold_sft": ["model/model.safetensors", "model/vr1_spec.json", "metrics.jsonl"],
    "30_ptst_grpo": ["model/model.safetensors", "metrics.jsonl", "completions.jsonl", "evaluation_problems.jsonl"],
    "40_benchmark": ["scores.json", "completions.jsonl", "problems.jsonl"],
    "50_analysis": ["summary.json", "report.html", "tables/table_4.csv", "figures"],
}
OUTPUT_KINDS = {"00_base_model": {"model"}, "20_cold_sft": {"model"}, "30_ptst_grpo": {"model"}}


class Chain:
    """A copy of notebooks/ and params/ with its own outputs/, run as far as a test asks."""

    def __init__(self, folder):
        self.folder = folder
        self.done = {}
        shutil.copytree(ROOT / "notebooks", folder / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
        shutil.copytree(ROOT / "params", folder / "params")

    def command(self, *command, where="."):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("VR1_")}
        environment["PYTHONPATH"] = str(ROOT)
        where = self.folder / where
        return subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, timeout=600)

    def run(self, stem):
        """The run folder of STEM's tiny run, made with those of its predecessors if need be."""
        for earlier in CHAIN[: CHAIN.index(stem) + 1]:
            if earlier not in self.done:
                file = f"params/{earlier}/tiny.yaml"
                self.done[earlier] = self.command(sys.executable, "-m", "vr1lib", "run", earlier, "-f", file)
            done = self.done[earlier]
            assert done.returncode == 0, f"{earlier}: {done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return self.folder / "outputs" / stem / "tiny"


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    return Chain(tmp_path_factory.mktemp("project").resolve())


@pytest.mark.parametrize("stem", CHAIN)
def test_tiny_run_leaves_what_the_next_notebook_needs(chain, stem):
    folder = chain.run(stem)
    for name in ["manifest.json", "params.yaml", "notebook.ipynb", "wandb", *ARTEFACTS[stem]]:
        path = folder / name
        assert path.exists() and (path.is_dir() or path.stat().st_size), f"{stem}: no {name}"
    manifest = read_manifest(folder)
    assert (manifest["status"], manifest["wandb"]["mode"], manifest["error"]) == ("finished", "offline", None)
    assert manifest["summary"] and manifest["summary"].splitlines()[0] in chain.done[stem].stdout
    assert OUTPUT_KINDS.get(stem, set()) <= {output["kind"] for output in manifest["outputs"]}
    started, finished = (datetime.fromisoformat(manifest[key]) for key in ("started_at", "finished_at"))
    assert (finished - started).total_seconds() <= 2 * SECONDS


@pytest.mark.parametrize("stem", CHAIN)
def test_wandb_took_part_to_the_end(chain, stem):
    chain.run(stem)
    assert "W&B failed" not in chain.done[stem].stderr


@pytest.mark.parametrize("stem", CHAIN[1:])
def test_inputs_are_outputs_of_the_predecessors(chain, stem):
    folder = chain.run(stem)
    made = {
        (chain.folder / output["path"]).resolve(): output["sha256"]
        for earlier in CHAIN[: CHAIN.index(stem)]
        for output in read_manifest(chain.folder / "outputs" / earlier / "tiny")["outputs"]
    }
    for given in read_manifest(folder)["inputs"]:
        path = (chain.folder / given["path"]).resolve()
        assert path.exists() and made.get(path, given["sha256"]) == given["sha256"], given["path"]
    assert stem == "10_data_building" or read_manifest(folder)["inputs"]


@pytest.mark.parametrize("stem", ["00_base_model", "20_cold_sft", "30_ptst_grpo"])
def test_metrics_are_valid_json_with_steps_that_never_fall(chain, stem):
    folder = chain.run(stem)
    rows = [json.loads(line, parse_constant=pytest.fail) for line in (folder / "metrics.jsonl").open()]
    steps = [row["step"] for row in rows]
    assert rows and steps == sorted(steps) and all(row["seconds"] >= 0 for row in rows)


def test_data_of_the_three_parts_share_no_picture(chain):
    folder = chain.run("10_data_building")
    parts = {
        "cold": list(read_jsonl(folder / "cold.jsonl", ColdRow)),
        "rl": list(read_jsonl(folder / "rl.jsonl", Problem)),
        "test": list(read_jsonl(folder / "test.jsonl", Problem)),
    }
    pictures = [{Path(image).read_bytes() for row in rows for image in row.images} for rows in parts.values()]
    assert all(parts.values()) and len(set.union(*pictures)) == sum(len(part) for part in pictures)


def test_every_stage_of_the_schedule_left_completions(chain):
    folder = chain.run("30_ptst_grpo")
    stages = {row.stage for row in read_jsonl(folder / "completions.jsonl", Graded)}
    schedule = nbformat.read(folder / "notebook.ipynb", as_version=4).metadata.papermill.parameters["stages"]
    assert len(stages) == len(schedule) >= 2
    held_out = [problem.id for problem in read_jsonl(folder / "evaluation_problems.jsonl", Problem)]
    evaluations = itertools.groupby(read_jsonl(folder / "evaluation.jsonl", Graded), key=lambda row: row.step)
    answered = {step: [row.problem_id for row in rows] for step, rows in evaluations}
    assert answered == {0: held_out, 2: held_out, 3: held_out}


def test_scores_count_what_was_graded(chain):
    folder = chain.run("40_benchmark")
    graded = list(read_jsonl(folder / "completions.jsonl", Graded))
    (score,) = json.loads((folder / "scores.json").read_text())["benchmarks"]
    assert score["n"] == len({row.problem_id for row in graded}) > 0
    assert score["accuracy"] == pytest.approx(sum(row.answer_ok for row in graded) / len(graded))
    assert score["low"] <= score["accuracy"] <= score["high"]


def test_summary_and_report_show_the_scores(chain):
    folder = chain.run("50_analysis")
    rows = json.loads((folder / "summary.json").read_text())
    scores = json.loads((chain.folder / "outputs/40_benchmark/tiny/scores.json").read_text())
    (row,) = [row for row in rows if row["model"] == scores["label"]]
    assert {"model", "accuracy", "low", "high", "mean_length", "n"} <= set(row)
    assert row["accuracy"] == pytest.approx(scores["benchmarks"][0]["accuracy"])
    page = (folder / "report.html").read_text()
    assert scores["label"] in page and "data:image/png;base64," in page
    assert 'src="http' not in page and "<link" not in page, "the report is not self-contained"


def test_plain_papermill_from_the_root_gives_the_same_run(chain):
    chain.run("50_analysis")
    papermill = str(Path(sys.executable).with_name("papermill"))
    arguments = ["notebooks/50_analysis.ipynb", "out.ipynb", "-f", "params/50_analysis/tiny.yaml", "-p", "run", "plain"]
    done = chain.command(papermill, *arguments)
    assert done.returncode == 0, done.stderr[-4000:]
    outputs = chain.folder / "outputs" / "50_analysis"
    assert read_manifest(outputs / "plain")["status"] == "finished"
    assert json.loads((outputs / "plain" / "summary.json").read_text()) == json.loads(
        (outputs / "tiny" / "summary.json").read_text()
    )


def test_notebook_runs_without_parameters_from_the_notebooks_folder(chain):
    """As from JupyterLab, whose working directory is notebooks/."""
    chain.run("50_analysis")
    code = (
        "import nbformat, nbclient\n"
        "book = nbformat.read('50_analysis.ipynb', as_version=4)\n"
        "nbclient.NotebookClient(book, kernel_name='python3').execute()"
    )
    done = chain.command(sys.executable, "-c", code, where="notebooks")
    assert done.returncode == 0, done.stderr[-4000:]
    assert read_manifest(chain.folder / "outputs" / "50_analysis" / "default")["status"] == "finished"


@pytest.mark.parametrize("stem", CHAIN)
def test_notebook_in_git_holds_no_output_and_thin_cells(stem):
    book = nbformat.read(ROOT / "notebooks" / f"{stem}.ipynb", as_version=4)
    assert book.cells[0].cell_type == "markdown" and book.cells[0].source.startswith("# ")
    for cell in book.cells:
        if cell.cell_type != "code":
            continue
        assert not cell.outputs and cell.execution_count is None, f"{stem}: a cell holds output; clear it"
        if "parameters" not in cell.metadata.get("tags", []):
            assert len(cell.source.splitlines()) <= 25 and "class " not in cell.source, f"{stem}: {cell.source[:60]}"
