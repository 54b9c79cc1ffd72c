"""Selection in stages: many candidates on few tokens, the survivors on more (EvoPress)."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from evocompress.core.arrays import Genome
from evocompress.core.errors import ConfigError
from evocompress.core.fields import Positive, Size, Tokens
from evocompress.core.finetuning import Recipe
from evocompress.core.requests import Pool, Result
from evocompress.search.base import Problem, SearcherSettings
from evocompress.search.fidelity import batches
from evocompress.search.generator_searcher import (
    AskTell,
    GeneratorSearcher,
    Ranking,
    ranked,
)
from evocompress.space import sampling
from evocompress.space.space import SearchSpace

Selection = AskTell[Genome | None]


class StagedSettings(SearcherSettings):
    """Settings of staged selection; what is left out is taken from the published schedule.

    Published numbers of tokens are rounded up to whole micro-batches and cut to the pool;
    given ones must fit exactly.

    Attributes:
        kind: Whose published schedule: that of EvoPress for ``sparsity`` or ``depth``, or that
            of DarwinLM (2502.07780) for ``width``. ``auto`` is sparsity where the space has
            matrices, else width where it has widths, else depth.
        generations: Rounds of selection.
        offspring: New candidates of a generation.
        survivors: How many candidates each stage keeps; the last keeps 1.
        stage_tokens: Tokens on which each stage compares.
    """

    kind: Literal["auto", "sparsity", "depth", "width"] = "auto"
    generations: Positive | None = None
    offspring: Size | None = None
    survivors: Annotated[tuple[Size, ...], Field(min_length=1, max_length=100)] | None = None
    stage_tokens: Annotated[tuple[Tokens, ...], Field(min_length=1, max_length=100)] | None = None


@dataclass(frozen=True)
class Stage:
    """One comparison of a generation.

    Attributes:
        tokens: On which it compares.
        survivors: How many candidates it keeps.
        recipe: How each is fine-tuned before it is measured, if at all.
    """

    tokens: int
    survivors: int
    recipe: Recipe | None = None


@dataclass(frozen=True)
class Schedule:
    """Settings with every default filled in.

    Attributes:
        generations: Rounds of selection.
        offspring: New candidates of a generation.
        stages: Of each generation.
    """

    generations: int
    offspring: int
    stages: tuple[Stage, ...]


@dataclass(frozen=True)
class Published:
    """A published schedule.

    Attributes:
        generations: Rounds; ``None`` says that they follow from the number of dropped units.
        offspring: New candidates of a generation.
        survivors: How many each stage keeps.
        tokens: Tokens of each stage.
        initial: Random candidates to begin with; 0 begins at the uniform one.
    """

    generations: int | None
    offspring: int
    survivors: tuple[int, ...]
    tokens: tuple[int, ...]
    initial: int


PUBLISHED = {
    "sparsity": Published(400, 64, (8, 2, 1), (2048, 16384, 65536), 0),
    "depth": Published(None, 32, (2, 1), (2048, 32768), 64),
    "width": Published(200, 16, (8, 4, 2, 1), (1024, 2048, 4096, 8192), 0),
}


def published(settings: StagedSettings, space: SearchSpace) -> Published:
    """The published schedule that completes the settings."""
    if settings.kind != "auto":
        return PUBLISHED[settings.kind]
    if space.encoding.matrices.size:
        return PUBLISHED["sparsity"]
    return PUBLISHED["width" if space.encoding.widths.size else "depth"]


def schedule(settings: StagedSettings, space: SearchSpace, pool: Pool) -> Schedule:
    """The settings completed by a published schedule and checked against the pool.

    Raises:
        ConfigError: The stages contradict each other or ask for tokens the pool cannot give.
    """
    usual = published(settings, space)
    offspring = settings.offspring or usual.offspring
    survivors = settings.survivors or usual.survivors
    tokens = settings.stage_tokens or tuple(batches.fitting(pool, n) for n in usual.tokens)
    recipes = settings.recipes or (None,) * len(tokens)
    if len(survivors) != len(tokens):
        raise ConfigError(
            f"search: {len(survivors)} survivors but {len(tokens)} stage_tokens; "
            "give one of each per stage"
        )
    if len(recipes) != len(tokens):
        raise ConfigError(
            f"search: {len(tokens)} stages but {len(recipes)} tuning_tokens; give one per stage"
        )
    if survivors[-1] != 1 or list(survivors) != sorted(survivors, reverse=True):
        raise ConfigError(f"search.survivors must fall to 1 at the last stage, not {survivors}")
    if survivors[0] > offspring:
        raise ConfigError(f"search.survivors: {survivors[0]} of only {offspring} offspring")
    checked = [batches.check(pool, count, "search.stage_tokens") for count in tokens]
    generations = settings.generations or usual.generations or _depth_generations(space)
    stages = map(Stage, checked, survivors, recipes)
    return Schedule(generations, offspring, tuple(stages))


def _depth_generations(space: SearchSpace) -> int:
    """EvoPress's int(k (n - k) / 1.5) for k of n units removed, at least 1."""
    dropped = space.encoding.dropped(sampling.uniform(space)[None])[0]
    masks = [dropped[units] for kind, units in space.encoding.by_kind.items() if kind != "matrix"]
    swaps = max((int(mask.sum() * (len(mask) - mask.sum())) for mask in masks), default=0)
    return max(int(swaps / 1.5), 1)


class StagedSearcher(GeneratorSearcher):
    """Generations of new candidates, of which staged selection keeps one.

    Each stage compares its candidates on the same micro-batches, drawn afresh. The best so
    far joins the last stage: it is measured anew beside its rivals, so it may be replaced.
    """

    settings: StagedSettings

    def __init__(
        self, problem: Problem, settings: StagedSettings, rng: np.random.Generator
    ) -> None:
        super().__init__(problem, settings, rng)
        self._schedule = schedule(settings, problem.space, problem.pool)

    @abstractmethod
    def _offspring(self, parent: Genome | None) -> list[Genome]:
        """New feasible genomes (U,), all different from each other and from the parent."""

    def _start(self) -> Selection:
        """The first parent, if there is one before the first generation."""
        yield from ()
        return None

    def search(self) -> AskTell[None]:
        """Generation after generation."""
        parent = yield from self._start()
        for _ in range(self._schedule.generations):
            offspring = self._offspring(parent)
            parent = yield from self._select(parent, offspring)
            if not offspring:
                return

    def _select(self, parent: Genome | None, offspring: list[Genome]) -> Selection:
        """The best of the offspring and the parent; the parent where all others failed."""
        *early, last = self._schedule.stages
        entrants = offspring
        for stage in early:
            ranking = yield from self._compare(entrants, stage.tokens, stage.recipe)
            entrants = [genome for genome, _ in ranking[: stage.survivors]]
        finalists = entrants if parent is None else [*entrants, parent]
        winner = yield from self._crown(finalists, last.tokens, last.recipe)
        return parent if winner is None else winner

    def _crown(self, genomes: list[Genome], tokens: int, recipe: Recipe | None = None) -> Selection:
        """The best of the genomes, which becomes the incumbent; ``None`` if all failed."""
        ranking = yield from self._compare(genomes, tokens, recipe)
        return self.crown(ranking)

    def _compare(
        self, genomes: list[Genome], tokens: int, recipe: Recipe | None
    ) -> AskTell[Ranking]:
        """The genomes that could be evaluated with their results, best first."""
        if not genomes:
            return []
        requests = self._requests(genomes, batches.draw(self.pool, tokens, self.rng))
        answers = yield [recipe.before(request) for request in requests] if recipe else requests
        results = [answer for answer in answers if isinstance(answer, Result)]
        return ranked(genomes, results)
