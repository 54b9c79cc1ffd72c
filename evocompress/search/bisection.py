"""Where along a range something turns true: the one bisection of the searches."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

N = TypeVar("N", int, float)


def bisected(
    holds: Callable[[N], bool], low: N, high: N, times: int, middle: Callable[[N, N], N]
) -> tuple[N, N]:
    """The ends of a range after it was halved `times` times: `holds` is false below, true above.

    `middle` gives the point that halves a range.

    Example:
        >>> bisected(lambda x: x * x >= 2, 1.0, 2.0, 10, mean)
        (1.4140625, 1.4150390625)
    """
    for _ in range(times):
        between = middle(low, high)
        low, high = (low, between) if holds(between) else (between, high)
    return low, high


def mean(low: float, high: float) -> float:
    """The middle of a range."""
    return (low + high) / 2
