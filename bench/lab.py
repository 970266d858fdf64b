"""The notebooks as a person runs them: `make lab` in a headless Chromium, each notebook by Run ▸ Run All Cells.

    python bench/lab.py --pictures /tmp/pictures            # tiny parameters, in a copy of the project; some minutes

Needs Playwright (`pip install playwright`) and a Chromium (`--chromium`, or the one that is found); without them it
says so and does nothing. Fails if a notebook doesn't finish, or if a control does not change what is below it. Every
screen of every executed notebook is kept in `--pictures`, to be looked at.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
STEMS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
PORT, TOKEN = 8941, "lab"
WINDOW = {"width": 1280, "height": 1000}
LOAD = """
from vr1lib.workbench.params import load_parameters
globals().update(load_parameters("{stem}", ["params/{stem}/{size}.yaml"]).model_dump())
"""
CONTROLS = {  # notebook → a control by its role and name, and what stands below after it was used
    "10_data_building": ("button", "reasoning", "no picture"),
    "30_ptst_grpo": ("spinbutton", "stage 1: tokens", "not equal"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", default=STEMS, metavar="STEM", help="which (default: all)")
    parser.add_argument("--size", default="tiny", help="the parameter files' name (default: tiny)")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="keep every screen there")
    parser.add_argument("--chromium", default=shutil.which("chromium") or shutil.which("google-chrome"))
    parser.add_argument("--outputs", type=Path, metavar="FOLDER", help="begin with a copy of these outputs")
    options = parser.parse_args()
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        print("Playwright is not installed (pip install playwright): JupyterLab is not tried")
        return 0
    if not options.chromium:
        print("no Chromium found (--chromium): JupyterLab is not tried")
        return 0
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        project = copied_project(Path(folder), options.size, options.outputs)
        with served(project):
            browser = playwright.chromium.launch(executable_path=options.chromium, args=["--no-sandbox"])
            failed = [stem for stem in options.notebooks if not passes(browser, project, stem, options)]
            browser.close()
    print(f"{len(options.notebooks) - len(failed)} of {len(options.notebooks)} notebooks passed")
    return 1 if failed else 0


def copied_project(folder: Path, size: str, outputs: Path | None) -> Path:
    """The project's notebooks, each with a line below its parameters that loads a parameter file."""
    ignore = shutil.ignore_patterns(".ipynb_checkpoints")
    for name in ("notebooks", "params", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in ("Makefile", "README.md"):
        shutil.copy(ROOT / name, folder / name)
    if outputs:
        shutil.copytree(outputs, folder / "outputs", ignore=shutil.ignore_patterns("wandb"))
    for stem in STEMS:
        path = folder / "notebooks" / f"{stem}.ipynb"
        book = json.loads(path.read_text(encoding="utf-8"))
        (cell,) = [cell for cell in book["cells"] if "parameters" in cell["metadata"].get("tags", [])]
        cell["source"] = ["".join(cell["source"]) + LOAD.format(stem=stem, size=size)]
        path.write_text(json.dumps(book), encoding="utf-8")
    return folder


@contextmanager
def served(project: Path) -> Iterator[None]:
    """`make lab` in the copy, with this checkout's environment and library."""
    options = f"--no-browser --allow-root --port {PORT} --ServerApp.port_retries=0 --ServerApp.token={TOKEN}"
    command = ["make", "-o", "setup", "lab", f"VENV={ROOT / '.venv'}", f"LAB_OPTIONS={options}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"}
    with (project / "lab.log").open("w") as log:
        server = subprocess.Popen(command, cwd=project, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        ends = time.monotonic() + 90
        while "is running at" not in (project / "lab.log").read_text():
            if server.poll() is not None or time.monotonic() > ends:
                raise SystemExit((project / "lab.log").read_text())
            time.sleep(0.5)
        yield
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def passes(browser: Any, project: Path, stem: str, options: argparse.Namespace) -> bool:
    """Run one notebook; whether it finished and its controls work. Its kernel is shut down."""
    page = browser.new_page(viewport=WINDOW)
    page.goto(f"http://127.0.0.1:{PORT}/lab/tree/notebooks/{stem}.ipynb?token={TOKEN}&reset")
    page.locator(".jp-Notebook").first.wait_for(timeout=90_000)
    page.get_by_text("Python 3", exact=False).first.wait_for(timeout=60_000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    started = time.monotonic()
    status = wait_until_done(page, project / "outputs" / stem)
    page.wait_for_timeout(3000)
    works = stem not in CONTROLS or status != "finished" or moves(page, *CONTROLS[stem])
    if options.pictures:
        keep_screens(page, options.pictures, stem)
    errors = page.locator("[data-mime-type='application/vnd.jupyter.error']").count()
    told = "" if works else ", its control changes nothing"
    print(f"{stem}: {status} in {time.monotonic() - started:.0f} s, {errors} errors on screen{told}", flush=True)
    page.request.delete(f"http://127.0.0.1:{PORT}/api/kernels/{kernel_of(page)}", headers=authorised())
    page.close()
    return status == "finished" and works and not errors


def authorised() -> dict[str, str]:
    return {"Authorization": f"token {TOKEN}"}


def kernel_of(page: Any) -> str:
    kernels = page.request.get(f"http://127.0.0.1:{PORT}/api/kernels", headers=authorised()).json()
    return kernels[0]["id"]


def wait_until_done(page: Any, runs: Path, minutes: float = 20) -> str:
    """The status of the run that begins now, once it is not running any more."""
    began = time.time()
    while time.time() < began + 60 * minutes:
        page.wait_for_timeout(1000)
        manifests = [path for path in runs.glob("*/manifest.json") if path.stat().st_mtime > began]
        status = json.loads(manifests[0].read_text(encoding="utf-8"))["status"] if manifests else "not started"
        if status not in ("running", "not started"):
            return status
    return "not done in time"


def moves(page: Any, role: str, name: str, below: str) -> bool:
    """Use one control; whether the words that it should bring stand on the page."""
    for _ in range(80):
        control = page.get_by_role(role, name=name, exact=True).or_(
            page.locator(".widget-text", has_text=name).locator("input")
        )
        if control.count():
            break
        page.locator(".jp-WindowedPanel-outer").first.evaluate("e => e.scrollBy(0, 400)")
        page.wait_for_timeout(150)
    else:
        return False
    control.first.scroll_into_view_if_needed()
    if role == "button":
        control.first.click()
    else:
        control.first.fill("48")
        control.first.press("Enter")
    page.wait_for_timeout(1500)
    return below in page.locator(".vr1").first.inner_text()


def keep_screens(page: Any, folder: Path, stem: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    scroller = page.locator(".jp-WindowedPanel-outer").first
    scroller.evaluate("e => e.scrollTo(0, 0)")
    for number in range(60):
        page.wait_for_timeout(400)
        page.screenshot(path=folder / f"{stem}_{number:02d}.png")
        before = scroller.evaluate("e => e.scrollTop")
        scroller.evaluate("e => e.scrollBy(0, e.clientHeight - 60)")
        if scroller.evaluate("e => e.scrollTop") == before:
            return


if __name__ == "__main__":
    sys.exit(main())
