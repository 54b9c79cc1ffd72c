"""Steps along measured effects: what else to drop, and what to restore for it.

A drop is no small change, so no gradient tells what it does. Around a candidate single drops and
restorations are measured instead, and those that belong together are made together: few at a time,
as effects add up over a short way only.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from evocompress.search.knapsack import knapsack
from evocompress.search.proposals import Predict
from evocompress.space import Genome, SearchSpace

SWAPS = (1, 2, 4)
"""How many exchanges a step makes; beside them as many as there are that promise a gain."""

_DROPS = 1.5
"""Drops that are tried for each restoration that can be."""


def neighbours(
    space: SearchSpace, genome: Genome, predict: Predict | None, rng: np.random.Generator
) -> list[Genome]:
    """Genomes (U,) with one dropped unit restored, or one more dropped.

    Every dropped unit is restored once, to its least compressed level. Of the possible drops
    there are half as many more, those of the lowest prediction; without one they are random.

    Args:
        space: With units that can be dropped.
        genome: Where to begin.
        predict: What is expected of genomes.
        rng: Source of randomness.
    """
    genes = space.genes
    dropped = genes.dropped(genome[None])[0]
    void = genes.void(genome[None])[0] & ~dropped
    restored = [_changed(space, genome, gene, 0) for gene in np.flatnonzero(dropped).tolist()]
    present = [gene for gene in genes.droppable.tolist() if not dropped[gene] and not void[gene]]
    drops = [_changed(space, genome, gene, int(genes.drop_index[gene])) for gene in present]
    drops = [drop for drop in drops if genes.keep_attention(drop[None])[0]]
    if not (restored and drops):
        return []
    scores = predict(np.stack(drops)) if predict else rng.random(len(drops))
    wanted = np.argsort(scores, kind="stable")[: int(np.ceil(_DROPS * len(restored)))]
    return [*restored, *(drops[index] for index in sorted(wanted.tolist()))]


def harms_around(
    space: SearchSpace, genome: Genome, tried: Sequence[Genome], effects: Sequence[float]
) -> list[NDArray[np.float64]]:
    """For each gene the harm of its levels (levels,): 0 of the present one, infinite untried.

    Args:
        space: The space.
        genome: Where the effects were measured (U,).
        tried: Genomes (U,) that differ from it in one gene, but for void ones.
        effects: By how much each is worse.
    """
    harms = [np.full(size, np.inf) for size in space.genes.sizes.tolist()]
    for harm, now in zip(harms, genome.tolist(), strict=True):
        harm[now] = 0.0
    dropped = space.genes.dropped(genome[None])[0]
    for other, effect in zip(tried, effects, strict=True):
        # A gene that became void, or is one no more, is not what was tried.
        [gene] = np.flatnonzero(space.genes.dropped(other[None])[0] != dropped)
        harms[gene][other[gene]] = effect if np.isfinite(effect) else np.inf
    return harms


def steps(
    space: SearchSpace, genome: Genome, harms: Sequence[NDArray[np.float64]]
) -> dict[int, Genome]:
    """{about how many exchanges: the best feasible genome (U,) with so many}, as predicted."""
    found: dict[int, Genome] = {}
    seen = {genome.tobytes()}
    for count, price in _prices(space, genome, harms).items():
        priced = [
            np.where(np.arange(len(harm)) == now, harm, harm + price)
            for harm, now in zip(harms, genome.tolist(), strict=True)
        ]
        pick = knapsack(space, priced, genome)
        if pick is not None and pick.tobytes() not in seen:
            seen.add(pick.tobytes())
            found[count] = pick
    return found


def _prices(
    space: SearchSpace, genome: Genome, harms: Sequence[NDArray[np.float64]]
) -> dict[int, float]:
    """For some numbers of exchanges the price of a change at which so many pay for themselves.

    The best restoration goes with the least harmful drop, the second best with the second, and
    so on: an exchange pays where its gain is above twice the price.
    """
    dropped = space.genes.dropped(genome[None])[0]
    back = [float(harm[0]) for harm, gone in zip(harms, dropped, strict=True) if gone]
    away = [
        float(harm[drop])
        for harm, gone, drop in zip(harms, dropped, space.genes.drop_index.tolist(), strict=True)
        if drop >= 0 and not gone
    ]
    pairs = zip(sorted(back), sorted(away), strict=False)
    gains = [gain for gain in (-(restored + drop) for restored, drop in pairs) if gain > 0]
    between = [(one + other) / 4 for one, other in pairwise([*gains, 0.0])]
    counts = [*(count for count in SWAPS if count < len(gains)), len(gains)]
    return {count: between[count - 1] for count in counts if count}


def _changed(space: SearchSpace, genome: Genome, gene: int, level: int) -> Genome:
    changed = genome.copy()
    changed[gene] = level
    settled: Genome = space.settle(changed[None])[0]
    return settled
