"""Every change of one gene of a genome, and what is used of the budget after each.

A change of one gene moves few parts of the model, so its costs follow from those of the genome
and of these parts; the changed genomes themselves are as many as all levels, and are not made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evocompress.core.arrays import Booleans, Floats, Genome, Integers
from evocompress.space.space import SearchSpace


@dataclass(frozen=True, eq=False)
class Changes:
    """Some of the changes of one gene.

    Attributes:
        space: The space of the genome.
        genome: From where (U,).
        genes: Which gene each changes (K,).
        levels: The index of its new level (K,).
        usage: What is used of the bounds afterwards (K, bounds).
    """

    space: SearchSpace
    genome: Genome
    genes: Integers
    levels: Integers
    usage: Floats

    def those(self, chosen: Booleans) -> Changes:
        """The changes that are chosen (K,)."""
        genes, levels, used = self.genes[chosen], self.levels[chosen], self.usage[chosen]
        return Changes(self.space, self.genome, genes, levels, used)

    def changed(self, index: int) -> Genome:
        """The genome (U,) after the change of an index."""
        genome = self.genome.copy()
        genome[self.genes[index]] = self.levels[index]
        return genome

    def admissible(self) -> Booleans:
        """After which of them (K,) the genome is admissible, see `Encoding.admissible`.

        Only removed or restored parts make a difference.
        """
        genes = self.space.encoding
        drops = genes.drop_index[self.genes]
        touched = (drops >= 0) & ((self.levels == drops) | (self.genome[self.genes] == drops))
        admissible = np.full(len(touched), genes.admissible(self.genome[None])[0])
        rows = np.tile(self.genome, (int(touched.sum()), 1))
        rows[np.arange(len(rows)), self.genes[touched]] = self.levels[touched]
        admissible[touched] = genes.admissible(rows)
        return admissible


def single_changes(
    space: SearchSpace, genome: Genome, keep: Sequence[int] | Integers, step: int
) -> Changes:
    """All changes of one gene of a genome (U,), but of the genes to keep.

    The level of a matrix changes by `step`, that of another gene to any other.
    """
    genes, levels = space.moves
    free = ~space.encoding.inactive(genome[None])[0]
    free[np.asarray(keep, dtype=np.int64)] = False
    now = genome[genes]
    levels = np.where(levels < 0, now + step, levels)
    chosen = free[genes] & (levels != now) & (levels >= 0) & (levels < space.encoding.sizes[genes])
    genes, levels = genes[chosen], levels[chosen]
    return Changes(space, genome, genes, levels, space.budget_usage_after(genome, genes, levels))
