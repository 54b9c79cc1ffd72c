"""Single steps of compression from the least compressed genome on, and what each saves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evocompress.core.arrays import Genome, Integers
from evocompress.core.level_order import only_cuts
from evocompress.core.types import Level
from evocompress.space.space import SearchSpace

LEAST_HARM = 1e-6
"""Floor of a measured harm: noise may make a change look free, or better than none."""


def least_compressed(space: SearchSpace) -> Genome:
    """The genome (U,) whose genes all have their first level."""
    return np.zeros_like(space.encoding.default)


def steps(space: SearchSpace, genome: Genome) -> list[tuple[int, int]]:
    """(gene, its new level) of each step from a genome (U,) that saves what is exceeded.

    A matrix goes up by a level, and a sub-layer to a next narrower one or to its drop. An
    attention may have two next ones: fewer groups, or fewer heads in each; and so may a matrix
    with zeros and types of stored weights.
    """
    free = np.flatnonzero(~space.encoding.inactive(genome[None])[0]).tolist()
    found = [
        (gene, level)
        for gene in free
        for level in next_levels(
            space.levels[gene], int(genome[gene]), space.encoding.ordinal[gene]
        )
    ]
    useful = savings(space, genome, [moved(space, genome, *step) for step in found]) > 0
    return [step for step, wanted in zip(found, useful, strict=True) if wanted]


def moved(
    space: SearchSpace, genome: Genome, gene: int | Integers, level: int | Integers
) -> Genome:
    """The genome (U,) with one gene, or several, at another level."""
    changed = genome.copy()
    changed[gene] = level
    return np.asarray(space.deactivate(changed[None])[0])


def savings(space: SearchSpace, genome: Genome, changed: Sequence[Genome]) -> NDArray[np.float64]:
    """Savings (K,) of changed genomes (K, U) in the bounds that a genome (U,) exceeds.

    As shares of the bounds, summed up; what lies below a bound is no saving. One that is not
    admissible (without any attention, or with too few experts) saves nothing.
    """
    if not changed:
        return np.zeros(0)
    rows = np.stack(changed)
    saved = np.maximum(space.budget_usage(genome[None]), 1) - np.maximum(
        space.budget_usage(rows), 1
    )
    return np.asarray(np.where(space.encoding.admissible(rows), saved.sum(axis=1), 0.0))


def rates(values: Sequence[float], now: float, saved: NDArray[np.float64]) -> NDArray[np.float64]:
    """Harm per saving (K,) of changes with values (K,), from a genome with the value `now`.

    `saved` (K,) is the saving of each. The rate is infinite for a change that could not be measured
    or saves nothing, and of harmless changes the one that saves most has the lowest.
    """
    harms = np.maximum(np.array(values) - (now if np.isfinite(now) else 0.0), LEAST_HARM)
    return np.asarray(np.divide(harms, saved, out=np.full(len(harms), np.inf), where=saved > 0))


def next_levels(levels: Sequence[Level], index: int, stepped: bool) -> list[int]:
    """Indices of the levels one step more compressed than that of an index.

    `stepped` says that the next level in order is the only one, as for the zeros of a matrix;
    otherwise there are the nearest levels that only cut, and the drop.
    """
    if stepped:
        return [index + 1] if index + 1 < len(levels) else []
    later = range(index + 1, len(levels))
    narrower = [i for i in later if only_cuts(levels[i], levels[index])]
    nearest = [
        i
        for i in narrower
        if not any(only_cuts(levels[i], levels[between]) for between in narrower)
    ]
    return nearest + [i for i in later if levels[i].drop]
