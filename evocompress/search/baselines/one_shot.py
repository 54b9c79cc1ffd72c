"""Removal in the order of one ranking, made at the model as it is given."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
from numpy.typing import NDArray

from evocompress.core.arrays import Genome
from evocompress.search.baselines.removal import Removal, without
from evocompress.search.generator_searcher import AskTell, first_feasible


class OneShotRemoval(Removal):
    """Removes the units of least importance, as many as the budget asks for."""

    @abstractmethod
    def _importance(self) -> AskTell[NDArray[np.float64] | None]:
        """The importance of each droppable gene, infinite where it must stay.

        ``None`` where it could not be found out.
        """

    def search(self) -> AskTell[None]:
        """The ranking, and as many removals as the budget asks for."""
        importance = yield from self._importance()
        if importance is not None:
            shortest = first_feasible(self.space, self._removals(importance))
            yield from self.conclude(shortest)

    def _removals(self, importance: NDArray[np.float64]) -> Genome:
        """The genomes (N, U) without the least important units: none, one, two and so on.

        Experts of which a mixture needs as many as are left are passed over.
        """
        genes = self.space.encoding
        order = genes.droppable[np.argsort(importance, kind="stable")]
        path = [without(self.space, genes.default, order[:0])]
        gone: list[int] = []
        for gene in order[: int(np.isfinite(importance).sum())].tolist():
            shorter = without(self.space, genes.default, np.array([*gone, gene]))
            if genes.enough_experts(shorter[None])[0]:
                gone.append(gene)
                path.append(shorter)
        return np.stack(path)

    def _estimated(self, kind: str, *, forwards: int = 1) -> AskTell[NDArray[np.float64] | None]:
        """An estimate of one value a unit as importance, with the forward passes it counts as."""
        genes = self.space.encoding
        estimation = yield from self.estimate(
            genes.default, kind, self.micro_batches, forwards=forwards
        )
        if estimation.failed is not None:
            return None
        rows = estimation.by_unit
        return np.array([rows[self.space.units[gene].name][0] for gene in genes.droppable])
