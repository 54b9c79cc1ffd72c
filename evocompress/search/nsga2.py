"""NSGA-II (Deb et al. 2002): a whole front of quality against costs in one search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from evocompress.config import Positive
from evocompress.errors import ConfigError
from evocompress.pareto import knee, spread
from evocompress.search.base import Incumbent, Problem, SearcherSettings
from evocompress.search.moves import distinct
from evocompress.search.objectives import choose
from evocompress.search.plan import plan
from evocompress.search.procedure import ProceduralSearcher, Procedure, Steps
from evocompress.search.seeds import even_ladder, flap_ladder, measured_ladder
from evocompress.search.variation import vary
from evocompress.space import Genome
from evocompress.types import Candidate, Result

if TYPE_CHECKING:
    from evocompress.search.genetic import Evolution

Share = Annotated[float, Field(ge=0)]


class NSGA2Settings(SearcherSettings):
    """Settings of `NSGA2`.

    Attributes:
        objectives: Costs that span the front with the proxy's value; the costs of the budget
            if left out.
        range: {objective: (lowest, highest)} that matters, as shares of the dense model's cost
            where at most 1. Highest is kept like a budget; what costs less than lowest counts
            as costing the lowest, so that nothing is gained by going below it.
        population: Candidates that survive a generation.
        offspring: New candidates of a generation; as many as survive if left out.
        generations: How many there are at most, the first population among them; without it
            the tokens set the end.
        candidate_tokens: Tokens on which every candidate is compared, always the same ones.
        front_tokens: Tokens on which the front is measured again at the end, among them the
            ones above; the whole pool if left out.
        front_size: How many candidates are measured again.
        rungs: Length of a ladder of seeds.
        effect_rounds: How many times the effects of single changes are measured, for a ladder
            of seeds that sums them up (`evocompress.search.effects`); 0 is no such ladder.
        effect_levels: How many levels of each width or drop are tried each time.
        reference: Ladders that are measured with the front and named in it: ``uniform`` (the
            same fraction everywhere), ``flap`` (FLAP's global ranking, 2312.11983).
    """

    objectives: tuple[str, ...] = ()
    range: dict[str, tuple[Share, Share]] = {}
    population: Annotated[int, Field(ge=2)] = 40
    offspring: Positive | None = None
    generations: Positive | None = None
    candidate_tokens: Positive | None = None
    front_tokens: Positive | None = None
    front_size: Annotated[int, Field(ge=2)] = 20
    rungs: Annotated[int, Field(ge=2)] = 6
    effect_rounds: Annotated[int, Field(ge=0)] = 0
    effect_levels: Positive = 3
    reference: tuple[Literal["uniform", "flap"], ...] = ()


@dataclass(frozen=True, eq=False)
class Measured:
    """A genome (U,), its candidate and the candidate's value where it was last compared."""

    genome: Genome
    candidate: Candidate
    value: float


class NSGA2(ProceduralSearcher):
    """Evolves a front of the proxy's value against costs, and measures it again at the end.

    The first population is made of ladders of even candidates and, where there are widths, of
    FLAP's, on demand also of candidates for which effects were measured; the rest are mutations
    of these. At the end as much of the front as is asked for, spread over its length, is
    measured on more tokens. The incumbent is the knee of the front. The dense model takes part
    in the evolution, but not in the front: it is known anyway.
    """

    Settings: ClassVar[type[SearcherSettings]] = NSGA2Settings

    def __init__(self, problem: Problem, settings: NSGA2Settings, rng: np.random.Generator) -> None:
        space, self._objectives = choose(problem.space, settings.objectives, settings.range)
        self._settings = settings
        self._has_widths = bool(space.genes.widths.size)
        movable = np.union1d(space.genes.widths, space.genes.droppable).size
        tries = settings.effect_rounds * (1 + movable * settings.effect_levels)
        self._check_settings(problem.tokens)
        self._plan = plan(
            problem.pool,
            problem.tokens,
            rng,
            candidate_tokens=settings.candidate_tokens,
            front_tokens=settings.front_tokens,
            finalists=settings.front_size + len(settings.reference) * settings.rungs,
            first=settings.population + tries,
            estimates=int(self._has_widths),
        )
        self._spent = 0
        self._archive: list[Measured] = []
        self._references: dict[str, list[Genome]] = {}
        super().__init__(replace(problem, space=space), rng)

    @property
    def objectives(self) -> tuple[str, ...]:
        """The costs that span the front with the proxy's value."""
        return self._objectives.costs

    def origins(self) -> Mapping[str, str]:
        """{candidate id: name of the ladder} of the references."""
        return {
            self._space.candidate(genome).id: name
            for name, ladder in self._references.items()
            for genome in ladder
        }

    def _check_settings(self, tokens: int | None) -> None:
        if "flap" in self._settings.reference and not self._has_widths:
            raise ConfigError("search.reference: flap ranks heads and channels: give space.width")
        if tokens is None and self._settings.generations is None:
            raise ConfigError("search: nsga2 ends by search.tokens or search.generations; give one")

    def _search(self) -> Procedure:
        seeds = yield from self._seeds()
        evolution = self._evolution(seeds)
        finalists = self._settings.front_size + sum(map(len, self._references.values()))
        limit = self._settings.generations
        for _ in count() if limit is None else range(limit):
            genomes = evolution.ask()[: self._plan.affordable(self._spent, finalists)]
            if not genomes:
                break
            measured = yield from self._measure(genomes, self._plan.search)
            values = [entry.value for entry in measured]
            evolution.tell(self._objectives.points(self._space, genomes, values))
            self._archive += measured
            self._crown(self._archive)
        front = yield from self._measure(self._finalists(), self._plan.front)
        self._crown(front)

    def _seeds(self) -> Steps[list[Genome]]:
        """The ladders, those that are references noted down."""
        space, rungs = self._space, self._settings.rungs
        ladders = {"uniform": even_ladder(space, self._objectives, rungs)}
        if self._has_widths:
            self._spent += self._plan.front_tokens
            scores = yield from self._estimate(space.genes.start, "fluctuation", self._plan.front)
            ladders["flap"] = flap_ladder(space, self._objectives, scores, rungs)
        if self._settings.effect_rounds and ladders["uniform"]:
            ladders["measured"] = yield from self._sums_of_effects(ladders["uniform"][-1])
        names = {"uniform": "uniform width" if self._has_widths else "uniform", "flap": "FLAP"}
        for name in self._settings.reference:
            self._references[names[name]] = [g for g in ladders[name] if self._changes(g)]
        # The best ones first: a small population has no place for all.
        seeds = [genome for ladder in reversed(ladders.values()) for genome in ladder]
        return seeds or [space.repair(space.genes.start, self._rng)]

    def _sums_of_effects(self, lowest: Genome) -> Steps[list[Genome]]:
        """A ladder of half the population, down to the cost of another one's last rung."""
        return (
            yield from measured_ladder(
                self._space,
                self._objectives,
                self._probe,
                lowest,
                self._settings.population // 2,
                rounds=self._settings.effect_rounds,
                per_gene=self._settings.effect_levels,
            )
        )

    def _evolution(self, seeds: Sequence[Genome]) -> Evolution:
        """The algorithm of pymoo, its first population filled with mutations of the seeds."""
        from evocompress.search.genetic import Evolution

        settings, space = self._settings, self._space
        mutate = partial(vary, space, self._objectives.costs)

        def mutation() -> Genome:
            return mutate(seeds[int(self._rng.integers(len(seeds)))], self._rng)

        more = distinct(mutation, settings.population - len(seeds))
        return Evolution(
            space,
            np.stack([*seeds, *more])[: settings.population],
            mutate,
            objectives=1 + len(self._objectives.costs),
            population=settings.population,
            offspring=settings.offspring or settings.population,
            rng=self._rng,
        )

    def _finalists(self) -> list[Genome]:
        """The front's genomes, evenly spread, and those of the references."""
        front = [entry.genome for entry in self._archive if entry.candidate.levels]
        values = [entry.value for entry in self._archive if entry.candidate.levels]
        if front:
            points = self._objectives.points(self._space, front, values)
            front = [front[index] for index in spread(points, self._settings.front_size)]
        references = [genome for ladder in self._references.values() for genome in ladder]
        return list({genome.tobytes(): genome for genome in [*front, *references]}.values())

    def _probe(self, genomes: Sequence[Genome]) -> Steps[list[Result]]:
        """Results outside the front and the budget, on the tokens of the search."""
        self._spent += len(genomes) * self._plan.search_tokens
        return (yield from self._evaluate(genomes, self._plan.search, probe=True))

    def _measure(
        self, genomes: Sequence[Genome], micro_batches: tuple[int, ...]
    ) -> Steps[list[Measured]]:
        self._spent += len(genomes) * sum(self._pool.tokens[index] for index in micro_batches)
        results = yield from self._evaluate(genomes, micro_batches)
        return [
            Measured(genome, result.request.candidate, result.mean)
            for genome, result in zip(genomes, results, strict=True)
        ]

    def _crown(self, measured: Sequence[Measured]) -> None:
        """Makes the knee of the front the incumbent, if anything could be evaluated."""
        valid = [entry for entry in measured if entry.candidate.levels and np.isfinite(entry.value)]
        if not valid:
            return
        genomes, values = [entry.genome for entry in valid], [entry.value for entry in valid]
        best = valid[knee(self._objectives.points(self._space, genomes, values))]
        self._best = Incumbent(best.candidate, best.value)

    def _changes(self, genome: Genome) -> bool:
        """Whether it is another candidate than the dense model."""
        return bool(self._space.candidate(genome).levels)
