"""Stratified random search: as many random candidates of every size.

Random search is the baseline that others must beat (Li & Talwalkar 2019, 1902.07638). For a
front it needs candidates along the whole of it: whittle (Klein et al. 2024, 2405.02267) sorts
them into bins by their parameters and takes one only where its bin has room.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from evocompress.core.arrays import Genome
from evocompress.core.fields import Many, Size, Whole
from evocompress.search.fidelity.front_search import FrontSearcher, FrontSettings
from evocompress.search.generator_searcher import AskTell
from evocompress.search.operators.cost_sampling import at_any_cost, span

_PATIENCE = 100


class StratifiedRandom(FrontSearcher):
    """Random candidates, spread evenly over the first objective.

    All are compared on the same tokens, and the front is measured again at the end, as the
    evolutions' is.

    ```yaml
    space: {drop: {units: [mlp]}}
    search: {name: stratified_random, objectives: [params], candidates: 30}
    ```

    Examples:
        >>> from evocompress.testing.examples import winner
        >>> winner(StratifiedRandom)
        {'0.mlp': 'drop', '3.mlp': 'drop'}
    """

    class Settings(FrontSettings):
        """Settings of `StratifiedRandom`; where objectives and budget are left out, it is params.

        Attributes:
            candidates: How many are compared at most; without it the tokens set the end.
            bins: Into how many bins of equal width the first objective is divided.
            open_bins: Every bin gets room for another one as soon as at most this number have room.
            batch: How many candidates are asked for at once.
        """

        candidates: Many | None = None
        bins: Size = 20
        open_bins: Annotated[Whole, Field(ge=0, le=10_000)] = 4
        batch: Size = 40

    settings: Settings

    def check(self) -> None:
        """Refuses a search that nothing ends."""
        self.ledger.check_ends("stratified_random", "candidates", self.settings.candidates)

    def prepare(self) -> None:
        """Divides the first objective into empty bins."""
        settings = self.settings
        if not (settings.objectives or settings.range or self.space.budget):
            self.settings = settings.model_copy(update={"objectives": ("params",)})
        super().prepare()
        self._seen: set[bytes] = set()
        self._cost = self._objectives.costs[0]
        self._ends = span(self.space, self._cost, self._objectives.floors[0])
        self._bins = Bins(*self._ends, settings.bins, settings.open_bins)

    def search(self) -> AskTell[None]:
        """Random candidates of every size, then their front."""
        while genomes := self._draw(self._count()):
            yield from self._compare(genomes)
        yield from self._measure_front()

    def _count(self) -> int:
        """How many candidates the next ask may have."""
        limits = [self.settings.batch, self._affordable()]
        if self.settings.candidates is not None:
            limits.append(self.settings.candidates - len(self._archive))
        return min(limits)

    def _draw(self, count: int) -> list[Genome]:
        """New random genomes (U,) whose bins had room; fewer where the space has no more."""
        found: list[Genome] = []
        while len(found) < count and (genome := self._next()) is not None:
            found.append(genome)
        return found

    def _next(self) -> Genome | None:
        """One of these, ``None`` where a hundred draws in a row bring nothing new.

        Where they bring only what has no room, all bins get more: some may never be met.
        """
        while True:
            refused = False
            for _ in range(_PATIENCE):
                genome = at_any_cost(self.space, self._cost, self._ends, self.rng)
                if genome.tobytes() in self._seen:
                    continue
                if self._bins.take(self.space.costs(genome[None])[self._cost].item()):
                    self._seen.add(genome.tobytes())
                    return genome
                refused = True
            if not refused:
                return None
            self._bins.enlarge()


class Bins:
    """Counts the candidates that were taken in every part of a range."""

    def __init__(self, low: float, high: float, count: int, spare: int) -> None:
        """Empty bins of one width from `low` to `high`; all get more room when `spare` have any."""
        self._edges = np.linspace(low, high, count + 1)[1:-1]
        self._taken = np.zeros(count, dtype=np.int64)
        self._room = 1
        self._spare = spare

    def take(self, amount: float) -> bool:
        """Whether the bin of an amount has room, which is then used.

        Once few bins have any room left, every one gets more.
        """
        own = int(np.searchsorted(self._edges, amount, side="right"))
        fits = bool(self._taken[own] < self._room)
        self._taken[own] += fits
        if (self._taken < self._room).sum() <= self._spare:
            self.enlarge()
        return fits

    def enlarge(self) -> None:
        """Makes room for one more in every bin."""
        self._room += 1
