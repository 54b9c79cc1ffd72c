"""What the searchers share that remove units: which there are, and what is left without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from evocompress.core.arrays import Genome, Integers
from evocompress.core.errors import ConfigError
from evocompress.core.types import UnitKind
from evocompress.search.base import CandidateSettings
from evocompress.search.baselines.steps import moved
from evocompress.search.generator_searcher import AskTell, GeneratorSearcher
from evocompress.space.space import SearchSpace


class Removal(GeneratorSearcher):
    """Removes units; widths stay dense, and matrices at their target.

    Attributes:
        name: What messages call the searcher.
        kinds: The kinds of units that it can remove.
    """

    Settings = CandidateSettings
    name: ClassVar[str]
    kinds: ClassVar[tuple[UnitKind, ...]] = ("attention", "mlp", "block")

    def check(self) -> None:
        """Refuses a space with units that cannot be removed so."""
        there = {self.space.units[gene].kind for gene in self.space.encoding.droppable}
        if not there:
            raise ConfigError(f"search.name: {self.name} removes units, so it needs space.drop")
        if not there <= set(self.kinds):
            raise ConfigError(
                f"search.name: {self.name} cannot remove every {' and '.join(sorted(there))}: "
                f"set space.drop.units to [{', '.join(self.kinds)}]"
            )


class GreedyRemoval(Removal):
    """Removes, round by round, what the model misses least, until the budget is met.

    Each round tries the units that are left as probes, all on the same tokens. Which unit goes
    does not depend on the budget: it only says when to stop. So a search with a tight budget
    passes through the results of those with looser ones; `evocompress.pipeline.loop.replay` reads
    them from its journal.
    """

    def search(self) -> AskTell[None]:
        """Removals until the budget is met."""
        start = self.space.encoding.default
        shortest = yield from self.descend(start, self._choices, self.space, self.micro_batches)
        yield from self.conclude(shortest)

    def _choices(self, genome: Genome) -> list[Genome]:
        """What a round tries from a genome (U,)."""
        return without_each(self.space, genome, present(self.space, genome))


def present(space: SearchSpace, genome: Genome) -> Integers:
    """The genes that can be dropped and, in a genome (U,), are not."""
    droppable = space.encoding.droppable
    return np.asarray(droppable[genome[droppable] != space.encoding.drop_index[droppable]])


def without(space: SearchSpace, genome: Genome, genes: Integers) -> Genome:
    """The genome (U,) with genes dropped."""
    return moved(space, genome, genes, space.encoding.drop_index[genes])


def without_each(space: SearchSpace, genome: Genome, genes: Integers) -> list[Genome]:
    """For each of the genes the genome (U,) with it alone dropped."""
    return [without(space, genome, genes[[place]]) for place in range(len(genes))]


def without_least_blocks(space: SearchSpace, influence: Mapping[str, Sequence[float]]) -> Genome:
    """The genome (U,) without the blocks of least influence that are enough for the budget.

    Whole blocks go as far as their parts can be dropped.
    """
    genes, dropped = present(space, space.encoding.default), list[int]()
    blocks = {
        unit.block: influence[unit.name][0] for unit in space.encoding.tree if unit.kind == "block"
    }
    for block in sorted(blocks, key=lambda block: blocks[block]):
        genome = without(space, space.encoding.default, np.array(dropped, dtype=np.int64))
        if space.feasible(genome[None])[0]:
            return genome
        more = [gene for gene in genes.tolist() if space.units[gene].block == block]
        longer = without(space, space.encoding.default, np.array([*dropped, *more], dtype=np.int64))
        if space.encoding.admissible(longer[None])[0]:
            dropped += more
    return without(space, space.encoding.default, np.array(dropped, dtype=np.int64))


def drop_harms(
    space: SearchSpace, influence: Mapping[str, Sequence[float]]
) -> list[NDArray[np.float64]]:
    """For each gene the harm of its levels (levels,): the influence of its units where dropped.

    Levels that drop nothing have no harm, but widths and sparsities other than the least compressed
    are forbidden, as influence says nothing of them.
    """
    harms = [np.zeros(size) for size in space.encoding.sizes.tolist()]
    for gene in np.union1d(space.encoding.widths, space.encoding.matrices).tolist():
        harms[gene][:] = np.inf
        harms[gene][space.encoding.default[gene]] = 0.0
    for gene in space.encoding.droppable.tolist():
        members = space.encoding.members[gene]
        drop = int(space.encoding.drop_index[gene])
        harms[gene][drop] = sum(influence[unit.name][0] for unit in members)
    return harms
