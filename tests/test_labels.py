"""What runs are filed under in W&B."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vr1lib.workbench.labels import JOB_TYPES, data_tag, model_size, tags_of
from vr1lib.workbench.params import load_parameters

ROOT = Path(__file__).parent.parent


def test_every_notebook_has_a_job_type_of_its_own():
    assert set(JOB_TYPES) == {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert len(set(JOB_TYPES.values())) == len(JOB_TYPES)


@pytest.mark.parametrize("file", sorted((ROOT / "params").glob("[0-9]*/*.yaml")), ids=lambda path: path.stem)
def test_tags_are_short_and_each_once(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    tags = tags_of(load_parameters(file.parent.name, [file]))
    assert all(isinstance(tag, str) and 0 < len(tag) <= 64 for tag in tags)
    assert len(tags) == len(set(tags))


def test_tags_say_size_method_reward_and_data(home):
    given = {"run": "demo_x", "model": "Qwen/Qwen2.5-VL-7B-Instruct", "method": "qlora", "problems": "shapeworld"}
    assert tags_of(load_parameters("30_ptst_grpo", [], list(given.items()))) == [
        "demo",
        "7B",
        "qlora",
        "hard",
        "shapeworld",
    ]


def test_file_of_a_run_is_tagged_by_its_run():
    assert data_tag("outputs/10_data_building/demo/rl.jsonl") == "data: demo"
    assert data_tag("/somewhere/my_problems.jsonl") == "my_problems"


def test_model_size_by_name_by_weights_and_by_the_adapters_base(tmp_path):
    assert [model_size(name) for name in ("Qwen2.5-VL-3B-Instruct", "x/vision_r1_72b", "tiny", "llava")] == [
        "3B",
        "72B",
        "tiny",
        "",
    ]
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    base.mkdir(), adapter.mkdir()
    save_file({"a": torch.zeros(1000, 1200), "b": torch.zeros(100)}, base / "model.safetensors", {"format": "pt"})
    assert model_size(str(base)) == "1.2M"
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    assert model_size(str(adapter)) == "1.2M"
