"""Text on a terminal, which is shown as it is: no markup is read in it, no escape code obeyed."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from evocompress.core.foreign_text import printable

WIDEST = 10_000
"""Columns of the widest table that is printed where there is no terminal."""


def shown(text: str, style: str = "") -> Text:
    """A text for a table or a line of rich, which would read strings as markup."""
    return Text(printable(text), style=style)


def add_row(table: Table, *cells: str) -> None:
    """Adds a row of texts to a table."""
    table.add_row(*map(shown, cells))


def text_table(rows: Sequence[Sequence[str]]) -> Table:
    """A table of rows of text; the first row is the heading."""
    heading, *body = rows
    table = Table()
    for place, name in enumerate(heading):
        table.add_column(shown(name), justify="right" if place else "left")
    for row in body:
        add_row(table, *row)
    return table


def print_table(table: Table) -> None:
    """Prints a table; where there is no terminal with an edge, as wide as its content."""
    console = Console()
    if not console.is_terminal:
        unlimited = console.options.update(max_width=WIDEST)
        console.width = Measurement.get(console, unlimited, table).maximum
    console.print(table)
