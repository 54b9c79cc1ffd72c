"""EvoPress (Sieberling et al. 2024, 2410.14649): mutation, staged selection, elitism."""

from __future__ import annotations

from functools import partial
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from evocompress.budget import spend
from evocompress.config import Positive
from evocompress.search import batches
from evocompress.search.base import Problem, SearcherSettings
from evocompress.search.moves import distinct, mutate
from evocompress.search.staged import Selection, StagedSearcher, StagedSettings, is_depth
from evocompress.space import Genome


class EvoPressSettings(StagedSettings):
    """Settings of `EvoPress`.

    Attributes:
        initial: Random candidates of which the best is the first parent; 0 begins at the
            uniform one. Published: 64 for depth, 0 for sparsity.
        initial_tokens: Tokens on which they are compared; published: 2048.
        max_level: Largest distance of a matrix from its target, in levels.
        max_total: Largest sum of these distances.
    """

    initial: Annotated[int, Field(ge=0)] | None = None
    initial_tokens: Positive | None = None
    max_level: Positive | None = None
    max_total: Positive | None = None


class EvoPress(StagedSearcher):
    """(1 + lambda) evolution by moves that keep the budget; no crossover."""

    Settings: ClassVar[type[SearcherSettings]] = EvoPressSettings

    def __init__(
        self, problem: Problem, settings: EvoPressSettings, rng: np.random.Generator
    ) -> None:
        super().__init__(problem, settings, rng)
        pool = problem.pool
        self._joint = bool(problem.space.genes.matrices.size and problem.space.genes.droppable.size)
        self._max_level = settings.max_level
        self._max_total = settings.max_total
        published = 64 if is_depth(settings, problem.space) else 0
        self._initial = published if settings.initial is None else settings.initial
        self._initial_tokens = (
            batches.fitting(pool, 2048)
            if settings.initial_tokens is None
            else batches.check(pool, settings.initial_tokens, "search.initial_tokens")
        )

    def _start(self) -> Selection:
        """The best of the initial random genomes, or the uniform one."""
        genomes = distinct(self._random, self._initial)
        best = yield from self._crown(genomes, self._initial_tokens)
        return self._space.uniform() if best is None else best

    def _offspring(self, parent: Genome | None) -> list[Genome]:
        assert parent is not None
        child = partial(self._child, parent)
        return distinct(child, self._schedule.offspring, excluded=parent)

    def _child(self, parent: Genome) -> Genome | None:
        """A feasible mutation of the parent, or ``None`` if it goes too far from the start."""
        child = mutate(self._space, parent, self._rng, self._max_level)
        child = self._space.repair(child, self._rng)
        if self._joint:
            # Which sub-layers are dropped has changed the cost: what was saved is given back.
            child = spend(self._space, child, self._rng)
        return child if self._within_caps(child) else None

    def _random(self) -> Genome | None:
        genome = self._space.random(self._rng)
        return genome if self._within_caps(genome) else None

    def _within_caps(self, genome: Genome) -> bool:
        genes = self._space.genes
        distances = np.abs(genome - genes.start)[genes.matrices]
        farthest, total = distances.max(initial=0), distances.sum()
        return bool(
            (self._max_level is None or farthest <= self._max_level)
            and (self._max_total is None or total <= self._max_total)
        )
