"""The front: value against a cost, and the layers of each of its candidates on a click."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go
from markupsafe import Markup

from evocompress.report.columns import number, percent, scale
from evocompress.report.data import FrontPoint
from evocompress.report.notes import cost_name
from evocompress.report.style import BLUE, GREY, ORANGE, blank, value_axis
from evocompress.space.costs import TIMED, amount_text

REFERENCES = (("diamond", "#3f8f63"), ("square", "#8a63b8"), ("triangle-up", "#b0892c"))
DETAILED = 60  # candidates whose layers are put into the page
SAME_COST = 0.01  # of the cost: what candidates of one budget differ by at most


def varying_costs(points: Iterable[FrontPoint], weighed: Iterable[str]) -> list[str]:
    """Those of the costs that were weighed against the value in which the best points differ.

    Candidates of one budget cost all but the same: what they differ by is no trade-off.
    """
    best = [point for point in points if point.non_dominated]
    known = (name for name in dict.fromkeys(weighed) if all(name in p.costs for p in best))
    return [name for name in known if best and _range(p.costs[name] for p in best) > SAME_COST]


def _range(amounts: Iterable[float]) -> float:
    """The range as a fraction of the largest."""
    low, *_, high = sorted([*amounts] * 2)
    return (high - low) / high if high else 0.0


def front_scatter(
    points: Sequence[FrontPoint],
    cost: str,
    dense: float | None,
    winner: str | None,
    value_name: str,
    *,
    knee: str | None = None,
    line: bool = False,
) -> go.Figure:
    """Value, called `value_name`, against one cost, a share of the dense model's if it is known.

    Points with a label are references and a series of their own. The winner's id gets a ring, that
    of the knee a cross. A line goes through the front where only this cost and the value span it.
    """
    figure = blank(380)
    size, unit = _unit([point.costs[cost] for point in points], cost, dense)
    front = sorted((p for p in points if p.non_dominated), key=lambda p: p.costs[cost])
    beaten = [p for p in points if not p.non_dominated and not p.label]
    faint = {"color": GREY, "size": 7, "opacity": 0.45}
    _add(figure, beaten, cost, size, "dominated", marker=faint)
    strong = {"color": BLUE, "size": 9}
    path = {"shape": "hv", "width": 1.2, "color": BLUE}
    _add(figure, front, cost, size, "front", marker=strong, line=path if line else None)
    for label, (symbol, colour) in _references(points):
        named = [point for point in points if point.label == label]
        marker = {"color": colour, "size": 11, "symbol": symbol}
        _add(figure, named, cost, size, escape(label), marker=marker)
    ring = {"color": ORANGE, "size": 17, "symbol": "circle-open", "line": {"width": 2.5}}
    cross = {"color": ORANGE, "size": 9, "symbol": "x-thin", "line": {"width": 2, "color": ORANGE}}
    chosen = [point for point in points if point.id == winner]
    _add(figure, chosen, cost, size, "winner", marker=ring)
    balanced = [point for point in points if point.id == knee]
    _add(figure, balanced, cost, size, "knee", marker=cross)
    figure.update_xaxes(title_text=escape(", ".join(filter(None, (cost_name(cost), unit)))))
    figure.update_yaxes(title_text=value_name, **value_axis([point.value for point in points]))
    figure.update_layout(showlegend=True, hovermode="closest")
    return figure


def detailed(points: Sequence[FrontPoint], winner: str | None) -> list[FrontPoint]:
    """The candidates whose layers the page shows: the winner, front and references first."""
    first = sorted(points, key=lambda p: (p.id != winner, not p.non_dominated, p.label is None))
    return first[:DETAILED]


def choice(point: FrontPoint, costs: Sequence[str], dense: Mapping[str, float]) -> str:
    """One candidate in a line of text, with costs as shares of the dense model's if it has them."""
    spent = {cost: point.costs[cost] for cost in costs}
    amounts = ", ".join(
        f"{cost_name(cost)} "
        + (percent(amount / dense[cost]) if dense.get(cost) else amount_text(cost, amount))
        for cost, amount in spent.items()
    )
    label = f" ({point.label})" if point.label else "" if point.non_dominated else " (dominated)"
    return f"{amounts}, value {number(point.value, 4)}, {point.id}{label}"


def embedded(maps: Mapping[str, go.Figure]) -> Markup:
    """Figures by candidate id as JSON that can stand inside a script element."""
    data = {name: _drawn(figure) for name, figure in maps.items()}
    return Markup(json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"))


def _unit(amounts: Sequence[float], cost: str, dense: float | None) -> tuple[float, str]:
    """What amounts of a cost are divided by to be shown, and the unit that they then have."""
    if dense:
        return dense / 100, "% of dense"
    return (1e-3, "ms") if cost in TIMED else scale(amounts)


def _drawn(figure: go.Figure) -> dict[str, Any]:
    whole: dict[str, Any] = json.loads(figure.to_json())
    return {"data": whole["data"], "layout": whole["layout"]}


def _references(points: Sequence[FrontPoint]) -> Iterable[tuple[str, tuple[str, str]]]:
    labels = dict.fromkeys(point.label for point in points if point.label)
    looks = [REFERENCES[index % len(REFERENCES)] for index in range(len(labels))]
    return zip(labels, looks, strict=True)


def _add(
    figure: go.Figure,
    points: Sequence[FrontPoint],
    cost: str,
    size: float,
    name: str,
    *,
    marker: dict[str, Any],
    line: dict[str, Any] | None = None,
) -> None:
    """A series of candidates; nothing where there are none."""
    if not points:
        return
    figure.add_scatter(
        x=[point.costs[cost] / size for point in points],
        y=[point.value for point in points],
        mode="lines+markers" if line else "markers",
        marker=marker,
        line=line,
        name=escape(name),
        customdata=[point.id for point in points],
        hovertext=[_hover(point) for point in points],
        hoverinfo="text",
    )


def _hover(point: FrontPoint) -> str:
    label = f"{escape(point.label)}<br>" if point.label else ""
    return (
        f"{label}<b>{escape(point.id)}</b><br>"
        f"{number(point.value, 4)}, {number(point.tokens, 0)} positions"
    )
