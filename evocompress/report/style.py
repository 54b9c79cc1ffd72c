"""What all figures share. Colours of text and grid come from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go

BLUE, ORANGE, GREY = "#3d7eb8", "#cf6a3a", "#8b939c"
PALETTE = (BLUE, ORANGE, "#3f8f63", "#8a63b8", "#b0892c", "#c4527a", "#4f9aa8", GREY)
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x")
GRID = "rgba(128,140,152,.22)"
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'
TICKS = 10
LOGARITHMIC_ABOVE = 8.0  # ratio of the largest to the smallest value


def blank(height: int) -> go.Figure:
    """An empty figure in the page's style, its height in pixels."""
    figure = go.Figure()
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 72, "r": 16, "t": 28, "b": 48},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": FONT, "size": 13},
        showlegend=False,
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1.02, "yanchor": "bottom"},
        hoverlabel={"bgcolor": "#20262d", "font": {"color": "#f4f6f8", "family": FONT}},
    )
    axis = {
        "zeroline": False,
        "gridcolor": GRID,
        "automargin": True,
        "title": {"font": {"size": 13}},
    }
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    return figure


def whole_ticks(count: int) -> dict[str, object]:
    """Ticks of an axis of things that are counted from 0 to `count`: there is no half of one."""
    steps = (digit * 10**power for power in range(12) for digit in (1, 2, 5))
    return {"tick0": 0, "dtick": next(step for step in steps if count <= TICKS * step)}


def is_wide(values: Sequence[float]) -> bool:
    """Whether a linear axis would hide the small ones of some positive values."""
    return min(values) > 0 and max(values) / min(values) > LOGARITHMIC_ABOVE


def value_axis(values: Sequence[float]) -> dict[str, object]:
    """A logarithmic axis for values that span a wide range, otherwise a linear one."""
    if not is_wide(values):
        return {}
    decades = range(math.floor(math.log10(min(values))), math.ceil(math.log10(max(values))) + 1)
    ticks = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
    return {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
