"""The default search: an estimated start, steps along estimates, then a guided evolution.

One number says how much it may do: the requested tokens. What it does with them follows from the
space. Levels that are close to each other (sparsities, widths) have a second-order estimate of
their harm from one backward pass a sequence, whose best sum is the start; estimates at the best
candidate so far then lead to a better one within a few levels, as long as measured values fall.
Drops are no small changes: their effects are measured. The rest of the tokens goes to races
between mutations that estimates and a model of all measurements hold for promising.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import ClassVar

import numpy as np

from evocompress.budget import require
from evocompress.repair import spend
from evocompress.search.base import Incumbent, Problem, SearcherSettings
from evocompress.search.effects import approach, changes
from evocompress.search.forecast import Forecast
from evocompress.search.knapsack import knapsack
from evocompress.search.lazy_greedy import lazily_removed
from evocompress.search.linear import Expansion, Tables, expansion, monotone
from evocompress.search.procedure import ProceduralSearcher, Procedure, Steps
from evocompress.search.proposals import Reach, propose
from evocompress.search.purse import RETRIES, Purse, parts
from evocompress.search.quadratic import best_coupling, quadratic, step
from evocompress.search.racing import Rung, Wanted, race
from evocompress.search.removal import drop_harms, without_blocks
from evocompress.search.scoreboard import Scoreboard, deviation, spread
from evocompress.space import Genome
from evocompress.types import Candidate, Estimate, Estimation, Evaluate, Result

RADII = (1, 2, 4)
"""How many levels a gene may move in one step along estimates: all three are compared."""

_TYPICAL = 2
"""The radius for which it is decided how much changes touch each other."""

_TRIED_LEVELS = 2
"""Levels of a width or drop that are measured in each round of a measured start."""

_INFLUENCE = 50
"""The influence of blocks is estimated on one token of so many."""

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

_IDLE_RACES = 5
"""Races in a row in which everything was known already: the space has little else to try."""


class AutoSettings(SearcherSettings):
    """Settings of `Auto`: switches that take a part out, to see what it is worth.

    Attributes:
        estimates: The estimated start and the steps along estimates.
        guided: Mutations in proportion to their predicted gain.
        surrogate: A model of what was measured, as a part of the prediction.
        racing: Rivals leave as soon as they are certainly worse.
    """

    estimates: bool = True
    guided: bool = True
    surrogate: bool = True
    racing: bool = True


class Auto(ProceduralSearcher):
    """Chooses start, moves and schedule from the space, the pool and the number of tokens."""

    Settings: ClassVar[type[SearcherSettings]] = AutoSettings

    def __init__(self, problem: Problem, settings: AutoSettings, rng: np.random.Generator) -> None:
        require(problem.space)
        super().__init__(problem, rng)
        self._settings = settings
        self._purse = Purse(problem.pool, problem.tokens)
        self._parts = parts(problem.pool, rng)
        self._to_estimate = itertools.cycle(self._parts.estimated)
        self._board = Scoreboard()
        self._forecast = Forecast(problem.space, surrogate=settings.surrogate)
        self._scores: Tables | None = None
        self._archive: dict[bytes, Genome] = {}
        self._origins: dict[str, str] = {}
        self._doing = ""

    def phase(self) -> str:
        """What the last ask is for."""
        return self._doing

    def origins(self) -> Mapping[str, str]:
        """What the starts, and the steps along estimates, are called."""
        return dict(self._origins)

    def _search(self) -> Procedure:
        starts = (yield from self._starts()) if self._settings.estimates else {}
        best = yield from self._compared({**starts, "uniform": self._space.uniform()})
        if self._settings.estimates and self._smooth:
            best = yield from self._along_estimates(best)
        best = yield from self._evolve(best)
        yield from self._rescored(best)

    @property
    def _smooth(self) -> bool:
        """Whether there are levels close enough to each other for estimates."""
        genes = self._space.genes
        return bool(genes.matrices.size or genes.widths.size)

    def _starts(self) -> Steps[dict[str, Genome]]:
        """The first genomes, by name: from estimates, or from what drops were measured to do."""
        if not self._space.genes.droppable.size:
            return (yield from self._estimated_starts())
        if self._smooth:
            return (yield from self._measured_effects())
        return (yield from self._removals())

    def _estimated_starts(self) -> Steps[dict[str, Genome]]:
        """The best genomes by the estimate at the dense model."""
        micro_batches = self._next(self._purse.start(self._parts.estimated, 3))
        if not micro_batches:
            return {}
        self._doing = f"second-order start: an estimate on {self._sequences(micro_batches)}"
        estimation = yield from self._ask_estimate(Candidate(), "curvature", micro_batches, 3)
        if estimation.failed is not None:
            return {f"uniform; the estimate failed: {estimation.failed}": self._space.uniform()}
        found = expansion(self._space, estimation)
        tables = {"second order": found.harms(), "second order, monotone": monotone(found.harms())}
        start = self._space.genes.start
        picks = {name: knapsack(self._space, harms, start) for name, harms in tables.items()}
        if coupling := best_coupling(self._space, start, found):
            pick = step(self._space, start, found, coupling)
            picks[f"second order, coupled by {coupling}"] = pick
        self._scores = found.scores
        return {name: genome for name, genome in picks.items() if genome is not None}

    def _measured_effects(self) -> Steps[dict[str, Genome]]:
        """The best sum of single changes, measured in rounds (`evocompress.search.effects`)."""
        tries = 1 + len(changes(self._space, self._space.genes.start, _TRIED_LEVELS))
        rounds, micro_batches = self._purse.effects(self._shuffled(), tries)
        if not rounds:
            return {}
        self._doing = (
            f"measured start: {tries - 1} single changes, {rounds} times on "
            f"{self._sequences(micro_batches)}"
        )

        def measure(genomes: Sequence[Genome]) -> Steps[list[Result]]:
            results = yield from self._probed(genomes, micro_batches)
            self._forecast.learn_effects(genomes, results)
            return results

        genome = yield from approach(self._space, measure, rounds=rounds, per_gene=_TRIED_LEVELS)
        return {"measured effects": self._made_feasible(genome)}

    def _removals(self) -> Steps[dict[str, Genome]]:
        """Whole blocks by their influence, and units one after the other by measured harm."""
        genes, found = self._space.genes, dict[str, Genome]()
        micro_batches = self._next(
            len(self._purse.some(self._parts.estimated, self._purse.limit // _INFLUENCE))
        )
        self._doing = f"influence of blocks on {self._sequences(micro_batches)}"
        estimation = yield from self._ask_estimate(Candidate(), "block_influence", micro_batches, 1)
        if estimation.failed is None:
            blocks = without_blocks(self._space, estimation.by_unit)
            found["blocks of least influence"] = self._made_feasible(blocks)
            harms = drop_harms(self._space, estimation.by_unit)
            self._forecast.expect(harms)
            units = knapsack(self._space, harms, genes.start)
            if units is not None:
                found["units of least influence"] = units
        needed = int(genes.dropped(self._space.uniform()[None]).sum())
        tokens, take = self._purse.removals(genes.droppable.size, needed)
        if not tokens:
            return found

        def measure(genomes: Sequence[Genome]) -> Steps[list[Result]]:
            micro_batches = self._purse.some(self._shuffled(), tokens)
            results = yield from self._probed(genomes, micro_batches)
            self._forecast.learn_effects(genomes, results)
            return results

        self._doing = f"greedy removal, {tokens:,} tokens a trial, {take} at a time"
        genome = yield from lazily_removed(self._space, measure, tries=RETRIES, take=take)
        return found | {"greedy removal": self._made_feasible(genome)}

    def _probed(
        self, genomes: Sequence[Genome], micro_batches: tuple[int, ...]
    ) -> Steps[list[Result]]:
        """Results that count for nothing but what is learnt of them, paid for."""
        results = yield from self._evaluate(genomes, micro_batches, probe=True)
        self._purse.pay([result.request for result in results])
        return results

    def _made_feasible(self, genome: Genome) -> Genome:
        """A genome that keeps the budget, and uses it up."""
        return spend(self._space, self._space.repair(genome, self._rng), self._rng)

    def _compared(self, named: Mapping[str, Genome]) -> Steps[Genome]:
        """The best of some genomes, which becomes the incumbent."""
        for name, genome in named.items():
            self._origins.setdefault(self._space.candidate(genome).id, name)
        self._doing = f"comparing {', '.join(named)}"
        first, *others = {genome.tobytes(): genome for genome in named.values()}.values()
        return (yield from self._race(first, others, self._purse.rungs(self._shuffled())))

    def _along_estimates(self, best: Genome) -> Steps[Genome]:
        """Steps along estimates from the best genome on, as long as measured values fall."""
        count = 0
        while micro_batches := self._next(self._purse.step(self._parts.estimated, 5)):
            count += 1
            candidate = self._space.candidate(best)
            self._doing = f"step {count}: estimates at the best on {self._sequences(micro_batches)}"
            estimation = yield from self._ask_estimate(candidate, "linearised", micro_batches, 5)
            if estimation.failed is not None:
                break
            found = self._pooled(best, expansion(self._space, estimation))
            coupling = best_coupling(self._space, best, found, _TYPICAL)
            self._forecast.expand(quadratic(self._space, best, found, coupling))
            picks = {
                f"step {count} along estimates, {radius}, coupled by {coupling}": pick
                for radius in RADII
                if (pick := step(self._space, best, found, coupling, radius)) is not None
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

    def _evolve(self, best: Genome) -> Steps[Genome]:
        """Races of mutations until the tokens, or what can be measured, are spent.

        Races that nobody wins make the next mutations larger, and later ones start from former
        incumbents: a restart that costs nothing but its own race.
        """
        idle = lost = 0
        order = self._shuffled()
        while idle < _IDLE_RACES:
            left, before = self._purse.left, best
            rungs, count = self._purse.race(order)
            if count < 1:
                break
            others = self._others(best)
            parents = others if others and lost >= _LOST_RACES else [best]
            parent = parents[int(self._rng.integers(len(parents)))]
            guide = self._forecast.predictor() if self._settings.guided else None
            reach = Reach(min(_EXCHANGES + lost, _MOST_EXCHANGES), others)
            children = propose(self._space, parent, guide, count, self._rng, reach)
            if not children:
                break
            self._doing = f"races of mutations, {self._forecast.guide if guide else 'unguided'}"
            best = yield from self._race(best, children, rungs)
            idle = idle + 1 if self._purse.left == left else 0
            if best is before:
                lost += 1
            else:
                # Until then its own values are known: only its rivals have to be measured.
                lost, order = 0, self._shuffled()
        return best

    def _rescored(self, best: Genome) -> Procedure:
        """The best of the last incumbents, on as many new tokens as are left for it."""
        rivals = self._others(best)
        micro_batches = self._purse.final(self._shuffled(), 1 + len(rivals))
        if rivals and micro_batches:
            count = self._sequences(micro_batches)
            self._doing = f"the last {1 + len(rivals)} incumbents once more on {count}"
            yield from self._race(best, rivals, [Rung(micro_batches, 1)])

    def _sequences(self, micro_batches: Sequence[int]) -> str:
        tokens = sum(self._pool.tokens[index] for index in micro_batches)
        return f"{tokens:,} tokens"

    def _race(self, best: Genome, rivals: Sequence[Genome], rungs: Sequence[Rung]) -> Steps[Genome]:
        """The winner of a race, which becomes the incumbent."""
        genomes = {self._space.candidate(genome).id: genome for genome in [*rivals, best]}
        candidates = {key: self._space.candidate(genome) for key, genome in genomes.items()}
        incumbent = self._space.candidate(best)
        winner, seen = yield from race(
            self._board,
            _Paid(self._purse),
            incumbent,
            [candidate for key, candidate in candidates.items() if key != incumbent.id],
            rungs,
            by_chance=self._settings.racing,
        )
        value = self._board.mean(winner, seen) if seen else np.inf
        if np.isfinite(value):
            self._best = Incumbent(winner, value)
        self._forecast.learn(self._board, incumbent, list(candidates.values()), genomes, rungs)
        self._adapt(list(candidates.values()), incumbent, rungs)
        genome = genomes[winner.id]
        former = [(key, other) for key, other in self._archive.items() if key != genome.tobytes()]
        self._archive = dict([*former, (genome.tobytes(), genome)][-ARCHIVE:])
        return genome

    def _adapt(
        self, raced: Sequence[Candidate], incumbent: Candidate, rungs: Sequence[Rung]
    ) -> None:
        """Makes the next races as long as this one's rivals were hard to tell apart."""
        by_rung = [self._board.gaps(raced, incumbent, rung.micro_batches) for rung in rungs]
        first, *_ = by_rung
        *_, longest = (gaps for gaps in by_rung if gaps) if first else (first,)
        if len(first) >= _TO_COMPARE and isfinite(noise := deviation(longest)):
            self._purse.adapt(spread(first), noise / np.sqrt(first[0].sequences))

    def _others(self, best: Genome) -> list[Genome]:
        """The last incumbents but the best one."""
        return [other for key, other in self._archive.items() if key != best.tobytes()]

    def _ask_estimate(
        self, candidate: Candidate, kind: str, micro_batches: tuple[int, ...], forwards: int
    ) -> Steps[Estimation]:
        request = Estimate(candidate, kind, micro_batches, forwards)
        self._purse.pay([request])
        [answer] = yield [request]
        assert isinstance(answer, Estimation)
        return answer

    def _shuffled(self) -> list[int]:
        """The micro-batches of comparisons in a new order."""
        return [int(index) for index in self._rng.permutation(self._parts.compared)]

    def _next(self, count: int) -> tuple[int, ...]:
        """The next micro-batches for estimates, in turn: other ones each time while there are."""
        return tuple(itertools.islice(self._to_estimate, count))


@dataclass(frozen=True)
class _Paid:
    """Measures, and pays for it."""

    purse: Purse

    def affords(self, wanted: Wanted) -> bool:
        return self.purse.affords([Evaluate(*pair) for pair in wanted])

    def __call__(self, wanted: Wanted) -> Steps[list[Result]]:
        if not wanted:
            return []
        requests = [Evaluate(*pair) for pair in wanted]
        self.purse.pay(requests)
        answers = yield requests
        return [answer for answer in answers if isinstance(answer, Result)]
