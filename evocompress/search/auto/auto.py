"""The default search: the best of several starts, steps along estimates, then a guided evolution.

One number says how much it may do: the requested tokens. What it does with them follows from the
space (`evocompress.search.auto.initialization`). Levels that are close to each other (sparsities,
widths) have a second-order estimate of their harm from one backward pass a sequence; estimates at
the best candidate so far lead to a better one within a few levels, as long as measured values
fall. Drops are no small changes. The rest of the tokens goes to races between mutations that
estimates and a model of all measurements hold for promising.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite

import numpy as np

from evocompress.core.arrays import Genome
from evocompress.core.types import Candidate
from evocompress.search.auto.acquisition import propose
from evocompress.search.auto.evaluation_client import EvaluationClient
from evocompress.search.auto.initialization import Starts
from evocompress.search.auto.predictor import Predictor
from evocompress.search.auto.thompson import ModelledDrops, modelled
from evocompress.search.base import Incumbent, SearcherSettings
from evocompress.search.fidelity.racing import Scoreboard, deviation, quartile_deviation, race
from evocompress.search.fidelity.rungs import Rung
from evocompress.search.fidelity.token_budget import OFFSPRING
from evocompress.search.generator_searcher import AskTell, GeneratorSearcher
from evocompress.search.operators.mutation import different
from evocompress.search.surrogates.second_order import (
    Expansion,
    Tables,
    best_coupling,
    expansion,
    quadratic,
    step,
)
from evocompress.space import sampling

RADII = (1, 2, 4)
"""How many levels a gene may move in one step along estimates: all three are compared."""

_TYPICAL = 2
"""The radius for which it is decided how much changes touch each other."""

ARCHIVE = 4
"""Former incumbents that mutations may borrow from, and that are compared again at the end."""

_EXCHANGES, _MOST_EXCHANGES = 3, 6
"""The most exchanges of a mutation, before a race is lost and after several were."""

_LOST_RACES = 4
"""Races that the incumbent wins in a row until mutations start from former ones."""

_KNOWN = "best of a race"
"""What a candidate is called that has no name yet when a step along estimates begins at it."""

_TO_COMPARE = 4
"""Rivals that say how far apart they lie."""

_NAMED = 6
"""The most candidates of a comparison that are named one by one."""

_IDLE_RACES = 5
"""Races in a row in which everything was known already: the space has little else to try."""


class Auto(GeneratorSearcher):
    """Chooses start, moves and schedule from the space, the pool and the number of tokens.

    ```yaml
    space: {drop: {}, budget: {body_params: 0.7}}
    search: {name: auto, tokens: 500000}
    ```

    Examples:
        >>> from evocompress.testing.examples import winner
        >>> winner(Auto)
        {'1.attention': 'drop', '2.attention': 'drop', '3.mlp': 'drop'}
    """

    class Settings(SearcherSettings):
        """Settings of `Auto`: switches that take a part out, to see what it is worth.

        Attributes:
            estimates: The estimated start and the steps along estimates.
            guided: Mutations by their expected improvement.
            surrogate: A model of what was measured, as a part of the prediction.
            racing: Rivals leave as soon as they are certainly worse.
        """

        estimates: bool = True
        guided: bool = True
        surrogate: bool = True
        racing: bool = True

    settings: Settings

    def prepare(self) -> None:
        """Divides the pool and the tokens."""
        self.micro_batches = ()  # Each race draws its own.
        self._client = EvaluationClient(self)
        self._budget = self._client.budget
        self._board = Scoreboard()
        self._predictor = Predictor(self.space, surrogate=self.settings.surrogate)
        self._scores: Tables | None = None
        self._archive: dict[bytes, Genome] = {}
        self._origins: dict[str, str] = {}

    def phase(self) -> str:
        """What the last ask is for, and which estimate it has to do without."""
        return self._client.doing + self._client.failed

    def origins(self) -> Mapping[str, str]:
        """What the starts, and the steps along estimates, are called."""
        return dict(self._origins)

    def search(self) -> AskTell[None]:
        """Starts, steps along estimates, races, and a last comparison."""
        named = {"uniform": sampling.uniform(self.space)}
        by_model = self.settings.surrogate and modelled(self.space, self._budget)
        starts = Starts(self._client, self._predictor, removal=not by_model)
        if self.settings.estimates:
            named = (yield from starts.found()) | named
            self._scores = starts.scores
        best = yield from self._compared(named)
        if by_model:
            model = ModelledDrops(self._client, starts.influence)
            best = yield from self._by_model(best, model, [best, *named.values()])
        if self.settings.estimates and self._smooth:
            best = yield from self._along_estimates(best)
        best = yield from self._evolve(best)
        yield from self._rescored(best)

    @property
    def _smooth(self) -> bool:
        """Whether there are levels close enough to each other for estimates."""
        genes = self.space.encoding
        return bool(genes.matrices.size or genes.widths.size)

    def _compared(self, named: Mapping[str, Genome]) -> AskTell[Genome]:
        """The best of some genomes, which becomes the incumbent."""
        for name, genome in named.items():
            self._origins.setdefault(self.space.candidate(genome).id, name)
        shown = [*named] if len(named) <= _NAMED else [f"{len(named)} candidates"]
        self._client.doing = f"comparing {', '.join(shown)}"
        first, *others = different(named.values())
        fidelity = self._budget.fidelity(self._client.shuffled())
        return (yield from self._race(first, others, fidelity.rungs))

    def _by_model(
        self, best: Genome, model: ModelledDrops, starts: Sequence[Genome]
    ) -> AskTell[Genome]:
        """The best of what a model of all measurements holds for good, and of the best before."""
        yield from model.search(starts)
        found = model.best(OFFSPRING)
        if found:
            self._predictor.believe("a model of interactions", model.predict)
        names = [f"{place} by a model of interactions" for place in range(1, len(found) + 1)]
        return (yield from self._compared({_KNOWN: best} | dict(zip(names, found, strict=True))))

    def _along_estimates(self, best: Genome) -> AskTell[Genome]:
        """Steps along estimates from the best genome on, as long as measured values fall."""
        count = 0
        while micro_batches := self._client.next(self._budget.step(self._client.estimated, 5)):
            count += 1
            doing, candidate = f"step {count}: estimates at the best", self.space.candidate(best)
            estimation = yield from self._client.estimate(
                doing, "linearised", micro_batches, 5, candidate
            )
            if estimation.failed is not None:
                break
            found = self._pooled(best, expansion(self.space, estimation))
            coupling = best_coupling(self.space, best, found, _TYPICAL)
            self._predictor.expand(quadratic(self.space, best, found, coupling))
            picks = {
                f"step {count} along estimates, {radius}, coupled by {coupling}": pick
                for radius in RADII
                if (pick := step(self.space, best, found, coupling, radius)) is not None
            }
            before = best
            best = yield from self._compared({_KNOWN: before} | picks)
            if best is before:
                break
        return best

    def _pooled(self, genome: Genome, found: Expansion) -> Expansion:
        """An expansion with the scores of all former ones as well."""
        if self._scores is not None:
            known = Expansion(self._scores, self._scores).scores_around(genome)
            found = found.with_scores(known)
        self._scores = found.scores
        return found

    def _evolve(self, best: Genome) -> AskTell[Genome]:
        """Races of mutations until the tokens, or what can be measured, are spent.

        Races that nobody wins make the next mutations larger, and later ones start from former
        incumbents: a restart that costs nothing but its own race.
        """
        idle = lost = 0
        order = self._client.shuffled()
        while idle < _IDLE_RACES:
            left, before = self._budget.left, best
            fidelity, count = self._budget.race(order)
            if count < 1:
                break
            others = self._others(best)
            parents = others if others and lost >= _LOST_RACES else [best]
            parent = parents[int(self.rng.integers(len(parents)))]
            name, guide = self._predictor.guide() if self.settings.guided else ("unguided", None)
            steps = min(_EXCHANGES + lost, _MOST_EXCHANGES)
            children = propose(
                self.space, parent, guide, count, self.rng, steps=steps, targets=others
            )
            if not children:
                break
            self._client.doing = f"races of mutations, {name}"
            best = yield from self._race(best, children, fidelity.rungs)
            idle = idle + 1 if self._budget.left == left else 0
            if best is before:
                lost += 1
            else:
                # Until then its own values are known: only its rivals have to be measured.
                lost, order = 0, self._client.shuffled()
        return best

    def _rescored(self, best: Genome) -> AskTell[None]:
        """The best of the last incumbents, on as many new tokens as are left for it."""
        rivals = self._others(best)
        micro_batches = self._budget.final(self._client.shuffled(), 1 + len(rivals))
        if rivals and micro_batches:
            count = self._client.tokens(micro_batches)
            self._client.doing = f"the last {1 + len(rivals)} incumbents once more on {count}"
            yield from self._race(best, rivals, [self._budget.rung(micro_batches)])

    def _race(
        self, best: Genome, rivals: Sequence[Genome], rungs: Sequence[Rung]
    ) -> AskTell[Genome]:
        """The winner of a race, which becomes the incumbent."""
        genomes = {self.space.candidate(genome).id: genome for genome in [*rivals, best]}
        candidates = {key: self.space.candidate(genome) for key, genome in genomes.items()}
        incumbent = self.space.candidate(best)
        winner, seen = yield from race(
            self._board,
            self._budget.affords,
            incumbent,
            [candidate for key, candidate in candidates.items() if key != incumbent.id],
            rungs,
            by_chance=self.settings.racing,
        )
        value = self._board.mean(winner, seen) if seen else np.inf
        if np.isfinite(value):
            self._best = Incumbent(winner, value, seen)
        self._predictor.learn(self._board, incumbent, list(candidates.values()), genomes, rungs)
        self._adapt(list(candidates.values()), incumbent, rungs)
        genome = genomes[winner.id]
        former = [(key, other) for key, other in self._archive.items() if key != genome.tobytes()]
        self._archive = dict([*former, (genome.tobytes(), genome)][-ARCHIVE:])
        return genome

    def _adapt(
        self, raced: Sequence[Candidate], incumbent: Candidate, rungs: Sequence[Rung]
    ) -> None:
        """Makes the next races as long as this one's rivals were hard to tell apart."""
        by_rung = (self._board.gaps(raced, incumbent, rung.micro_batches) for rung in rungs)
        reached = [gaps for gaps in by_rung if gaps]
        if not reached or len(reached[0]) < _TO_COMPARE:
            return
        first, longest = reached[0], reached[-1]
        if isfinite(noise := deviation(longest)):
            self._budget.adapt(quartile_deviation(first), noise / np.sqrt(first[0].sequences))

    def _others(self, best: Genome) -> list[Genome]:
        """The last incumbents but the best one."""
        return [other for key, other in self._archive.items() if key != best.tobytes()]
