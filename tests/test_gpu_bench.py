"""The GPU bench goes its whole way on a CPU with a tiny model, and says so where nothing was measured."""

import ast
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

FILE = Path(__file__).parent.parent / "bench" / "gpu" / "run.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("gpu_bench", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_bench"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["qlora_grpo_7b", "full_grpo_3b", "full_sft_3b"])
def test_every_case_runs_on_a_cpu_with_a_tiny_model(bench, name):
    AcceleratorState._reset_state(True)
    found = bench.measure(name, tiny=True)
    assert set(bench.CASES) == {"qlora_grpo_7b", "full_grpo_3b", "full_sft_3b"}
    assert found["update_tokens_per_second"] > 0 and found["completion_tokens"] > 8
    assert ("rollout_tokens_per_second" in found) == ("grpo" in name)
    parts = {part["name"]: part for part in found["preflight"]["parts"]}
    assert ("adapter" in parts) == ("qlora" in name)
    assert parts["weights"]["measured_gib"] == parts["weights"]["estimated_gib"]  # 4-bit layers, too, are counted
    assert json.loads(json.dumps(found))["shape"] == "tiny"


def test_the_published_shapes_are_those_of_the_issue(bench):
    assert bench.CASES["qlora_grpo_7b"].most_gib * 2**30 == 24e9
    assert (bench.PUBLISHED_SCALE.group_size, bench.PUBLISHED_SCALE.completion_tokens) == (8, 2048)
    config = bench.PUBLISHED["Qwen2.5-VL-7B"]["text_config"]
    assert config["hidden_size"] // config["num_attention_heads"] // 16 * 8 == 64  # the rotary half's three sections


def test_layers_in_four_bits_give_nearly_the_same(bench):
    torch.manual_seed(0)
    outer = torch.nn.Module()
    outer.layer = torch.nn.Linear(64, 128).bfloat16()
    data = torch.randn(3, 64).bfloat16()
    plain = outer.layer(data)
    bench.into_four_bits(outer)
    assert outer.layer.weight.dtype == torch.uint8 and outer.layer.weight.quant_state.nested
    assert (outer.layer(data) - plain).abs().mean() < 0.15 * plain.abs().mean()


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU to measure on")
def test_without_a_gpu_nothing_is_measured_and_that_is_said(bench, tmp_path, monkeypatch, capsys):
    results = (FILE.parent / "RESULTS.md").read_text()
    monkeypatch.setattr(sys, "argv", ["run.py", "--json", str(tmp_path / "found.json")])
    assert bench.main() == 0
    assert capsys.readouterr().out.startswith("Not measured")
    assert json.loads((tmp_path / "found.json").read_text())["measured"] is False
    assert (FILE.parent / "RESULTS.md").read_text() == results


def test_the_page_says_card_date_and_versions(bench):
    case = {"case": "qlora_grpo_7b", "shape": "Qwen2.5-VL-7B", "peak_gib": 17.25, "most_gib": 22.35}
    case |= {"rollout_tokens_per_second": 512.3, "update_tokens_per_second": 2048.0}
    found = {"measured": True, "device": "Some card", "date": "2030-01-02", "versions": {"torch": "2.13"}}
    page = bench.page(found | {"cases": [case, {"case": "full_sft_3b", "failed": True}]})
    assert "Some card, 2030-01-02; torch 2.13" in page and "| 17.2 of 22.4 | 512.3 | 2048.0 |" in page
    assert "| full_sft_3b | failed |" in page
    assert bench.page({"measured": False}) == (FILE.parent / "RESULTS.md").read_text()


def test_it_needs_no_notebook():
    tree = ast.parse(FILE.read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported and not [name for name in imported if name.startswith("vr1lib.workbench")]
