"""A front by an evolution of pymoo: which one is all that such searchers differ in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from evocompress.core.arrays import Genome
from evocompress.core.errors import ConfigError
from evocompress.core.fields import Positive, Size, Whole
from evocompress.search.evolution.initial_population import (
    even_ladder,
    flap_ladder,
    measured_ladder,
)
from evocompress.search.fidelity.front_search import FrontSearcher, FrontSettings
from evocompress.search.fidelity.rungs import Reserve
from evocompress.search.generator_searcher import AskTell
from evocompress.search.operators.mutation import distinct, vary
from evocompress.space.repair import repair

if TYPE_CHECKING:
    from evocompress.search.evolution.genetic import Evolution


class EvolvedFront(FrontSearcher):
    """Evolves a front of the proxy's value against costs, and measures it again at the end.

    The first population is made of ladders of even candidates and, where there are widths, of
    FLAP's, on demand also of candidates for which effects were measured; the rest are mutations
    of these.
    """

    class Settings(FrontSettings):
        """Settings of `EvolvedFront`.

        Attributes:
            population: Candidates that survive a generation.
            offspring: New candidates of a generation; as many as survive if left out.
            generations: How many there are at most, the first population among them; without it
                the tokens set the end.
            rungs: Length of a ladder of seeds.
            effect_rounds: How many times the effects of single changes are measured, for a ladder
                of seeds that sums them up; 0 is no such ladder.
            effect_levels: How many levels of each width or drop are tried each time.
            reference: Ladders that are measured with the front and named in it: ``uniform`` (the
                same fraction everywhere), ``flap`` (FLAP's global ranking, 2312.11983).
        """

        population: Annotated[Whole, Field(ge=2, le=10_000)] = 40
        offspring: Size | None = None
        generations: Positive | None = None
        rungs: Annotated[Whole, Field(ge=2, le=10_000)] = 6
        effect_rounds: Annotated[Whole, Field(ge=0, le=10_000)] = 0
        effect_levels: Size = 3
        reference: tuple[Literal["uniform", "flap"], ...] = ()

    settings: Settings

    levers = (*FrontSearcher.levers, "rungs", "population", "effect_rounds")
    algorithm: ClassVar[str]
    """Which one of `evocompress.search.evolution.genetic.ALGORITHMS`."""

    def check(self) -> None:
        """Refuses FLAP's ladder without widths, and a search that nothing ends."""
        if "flap" in self.settings.reference and not self._has_widths:
            raise ConfigError("search.reference: flap ranks heads and channels: give space.width")
        self.ledger.check_ends(self.algorithm, "generations", self.settings.generations)

    def prepare(self) -> None:
        """Begins without references."""
        super().prepare()
        self._references: dict[str, list[Genome]] = {}

    @property
    def _has_widths(self) -> bool:
        return bool(self.space.encoding.widths.size)

    def _reserve(self) -> Reserve:
        """The first population, effects, references and FLAP's estimate."""
        genes, settings = self.space.encoding, self.settings
        movable = np.union1d(genes.widths, genes.droppable).size
        tries = settings.effect_rounds * (1 + movable * settings.effect_levels)
        return Reserve(
            first=settings.population + tries,
            references=len(settings.reference) * settings.rungs,
            estimates=int(self._has_widths),
        )

    def origins(self) -> Mapping[str, str]:
        """{candidate id: name of the ladder} of the references."""
        return {
            self.space.candidate(genome).id: name
            for name, ladder in self._references.items()
            for genome in ladder
        }

    def search(self) -> AskTell[None]:
        """Generations from the ladders on, then the front on more tokens."""
        seeds = yield from self._seeds()
        evolution = self._evolution(seeds)
        references = [genome for ladder in self._references.values() for genome in ladder]
        limit = self.settings.generations
        for _ in count() if limit is None else range(limit):
            genomes = evolution.ask()[: self._affordable(len(references))]
            if not genomes:
                break
            measured = yield from self._compare(genomes)
            evolution.tell(self._objectives.of(self.space, measured))
        yield from self._measure_front(references)

    def _seeds(self) -> AskTell[list[Genome]]:
        """The ladders, those that are references noted down."""
        space, rungs = self.space, self.settings.rungs
        ladders = {"uniform": even_ladder(space, self._objectives, rungs)}
        if self._has_widths:
            scores = yield from self.estimate(
                space.encoding.default, "fluctuation", self._fidelity.rungs[-1].micro_batches
            )
            ladders["flap"] = flap_ladder(space, self._objectives, scores, rungs)
        if self.settings.effect_rounds and ladders["uniform"]:
            measured = self._fidelity.rungs[0].micro_batches
            ladders["measured"] = yield from measured_ladder(
                space,
                self._objectives,
                partial(self.evaluate, micro_batches=measured, probe=True),
                ladders["uniform"][-1],
                self.settings.population // 2,
                rounds=self.settings.effect_rounds,
                per_gene=self.settings.effect_levels,
            )
        names = {"uniform": "uniform width" if self._has_widths else "uniform", "flap": "FLAP"}
        for name in self.settings.reference:
            self._references[names[name]] = [
                genome for genome in ladders[name] if space.candidate(genome).levels
            ]
        # The best ones first: a small population has no place for all.
        seeds = [genome for ladder in reversed(ladders.values()) for genome in ladder]
        return seeds or [repair(space, space.encoding.default, self.rng)]

    def _evolution(self, seeds: Sequence[Genome]) -> Evolution:
        """The algorithm of pymoo, its first population filled with mutations of the seeds."""
        from evocompress.search.evolution.genetic import Evolution

        settings, space = self.settings, self.space
        mutate = partial(vary, space, self._objectives.costs)

        def mutation() -> Genome:
            return mutate(seeds[int(self.rng.integers(len(seeds)))], self.rng)

        more = distinct(mutation, settings.population - len(seeds))
        return Evolution(
            self.algorithm,
            space,
            np.stack([*seeds, *more])[: settings.population],
            mutate,
            objectives=1 + len(self._objectives.costs),
            population=settings.population,
            offspring=settings.offspring or settings.population,
            rng=self.rng,
        )
