"""Amounts of costs as people read them."""

from __future__ import annotations

from math import floor, log10

from evocompress.space.costs.timing import TIMED

DIGITS = 4  # significant ones of a time


def amount_text(cost: str, amount: float) -> str:
    """Milliseconds for a cost in seconds, a whole number for any other."""
    if cost not in TIMED:
        return f"{amount:,.0f}"
    milliseconds = 1000 * amount
    whole_digits = floor(log10(milliseconds)) + 1 if milliseconds > 0 else DIGITS
    return f"{milliseconds:,.{max(0, DIGITS - whole_digits)}f} ms"
