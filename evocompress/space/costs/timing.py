"""Seconds, as a measured table tells them, and amounts of costs as people read them."""

from __future__ import annotations

from math import floor, log10

from evocompress.space.costs.latency import LatencyTable, Phase
from evocompress.space.costs.model import Cost
from evocompress.space.costs.sublayers import Left, Part

TIMED = ("latency", "decode_latency")
"""The costs that only a table knows."""

_DIGITS = 4  # significant ones of a time


def timing_costs(table: LatencyTable) -> dict[str, Cost]:
    """The costs of `TIMED`: seconds of a prefill, and of one decoding step where there are any."""
    phases = (table.prefill, table.decode)
    return {name: _seconds(phase) for name, phase in zip(TIMED, phases, strict=True) if phase}


def _seconds(phase: Phase) -> Cost:
    def amount(part: Part, left: Left) -> float:
        if part.unit.kind == "attention":
            return phase.attention_seconds(left.kv_heads, left.group_heads)
        return phase.mlp_seconds(left.channels)

    return Cost(phase.base, amount, each_use=True)


def amount_text(cost: str, amount: float) -> str:
    """Milliseconds for a cost in seconds, a whole number for any other."""
    if cost not in TIMED:
        return f"{amount:,.0f}"
    milliseconds = 1000 * amount
    whole_digits = floor(log10(milliseconds)) + 1 if milliseconds > 0 else _DIGITS
    return f"{milliseconds:,.{max(0, _DIGITS - whole_digits)}f} ms"
