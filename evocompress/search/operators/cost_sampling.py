"""Random genomes at all costs, for a search that has no single target."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import numpy as np

from evocompress.core.arrays import Genome
from evocompress.space import sampling
from evocompress.space.budget import minimal_genomes
from evocompress.space.space import SearchSpace


def span(space: SearchSpace, cost: str, floor: float = 0.0) -> tuple[float, float]:
    """The least and the largest amount of a cost within the budget.

    The budget can be met. To go below the floor is no gain.
    """
    lowest = minimal_genomes(space)
    least = space.costs(lowest[space.feasible(lowest)])[cost].min()
    widest = np.zeros((1, len(space.units)), dtype=np.int64)
    most = min(space.costs(widest)[cost].item(), space.budget.get(cost, inf))
    least = min(max(least, floor), most)
    return float(least), float(most)


def at_any_cost(
    space: SearchSpace, cost: str, ends: tuple[float, float], rng: np.random.Generator
) -> Genome:
    """A random feasible genome (U,) that uses up a random bound on one cost.

    Independent levels alone would give nearly every genome the same cost: that of the mean.

    The bound is drawn between the ends, see `span`.
    """
    bound = float(rng.uniform(*ends))
    return sampling.random(replace(space, budget=space.budget | {cost: bound}), rng)
