"""Budgets as prices: Lagrange multipliers, for several bounds or costs that do not add up."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

import numpy as np

from evocompress.core.arrays import Floats, Genome
from evocompress.search.bisection import bisected
from evocompress.space.space import SearchSpace

Cheapest = Callable[[Floats], Genome]
"""The genome (U,) of least harm and priced cost, for the bounds' prices (bounds,)."""

_PRICES = (1e-9, 1e12)
"""At the one costs decide nothing, at the other everything: harms are divergences, mostly from 1e-6
to 10, and costs are shares of a bound, of which a single expert may be a millionth."""

_BISECTIONS = 30
"""Each halves the logarithm of the range: 21 decades become 2e-8 of one."""

_TURNS = 5
"""How many times the weights of several bounds are shifted."""

_SHARPNESS = 4
"""Power of a bound's usage by which its weight grows in a turn: a half counts a sixteenth."""


def own_costs(space: SearchSpace, start: Genome) -> Floats:
    """The bounds' shares used at each level of each gene (U, L, bounds), all others at the start.

    Infinite where a gene has fewer than L levels.
    """
    genes, levels = space.encoding.options
    rows = np.tile(start, (len(genes), 1))
    rows[np.arange(len(genes)), genes] = levels
    costs = np.full((len(start), int(space.encoding.sizes.max()), len(space.budget)), np.inf)
    costs[genes, levels] = space.budget_usage(rows)
    return costs


def priced(
    space: SearchSpace, cheapest: Cheapest, value: Callable[[Genome], float]
) -> Genome | None:
    """The genome (U,) of the least value among feasible ones that prices of the bounds choose.

    The weights of several bounds against each other are shifted, turn by turn, to those that
    are used most. ``None`` where no feasible genome was found.
    """
    weights = np.ones(len(space.budget))
    best: Genome | None = None
    for _ in range(_TURNS if len(weights) > 1 else 1):
        genome = _at_lowest_price(space, cheapest, weights)
        if genome is None:
            break
        if best is None or value(genome) < value(best):
            best = genome
        weights = weights * space.budget_usage(genome[None])[0] ** _SHARPNESS
    return best


def _at_lowest_price(space: SearchSpace, cheapest: Cheapest, weights: Floats) -> Genome | None:
    """The genome at the lowest price that meets the budget."""
    found: list[Genome] = []

    def enough(price: float) -> bool:
        genome = cheapest(price * weights)
        feasible = bool(space.feasible(genome[None])[0])
        found.extend([genome] if feasible else [])
        return feasible

    bisected(enough, *_PRICES, _BISECTIONS, lambda low, high: sqrt(low * high))
    return found[-1] if found else None
