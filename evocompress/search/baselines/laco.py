"""LaCo (Yang et al. 2024, 2402.11187): blocks merged into one before them, from the top down."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from evocompress.core.arrays import Genome
from evocompress.core.errors import ConfigError
from evocompress.core.fields import Number, Size, Whole
from evocompress.core.requests import Result
from evocompress.search.base import CandidateSettings
from evocompress.search.baselines.removal import Removal, without
from evocompress.search.generator_searcher import AskTell, ranked


class LaCo(Removal):
    """Walks down the blocks that are left and accepts every merge that changes little.

    It ends as soon as the budget is met. The published threshold is tuned by hand until it
    meets the target; here a walk that has not met it is followed by another one, and where a
    walk accepts nothing, the merge that changed least is taken.

    ```yaml
    space: {drop: {units: [block], merge: true}, budget: {params: 0.8}}
    search: {name: laco, blocks: 2, threshold: 0.3}
    ```

    Examples:
        >>> from evocompress.testing.examples import winner
        >>> winner(LaCo)
        {'0': 'merge=1', '1.attention': 'drop', '1.mlp': 'drop'}
    """

    class Settings(CandidateSettings):
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

    settings: Settings

    name = "laco"
    kinds = ("block",)

    def check(self) -> None:
        """Refuses a space without merges."""
        super().check()
        if not self.space.encoding.merges:
            raise ConfigError(
                "search.name: laco merges blocks: set space.drop.merge: true, with units: [block]"
            )

    def search(self) -> AskTell[None]:
        """Walks down the blocks, until the budget is met."""
        genome = self.space.encoding.default
        while not self.space.feasible(genome[None])[0]:
            shorter = yield from self._walk(genome)
            if shorter is None:
                break
            genome = shorter
        yield from self.conclude(genome)

    def _walk(self, genome: Genome) -> AskTell[Genome | None]:
        """The genome (U,) after one walk from the top; ``None`` if nothing could be merged."""
        walked, place = genome, len(self._alive(genome)) - self.settings.blocks
        refused: list[Genome] = []
        results: list[Result] = []
        while place >= 0 and not self.space.feasible(walked[None])[0]:
            tried = self._merged(walked, place)
            found = yield from self.evaluate(tried, self.micro_batches, probe=True)
            if any(result.mean < 1 - self.settings.threshold for result in found):
                [walked] = tried
                place = min(
                    place - self.settings.interval, len(self._alive(walked)) - self.settings.blocks
                )
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
        homes = {self.space.units[gene].block: gene for gene in self.space.encoding.droppable}
        followers = self._alive(genome)[place + 1 : place + self.settings.blocks]
        if not homes.keys() >= set(followers):
            return []
        return [without(self.space, genome, np.array([homes[block] for block in followers]))]

    def _alive(self, genome: Genome) -> list[int]:
        """The blocks that are left."""
        genes = self.space.encoding
        dropped = {self.space.units[gene].block for gene in np.flatnonzero(genes.dropped(genome))}
        blocks = [unit.block for unit in genes.tree if unit.kind == "block"]
        return [block for block in blocks if block not in dropped]
