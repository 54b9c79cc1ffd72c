"""A latency table as rows of text."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial

from evocompress.space.costs.latency import LatencyTable, Phase

TableRow = tuple[str, str, str]
"""What it is, its value for a prefill, and for a decoding step (empty where there is none)."""


def table_rows(table: LatencyTable) -> list[TableRow]:
    """What a table says, for printing; the first row is the heading."""

    def row(name: str, value: Callable[[Phase], str]) -> TableRow:
        return name, value(table.prefill), value(table.decode) if table.decode else ""

    attention = sorted(table.prefill.attention, reverse=True)
    mlp = sorted(table.prefill.mlp, reverse=True)
    names = ("prefill", "decoding step")
    return [
        row(
            "milliseconds",
            lambda p: f"{names[p is table.decode]} {p.batch} x {p.tokens}",
        ),
        row("dense model", lambda phase: _ms(phase.dense)),
        row("embedding, last norm, head", lambda phase: _ms(phase.base)),
        *(
            row(f"attention, {g} x {q} heads", partial(_part, "attention", (g, q)))
            for g, q in attention
        ),
        *(row(f"MLP, {channels} channels", partial(_part, "mlp", channels)) for channels in mlp),
        row("scale of the sums", lambda phase: f"{phase.scale:.3f}"),
        row("offset of the sums", lambda phase: _ms(phase.offset)),
        row("median error on random models", lambda phase: f"{median_error(phase):.1%}"),
        row("largest error on random models", lambda phase: f"{largest_error(phase):.1%}"),
        row("spread of a timing", lambda phase: f"{phase.spread:.1%}"),
        row("CUDA graph", lambda phase: "yes" if phase.graph else "no"),
    ]


def median_error(phase: Phase) -> float:
    """Median absolute error on the random models, as a fraction of their time."""
    return statistics.median(abs(error) for error in phase.errors)


def largest_error(phase: Phase) -> float:
    """Largest absolute error on the random models, as a fraction of their time."""
    return max(abs(error) for error in phase.errors)


def _part(kind: str, width: object, phase: Phase) -> str:
    return _ms(getattr(phase, kind)[width])


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3f}"
