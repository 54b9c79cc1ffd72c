"""The comparison for the terminal: models side by side, so that it fits 100 columns."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from evocompress.core.terminal import shown
from evocompress.report.columns import Cell
from evocompress.report.data import read_evaluation
from evocompress.report.notes import heldout_text
from evocompress.report.tables import tables


def table(folder: Path) -> Table:
    """The comparison of a run, one line per quantity and one column per model.

    Raises:
        RunError: The run has no evaluation yet.
    """
    evaluation = read_evaluation(folder)
    result = Table(
        box=box.SIMPLE_HEAD,
        caption=shown(heldout_text(evaluation.heldout)),
        caption_justify="left",
        pad_edge=False,
    )
    result.add_column("")
    for row in evaluation.rows:
        result.add_column(shown(row.name), justify="right", overflow="fold")
    for each in tables(evaluation):
        for column in each.columns:
            title = titled(column.title, column.unit)
            result.add_row(title, *(_value(cell) for cell in column.cells))
        result.add_section()
    return result


def titled(title: str, unit: str) -> Text:
    """A quantity, and its unit where it has one."""
    return shown(title).append(f"  {unit}" if unit else "", style="dim")


def _value(cell: Cell) -> Text:
    text = shown(cell.text)
    for note in cell.notes:
        text.append_text(shown(f"\n{note}", style="dim"))
    return text
