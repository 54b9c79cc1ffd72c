"""Budgets as prices: Lagrange multipliers, for several bounds or costs that do not add up."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from evocompress.core.arrays import Genome
from evocompress.space.space import SearchSpace

Cheapest = Callable[[NDArray[np.float64]], Genome]
"""The genome (U,) of least harm and priced cost, for the bounds' prices (bounds,)."""

_BISECTIONS = 30
_TURNS = 5
_PRICES = (1e-9, 1e12)


def own_costs(space: SearchSpace, start: Genome) -> NDArray[np.float64]:
    """The bounds' shares used at each level of each gene, all others at the start.

    Returns:
        An array (U, L, bounds), infinite where a gene has fewer than L levels.
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
    """The best feasible of the genomes that prices choose; ``None`` where none was found.

    The weights of several bounds against each other are shifted, turn by turn, to those that
    are used most.

    Args:
        space: With at least one bound.
        cheapest: What a price chooses.
        value: What is to be least, of a settled genome (U,).
    """
    weights = np.ones(len(space.budget))
    best: Genome | None = None
    for _ in range(_TURNS if len(weights) > 1 else 1):
        genome = _bisected(space, cheapest, weights)
        if genome is None:
            break
        if best is None or value(genome) < value(best):
            best = genome
        weights = weights * space.budget_usage(genome[None])[0] ** 4
    return best


def _bisected(
    space: SearchSpace, cheapest: Cheapest, weights: NDArray[np.float64]
) -> Genome | None:
    """The genome at the lowest price that meets the budget."""
    found = None
    low, high = _PRICES
    for _ in range(_BISECTIONS):
        price = float(np.sqrt(low * high))
        genome = cheapest(price * weights)
        if space.feasible(genome[None])[0]:
            found, high = genome, price
        else:
            low = price
    return found
