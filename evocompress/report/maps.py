"""A candidate's allocation as a heat map of roles by blocks."""

from __future__ import annotations

import math
from collections.abc import Callable
from html import escape
from typing import Any

import plotly.graph_objects as go

from evocompress.report.allocation import GridCell, UnitGrid
from evocompress.report.columns import percent
from evocompress.report.style import ORANGE, blank, whole_ticks

# Both scales are dark where much is gone.
ZEROS_SCALE = ["#edf3f8", "#c3daeb", "#8fbadb", "#3a7db5", "#12406a"]
KEPT_SCALE = ZEROS_SCALE[::-1]
ROW_HEIGHT = 34

CellValues = list[list[float | None]]


def allocation_map(grid: UnitGrid) -> go.Figure:
    """Zeros of matrices and widths of sub-layers, in percent; what is dropped in its own colour."""
    figure = blank(ROW_HEIGHT * len(grid.roles) + 96)
    common = {
        "x": list(range(len(grid.cells[0]))),
        "y": [escape(role) for role in grid.roles],
        "customdata": [[_hover(cell) for cell in row] for row in grid.cells],
        "hovertemplate": "%{customdata}<extra></extra>",
        "hoverongaps": False,
        "xgap": 2,
        "ygap": 2,
    }
    kept = _values(grid, lambda cell: None if cell.kept is None else 100 * cell.kept)
    zeros = _values(
        grid, lambda cell: None if cell.kept is not None or cell.width else 100 * cell.zeros
    )
    both = _any(kept) and _any(zeros)
    if _any(kept):
        figure.add_heatmap(z=kept, **common, **_kept_style(kept, _bar("kept", both, top=True)))
    if _any(zeros):
        figure.add_heatmap(z=zeros, **common, **_zeros_style(zeros, _bar("zeros", both)))
    if any(cell.level.drop for cell in grid.present):
        _mark_dropped(figure, grid, common)
    blocks = len(grid.cells[0])
    figure.update_xaxes(title_text="block", showgrid=False, range=[-0.5, blocks - 0.5])
    figure.update_xaxes(**whole_ticks(blocks))
    figure.update_yaxes(autorange="reversed", showgrid=False, ticks="", type="category")
    return figure


def _mark_dropped(figure: go.Figure, grid: UnitGrid, common: dict[str, Any]) -> None:
    dropped = [[1 if cell and cell.level.drop else None for cell in row] for row in grid.cells]
    colours = [[0, ORANGE], [1, ORANGE]]
    figure.add_heatmap(z=dropped, colorscale=colours, showscale=False, **common)
    square = {"symbol": "square", "size": 12, "color": ORANGE}
    figure.add_scatter(x=[None], y=[None], mode="markers", marker=square, name="dropped")
    figure.update_layout(showlegend=True)


def _values(grid: UnitGrid, value: Callable[[GridCell], float | None]) -> CellValues:
    """What the present units have; nothing where a unit is dropped or has no such value."""
    return [
        [None if cell is None or cell.level.drop else value(cell) for cell in row]
        for row in grid.cells
    ]


def _any(values: CellValues) -> bool:
    return any(value is not None for row in values for value in row)


def _kept_style(kept: CellValues, bar: dict[str, Any]) -> dict[str, Any]:
    """Colours over the whole range, so that candidates compare; unnamed if nothing is cut."""
    colours = {"colorscale": KEPT_SCALE, "zmin": 0, "zmax": 100}
    if all(value in (None, 100) for row in kept for value in row):
        return {**colours, "showscale": False}
    return {**colours, "texttemplate": "%{z:.0f}", "colorbar": bar}


def _zeros_style(zeros: CellValues, bar: dict[str, Any]) -> dict[str, Any]:
    """Colours over the range that occurs, widened to whole tens; unnamed if all are dense."""
    values = [value for row in zeros for value in row if value is not None]
    low, high = 10 * math.floor(min(values) / 10), 10 * math.ceil(max(values) / 10)
    colours = {"colorscale": ZEROS_SCALE, "zmin": low, "zmax": max(high, low + 10)}
    if not any(values):
        return {**colours, "showscale": False}
    return {**colours, "texttemplate": "%{z:.0f}", "colorbar": {**bar, "nticks": len(zeros)}}


def _bar(title: str, both: bool, *, top: bool = False) -> dict[str, Any]:
    """A colour bar, beside the whole map or beside its upper or lower half."""
    text = {"text": title, "side": "right", "font": {"size": 13}}
    bar = {"title": text, "ticksuffix": "%", "thickness": 12, "outlinewidth": 0, "len": 1}
    if not both:
        return bar
    return {**bar, "len": 0.5, "y": 1 if top else 0, "yanchor": "top" if top else "bottom"}


def _hover(cell: GridCell | None) -> str:
    if cell is None:
        return ""
    lines = [f"<b>{escape(cell.unit)}</b>", *_state(cell)]
    if cell.level.bias:
        lines.append("with a bias for what was cut")
    if cell.merged:
        lines.append(f"its block is merged with the next {cell.merged}")
    return "<br>".join(lines)


def _state(cell: GridCell) -> list[str]:
    if cell.level.drop:
        return ["dropped"]
    if cell.width:
        share = "" if cell.kept is None else f", {percent(cell.kept)}"
        return [escape(cell.width) + share]
    if cell.kept is not None:
        return ["whole"]
    return [f"{percent(cell.zeros)} zeros", escape(cell.level.key)]
