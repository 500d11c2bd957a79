"""Descriptions for terminals, by rich."""

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from crosscoding.display.description import Cell, Description, Grid, Mark

_STYLES = {
    "good": "green",
    "note": "blue",
    "doubtful": "yellow",
    "bad": "bold red",
    "strong": "bold",
}


def as_rich(description: Description) -> RenderableType:
    """A description as something that rich prints."""
    parts: list[RenderableType] = []
    if description.title:
        parts.append(Text(description.title, style="bold"))
    if description.facts:
        parts.append(_facts(description.facts))
    parts += [_grid(grid) for grid in description.grids]
    parts += [Padding(Text(note), (0, 0, 0, 2)) for note in description.notes]
    return Group(*parts)


def _facts(facts: tuple[tuple[str, Cell], ...]) -> Table:
    table = Table.grid(padding=(0, 3, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, value in facts:
        table.add_row(Text(f"  {name}"), _text(value))
    return table


def _grid(grid: Grid) -> RenderableType:
    width = max((len(row) for row in grid.rows), default=len(grid.columns))
    title = Text(grid.title, style="italic") if grid.title else None
    table = Table(title=title, title_justify="left", show_header=bool(grid.columns))
    for place in range(width):
        name = Text(grid.columns[place]) if grid.columns else ""
        table.add_column(name, justify="right" if place in grid.numbers else "left")
    for row in grid.rows:
        table.add_row(*map(_text, row))
    return Group(table, Text(f"  {grid.more}", style="dim")) if grid.more else table


def _text(cell: Cell) -> Text:
    if isinstance(cell, Mark):
        return Text(cell.text, style=_STYLES[cell.status])
    return Text(cell)
