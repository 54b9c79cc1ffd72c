"""Searching for a front: all are compared on the same tokens, the best again on more of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field

from evocompress.core.arrays import Genome
from evocompress.core.fields import Number, Tokens, Whole
from evocompress.core.pareto import spread
from evocompress.core.requests import Pool
from evocompress.search.base import SearcherSettings
from evocompress.search.fidelity.rungs import Reserve, Rung, search_and_final
from evocompress.search.generator_searcher import AskTell, GeneratorSearcher
from evocompress.search.objectives import Measured, choose
from evocompress.search.operators.mutation import different

Share = Annotated[Number, Field(ge=0, le=1e18)]


class FrontSettings(SearcherSettings):
    """Settings of every search for a front.

    Attributes:
        objectives: Costs that span the front with the proxy's value; the costs of the budget
            if left out.
        range: {objective: (lowest, highest)} that matters, as shares of the dense model's cost
            where at most 1. Highest is kept like a budget; what costs less than lowest counts
            as costing the lowest, so that nothing is gained by going below it.
        candidate_tokens: Tokens on which every candidate is compared, always the same ones.
        front_tokens: Tokens on which the front is measured again at the end, among them the
            ones above; the whole pool if left out.
        front_size: How many candidates are measured again.
    """

    objectives: tuple[str, ...] = ()
    range: dict[str, tuple[Share, Share]] = {}
    candidate_tokens: Tokens | None = None
    front_tokens: Tokens | None = None
    front_size: Annotated[Whole, Field(ge=2, le=10_000)] = 20

    def tokens_of_comparison(self, pool: Pool) -> None:
        """They are drawn among those of the last comparison."""


class FrontSearcher(GeneratorSearcher):
    """Collects candidates on few tokens, and in the end measures their front on more.

    As much of the front as is asked for, spread over its length, is measured again. The
    incumbent is the knee of the front. The dense model may take part in the search, but is not
    on the front: it is known anyway.

    Examples:
        >>> from evocompress.testing.examples import searcher
        >>> class Dense(FrontSearcher):
        ...     Settings = FrontSettings
        ...     def search(self):
        ...         yield from self._compare([self.space.encoding.default])
        >>> searcher(Dense, candidate_tokens=4096).objectives
        ('body_params',)
    """

    settings: FrontSettings
    needs_budget: ClassVar[bool] = False
    checks_tokens: ClassVar[bool] = True
    levers: ClassVar[tuple[str, ...]] = ("front_tokens", "front_size")
    """Settings that lower the tokens which start and end take."""

    def prepare(self) -> None:
        """Narrows the space to the range, and sets the tokens for start and end aside."""
        settings = self.settings
        self.space, self._objectives = choose(self.space, settings.objectives, settings.range)
        self._fidelity = search_and_final(
            self.pool,
            self.ledger.limit,
            self.rng,
            candidate_tokens=settings.candidate_tokens,
            final_tokens=settings.front_tokens,
            key="front_tokens",
            finalists=settings.front_size,
            reserve=self._reserve(),
            levers=self.levers,
        )
        self._archive: list[Measured] = []

    def _reserve(self) -> Reserve:
        """What start and end take beside the front: one candidate."""
        return Reserve()

    @property
    def objectives(self) -> tuple[str, ...]:
        """The costs that span the front with the proxy's value."""
        return self._objectives.costs

    def _affordable(self, references: int = 0) -> int:
        """How many candidates can still be compared before the end."""
        last = self._fidelity.rungs[-1]
        return self._fidelity.entrants(self.ledger.left - references * last.tokens)

    def _compare(self, genomes: Sequence[Genome]) -> AskTell[list[Measured]]:
        """Measures genomes (U,) beside all others and keeps them for the front."""
        measured = yield from self._measure(genomes, self._fidelity.rungs[0])
        self._archive += measured
        self._best = self._objectives.balanced(self.space, self._archive) or self._best
        return measured

    def _measure_front(self, references: Sequence[Genome] = ()) -> AskTell[None]:
        """Measures the front and the references (U,) again; its knee becomes the incumbent."""
        finalists = different([*self._front(), *references])
        front = yield from self._measure(finalists, self._fidelity.rungs[-1])
        self._best = self._objectives.balanced(self.space, front) or self._best

    def _front(self) -> list[Genome]:
        """The front's genomes (U,), evenly spread; where it is short, the next layers'."""
        entries = [entry for entry in self._archive if entry.candidate.levels]
        if not entries:
            return []
        points = self._objectives.of(self.space, entries)
        return [entries[index].genome for index in spread(points, self.settings.front_size)]

    def _measure(self, genomes: Sequence[Genome], rung: Rung) -> AskTell[list[Measured]]:
        results = yield from self.evaluate(genomes, rung.micro_batches)
        return [Measured(genome, result) for genome, result in zip(genomes, results, strict=True)]
