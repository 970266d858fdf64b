"""The dashboard shows keys that runs log, and W&B's own package takes it."""

import json
import re
import sys
from pathlib import Path

import pytest
import wandb
from wandb_server import wandb_server

from vr1lib.benchmarks.catalogue import BENCHMARKS
from vr1lib.records import RequestError
from vr1lib.workbench.dashboard import REPORTED, SECTIONS, dashboard_command, workspace

DOCS = Path(__file__).parent.parent / "docs"
PANELS = [panel for section in SECTIONS for panel in section.panels]


def documented():
    """The keys of docs/metrics.md, BENCHMARK/… spelt out for every benchmark."""
    rows = re.findall(r"^\| (`[^|]+`) \|", (DOCS / "metrics.md").read_text(encoding="utf-8"), re.MULTILINE)
    keys = {key for row in rows for key in re.findall(r"`([^`]+)`", row)}
    return keys | {key.replace("BENCHMARK", name) for key in keys for name in BENCHMARKS}


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.title)
def test_keys_of_curves_and_bars_are_documented(panel):
    if panel.kind in ("curves", "bars"):
        assert set(panel.keys) <= documented()
    else:
        text = (DOCS / "dashboards.md").read_text(encoding="utf-8")
        assert all(f"`{key.partition('/figure_')[0]}" in text for key in panel.keys)


def test_main_metrics_of_the_method_are_shown():
    shown = {key for panel in PANELS for key in panel.keys}
    wanted = {
        key for key in documented() if re.match(r"(reward|groups/all|length|eval/(acc|len)|kl|entropy|loss|clip)", key)
    }
    assert wanted <= shown


def test_wandb_takes_the_workspace_with_every_key():
    pytest.importorskip("wandb_workspaces")
    made = workspace("project", "me")
    spec = made._to_model().model_dump_json()
    assert [section.name for section in made.sections] == [section.name for section in SECTIONS]
    for panel in PANELS:
        for key in panel.keys:
            assert f'"{key}"' in spec, key


def test_dry_run_prints_every_panel_without_package_network_or_login(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert dashboard_command("vision-r1", None, dry_run=True, as_json=False) == 0
    said = capsys.readouterr().out
    assert "(your default entity)/vision-r1" in said
    assert all(panel.title in said and ", ".join(panel.keys) in said for panel in PANELS)
    assert dashboard_command("vision-r1", "me", dry_run=True, as_json=True) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [section["name"] for section in plan["workspace"]] == [section.name for section in SECTIONS]


def test_without_the_package_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(RequestError, match=r"wandb-workspaces is not installed: pip install -e '.\[dashboard\]'"):
        dashboard_command("vision-r1", None, dry_run=False, as_json=False)


@pytest.fixture
def server(monkeypatch, home):
    """A W&B server of the test's own, nobody logged in at it."""
    pytest.importorskip("wandb_workspaces")
    with wandb_server() as (address, received):
        wandb.teardown()
        monkeypatch.setenv("WANDB_MODE", "online")
        monkeypatch.setenv("WANDB_BASE_URL", address)
        monkeypatch.setenv("NETRC", str(home / "netrc"))
        monkeypatch.setenv("HOME", str(home))
        monkeypatch.delenv("WANDB_API_KEY", raising=False)
        yield received
        wandb.teardown()


def test_not_logged_in_is_one_line(server):
    with pytest.raises(RequestError, match="W&B is not logged in at http://127.0.0.1:"):
        dashboard_command("vision-r1", "me", dry_run=False, as_json=False)


def test_workspace_and_report_are_saved(server, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert dashboard_command("vision-r1", "me", dry_run=False, as_json=True) == 0
    urls = json.loads(capsys.readouterr().out)
    assert set(urls) == {"workspace", "report"} and all("/me/vision-r1" in url for url in urls.values())
    saved = [given["spec"] for given in server.views]
    assert len(saved) == 2 and all('"reward/mean"' in spec for spec in saved)
    for section in SECTIONS:
        assert (section.question in saved[1]) == (section.name in REPORTED)


def test_server_that_refuses_is_told_in_one_line(server, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_X_GRAPHQL_RETRY_MAX", "0")
    server.refuse.add("upsertView")
    assert dashboard_command("vision-r1", "me", dry_run=False, as_json=False) == 1
    said = capsys.readouterr()
    assert "W&B did not take the dashboard: " in said.err and "upsertView is refused" in said.err
    assert said.out.startswith("workspace  http://127.0.0.1"), "what was saved is said all the same"
