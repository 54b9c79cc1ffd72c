"""Text on a terminal, which is shown as it is: no markup is read in it, no escape code obeyed."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from evocompress.core.foreign_text import printable


def shown(text: str, style: str = "") -> Text:
    """A text for a table or a line of rich, which would read strings as markup."""
    return Text(printable(text), style=style)


def add_row(table: Table, *cells: str) -> None:
    """Adds a row of texts to a table."""
    table.add_row(*map(shown, cells))
