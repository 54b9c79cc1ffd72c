"""Searchers whose candidates are proposed by a sampler of Optuna, a small batch at a time.

A sampler takes every value for what it is, so all candidates are compared on the same tokens. The
best few are measured again on more tokens at the end, against the luck of the first.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from importlib.util import find_spec
from math import inf
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from evocompress.core.arrays import Genome
from evocompress.core.errors import ConfigError
from evocompress.core.fields import Many, Size, Tokens
from evocompress.core.pareto import Points, spread
from evocompress.core.requests import Pool
from evocompress.search.base import SearcherSettings
from evocompress.search.fidelity import batches
from evocompress.search.fidelity.rungs import Reserve, Rung, search_and_final
from evocompress.search.generator_searcher import AskTell, GeneratorSearcher
from evocompress.search.objectives import Measured, Objectives
from evocompress.search.operators.mutation import distinct
from evocompress.space import sampling
from evocompress.space.repair import fill_budget, repair

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

_FINAL_SHARE = 4
"""Without `final_tokens` the end takes at most a quarter of the search's tokens."""

_SEEDS = 2**32


class SampledSearcher(GeneratorSearcher):
    """Asks a sampler for genomes, tells it their points, and measures the best again.

    Attributes:
        name: What messages call the searcher.
    """

    class Settings(SearcherSettings):
        """Settings of a searcher whose candidates Optuna proposes.

        Attributes:
            candidates: How many are measured at most, the second measurement of the best not
                counted; without it the tokens set the end.
            startup: How many of them are chosen without the sampler, as its first data: the even
                candidate and random ones.
            batch: How many are asked for at a time. Their values are told together.
            candidate_tokens: Tokens on which every candidate is compared, always the same ones;
                about 2048 if left out.
            finalists: How many are measured again at the end.
            final_tokens: On how many tokens that is, among them the ones above. If left out, the
                whole pool, or as many as a quarter of ``search.tokens`` allows.
        """

        candidates: Many | None = None
        startup: Size = 10
        batch: Size = 8
        candidate_tokens: Tokens | None = None
        finalists: Size = 8
        final_tokens: Tokens | None = None

        def tokens_of_comparison(self, pool: Pool) -> None:
            """They are drawn among those of the last comparison."""

    settings: Settings

    checks_tokens = True
    name: ClassVar[str]
    _objectives = Objectives((), np.empty(0))

    def check(self) -> None:
        """Refuses a search that nothing ends, and one without Optuna."""
        if find_spec("optuna") is None:
            raise ConfigError(
                f"search.name: {self.name} needs a package that is not installed: "
                "pip install 'evocompress[optuna]'"
            )
        self.ledger.check_ends(self.name, "candidates", self.settings.candidates)

    def prepare(self) -> None:
        """Sets the tokens for start and end aside."""
        settings, limit = self.settings, self.ledger.limit
        self._fidelity = search_and_final(
            self.pool,
            limit,
            self.rng,
            candidate_tokens=settings.candidate_tokens,
            final_tokens=settings.final_tokens or _final_tokens(self.pool, limit, settings),
            key="final_tokens",
            finalists=settings.finalists,
            reserve=Reserve(first=settings.startup),
            levers=("startup", "candidate_tokens", "finalists", "final_tokens"),
        )
        self._archive: list[Measured] = []

    @property
    def objectives(self) -> tuple[str, ...]:
        """The costs that span a front with the proxy's value, if any."""
        return self._objectives.costs

    @abstractmethod
    def _sampler(self, seed: int) -> BaseSampler:
        """The sampler of Optuna; it alone decides what is asked for after the start."""

    def _first(self, count: int) -> list[Genome]:
        """Up to `count` feasible genomes (U,) to begin with: the even one, then random ones."""
        even = sampling.uniform(self.space)
        return [
            even,
            *distinct(lambda: sampling.random(self.space, self.rng), count - 1, excluded=even),
        ]

    def _complete(self, genome: Genome) -> Genome:
        """The feasible genome (U,) that is measured in place of a proposed one."""
        return fill_budget(self.space, repair(self.space, genome, self.rng), self.rng)

    def search(self) -> AskTell[None]:
        """Batches that the sampler proposes, then the best on more tokens."""
        from evocompress.search.bayesian.optuna_study import GenomeStudy

        study = GenomeStudy(
            self.space,
            self._sampler(int(self.rng.integers(_SEEDS))),
            self._first(self.settings.startup),
            self._complete,
            objectives=1 + len(self.objectives),
        )
        while genomes := study.ask(self._affordable()):
            measured = yield from self._measure(genomes, self._fidelity.rungs[0])
            study.tell(genomes, self._objectives.of(self.space, measured))
            self._archive += measured
            self._best = self._objectives.balanced(self.space, self._archive)
        finals = yield from self._measure(self._finalists(), self._fidelity.rungs[-1])
        self._best = self._objectives.balanced(self.space, finals) or self._best

    def _affordable(self) -> int:
        """How many candidates the next batch may have."""
        measured = len(self._archive)
        limits = [self.settings.batch, self._fidelity.entrants(self.ledger.left)]
        if self.settings.candidates is not None:
            limits.append(self.settings.candidates - measured)
        return min(limits)

    def _measure(self, genomes: Sequence[Genome], rung: Rung) -> AskTell[list[Measured]]:
        results = yield from self.evaluate(genomes, rung.micro_batches)
        return [Measured(genome, result) for genome, result in zip(genomes, results, strict=True)]

    def _finalists(self) -> list[Genome]:
        """The best genomes on the tokens of the search, of a front evenly spread ones."""
        entries = [entry for entry in self._archive if entry.candidate.levels]
        if not entries:
            return []
        points = self._objectives.of(self.space, entries)
        best = _best(points, self.settings.finalists)
        return [entries[index].genome for index in best.tolist()]


def _best(points: Points, count: int) -> NDArray[np.int64]:
    """Indices of up to `count` of the finite points (N, M)."""
    if points.shape[1] > 1:
        return spread(points, count)
    order: NDArray[np.int64] = np.argsort(points[:, 0], kind="stable")
    return order[: min(count, int(np.isfinite(points).sum()))]


def _final_tokens(pool: Pool, limit: int | float, settings: SampledSearcher.Settings) -> int:
    """Tokens of each finalist where none are given, not fewer than the search's own."""
    tokens = settings.candidate_tokens or batches.few(pool)
    whole = batches.rounded_up(pool, sum(pool.tokens))
    if limit == inf:
        return whole
    share = max(int(limit // _FINAL_SHARE // settings.finalists), tokens)
    return min(share // tokens * tokens, whole)
