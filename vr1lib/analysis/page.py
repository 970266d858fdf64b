"""HTML by hand: one self-contained page, its tables, figures and problem cards.

No server: pictures travel inside as data URLs, so the page opens offline and can be mailed. All text from runs is
escaped, for a completion can hold anything; the one script is that of the browser of completions.
"""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from vr1lib.prompts import OPTION_LETTERS
from vr1lib.records import Graded, Problem, open_image

PICTURE_SIDE = 240  # pixels of an example's longest side
LONGEST_TEXT = 6000  # characters of a completion shown
STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1rem; color: #1c1c1c; background: #fff;
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.25rem; margin: 2rem 0 .5rem; border-bottom: 1px solid #ccc; }
h3 { font-size: 1rem; margin: 1rem 0 .3rem; }
p.lead { font-size: 1.15rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; width: max-content; }
th, td { max-width: 22rem; padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: left;
  vertical-align: top; }
th { background: #f3f3f3; }
td:first-child { white-space: nowrap; }
td.number, th.number { text-align: right; }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
sup { line-height: 0; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 28rem), 1fr)); gap: 1rem; }
figure { margin: 0; }
figure img { width: 100%; height: auto; border: 1px solid #e3e3e3; }
figcaption { font-size: .9rem; color: #444; }
.finding { border-left: 5px solid #999; padding: .1rem .8rem; margin: .8rem 0; }
.finding.same { border-color: #1b6e3c; } .finding.opposite { border-color: #a3321f; }
.finding p { margin: .2rem 0; }
.chip { display: inline-block; padding: 0 .5rem; border: 1px solid #777; border-radius: .8rem; font-size: .85rem;
  white-space: nowrap; }
.example { display: flex; flex-wrap: wrap; gap: 1rem; border-top: 1px solid #ccc; padding: .8rem 0; }
.example .pictures { flex: 0 0 auto; max-width: 100%; }
.example .pictures img { max-width: 100%; border: 1px solid #ddd; display: block; margin-bottom: .3rem; }
.example .words { flex: 1 1 20rem; min-width: 0; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f6f6; padding: .5rem; margin: .3rem 0;
  font-size: .85rem; }
details { margin: .3rem 0; } summary { cursor: pointer; }
code { overflow-wrap: anywhere; }
.filters { display: flex; flex-wrap: wrap; gap: .4rem .8rem; padding: .6rem; background: #f3f3f3; }
.filters label { font-size: .85rem; } .filters select, .filters input { font: inherit; max-width: 14rem; }
.facts { font-size: .9rem; } .example:focus { outline: 2px solid #4a86b8; outline-offset: 2px; }
.chip.same { border-color: #1b6e3c; color: #1b6e3c; } .chip.opposite { border-color: #a3321f; color: #a3321f; }
.warning { border-left: 5px solid #a3321f; padding-left: .8rem; }
.browser .example p { margin: .2rem 0; } .more { font: inherit; padding: .4rem 1.2rem; }
@media print { details { display: block; } }
"""


@dataclass(frozen=True)
class Picture:
    """A saved figure with what it shows, and notes that stand folded below."""

    path: Path
    caption: str
    notes: tuple[str, ...] = ()


def write_page(out: str | Path, title: str, sections: Iterable[str], heading: bool = True) -> Path:
    """Write the page; returns its path."""
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page_html(title, sections, heading), encoding="utf-8")
    return out


def page_html(title: str, sections: Iterable[str], heading: bool = True) -> str:
    top = f"<h1>{escape(title)}</h1>" if heading else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>{top}\n"
        + "\n".join(sections)
        + "\n</body></html>\n"
    )


def html_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows under the first row's keys; numbers to the right, None an empty cell, wide tables scroll by themselves."""
    if not rows:
        return "<p>None.</p>"
    head = "".join(f"<th>{escape(str(key).replace('_', ' '))}</th>" for key in rows[0])
    body = "".join(f"<tr>{''.join(cell_html(value) for value in row.values())}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def cell_html(value: Any) -> str:
    if value is None:
        return "<td></td>"
    if isinstance(value, float):
        text = f"{value:,.1f}" if abs(value) >= 1 or value == 0 else f"{value:.3g}"
        return f'<td class="number">{text}</td>'
    if isinstance(value, int) and not isinstance(value, bool):
        return f'<td class="number">{value:,}</td>'
    return f"<td>{escape(str(value))}</td>"


def figure_html(picture: Picture) -> str:
    url = png_url(picture.path.read_bytes())
    caption = escape(picture.caption)
    notes = "".join(f"<p>{escape(note)}</p>" for note in picture.notes)
    folded = f"<details><summary>Notes on the paper's figure</summary>{notes}</details>" if notes else ""
    return f'<figure><img src="{url}" alt="{caption}"><figcaption>{caption}{folded}</figcaption></figure>'


def thumbnail(path: str | Path) -> str:
    """A picture as a data URL, at most PICTURE_SIDE pixels; small ones are enlarged by whole factors, so stay sharp.

    PNG or JPEG, whichever is smaller: drawings come out as the one, photographs as the other.
    """
    picture = open_image(path)
    longest = max(picture.size)
    if longest > PICTURE_SIDE:
        picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    elif longest * 2 <= PICTURE_SIDE:
        factor = PICTURE_SIDE // longest
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    return min((data_url(kind, encoded(picture, kind)) for kind in ("png", "jpeg")), key=len)


def encoded(picture: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind)
    return buffer.getvalue()


def png_url(content: bytes) -> str:
    return data_url("png", content)


def data_url(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def example_html(problem: Problem, answers: Mapping[str, Graded], note: str = "") -> str:
    """One problem with its pictures and gold, each answer folded under its verdict, and a note below."""
    pictures = "".join(f'<img src="{thumbnail(path)}" alt="picture of the problem">' for path in problem.images)
    choices = "".join(
        f"<br>{letter}: {escape(choice)}" for letter, choice in zip(OPTION_LETTERS, problem.choices or [])
    )
    said = "".join(answer_html(label, row) for label, row in answers.items())
    return (
        f'<div class="example"><div class="pictures">{pictures}</div><div class="words">'
        f"<p>{escape(problem.question)}{choices}<br><small>gold: <strong>{escape(problem.answer)}</strong> · "
        f"<code>{escape(problem.id)}</code></small></p>{said}<p><small>{escape(note)}</small></p></div></div>"
    )


def answer_html(label: str, row: Graded) -> str:
    verdict = "right" if row.reward == 1 else f"wrong: {row.reason}"
    text = row.text if len(row.text) <= LONGEST_TEXT else f"{row.text[:LONGEST_TEXT]} … ({len(row.text):,} characters)"
    cut = ", cut at the limit" if row.finish == "length" else ""
    read = f" · read as <code>{escape(row.extracted)}</code>" if row.extracted is not None else ""
    return (
        f"<details><summary><strong>{escape(label)}</strong>: {escape(verdict)}{read} · {row.tokens} tokens{cut}"
        f"</summary><pre>{escape(text)}</pre></details>"
    )
