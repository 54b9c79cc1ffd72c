"""Genomes to begin with: the even one, and random ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from evocompress.budget import repair, spend

if TYPE_CHECKING:
    from evocompress.genes import Genes, Genome
    from evocompress.space import SearchSpace


def uniform(space: SearchSpace) -> Genome:
    """The even genome (U,) that meets the budget with the least compression.

    Matrices are at their target. Of each droppable kind the same number of units is removed,
    as few as the budget allows, at even distances over the depth. Where removing all of them
    is not enough, all matrices are raised together, level by level.
    """
    genes = space.genes
    most = max((len(units) for units in _droppable(genes)), default=0)
    tries = [_spread(genes, count) for count in range(most + 1)]
    for _ in range(int(genes.sizes.max())):
        tries.append(_raise_matrices(genes, tries[-1]))
    genomes = space.settle(np.stack(tries))
    even: Genome = genomes[int(np.argmax(space.feasible(genomes)))]
    return even


def random(space: SearchSpace, rng: np.random.Generator) -> Genome:
    """A random feasible genome (U,) that uses the budget.

    Of each droppable kind as many units are removed as in the even genome, every such mask
    being equally likely. Matrices get independent uniform levels, which are then raised or
    relaxed in random order to where the budget is met without waste.
    """
    genes = space.genes
    even = uniform(space)
    genome = genes.start.copy()
    for units in _droppable(genes):
        genome[rng.permutation(units)[: int(even[units].sum())]] = 1
    matrices = genes.matrices
    genome[matrices] = rng.integers(0, genes.sizes[matrices])
    return spend(space, repair(space, genome, rng), rng)


def _droppable(genes: Genes) -> list[NDArray[np.int64]]:
    """For each kind of droppable unit its genes."""
    return [units for kind, units in genes.by_kind.items() if kind != "matrix"]


def _spread(genes: Genes, count: int) -> Genome:
    """The start with up to `count` units of each droppable kind removed at even distances."""
    genome = genes.start.copy()
    for units in _droppable(genes):
        count_here = min(count, len(units))
        places = (np.arange(count_here) + 0.5) * len(units) / max(count_here, 1)
        genome[units[places.astype(np.int64)]] = 1
    return genome


def _raise_matrices(genes: Genes, genome: Genome) -> Genome:
    """All matrices one level up, as far as they have one."""
    raised = genome.copy()
    matrices = genes.matrices
    raised[matrices] = np.minimum(genome[matrices] + 1, genes.sizes[matrices] - 1)
    return raised
