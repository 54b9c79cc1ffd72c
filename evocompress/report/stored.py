"""In which types a candidate stores matrices and caches, as a heat map of roles by blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import plotly.graph_objects as go

from evocompress.core.storage import stored_bits
from evocompress.core.types import DENSE, Level, Unit
from evocompress.core.units import UnitTree
from evocompress.report.columns import number
from evocompress.report.style import blank, whole_ticks

# Dark where many bits are left.
BITS_SCALE = ["#fdf0e3", "#f7c99b", "#ec9a56", "#c9661f", "#7f3b0d"]
ROW_HEIGHT = 34


def stored_map(units: Sequence[Unit], levels: Mapping[str, Level]) -> go.Figure | None:
    """Bits per weight of each matrix or cache with a coarser type; ``None`` where there is none."""
    typed = _typed(units, levels)
    if not typed:
        return None
    roles = list(dict.fromkeys(unit.role for unit in typed))
    blocks = 1 + max(unit.block for unit in typed)
    bits = [[_bits(typed, levels, role, block) for block in range(blocks)] for role in roles]
    texts = [[_text(typed, levels, role, block) for block in range(blocks)] for role in roles]
    figure = blank(ROW_HEIGHT * len(roles) + 96)
    bar = {"title": {"text": "bits", "side": "right"}, "thickness": 12, "outlinewidth": 0}
    figure.add_heatmap(
        z=bits,
        x=list(range(blocks)),
        y=[escape(role) for role in roles],
        customdata=texts,
        hovertemplate="%{customdata}<extra></extra>",
        hoverongaps=False,
        xgap=2,
        ygap=2,
        colorscale=BITS_SCALE,
        texttemplate="%{z:.2~f}",
        colorbar=bar,
    )
    figure.update_xaxes(title_text="block", showgrid=False, range=[-0.5, blocks - 0.5])
    figure.update_xaxes(**whole_ticks(blocks))
    figure.update_yaxes(autorange="reversed", showgrid=False, ticks="", type="category")
    return figure


def stored_text(units: Sequence[Unit], levels: Mapping[str, Level]) -> str:
    """How many matrices and caches have which type."""
    counts: dict[str, int] = {}
    for unit in _typed(units, levels):
        counts[levels[unit.name].type] = counts.get(levels[unit.name].type, 0) + 1
    order = sorted(counts, key=lambda name: stored_bits(name), reverse=True)
    listed = ", ".join(f"{counts[name]} {name}" for name in order)
    return f"By type: {listed}. Bits of a weight, with scales and the rest."


def _typed(units: Sequence[Unit], levels: Mapping[str, Level]) -> list[Unit]:
    """The matrices and caches with a coarser type that are not in anything dropped."""
    tree = UnitTree(units)
    return [
        unit
        for unit in units
        if levels.get(unit.name, DENSE).type
        and not any(levels.get(each.name, DENSE).drop for each in tree.above(unit))
    ]


def _bits(
    typed: Sequence[Unit], levels: Mapping[str, Level], role: str, block: int
) -> float | None:
    """The mean over matrices of a role in a block, as experts are several."""
    own = [
        stored_bits(levels[unit.name].type)
        for unit in typed
        if (unit.role, unit.block) == (role, block)
    ]
    return sum(own) / len(own) if own else None


def _text(typed: Sequence[Unit], levels: Mapping[str, Level], role: str, block: int) -> str:
    found = [unit for unit in typed if (unit.role, unit.block) == (role, block)]
    if not found:
        return ""
    names = ", ".join(dict.fromkeys(levels[unit.name].type for unit in found))
    shown = f"<b>{escape(found[0].name)}</b><br>{escape(names)}"
    return shown if len(found) == 1 else f"{shown}<br>{number(len(found), 0)} matrices"
