"""Everything that differs from a genome in one gene, several of them in a row.

Unless genes are tied or blocks merged, what a gene costs and does depends on other genes of its
block at most. So one row can have another gene changed in each of the blocks: of 6,144 experts in
48 blocks, 256 rows tell as much as 12,288.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evocompress.core.arrays import Floats, Genome
from evocompress.core.types import Unit
from evocompress.space.costs.savings import Groups
from evocompress.space.space import SearchSpace

_HARM, _ATTENTIONS, _SHORT, _COSTS = range(4)
"""Columns of what is summed by group; from the last on the costs."""


@dataclass(frozen=True, eq=False)
class Neighbours:
    """K genomes, each with one gene at another level, or the same.

    Attributes:
        harms: The sums of harms (K,); inactive genes have none.
        used: The budget's costs as multiples of their bounds (K, bounds), as
            `SearchSpace.budget_usage`.
        admissible: As `evocompress.space.encoding.Encoding.admissible` (K,).
    """

    harms: Floats
    used: Floats
    admissible: NDArray[np.bool_]

    @property
    def feasible(self) -> NDArray[np.bool_]:
        """Which are admissible and meet every bound (K,)."""
        return np.asarray(self.admissible & (self.used <= 1).all(axis=1))


class Neighbourhood:
    """What single changes do, in a space with a budget.

    `harms` are those of every level of every gene (U, L), infinite where there is no such level.
    """

    def __init__(self, space: SearchSpace, harms: Floats) -> None:
        self._space = space
        self._harms = harms
        apart = not space.encoding.merges and all(map(_in_one_block, space.encoding.members))
        # Where genes reach into other blocks, all of them are one group.
        self._genes = np.array([unit.block if apart else 0 for unit in space.units])
        self._parts = np.array([unit.block if apart else 0 for unit in space.encoding.parts])
        count = 1 + max(self._genes.max(), self._parts.max(initial=0))
        self._sums_by = Groups(self._genes, count), Groups(self._parts, count)

    def around(
        self, genome: Genome, genes: NDArray[np.int64], levels: NDArray[np.int64]
    ) -> Neighbours:
        """What the changes of a genome (U,) to some levels (K,) of some genes (K,) come to."""
        groups = self._genes[genes]
        places = _places(groups)
        rows = np.tile(genome, (int(places.max()) + 1, 1))
        rows[places, genes] = levels
        rows = self._space.deactivate(rows)
        base, changed = self._sums(genome[None]), self._sums(rows)
        own = changed[places, groups]
        after = _of_others(base[0])[groups] + own
        before = base[0, :, _COSTS:].sum(axis=0)
        used = self._space.budget_usage(genome[None])[0] + after[:, _COSTS:] - before
        admissible = (after[:, _ATTENTIONS] > 0) & (after[:, _SHORT] == 0)
        return Neighbours(after[:, _HARM], used, admissible)

    def _sums(self, genomes: Genome) -> Floats:
        """By group harms, attentions, mixtures that are short, and costs (N, G, columns)."""
        space = self._space
        by_gene, by_part = self._sums_by
        each = self._harms[np.arange(genomes.shape[1]), genomes]
        each = np.where(space.encoding.inactive(genomes), 0.0, each)
        costs = np.moveaxis(space.budget_usage_by_part(genomes), 2, 0)
        found = [
            by_gene.sums(each),
            by_part.sums(space.encoding.attention_left(genomes).astype(np.int64)),
            by_part.sums(space.encoding.short_mixtures(genomes).astype(np.int64)),
            *map(by_part.sums, costs),
        ]
        return np.stack(found, axis=2)


def _of_others(sums: Floats) -> Floats:
    """For each group the sums of all others (G, columns), in which an infinite one stays so."""
    nothing = np.zeros((1, sums.shape[1]))
    earlier = np.concatenate([nothing, sums[:-1].cumsum(axis=0)])
    later = np.concatenate([sums[:0:-1].cumsum(axis=0)[::-1], nothing])
    return np.asarray(earlier + later)


def _in_one_block(members: Sequence[Unit]) -> bool:
    return len({member.block for member in members}) == 1


def _places(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each member (K,) how many of its group (K,) come before it."""
    order = np.argsort(groups, kind="stable")
    _, begins, counts = np.unique(groups[order], return_index=True, return_counts=True)
    places = np.empty_like(groups)
    places[order] = np.arange(len(groups)) - np.repeat(begins, counts)
    return places
