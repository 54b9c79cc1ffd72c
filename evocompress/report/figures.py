"""The figures of the page. Colours of text and grid come from the page's style sheet.

Text that plotly shows is read as HTML by it, so every name is escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

import plotly.graph_objects as go

from evocompress.report.allocation import Grid, GridCell
from evocompress.report.columns import number, percent, scale
from evocompress.report.data import FrontPoint, HealStep
from evocompress.report.history import History
from evocompress.report.notes import cost_name

BLUE, ORANGE, GREY = "#3d7eb8", "#cf6a3a", "#8b939c"
GRID = "rgba(128,140,152,.22)"
ZEROS_SCALE = ["#edf3f8", "#c3daeb", "#8fbadb", "#3a7db5", "#12406a"]
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'
LOGARITHMIC_ABOVE = 8.0  # ratio of the largest to the smallest value
ROW_HEIGHT = 34


def search_curve(history: History, value_name: str) -> go.Figure | None:
    """The incumbent's proxy value over requested tokens; ``None`` before the first comparison."""
    steps = [step for step in history.steps if step.value is not None]
    if not steps:
        return None
    values = [float(step.value or 0.0) for step in steps]
    figure = _figure(340)
    hover = [
        f"<b>{escape(step.incumbent or '')}</b><br>{number(value, 4)} at step {step.step}, "
        f"{number(step.requested, 0)} tokens"
        for step, value in zip(steps, values, strict=True)
    ]
    tokens = [step.requested for step in steps]
    line = {"color": BLUE, "width": 2, "shape": "hv"}
    figure.add_scatter(
        x=tokens, y=values, name="incumbent", line=line, hovertext=hover, hoverinfo="text"
    )
    if history.uniform is not None:
        label = f"uniform {number(history.uniform.value, 4)}"
        figure.add_hline(history.uniform.value, line={"color": GREY, "dash": "dash", "width": 1.5})
        _label(figure, label, history.uniform.value, _is_wide([*values, history.uniform.value]))
        values.append(history.uniform.value)
    figure.update_xaxes(title_text="requested tokens", rangemode="tozero")
    figure.update_yaxes(title_text=value_name, **_scale(values))
    return figure


def allocation_map(grid: Grid) -> go.Figure:
    """The winner's zeros as a heat map; dropped units in a colour outside the scale."""
    figure = _figure(ROW_HEIGHT * len(grid.roles) + 96)
    common = {
        "x": list(range(len(grid.cells[0]))),
        "y": [escape(role) for role in grid.roles],
        "customdata": [[_hover(cell) for cell in row] for row in grid.cells],
        "hovertemplate": "%{customdata}<extra></extra>",
        "hoverongaps": False,
        "xgap": 2,
        "ygap": 2,
    }
    zeros = [[_zeros(cell) for cell in row] for row in grid.cells]
    if any(value is not None for row in zeros for value in row):
        figure.add_heatmap(z=zeros, **common, **_zeros_style(zeros))
    if any(cell.level.drop for cell in grid.present):
        dropped = [[1 if cell and cell.level.drop else None for cell in row] for row in grid.cells]
        figure.add_heatmap(
            z=dropped, colorscale=[[0, ORANGE], [1, ORANGE]], showscale=False, **common
        )
        square = {"symbol": "square", "size": 12, "color": ORANGE}
        figure.add_scatter(x=[None], y=[None], mode="markers", marker=square, name="dropped")
        figure.update_layout(showlegend=True)
    figure.update_xaxes(title_text="block", showgrid=False, range=[-0.5, len(grid.cells[0]) - 0.5])
    figure.update_yaxes(autorange="reversed", showgrid=False, ticks="", type="category")
    return figure


def front_scatter(
    points: Sequence[FrontPoint],
    cost: str,
    dense: float | None,
    winner: str | None,
    value_name: str,
) -> go.Figure:
    """Value against one cost, as a share of the dense model where that is known."""
    figure = _figure(360)
    size, prefix = (dense / 100, "") if dense else scale([point.costs[cost] for point in points])
    beaten = [point for point in points if not point.non_dominated]
    front = sorted((p for p in points if p.non_dominated), key=lambda p: p.costs[cost])
    _add_points(
        figure, beaten, cost, size, {"color": GREY, "size": 7, "opacity": 0.55}, "dominated"
    )
    _add_points(figure, front, cost, size, {"color": BLUE, "size": 9}, "front")
    chosen = [point for point in points if point.id == winner]
    ring = {"color": ORANGE, "size": 15, "symbol": "circle-open", "line": {"width": 2.5}}
    _add_points(figure, chosen, cost, size, ring, "winner")
    unit = ", % of dense" if dense else f", {prefix}" if prefix else ""
    figure.update_xaxes(title_text=cost_name(cost) + unit)
    figure.update_yaxes(title_text=value_name, **_scale([point.value for point in points]))
    figure.update_layout(showlegend=True)
    return figure


def healing_curve(steps: Sequence[HealStep]) -> go.Figure:
    """Training loss and validation KL over the optimizer steps."""
    figure = _figure(320)
    trained = [(step.step, step.train_loss) for step in steps if step.train_loss is not None]
    measured = [(s.step, s.validation_kl) for s in steps if s.validation_kl is not None]
    figure.add_scatter(
        x=[step for step, _ in trained],
        y=[loss for _, loss in trained],
        name="training loss",
        line={"color": GREY, "width": 1.2},
    )
    figure.add_scatter(
        x=[step for step, _ in measured],
        y=[divergence for _, divergence in measured],
        name="validation KL",
        mode="lines+markers",
        line={"color": BLUE, "width": 2},
        marker={"size": 7},
    )
    values = _scale([value for _, value in trained + measured])
    figure.update_xaxes(title_text="optimizer step")
    figure.update_yaxes(title_text="KL to the dense model, nats/token", **values)
    figure.update_layout(showlegend=True)
    return figure


def varying_cost(points: Iterable[FrontPoint], preferred: Iterable[str]) -> str | None:
    """The first preferred cost in which points differ, else any; ``None`` if all cost the same."""
    points = list(points)
    names = dict.fromkeys([*preferred, *(name for point in points for name in point.costs)])
    known = [name for name in names if all(name in point.costs for point in points)]
    return next((name for name in known if len({p.costs[name] for p in points}) > 1), None)


def _figure(height: int) -> go.Figure:
    """An empty figure in the page's style."""
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


def _is_wide(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) > LOGARITHMIC_ABOVE


def _scale(values: Sequence[float]) -> dict[str, object]:
    """A logarithmic axis for values that span a wide range, otherwise a linear one."""
    if not _is_wide(values):
        return {}
    decades = range(math.floor(math.log10(min(values))), math.ceil(math.log10(max(values))) + 1)
    ticks = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
    return {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}


def _label(figure: go.Figure, text: str, value: float, logarithmic: bool) -> None:
    """Names a horizontal line at its right end; plotly wants annotations in the axis's scale."""
    figure.add_annotation(
        x=1, xref="paper", xanchor="right", yanchor="bottom", showarrow=False,
        y=math.log10(value) if logarithmic else value, text=text,
    )  # fmt: skip


def _zeros(cell: GridCell | None) -> float | None:
    return None if cell is None or cell.level.drop else 100 * cell.zeros


def _zeros_style(zeros: Sequence[Sequence[float | None]]) -> dict[str, object]:
    """Colours over the range that occurs, widened to whole tens; unnamed if all are dense."""
    values = [value for row in zeros for value in row if value is not None]
    low, high = 10 * math.floor(min(values) / 10), 10 * math.ceil(max(values) / 10)
    colours = {"colorscale": ZEROS_SCALE, "zmin": low, "zmax": max(high, low + 10)}
    if not any(values):
        return {**colours, "showscale": False}
    title = {"text": "zeros", "side": "top", "font": {"size": 13}}
    bar = {"title": title, "ticksuffix": "%", "thickness": 12, "outlinewidth": 0, "len": 1}
    return {**colours, "texttemplate": "%{z:.0f}", "colorbar": {**bar, "nticks": len(zeros)}}


def _hover(cell: GridCell | None) -> str:
    if cell is None:
        return ""
    name = f"<b>{escape(cell.unit)}</b><br>"
    if cell.level.drop:
        return f"{name}dropped"
    return f"{name}{percent(cell.zeros)} zeros<br>{escape(cell.level.key)}"


def _add_points(
    figure: go.Figure,
    points: Sequence[FrontPoint],
    cost: str,
    size: float,
    marker: dict[str, object],
    name: str,
) -> None:
    hover = [
        f"<b>{escape(p.id)}</b><br>{number(p.value, 4)}, {number(p.tokens, 0)} positions"
        for p in points
    ]
    figure.add_scatter(
        x=[point.costs[cost] / size for point in points],
        y=[point.value for point in points],
        mode="markers",
        marker=marker,
        name=name,
        hovertext=hover,
        hoverinfo="text",
    )
