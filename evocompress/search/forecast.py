"""What a search expects of genomes that it has not measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from evocompress.search.knapsack import sum_of
from evocompress.search.linear import Expansion
from evocompress.search.proposals import Predict
from evocompress.search.racing import Rung
from evocompress.search.scoreboard import Scoreboard
from evocompress.search.surrogate import Screen, Surrogate
from evocompress.space import Genome, SearchSpace
from evocompress.types import Candidate, Result

_FEWEST = 24
"""Measured genomes below which no model of them is made."""


class Forecast:
    """Estimates around the last expansion, and, once it has proved itself, a model of the rest.

    Args:
        space: The space.
        surrogate: Whether to model what was measured at all.
    """

    def __init__(self, space: SearchSpace, *, surrogate: bool) -> None:
        self._space = space
        self._harms: list[NDArray[np.float64]] | None = None
        self._use_surrogate = surrogate
        self._screen = Screen()
        self._measured: dict[bytes, tuple[Genome, float]] = {}
        self._level: dict[str, float] = {}
        self._model: Surrogate | None = None

    def expand(self, genome: Genome, found: Expansion) -> None:
        """Expects from now on what an expansion around a genome (U,) predicts."""
        self._harms = found.harms()
        self._model = self._fitted()

    def learn_effects(self, genomes: Sequence[Genome], results: Sequence[Result]) -> None:
        """Takes the first round of measured single changes, the first of which is none."""
        if self._harms is not None or not np.isfinite(results[0].mean):
            return
        first, now = genomes[0], results[0].mean
        harms = [np.full(size, np.nan) for size in self._space.genes.sizes.tolist()]
        for harm, level in zip(harms, first.tolist(), strict=True):
            harm[level] = 0.0
        for genome, result in zip(genomes[1:], results[1:], strict=True):
            [gene] = np.flatnonzero(genome != first)
            if np.isfinite(result.mean):
                harms[gene][genome[gene]] = max(result.mean - now, 0.0)
        self._harms = [_filled(harm) for harm in harms]

    def learn(
        self,
        board: Scoreboard,
        incumbent: Candidate,
        raced: Sequence[Candidate],
        genomes: Mapping[str, Genome],
        rungs: Sequence[Rung],
    ) -> None:
        """Takes the results of a race, as differences from its incumbent.

        Incumbents are linked by the race that one lost to the other, so all values are on one
        scale though all races are on tokens of their own.
        """
        level = self._level.setdefault(incumbent.id, 0.0)
        found: list[tuple[Genome, float]] = []
        for candidate in raced:
            seen = [r for r in rungs if not board.missing(candidate, r.micro_batches)]
            if seen:
                gap = board.gap(candidate, incumbent, seen[-1].micro_batches)
                if np.isfinite(gap.mean):
                    self._level.setdefault(candidate.id, level + gap.mean)
                    found.append((genomes[candidate.id], level + gap.mean))
        if not found:
            return
        rows, values = np.stack([genome for genome, _ in found]), np.array([v for _, v in found])
        if self._model is not None:
            predicted = self._model.predict(rows, self._estimates(rows))
            self._screen = self._screen.after(predicted, values)
        for genome, value in found:
            self._measured[genome.tobytes()] = (genome, value)
        self._model = self._fitted()

    def predictor(self) -> Predict | None:
        """What predicts now; ``None`` where nothing is known."""
        model = self._model
        if model is not None and self._screen.trusted:
            return lambda genomes: model.predict(genomes, self._estimates(genomes))
        return self._estimates if self._harms is not None else None

    def _estimates(self, genomes: Genome) -> NDArray[np.float64]:
        """The sums of harms (N,) of genomes (N, U); 0 where there are no estimates."""
        if self._harms is None:
            return np.zeros(len(genomes))
        return sum_of(self._space, self._harms, genomes)

    def _fitted(self) -> Surrogate | None:
        """A model of all that was measured, once there is enough of it."""
        if not self._use_surrogate or len(self._measured) < _FEWEST:
            return None
        rows = np.stack([genome for genome, _ in self._measured.values()])
        values = np.array([value for _, value in self._measured.values()])
        return Surrogate.fit(rows, values, self._estimates(rows))


def _filled(harm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Harms (levels,) with those that are missing between two known ones interpolated."""
    known = np.flatnonzero(~np.isnan(harm))
    return np.interp(np.arange(len(harm)), known, harm[known])
