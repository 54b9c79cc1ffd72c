"""Genes of the experts of a mixture; as many experts must stay as a token uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evocompress.core.arrays import Booleans, Floats, Genome
from evocompress.core.types import Unit
from evocompress.core.units import UnitTree


@dataclass(frozen=True, eq=False)
class ExpertGenes:
    """An MLP of experts of which some can be dropped.

    Attributes:
        part: Its index among the parts.
        genes: Those of its experts (E,).
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

    def restore(
        self,
        genomes: Genome,
        short: Genome,
        worth: Floats | None,
    ) -> None:
        """Restore, in place, a number (N,) of dropped experts of each of the genomes (N, U)."""
        order = self.genes
        if worth is not None:
            order = self.genes[np.argsort(-worth[self.genes], kind="stable")]
        drop = dict(zip(self.genes.tolist(), self.drops.tolist(), strict=True))
        for row in np.flatnonzero(short > 0):
            gone = [gene for gene in order.tolist() if genomes[row, gene] == drop[gene]]
            genomes[row, gone[: short[row]]] = 0


def mixtures(
    parts: Sequence[Unit], tree: UnitTree, indices: Mapping[str, int], drop_index: Genome
) -> tuple[ExpertGenes, ...]:
    """The MLPs of experts of which any can be dropped."""
    found = []
    for part, unit in enumerate(parts):
        own = [expert.name for expert in tree.experts.get(unit.name, ())]
        genes = np.array([indices[name] for name in own if name in indices], dtype=np.int64)
        if genes.size:
            least = max(unit.active - (len(own) - len(genes)), 0)
            found.append(ExpertGenes(part, genes, drop_index[genes], least))
    return tuple(found)
