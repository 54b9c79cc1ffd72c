"""Predictions of the values of genomes that a search has not measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from evocompress.core.arrays import Floats, Genome
from evocompress.core.requests import Result
from evocompress.core.types import Candidate
from evocompress.search.allocation.knapsack import padded_tables
from evocompress.search.auto.acquisition import Acquisition, Predict
from evocompress.search.fidelity.racing import Scoreboard
from evocompress.search.fidelity.rungs import Rung
from evocompress.search.surrogates.second_order import Quadratic
from evocompress.search.surrogates.surrogate import Surrogate, SurrogateGate
from evocompress.space.space import SearchSpace

_SMALLEST = 1e-9
"""Floor of values whose logarithm is taken."""

_FEWEST = 12
"""Measured genomes below which no model of them is made."""

_MOST = 400
"""The latest of them that a model is made of: fitting takes the cube of their number."""

_GROWN = 1.5
"""Growth of what was measured after which the kind of model is chosen anew."""


class Predictor:
    """Estimates around the last expansion, and, once it has proved itself, a model of the rest.

    Examples:
        >>> from evocompress.testing.examples import space
        >>> predictor = Predictor(space(), surrogate=True)
        >>> predictor.expect([np.array([0.0, harm]) for harm in (1, 2, 3, 4, 5)])
        >>> name, guide = predictor.guide()
        >>> name, guide.predict(np.eye(3, 5, dtype=np.int64)).tolist()
        ('guided by estimates', [1.0, 2.0, 3.0])
    """

    def __init__(self, space: SearchSpace, *, surrogate: bool) -> None:
        self._space = space
        self._prior: Quadratic | None = None
        self._use_surrogate = surrogate
        self._screen = SurrogateGate()
        self._measured: dict[bytes, tuple[Genome, float]] = {}
        self._level: dict[str, float] = {}
        self._model: Surrogate | None = None
        self._chosen_with = 0
        self._told: tuple[str, Acquisition] | None = None

    def believe(self, name: str, predict: Predict) -> None:
        """Follows another prediction as long as no model of races has proved itself."""
        self._told = (f"guided by {name}", Acquisition(predict))

    def expand(self, prior: Quadratic) -> None:
        """Expects from now on what an expansion around a genome predicts."""
        self._prior, self._chosen_with = prior, 0
        self._model = self._fitted()

    def expect(self, harms: Sequence[Floats]) -> None:
        """Expects from now on that harms of levels add up, on any scale."""
        table = padded_tables(harms, np.inf)
        self.expand(Quadratic(table, np.zeros((*table.shape, 1)), 0.0))

    def learn_effects(self, genomes: Sequence[Genome], results: Sequence[Result]) -> None:
        """Takes the results of the first measured round of single changes.

        The first of the genomes (U,) has none, each other one has one gene changed.
        """
        if self._prior is not None or not np.isfinite(results[0].mean):
            return
        first, now = genomes[0], results[0].mean
        harms = [np.full(size, np.nan) for size in self._space.encoding.sizes.tolist()]
        for harm, level in zip(harms, first.tolist(), strict=True):
            harm[level] = 0.0
        for genome, result in zip(genomes[1:], results[1:], strict=True):
            changed = np.flatnonzero(genome != first)
            if np.isfinite(result.mean) and len(changed) == 1:
                [gene] = changed
                harms[gene][genome[gene]] = max(result.mean - now, 0.0)
        self.expect([_filled(harm) for harm in harms])

    def learn(
        self,
        board: Scoreboard,
        incumbent: Candidate,
        raced: Sequence[Candidate],
        genomes: Mapping[str, Genome],
        rungs: Sequence[Rung],
    ) -> None:
        """Takes the results of a race, as logarithms of multiples of its incumbent's value.

        Incumbents are linked by the race that one lost to the other, so all values are on one
        scale though all races are on tokens of their own. In logarithms the effects of two changes
        add up better, and one text is less unlike another.

        `genomes` (U,) are by the ids of the candidates `raced`. The last of the race's rungs on
        which one was measured counts.
        """
        level = self._level.setdefault(incumbent.id, 0.0)
        found: list[tuple[Genome, float]] = []
        for candidate in raced:
            seen = [r for r in rungs if not board.missing(candidate, r.micro_batches)]
            if seen:
                micro_batches = seen[-1].micro_batches
                means = [board.mean(each, micro_batches) for each in (candidate, incumbent)]
                if np.isfinite(means).all():
                    own, other = np.log(np.maximum(means, _SMALLEST))
                    value = level + float(own - other)
                    self._level.setdefault(candidate.id, value)
                    found.append((genomes[candidate.id], value))
        if not found:
            return
        rows, values = np.stack([genome for genome, _ in found]), np.array([v for _, v in found])
        if self._model is not None:
            predicted = self._model.predict(rows, self._estimates(rows))
            self._screen = self._screen.after(predicted, values)
        for genome, value in found:
            self._measured[genome.tobytes()] = (genome, value)
        self._model = self._fitted()

    def guide(self) -> tuple[str, Acquisition | None]:
        """The present prediction with its name; nothing where nothing is known."""
        model = self._model
        if model is not None and self._screen.trusted:
            return f"guided by a model ({model.name}) of what was measured", Acquisition(
                lambda rows: model.predict(rows, self._estimates(rows)), model.error
            )
        if self._told is not None:
            return self._told
        if self._prior is not None:
            return "guided by estimates", Acquisition(self._estimates)
        return "unguided", None

    def _estimates(self, genomes: Genome) -> Floats:
        """Values (N,) of genomes (N, U) by estimates; 0 where there are none."""
        if self._prior is None:
            return np.zeros(len(genomes))
        settled = self._space.deactivate(genomes)
        return self._prior.values(settled, self._space.encoding.inactive(settled))

    def _fitted(self) -> Surrogate | None:
        """A model of all that was measured, once there is enough of it."""
        if not self._use_surrogate or len(self._measured) < _FEWEST:
            return None
        latest = list(self._measured.values())[-_MOST:]
        rows = np.stack([genome for genome, _ in latest])
        values = np.array([value for _, value in latest])
        estimates = self._estimates(rows)
        if self._model is not None and len(self._measured) < _GROWN * self._chosen_with:
            return self._model.refitted(rows, values, estimates)
        self._chosen_with = len(self._measured)
        return Surrogate.fit(rows, values, estimates)


def _filled(harm: Floats) -> Floats:
    """Harms (levels,) with those that are missing between two known ones interpolated."""
    known = np.flatnonzero(~np.isnan(harm))
    return np.interp(np.arange(len(harm)), known, harm[known])
