"""Shortened-LLaMA (Kim et al. 2024, 2402.02834): removal by one ranking of the blocks."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from evocompress.core.fields import Whole
from evocompress.search.base import CandidateSettings
from evocompress.search.baselines.one_shot import OneShotRemoval
from evocompress.search.baselines.removal import without_each
from evocompress.search.generator_searcher import AskTell

BlockCount = Annotated[Whole, Field(ge=0, le=10_000)]


class ShortenedLlama(OneShotRemoval):
    """Ranks every unit on its own; published for whole blocks, here for sub-layers, too.

    Where the shield keeps more than the budget allows, `SearchSpace.repair` compresses what
    there is.

    ```yaml
    space: {drop: {units: [block]}, budget: {params: 0.8}}
    search: {name: shortened_llama, metric: taylor, shield: [1, 1]}
    ```

    Examples:
        >>> from evocompress.testing.examples import winner
        >>> winner(ShortenedLlama)
        {'2.attention': 'drop', '2.mlp': 'drop'}
    """

    class Settings(CandidateSettings):
        """Settings of `ShortenedLlama`.

        Attributes:
            metric: ``proxy`` measures the model without each unit by the run's proxy (published:
                perplexity); ``taylor`` is one backward pass.
            shield: How many of the first and of the last blocks stay. Left out it is (4, 2) for
                ``taylor``, published as Taylor+, and (0, 0) for ``proxy``.
        """

        metric: Literal["proxy", "taylor"] = "proxy"
        shield: tuple[BlockCount, BlockCount] | None = None

        @property
        def needs_next_token(self) -> bool:
            """Where it takes gradients."""
            return self.metric == "taylor"

    settings: Settings

    name = "shortened_llama"

    def _importance(self) -> AskTell[NDArray[np.float64] | None]:
        importance = yield from (
            self._estimated("taylor", forwards=3)
            if self.settings.metric == "taylor"
            else self._measured()
        )
        return None if importance is None else np.where(self._shielded(), np.inf, importance)

    def _measured(self) -> AskTell[NDArray[np.float64] | None]:
        """The proxy's value without each unit; infinite where it could not be measured."""
        genes = self.space.encoding
        tries = without_each(self.space, genes.default, genes.droppable)
        results = yield from self.evaluate(tries, self.micro_batches, probe=True)
        return np.array([result.mean for result in results])

    def _shielded(self) -> NDArray[np.bool_]:
        """Which of the droppable genes lie in the first or last blocks."""
        units = self.space.units
        blocks = np.array([units[gene].block for gene in self.space.encoding.droppable])
        published = (4, 2) if self.settings.metric == "taylor" else (0, 0)
        first, last = self.settings.shield or published
        layers = 1 + max(unit.block for unit in self.space.encoding.tree)
        return (blocks < first) | (blocks >= layers - last)
