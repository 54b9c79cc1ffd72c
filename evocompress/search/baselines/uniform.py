"""The uniform candidate alone: what every allocation must beat."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from evocompress.core.fields import Tokens
from evocompress.search.base import Incumbent, Problem, SearcherSettings
from evocompress.search.fidelity import batches
from evocompress.search.generator_searcher import GeneratorSearcher, ProceduralSearcher, ranked
from evocompress.space import sampling
from evocompress.space.budget import require


class UniformSettings(SearcherSettings):
    """Settings of `Uniform`.

    Attributes:
        candidate_tokens: Tokens on which it is measured; the whole pool if left out.
    """

    candidate_tokens: Tokens | None = None


class Uniform(ProceduralSearcher):
    """Measures the space's uniform candidate once and ends."""

    Settings: ClassVar[type[SearcherSettings]] = UniformSettings

    def __init__(
        self, problem: Problem, settings: UniformSettings, rng: np.random.Generator
    ) -> None:
        require(problem.space)
        self._micro_batches = batches.chosen(
            problem.pool, settings.candidate_tokens, "search.candidate_tokens", rng
        )
        super().__init__(problem, rng)

    def _search(self) -> GeneratorSearcher:
        genomes = [sampling.uniform(self._space)]
        results = yield from self._evaluate(genomes, self._micro_batches)
        for _, result in ranked(genomes, results):
            self._best = Incumbent.of(result)
