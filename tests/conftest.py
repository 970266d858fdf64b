"""One thread per process, no network, no prompt: set before torch or wandb can be imported."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")
os.environ.setdefault("MPLBACKEND", "agg")

import pytest  # noqa: E402


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty project folder as project root and working directory."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "params").mkdir()
    monkeypatch.setenv("VR1_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path.resolve()


@pytest.fixture
def begin(home, monkeypatch):
    """start_run without W&B; runs are closed after the test."""
    from vr1lib.workbench import tracking
    from vr1lib.workbench.params import load_parameters

    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(tracking, "active", None)
    runs = []

    def begin(stem="50_analysis", **overrides):
        given = [(key, str(value)) for key, value in overrides.items()]
        runs.append(tracking.start_run(stem, load_parameters(stem, [], given)))
        return runs[-1]

    yield begin
    for run in runs:
        run.close("finished")
