"""LaCo (Yang et al. 2024, 2402.11187): blocks merged into one before them, from the top down."""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from evocompress.core.arrays import Genome
from evocompress.core.errors import ConfigError
from evocompress.core.fields import Number, Size, Whole
from evocompress.core.types import Result, UnitKind
from evocompress.search.base import Problem, SearcherSettings
from evocompress.search.baselines.removal import Removal, RemovalSettings, without
from evocompress.search.generator_searcher import AskTell, GeneratorSearcher, ranked


class LaCoSettings(RemovalSettings):
    """Settings of `LaCo`. Published for Llama-2-13B's 40 blocks: 7, 1 and 0.45.

    Attributes:
        blocks: How many neighbouring blocks become one (C).
        interval: How many blocks further down the next merge begins (I).
        threshold: Cosine to the dense model's hidden states above which a merge is accepted
            (T): its proxy value must be below 1 - threshold, so `proxy.kind` should be cosine.
    """

    blocks: Annotated[Whole, Field(ge=2, le=10_000)] = 4
    interval: Size = 1
    threshold: Annotated[Number, Field(ge=-1, le=1)] = 0.45


class LaCo(Removal):
    """Walks down the blocks that are left and accepts every merge that changes little.

    It ends as soon as the budget is met. The published threshold is tuned by hand until it
    meets the target; here a walk that has not met it is followed by another one, and where a
    walk accepts nothing, the merge that changed least is taken.
    """

    Settings: ClassVar[type[SearcherSettings]] = LaCoSettings
    name: ClassVar[str] = "laco"
    kinds: ClassVar[tuple[UnitKind, ...]] = ("block",)

    def __init__(self, problem: Problem, settings: LaCoSettings, rng: np.random.Generator) -> None:
        self._blocks = settings.blocks
        self._interval = settings.interval
        self._farthest = 1 - settings.threshold
        super().__init__(problem, settings, rng)
        if not problem.space.encoding.merges:
            raise ConfigError(
                "search.name: laco merges blocks: set space.drop.merge: true, with units: [block]"
            )

    def _search(self) -> GeneratorSearcher:
        genome = self._space.encoding.default
        while not self._space.feasible(genome[None])[0]:
            shorter = yield from self._walk(genome)
            if shorter is None:
                break
            genome = shorter
        yield from self._conclude(genome, self._micro_batches)

    def _walk(self, genome: Genome) -> AskTell[Genome | None]:
        """The genome (U,) after one walk from the top; ``None`` if nothing could be merged."""
        walked, place = genome, len(self._alive(genome)) - self._blocks
        refused: list[Genome] = []
        results: list[Result] = []
        while place >= 0 and not self._space.feasible(walked[None])[0]:
            tried = self._merged(walked, place)
            found = yield from self._evaluate(tried, self._micro_batches, probe=True)
            if any(result.mean < self._farthest for result in found):
                [walked] = tried
                place = min(place - self._interval, len(self._alive(walked)) - self._blocks)
            else:
                refused += tried
                results += found
                place -= 1
        if walked is not genome:
            return walked
        return next((nearest for nearest, _ in ranked(refused, results)), None)

    def _merged(self, genome: Genome, place: int) -> list[Genome]:
        """The genome (U,) with the blocks behind a place merged into it.

        Nothing where one of them is protected.
        """
        homes = {self._space.units[gene].block: gene for gene in self._space.encoding.droppable}
        followers = self._alive(genome)[place + 1 : place + self._blocks]
        if not homes.keys() >= set(followers):
            return []
        return [without(self._space, genome, np.array([homes[block] for block in followers]))]

    def _alive(self, genome: Genome) -> list[int]:
        """The blocks that are left."""
        genes = self._space.encoding
        dropped = {self._space.units[gene].block for gene in np.flatnonzero(genes.dropped(genome))}
        blocks = [unit.block for unit in genes.tree if unit.kind == "block"]
        return [block for block in blocks if block not in dropped]
