"""Which genes are about which parts of a model: its sub-layers and the experts in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evocompress.core.arrays import Booleans, Floats, Genome, Integers
from evocompress.core.types import DROP, Level, Unit
from evocompress.core.units import UnitTree


@dataclass(frozen=True, eq=False)
class ExpertGenes:
    """Experts of an MLP, all or a group, that can be dropped, but for as many as are needed.

    Attributes:
        part: The index of the MLP among the parts.
        genes: Those of the experts (E,).
        drops: For each the index of the level that drops it (E,).
        least: How many of these must be kept.
    """

    part: int
    genes: Genome
    drops: Genome
    least: int

    def short(self, genomes: Genome, lost: Booleans) -> Genome:
        """How many experts are missing (N,) in genomes (N, U); none where the MLP is `lost`."""
        kept = (genomes[:, self.genes] != self.drops).sum(axis=1)
        return np.where(lost, 0, self.least - kept)

    def restore(self, genomes: Genome, short: Genome, worth: Floats | None) -> None:
        """Restore, in place, as many dropped experts as are `short` (N,) in genomes (N, U).

        Those of the highest `worth` (U,) are first, without worths those of the first genes.
        """
        order = self.genes
        if worth is not None:
            order = self.genes[np.argsort(-worth[self.genes], kind="stable")]
        drop = dict(zip(self.genes.tolist(), self.drops.tolist(), strict=True))
        for row in np.flatnonzero(short > 0):
            gone = [gene for gene in order.tolist() if genomes[row, gene] == drop[gene]]
            genomes[row, gone[: short[row]]] = 0


def expert_genes(
    parts: Sequence[Unit], tree: UnitTree, indices: Mapping[str, int], drop_index: Genome
) -> tuple[ExpertGenes, ...]:
    """The MLPs whose experts can be dropped.

    Args:
        parts: The P sub-layers and experts.
        tree: All units.
        indices: The gene of each unit, by its name.
        drop_index: For each gene the index of the level that drops it (U,).
    """
    found = []
    for part, unit in enumerate(parts):
        for own in tree.groups(unit.name) if unit.active else ():
            free = [indices[expert.name] for expert in own if expert.name in indices]
            genes = np.array(free, dtype=np.int64)
            if genes.size:
                least = max(unit.least - (len(own) - len(genes)), 0)
                found.append(ExpertGenes(part, genes, drop_index[genes], least))
    return tuple(found)


def drop_indices(levels: Sequence[Sequence[Level]]) -> Integers:
    """For each list of levels the index of the drop, -1 where there is none."""
    return np.array([each.index(DROP) if DROP in each else -1 for each in levels], dtype=np.int64)


def parts_of_genes(owners: Sequence[Integers], count: int) -> tuple[Integers, Integers]:
    """The parts that each gene is about, one gene's after the other, and where each begins.

    Each of `owners` (P,) has a gene that each part depends on, -1 for none; `count` is U. The
    places are (U + 1,).
    """
    genes = np.stack(owners)
    kind, part = np.nonzero(genes >= 0)
    pairs = np.unique(np.stack([genes[kind, part], part], axis=1), axis=0)
    begins = np.searchsorted(pairs[:, 0], np.arange(count + 1))
    return pairs[:, 1], begins.astype(np.int64)


def members_of(genes: Integers, begins: Integers) -> tuple[Integers, Integers]:
    """What each of K changes of a gene is about: the change, and the place of a member (J,) both.

    Members lie one gene's after the other; each gene's begin at `begins` (U + 1,).
    """
    counts = np.diff(begins)[genes]
    change = np.repeat(np.arange(len(genes)), counts)
    within = np.arange(len(change)) - np.repeat(counts.cumsum() - counts, counts)
    return change, begins[genes][change] + within


def inactive_columns(
    parts: Sequence[Unit], members: Sequence[Sequence[Unit]]
) -> tuple[Integers, Integers]:
    """The columns that make genes inactive, one gene's after the other, and where each begins (U,).

    There are 2·P + 1 columns: a part is dropped, a part is in a dropped block, never. A matrix is
    inactive with its sub-layer or expert, a cache and an expert with their sub-layer, that with its
    block, a block never, nor what is outside of the blocks. `members` has the units of each gene
    (U,).
    """
    places = {part.name: index for index, part in enumerate(parts)}
    count = len(places)
    runs = [
        [
            places[member.owner]
            if member.kind in ("matrix", "cache", "expert")
            else count + places.get(member.name, count)
            for member in units
        ]
        for units in members
    ]
    begins = np.cumsum([0, *(len(run) for run in runs[:-1])])
    return np.concatenate(runs).astype(np.int64), begins
