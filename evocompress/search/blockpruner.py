"""BlockPruner (Zhong et al. 2024, 2406.10594): greedy removal of sub-layers or blocks."""

from __future__ import annotations

from collections.abc import Generator
from typing import ClassVar

import numpy as np

from evocompress.config import Positive
from evocompress.errors import ConfigError
from evocompress.search import batches
from evocompress.search.base import Incumbent, Problem, SearcherSettings
from evocompress.search.procedure import ProceduralSearcher, Procedure, ranked
from evocompress.space import Genome
from evocompress.types import Evaluate, Result


class BlockPrunerSettings(SearcherSettings):
    """Settings of `BlockPruner`.

    Attributes:
        candidate_tokens: Tokens on which every removal is tried, the same ones throughout;
            the whole pool if left out.
    """

    candidate_tokens: Positive | None = None


class BlockPruner(ProceduralSearcher):
    """Removes, round by round, what the model misses least, until the budget is met.

    Each round tries every remaining unit as a probe. Attention and MLP have unequal
    parameters, so the end is set by the budget, not by a count. Matrices, where the space has
    them too, stay at their target. Only the final candidate can become the incumbent.
    """

    Settings: ClassVar[type[SearcherSettings]] = BlockPrunerSettings

    def __init__(
        self, problem: Problem, settings: BlockPrunerSettings, rng: np.random.Generator
    ) -> None:
        if not problem.space.genes.droppable.size:
            raise ConfigError("search.name: blockpruner removes units, so it needs space.drop")
        self._micro_batches = batches.chosen(
            problem.pool, settings.candidate_tokens, "search.candidate_tokens", rng
        )
        super().__init__(problem, rng)

    def _search(self) -> Procedure:
        genome = self._space.genes.start
        while not self._space.feasible(genome[None])[0]:
            shorter = yield from self._round(genome)
            if shorter is None:
                break
            genome = shorter
        final = [self._space.repair(genome, self._rng)]
        results = yield self._requests(final, self._micro_batches)
        for _, result in ranked(final, results):
            self._best = Incumbent(result.request.candidate, result.mean)

    def _round(self, genome: Genome) -> Generator[list[Evaluate], list[Result], Genome | None]:
        """The genome with the least missed unit removed; ``None`` if none could be tried."""
        units = self._space.genes.droppable
        present = units[genome[units] == 0]
        if not present.size:
            return None
        tries = list(self._space.settle(genome + np.eye(len(genome), dtype=np.int64)[present]))
        results = yield self._requests(tries, self._micro_batches, probe=True)
        return next((best for best, _ in ranked(tries, results)), None)
