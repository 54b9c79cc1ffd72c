"""The mutation of a search without a single target: along the front, or towards it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from evocompress.core.arrays import Genome
from evocompress.search.operators.mutation import exchange
from evocompress.space.repair import repair
from evocompress.space.space import SearchSpace


def vary(
    space: SearchSpace, costs: Sequence[str], genome: Genome, rng: np.random.Generator
) -> Genome:
    """A changed copy of a genome (U,), changed by the moves of `moves.exchange`.

    Half of the time without a budget, so that the cost changes: a step along the front.
    Otherwise the parent's own costs are the budget: a step towards the front. Neither knows
    the space's budget.

    The parent may be a crossing of two others.
    """
    free = replace(space, budget={})
    # Parents that keep different attentions may have a child without any.
    genome = repair(free, genome, rng)
    own: dict[str, float] = {}
    if rng.random() < 0.5:
        spent = space.costs(genome[None])
        own = {name: spent[name].item() for name in costs}
    return exchange(replace(space, budget=own), genome, rng)
