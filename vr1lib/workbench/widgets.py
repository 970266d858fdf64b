"""Views with something to move in a notebook: controls above, HTML below.

A view is a function from what is chosen to HTML. A notebook's front end gets it with controls (ipywidgets, imported
only then); anywhere else, under papermill, nbconvert or on a page that shows a notebook, its first state stands there
as plain HTML, which the widget carries with it too. All text of problems and models is escaped.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from vr1lib.analysis.page import thumbnail
from vr1lib.analysis.statistics import REFLECTION_WORDS
from vr1lib.prompts import question_text
from vr1lib.records import Problem
from vr1lib.workbench.live import front_end

Values = dict[str, Any]
DOUBT = re.compile(rf"\b(?:{'|'.join(map(re.escape, REFLECTION_WORDS))})\b", re.I)
STYLE = """<style>
.vr1 { color: #1c1c1c; background: #fff; padding: .6rem; border: 1px solid #ccc; line-height: 1.4; }
.vr1 table { border-collapse: collapse; margin: .4rem 0; }
.vr1 td, .vr1 th { border-bottom: 1px solid #ddd; padding: .15rem .6rem; text-align: right; vertical-align: top;
  background: #fff; color: #1c1c1c; }
.vr1 td.words, .vr1 th.words { text-align: left; max-width: 48rem; font-size: .92em; }
.vr1 td.words, .vr1 pre { white-space: pre-wrap; overflow-wrap: anywhere; word-break: normal; }
.vr1 pre { margin: .3rem 0; padding: .5rem; background: #f6f6f6; color: #1c1c1c; }
.vr1 mark { background: #ffe08a; color: #1c1c1c; }
.vr1 ins { background: #cfe8cf; }
.vr1 .bar { display: inline-block; height: .8em; background: #4a86b8; border: 1px solid #1c1c1c; }
.vr1 .bar.less { background: #fff; }
.vr1 .step { border: 1px solid #777; border-radius: .7rem; padding: 0 .6rem; }
.vr1 .step.now { background: #123a5e; color: #fff; }
.vr1 .problem { display: flex; flex-wrap: wrap; gap: 1rem; }
.vr1 img { border: 1px solid #ccc; max-height: 9rem; vertical-align: top; }
</style>"""


@dataclass(frozen=True)
class Choice:
    """A list to pick from: name → value, which may depend on what the controls before it say."""

    label: str
    options: Callable[[Values], Sequence[tuple[str, Any]]]
    first: Any
    buttons: bool = False


@dataclass(frozen=True)
class Number:
    """A whole number of at least `lowest`."""

    label: str
    first: int
    lowest: int = 0


Controls = Mapping[str, Choice | Number]


def show(view: Callable[..., str], controls: Controls, columns: int = 2, plain: str | None = None) -> None:
    """Display `view(**values)`, with controls where there is a front end, else `plain` or its first state."""
    from IPython.display import HTML, display

    first = {name: control.first for name, control in controls.items()}
    page = framed(plain or view(**first))
    if not front_end():
        display(HTML(page))
        return
    import ipywidgets

    made: dict[str, Any] = {}
    for name, control in controls.items():
        made[name] = widget_of(control, first)
    shown = ipywidgets.HTML(framed(view(**first)))

    def refresh(change: Mapping[str, Any]) -> None:
        values = {name: widget.value for name, widget in made.items()}
        names = list(controls)
        for name in names[names.index(next(key for key in names if made[key] is change["owner"])) + 1 :]:
            if isinstance(controls[name], Choice):
                refill(made[name], controls[name].options(values))
                values[name] = made[name].value
        shown.value = framed(view(**values))

    for widget in made.values():
        widget.observe(refresh, names="value")
    grid = ipywidgets.Layout(grid_template_columns=f"repeat({columns}, max-content)")
    whole = ipywidgets.VBox([ipywidgets.GridBox(list(made.values()), layout=grid), shown])
    display({**whole._repr_mimebundle_(), "text/html": page}, raw=True)


def widget_of(control: Choice | Number, values: Values) -> Any:
    import ipywidgets

    style = {"description_width": "max-content"}
    if isinstance(control, Number):
        limits = {"min": control.lowest, "max": 10**7}
        layout = ipywidgets.Layout(width="14em")
        return ipywidgets.BoundedIntText(control.first, description=control.label, style=style, layout=layout, **limits)
    chosen = {"options": control.options(values), "value": control.first, "description": control.label}
    if control.buttons:
        return ipywidgets.ToggleButtons(**chosen, style=style | {"button_width": "max-content"})
    return ipywidgets.Dropdown(**chosen, style=style, layout=ipywidgets.Layout(width="max-content"))


def refill(widget: Any, options: Sequence[tuple[str, Any]]) -> None:
    """New options; the place that was chosen stays chosen if it is still there."""
    if tuple(widget.options) != tuple(options):
        place = min(widget.index or 0, len(options) - 1)
        with widget.hold_trait_notifications():
            widget.options = options
            widget.index = place


def framed(inside: str) -> str:
    return f'{STYLE}<div class="vr1">{inside}</div>'


def pictures_html(problem: Problem) -> str:
    return "".join(f'<img src="{thumbnail(path)}" alt="picture of the problem"> ' for path in problem.images)


def question_html(problem: Problem, more: str = "") -> str:
    """Pictures, and beside them the question, its gold, and `more` HTML."""
    question = escape(question_text(problem)).replace("\n", "<br>")
    said = f"<p><b>{question}</b><br>gold: <b>{escape(problem.answer)}</b></p>{more}"
    return f'<div class="problem"><div>{pictures_html(problem)}</div><div>{said}</div></div>'


def marked(text: str) -> str:
    """Escaped, words of doubt marked."""
    return DOUBT.sub(lambda word: f"<mark>{word.group()}</mark>", escape(text))
