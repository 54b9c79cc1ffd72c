"""Which units to drop, by a model of their effects that every measurement makes better.

Round after round a batch of genomes is measured on one micro-batch, another one each time: each is
the optimum of effects as they might be, drawn from what is known (Thompson sampling, as in BOCS,
1806.08838; see `evocompress.search.surrogates.pairwise_model`). So genomes are tried where the
model expects much or knows little, and no tokens are spent on telling two apart that are both not
the best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from evocompress.core.arrays import Floats, Genome, Integers
from evocompress.search.auto.evaluation_client import EvaluationClient
from evocompress.search.fidelity.token_budget import TokenBudget
from evocompress.search.generator_searcher import AskTell
from evocompress.search.operators.mutation import different, distinct
from evocompress.search.surrogates.pairwise_model import (
    Effects,
    Observations,
    Posterior,
    improving_exchanges,
)
from evocompress.search.surrogates.surrogate import nonnegative_slope
from evocompress.space.space import SearchSpace

BATCH = 16
"""Genomes of a round."""

SPARE = 0.15
"""Share of the tokens that is left for comparisons on more text."""

_FEWEST = 8
"""Rounds that must be affordable."""

_OPENING = (100, 6, 6)
"""The most exchanges between the best start and the genomes of each first round, backwards."""

_SMALLEST = 1e-9
"""Floor of an influence, whose logarithm is taken."""

_BOLDNESS = 0.4
"""How far drawn effects are from the likeliest ones, as a share of what is not known."""

_BOLDER = 1.25
"""Growth of the boldness with every draw whose optimum is in the batch already: few measurements
make the model too sure of itself."""

_PARENTS = 8
"""The best genomes so far, from one of which each optimum is looked for."""

_DRAWS = 3
"""Draws for each genome that is wanted, as several draws may have one optimum."""

_GROWN = 1.5
"""Growth of what was measured after which the variances are chosen anew."""

_ENDLESS = 10**6
"""Exchanges, of which each makes a genome better: they end by themselves."""

_CHECKED = 32
"""Exchanges whose costs are looked up at once."""


def modelled(space: SearchSpace, budget: TokenBudget) -> bool:
    """Whether drops should be chosen so.

    The space must be one of drops alone, none of them experts, and the tokens suffice for more
    than the opening.
    """
    genes = space.encoding
    drops = len(genes.droppable) == len(genes.units) and bool((genes.sizes == 2).all())
    return drops and not genes.mixtures and budget.leaves(_FEWEST * BATCH, budget.shortest, SPARE)


class ModelledDrops:
    """Looks for the best units to drop.

    Influence is what each unit does to the hidden states (U,), on any scale; zeros: not known.

    Examples:
        >>> from evocompress.search.auto.auto import Auto
        >>> from evocompress.space.sampling import uniform
        >>> from evocompress.testing.examples import searcher
        >>> client = EvaluationClient(searcher(Auto))
        >>> drops = ModelledDrops(client, np.ones(7))
        >>> len(next(drops.search([uniform(client.space)])))
        16
    """

    def __init__(self, client: EvaluationClient, influence: Floats) -> None:
        self._space, self._client, self._rng = client.space, client, client.rng
        self._influence = influence
        self._measured: list[tuple[Genome, int, float]] = []
        self._seen: set[tuple[bytes, int]] = set()
        self._model: Posterior | None = None

    def search(self, starts: Sequence[Genome]) -> AskTell[None]:
        """Measures from the genomes `starts` (U,) on, the best one first.

        It ends where no more than `SPARE` of all tokens is left, or nothing new is proposed.
        """
        order: list[int] = []
        opening = [self._drawn(starts[0], reach) for reach in _OPENING]
        opening[-1] = different([*starts, *opening[-1]])[:BATCH]
        while True:
            order = order or self._client.shuffled()
            text = order.pop()
            proposed = opening.pop() if opening else self._optima()
            genomes = [each for each in proposed if (each.tobytes(), text) not in self._seen]
            if not genomes or not self._client.budget.leaves(len(genomes), (text,), SPARE):
                break
            yield from self._measure(genomes, text)

    def best(self, count: int) -> list[Genome]:
        """Up to `count`: the optimum of the likeliest effects, then the best that were measured."""
        if self._model is None:
            return []
        known = self._ranked()
        return different([self._optimum(known[0], self._model.mean), *known])[:count]

    def predict(self, genomes: Genome) -> Floats:
        """The likeliest logarithms of the values of genomes (N, U), up to a constant."""
        assert self._model is not None
        return self._model.mean.values(self._gone(genomes))

    def _drawn(self, start: Genome, reach: int) -> list[Genome]:
        """A batch of genomes on the way from a start (U,) to ones without units that are drawn.

        Drawn one after the other, in proportion to the inverse of their influence (Gumbel's trick).
        """
        known = np.log(np.maximum(self._influence, _SMALLEST))

        def drawn() -> Genome:
            harms = known - self._rng.gumbel(size=len(known))
            effects = Effects(harms - harms.min(), np.zeros((len(known), len(known))))
            return self._optimum(start, effects, int(self._rng.integers(1, reach + 1)))

        return distinct(drawn, BATCH)

    def _measure(self, genomes: Sequence[Genome], text: int) -> AskTell[None]:
        tokens = self._client.tokens((text,))
        self._client.doing = f"drops by a model of their interactions, on {tokens}"
        results = yield from self._client.probe(genomes, (text,))
        for genome, result in zip(genomes, results, strict=True):
            self._seen.add((genome.tobytes(), text))
            if result.mean > 0 and np.isfinite(result.mean):
                self._measured.append((genome, text, float(np.log(result.mean))))
        if self._measured:
            self._model = self._fitted()

    def _fitted(self) -> Posterior:
        genomes, *others = zip(*self._measured, strict=True)
        gone, (texts, values) = self._gone(np.stack(genomes)), map(np.array, others)
        seen = Observations(gone, texts, values, _slopes(gone, texts, values, self._influence))
        former = self._model
        if former is None or len(values) >= _GROWN * former.chosen_with:
            return Posterior.fitted(seen)
        return replace(former, seen=seen)

    def _optima(self) -> list[Genome]:
        """A batch of genomes, each the best under effects as they may be."""
        if self._model is None:
            return []
        boldness = _BOLDNESS
        parents, found = self._ranked()[:_PARENTS], dict[bytes, Genome]()
        for _ in range(_DRAWS * BATCH):
            parent = parents[int(self._rng.integers(len(parents)))]
            genome = self._optimum(parent, self._model.drawn(self._rng, boldness))
            if genome.tobytes() in found:
                boldness *= _BOLDER
            found[genome.tobytes()] = genome
            if len(found) == BATCH:
                break
        return list(found.values())

    def _ranked(self) -> list[Genome]:
        """The measured genomes, the best by the likeliest effects first."""
        rows = np.stack(different(genome for genome, *_ in self._measured))
        return list(rows[np.argsort(self.predict(rows), kind="stable")])

    def _optimum(self, genome: Genome, effects: Effects, steps: int = _ENDLESS) -> Genome:
        """The genome (U,) after the best exchanges that keep the budget, up to a number of them."""
        for _ in range(steps):
            better = self._exchanged(genome, effects)
            if better is None:
                break
            genome = better
        return genome

    def _exchanged(self, genome: Genome, effects: Effects) -> Genome | None:
        """The genome after the best exchange; ``None`` where none makes it better."""
        pairs = improving_exchanges(effects, self._gone(genome[None])[0])
        for begin in range(0, len(pairs), _CHECKED):
            checked = pairs[begin : begin + _CHECKED].tolist()
            rows = np.stack([self._with(genome, *pair) for pair in checked])
            kept = np.flatnonzero(self._space.feasible(rows))
            if kept.size:
                better: Genome = rows[kept[0]]
                return better
        return None

    def _with(self, genome: Genome, goes: int, returns: int) -> Genome:
        """The genome (U,) without one unit and with another one; U stands for none."""
        changed = genome.copy()
        if returns < len(genome):
            changed[returns] = 1 - self._space.encoding.drop_index[returns]
        if goes < len(genome):
            changed[goes] = self._space.encoding.drop_index[goes]
        return changed

    def _gone(self, genomes: Genome) -> Floats:
        """Which units genomes (N, U) are without."""
        return np.asarray(genomes == self._space.encoding.drop_index, dtype=np.float64)


def _slopes(gone: Floats, texts: Integers, values: Floats, influence: Floats) -> Floats:
    """Effects (U,) of the units in proportion to their influence; never negative."""
    expected, measured = gone @ influence, values.copy()
    for text in np.unique(texts):
        of_text = texts == text
        expected[of_text] -= expected[of_text].mean()
        measured[of_text] -= measured[of_text].mean()
    return np.asarray(nonnegative_slope(expected, measured) * influence)
