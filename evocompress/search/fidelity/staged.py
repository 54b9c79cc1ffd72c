"""Selection in stages: many candidates on few tokens, the survivors on more (EvoPress)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from evocompress.core.arrays import Genome
from evocompress.core.errors import ConfigError
from evocompress.core.fields import Positive, Size, Tokens
from evocompress.core.requests import Pool, Result
from evocompress.search.base import SearcherSettings
from evocompress.search.fidelity import batches
from evocompress.search.fidelity.rungs import Fidelity, Rung
from evocompress.search.generator_searcher import AskTell, GeneratorSearcher, Ranking, ranked
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
class Schedule:
    """How many generations there are, and the rungs of each.

    Attributes:
        generations: Rounds of selection; 0: they follow from the number of dropped units.
        offspring: New candidates of a generation.
        fidelity: On what these are compared.
        initial: Random candidates to begin with; 0 begins at the uniform one.

    Example:
        >>> PUBLISHED["depth"].fidelity.cost(entrants=32)
        131072
    """

    generations: int
    offspring: int
    fidelity: Fidelity
    initial: int = 0

    @classmethod
    def of(
        cls, generations: int, offspring: int, rungs: Mapping[int, int], initial: int = 0
    ) -> Schedule:
        """A published schedule, where `rungs` has the survivors of each number of tokens."""
        found = Fidelity(tuple(Rung(tokens, kept) for tokens, kept in rungs.items()))
        return cls(generations, offspring, found, initial)


PUBLISHED = {
    "sparsity": Schedule.of(400, 64, {2048: 8, 16384: 2, 65536: 1}),
    "depth": Schedule.of(0, 32, {2048: 2, 32768: 1}, initial=64),
    "width": Schedule.of(200, 16, {1024: 8, 2048: 4, 4096: 2, 8192: 1}),
}
"""Of EvoPress (2410.14649) and, for widths, of DarwinLM (2502.07780)."""


def published(settings: StagedSettings, space: SearchSpace) -> Schedule:
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
    rungs = usual.fidelity.rungs
    offspring = settings.offspring or usual.offspring
    survivors = settings.survivors or tuple(rung.survivors for rung in rungs)
    tokens = settings.stage_tokens or tuple(batches.rounded_up(pool, r.tokens) for r in rungs)
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
    stages = tuple(
        Rung(batches.checked_tokens(pool, count, "search.stage_tokens"), kept, recipe=recipe)
        for count, kept, recipe in zip(tokens, survivors, recipes, strict=True)
    )
    generations = settings.generations or usual.generations or _depth_generations(space)
    return Schedule(generations, offspring, Fidelity(stages), usual.initial)


def _depth_generations(space: SearchSpace) -> int:
    """EvoPress's int(k (n - k) / 1.5) for k of n units removed, at least 1."""
    dropped = space.encoding.dropped(sampling.uniform(space)[None])[0]
    masks = [dropped[units] for kind, units in space.encoding.by_kind.items() if kind != "matrix"]
    swaps = max((int(mask.sum() * (len(mask) - mask.sum())) for mask in masks), default=0)
    return max(int(swaps / 1.5), 1)


class StagedSearcher(GeneratorSearcher):
    """Generations of new candidates: staged selection keeps one of each.

    Each stage compares its candidates on the same micro-batches, drawn afresh. The best so
    far joins the last stage: it is measured anew beside its rivals, so it may be replaced.

    Examples:
        >>> from evocompress.search.baselines.random_search import RandomSearch
        >>> from evocompress.testing.examples import searcher
        >>> len(searcher(RandomSearch, offspring=12).ask())
        12
    """

    settings: StagedSettings

    def prepare(self) -> None:
        """Completes the schedule."""
        self._schedule = schedule(self.settings, self.space, self.pool)

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
        *early, last = self._schedule.fidelity.rungs
        entrants = offspring
        for rung in early:
            ranking = yield from self._compare(entrants, rung)
            entrants = [genome for genome, _ in ranking[: rung.survivors]]
        finalists = entrants if parent is None else [*entrants, parent]
        winner = yield from self._crown(finalists, last)
        return parent if winner is None else winner

    def _crown(self, genomes: list[Genome], rung: Rung) -> Selection:
        """The best of the genomes, which becomes the incumbent; ``None`` if all failed."""
        return self.crown((yield from self._compare(genomes, rung)))

    def _compare(self, genomes: list[Genome], rung: Rung) -> AskTell[Ranking]:
        """The genomes that could be evaluated with their results, best first."""
        if not genomes:
            return []
        requests = self._requests(genomes, batches.draw(self.pool, rung.tokens, self.rng))
        if rung.recipe is not None:
            requests = [rung.recipe.before(request) for request in requests]
        answers = yield requests
        results = [answer for answer in answers if isinstance(answer, Result)]
        return ranked(genomes, results)
