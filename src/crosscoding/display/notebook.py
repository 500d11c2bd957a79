"""Descriptions for notebooks, as HTML without scripts, readable in dark and light themes.

Text, lines and stripes take the page's own colour. Marks have their own background, with a
contrast of at least 5 to 1, and their colours differ in lightness, for colour-blind readers.
"""

from base64 import b64encode
from html import escape

from crosscoding.display.description import Cell, Description, Grid, Mark, Strip

_STYLE = """
.crosscoding{color:inherit;font-size:13px;line-height:1.45;max-width:100%;overflow-x:auto}
.crosscoding .title{font-weight:600;font-size:14px;margin:2px 0 6px}
.crosscoding p{margin:4px 0;max-width:70em}
.crosscoding table{border-collapse:collapse;border:0;margin:6px 0 10px;color:inherit;
font-size:inherit;font-variant-numeric:tabular-nums}
.crosscoding caption{caption-side:top;text-align:left;padding:2px 0 4px;color:inherit;
font-weight:600}
.crosscoding th,.crosscoding td{border:0;background:none;color:inherit;text-align:left;
vertical-align:top;padding:2px 14px 2px 0;white-space:normal;max-width:44em;
overflow-wrap:break-word}
.crosscoding .grid td:first-child{white-space:nowrap}
.crosscoding td.n,.crosscoding th.n{text-align:right;white-space:nowrap}
.crosscoding .grid th{font-weight:600;opacity:.8;white-space:nowrap}
.crosscoding .grid tr{border-top:1px solid rgba(128,128,128,.35);background:none}
.crosscoding .grid thead tr{border-top:0}
.crosscoding .facts th{font-weight:400;opacity:.75;white-space:nowrap}
.crosscoding .more{opacity:.75;margin-top:-6px}
.crosscoding figure{margin:8px 0}
.crosscoding img{max-width:100%;height:auto;image-rendering:pixelated;background:#fff;
border-radius:3px}
.crosscoding figcaption{opacity:.8;margin-top:2px}
.crosscoding .grid tr[class]>td:nth-child(2){padding-left:10px;white-space:nowrap}
.crosscoding .strong{font-weight:600}
"""
_COLOURS = {"good": "#00664a", "note": "#0b5394", "doubtful": "#f2c14e", "bad": "#a61c1c"}
_TEXT = {"doubtful": "#201600"}
_WORD = "".join(
    f".crosscoding td.{status} b,.crosscoding tr.{status}>td:first-child"
    f"{{background:{colour};color:{_TEXT.get(status, '#fff')};font-weight:500;"
    "border-radius:3px;padding:1px 7px;white-space:nowrap}\n"
    for status, colour in _COLOURS.items()
)


def as_html(description: Description) -> str:
    """A description as one element with a style sheet of its own."""
    parts = [f"<style>{_STYLE}{_WORD}</style>"]
    if description.title:
        parts.append(f'<div class="title">{escape(description.title)}</div>')
    if description.facts:
        rows = "".join(
            f"<tr><th>{escape(name)}</th>{_cell(value)}</tr>" for name, value in description.facts
        )
        parts.append(f'<table class="facts"><tbody>{rows}</tbody></table>')
    parts += [_strip(strip) for strip in description.strips]
    parts += [_grid(grid) for grid in description.grids]
    parts += [f"<p>{escape(note)}</p>" for note in description.notes]
    return f'<div class="crosscoding">{"".join(parts)}</div>'


def _grid(grid: Grid) -> str:
    caption = f"<caption>{escape(grid.title)}</caption>" if grid.title else ""
    head = ""
    if grid.columns:
        names = "".join(
            f'<th class="n">{escape(name)}</th>'
            if n in grid.numbers
            else f"<th>{escape(name)}</th>"
            for n, name in enumerate(grid.columns)
        )
        head = f"<thead><tr>{names}</tr></thead>"
    body = "".join(_row(row, grid.numbers) for row in grid.rows)
    more = f'<p class="more">{escape(grid.more)}</p>' if grid.more else ""
    return f'<table class="grid">{caption}{head}<tbody>{body}</tbody></table>{more}'


def _row(row: tuple[Cell, ...], numbers: frozenset[int]) -> str:
    """A row; a mark in its first cell marks the whole row."""
    first, status = row[0] if row else "", ""
    if isinstance(first, Mark):
        row, status = (first.text, *row[1:]), f' class="{first.status}"'
    cells = "".join(_cell(cell, number=place in numbers) for place, cell in enumerate(row))
    return f"<tr{status}>{cells}</tr>"


def _cell(cell: Cell, *, number: bool = False) -> str:
    if isinstance(cell, Mark):
        return f'<td class="{cell.status}"><b>{escape(cell.text)}</b></td>'
    return f'<td class="n">{escape(cell)}</td>' if number else f"<td>{escape(cell)}</td>"


def _strip(strip: Strip) -> str:
    data = b64encode(strip.png).decode("ascii")
    words = escape(strip.words)
    return (
        f'<figure><img alt="{words}" width="{strip.width}" src="data:image/png;base64,{data}">'
        f"<figcaption>{words}</figcaption></figure>"
    )
