"""Curves that grow under a training cell while somebody looks on.

They are drawn from metrics.jsonl, which is on disk after every step whoever trains: this kernel, or processes that the
cell has started; of a resumed run the steps before the stop are there too. Nothing is shown where no front end says
which cell it runs (papermill, nbconvert, a terminal): there the progress bar stays, and the run's figures come after.
"""

import io
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from vr1lib.records import RequestError
from vr1lib.workbench.tracking import Run

REDRAW_SECONDS = 2.0  # at least, between two drawings
MOST_SHARE = 0.02  # of the time goes into drawing: after one of 0.1 s the next comes 5 s later
LOOK_SECONDS = 0.25
PANEL_INCHES, HEIGHT_INCHES = 2.5, 2.2


def front_end() -> bool:
    """Whether a notebook's front end runs this cell: JupyterLab and others tell the cell's id, batch runners don't."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    kernel = getattr(shell, "kernel", None)
    message = kernel.get_parent("shell") if kernel else None
    return bool(message and message.get("metadata", {}).get("cellId"))


@contextmanager
def live_curves(run: Run, keys: Sequence[str]) -> Iterator[None]:
    """Inside, the metrics of these keys are drawn under the cell as they come, and at the end, however it ends."""
    if not front_end():
        yield
        return
    from IPython.display import HTML, Image, display

    curves = Curves(run, keys)
    handle = display(HTML("<em>The curves begin with the first step.</em>"), display_id=True)
    ended = threading.Event()

    def redraw() -> None:
        if picture := curves.draw():
            handle.update(Image(picture, format="png", alt=f"{', '.join(keys)} by step"))

    def follow() -> None:
        pause = LOOK_SECONDS
        while not ended.wait(pause):
            started = time.thread_time()
            redraw()
            pause = pause_after(time.thread_time() - started)

    thread = threading.Thread(target=follow, name="live curves", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        redraw()


def pause_after(drawing_seconds: float) -> float:
    """Seconds until the next drawing, so that drawing takes at most MOST_SHARE of the time."""
    return max(REDRAW_SECONDS, drawing_seconds / MOST_SHARE)


class Curves:
    """One row of panels, a metric each; what can be is drawn once (a drawing: 0.08 s for four panels)."""

    def __init__(self, run: Run, keys: Sequence[str]) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.path, self.keys, self.size = run.record.metrics, list(keys), 0
        self.figure = Figure(figsize=(PANEL_INCHES * len(keys), HEIGHT_INCHES), dpi=80)
        FigureCanvasAgg(self.figure)
        self.panels = self.figure.subplots(1, len(keys), squeeze=False)[0]
        self.figure.subplots_adjust(left=0.5 / len(keys) / PANEL_INCHES, right=0.99, bottom=0.2, top=0.86, wspace=0.3)
        self.lines = [axes.plot([], [], color="#123a5e", linewidth=1.4)[0] for axes in self.panels]
        self.stages: set[int] = set()  # steps at which one begins, drawn already
        for axes, key in zip(self.panels, keys):
            axes.set_title(key, fontsize=10)
            axes.set_xlabel("step", fontsize=9)
            axes.tick_params(labelsize=8)
            axes.spines[["top", "right"]].set_visible(False)
            axes.locator_params(axis="x", integer=True, nbins=5)

    def draw(self) -> bytes | None:
        """The picture as PNG; None if no step has come since the last one."""
        from vr1lib.analysis.runs import is_number, read_metrics

        size = self.path.stat().st_size if self.path.exists() else 0
        if size == self.size:
            return None
        try:
            rows = read_metrics(self.path)
        except RequestError:  # a line that is just being written; the next look will find it whole
            return None
        self.size = size
        for axes, line, key in zip(self.panels, self.lines, self.keys):
            points = [(row["step"], row[key]) for row in rows if is_number(row.get(key))]
            line.set_data([step for step, _ in points], [value for _, value in points])
            line.set_marker("o" if len(points) < 15 else "None")
            line.set_markersize(4)
            axes.relim()
            axes.autoscale_view()
        self.mark_stages(rows)
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png")
        return buffer.getvalue()

    def mark_stages(self, rows: Sequence[dict[str, Any]]) -> None:
        """A dotted line where a stage begins, but for the first."""
        of_steps = [(row["step"], row["stage"]) for row in rows if "stage" in row]
        begins = {step for (_, before), (step, stage) in zip(of_steps, of_steps[1:]) if stage != before}
        for step in begins - self.stages:
            for axes in self.panels:
                axes.axvline(step - 0.5, color="black", linestyle=":", linewidth=0.9)
        self.stages |= begins
