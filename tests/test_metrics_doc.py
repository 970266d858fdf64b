"""docs/metrics.md and the code name the same keys."""

import ast
import re
from pathlib import Path

import nbformat
import pytest

from vr1lib.data import shapeworld
from vr1lib.models.tiny import build_tiny_vlm
from vr1lib.models.vlm import load_vlm
from vr1lib.schedule import Schedule
from vr1lib.training.grpo import GrpoSettings, prepare, train_grpo
from vr1lib.training.sft import train_sft

ROOT = Path(__file__).parent.parent
ROW = re.compile(r"^\| (`[^|]+`) \| ([^|]+) \|", re.MULTILINE)
ONLY_WITH_GPU = {"memory/vram_gib"}


def documented() -> dict[str, str]:
    """Key → the runs that log it, from the tables."""
    table = ROW.findall((ROOT / "docs" / "metrics.md").read_text(encoding="utf-8"))
    return {key: runs for keys, runs in table for key in re.findall(r"`([^`]+)`", keys)}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("metrics")
    problems = shapeworld.make_problems(folder, "rl", 2, seed=0)
    sizes = {"hidden_size": 32, "layers": 1, "heads": 2, "key_value_heads": 1, "intermediate_size": 32}
    build_tiny_vlm(folder / "tiny", 0, [shapeworld.write_base_cot(problem) for problem in problems], **sizes)
    return folder, problems


def sft_keys(folder, problems):
    rows = [(problem, shapeworld.write_base_cot(problem)) for problem in problems]
    logged = []
    train_sft(load_vlm(folder / "tiny"), rows, log=logged.append, output_dir=folder, steps=1, batch_size=2)
    return {key for metrics in logged for key in metrics}


def grpo_keys(folder, problems):
    logged = []
    settings = GrpoSettings(prompts_per_step=2, evaluate_every=1)
    schedule = Schedule([(4, 2, 1)])
    session = prepare(load_vlm(folder / "tiny"), settings)
    train_grpo(session, problems, schedule, log=logged.append, evaluation_problems=problems[:1])
    return {key for metrics in logged for key in metrics}


@pytest.mark.parametrize(("runs", "keys_of"), [("SFT", sft_keys), ("GRPO", grpo_keys)])
def test_every_logged_key_is_documented_and_no_other(tiny, runs, keys_of):
    expected = {key for key, where in documented().items() if runs in where} - ONLY_WITH_GPU
    if runs == "SFT":
        expected = {key for key in expected if not key.startswith("eval/")}  # the notebooks log these, see below
    assert keys_of(*tiny) - ONLY_WITH_GPU == expected


@pytest.mark.parametrize("notebook", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_keys_that_notebooks_log_are_documented(notebook):
    cells = [cell.source for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]
    found = set()
    for call in ast.walk(ast.parse("\n".join(cells))):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "log":
            texts = [node.value for node in ast.walk(call) if isinstance(node, ast.Constant)]
            found |= {text for text in texts if isinstance(text, str) and re.fullmatch(r"[a-z_]+/[a-z_]+", text)}
    assert found <= set(documented())


def test_grpo_loss_near_zero_is_explained():
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert "(#why-grpos-loss-sits-near-0)" in text
    assert "\n## Why GRPO's loss sits near 0\n" in text
