"""MultiPruner (Munoz et al. 2025, 2501.09949): first blocks, then FFN channels, then heads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Annotated

import numpy as np
from pydantic import Field, field_validator

from evocompress.core.arrays import Genome
from evocompress.core.errors import ConfigError
from evocompress.core.fields import Number, Tokens
from evocompress.core.level_order import only_cuts
from evocompress.core.types import Level
from evocompress.search.base import SearcherSettings
from evocompress.search.baselines.removal import present, without_each
from evocompress.search.generator_searcher import AskTell, GeneratorSearcher
from evocompress.space.space import SearchSpace

SavingPart = Annotated[Number, Field(ge=0, le=1e6)]


class MultiPruner(GeneratorSearcher):
    """Three greedy stages, each with its share of what the budget saves.

    A step of the second and third stage tries the next width on every layer and keeps the best;
    no layer loses its last width. A stage that cannot reach its share leaves it to the next.
    Up to the end of the first stage the way does not depend on the budget, but where that end
    lies does.

    ```yaml
    space: {drop: {}, width: {units: [mlp], multiple_of: 16}, budget: {params: 0.8}}
    search: {name: multipruner, split: [50, 50, 0], width_tokens: 16384}
    ```

    Examples:
        >>> from evocompress.testing.examples import winner
        >>> winner(MultiPruner)
        {'1.attention': 'drop', '2.attention': 'drop', '3.mlp': 'channels=16'}
    """

    class Settings(SearcherSettings):
        """Settings of `MultiPruner`.

        Attributes:
            split: Parts of the saving that removed units, FFN channels and heads are to give; each
                stage goes on until its part and those before it are reached. Published: 44:52:4
                (Llama-2, Qwen1.5), 20:80:0 (Llama-3), 30:70:0 (3.1), 10:90:0 (3.2-3B), 50:50:0
                (Qwen2.5).
            candidate_tokens: Tokens on which removed units are compared, and the result is
                measured; the whole pool if left out.
            width_tokens: Tokens on which widths are compared; `candidate_tokens` if left out.
                Published: half of them.
        """

        split: tuple[SavingPart, SavingPart, SavingPart] = (44, 52, 4)
        candidate_tokens: Tokens | None = None
        width_tokens: Tokens | None = None

        @field_validator("split")
        @classmethod
        def _gives_something(cls, split: tuple[float, float, float]) -> tuple[float, float, float]:
            if not sum(split):
                raise ValueError("give at least one part above 0")
            return split

    settings: Settings

    def check(self) -> None:
        """Refuses a space without widths."""
        if not self.space.encoding.widths.size:
            raise ConfigError(
                "search.name: multipruner cuts channels and heads, so it needs space.width"
            )

    def prepare(self) -> None:
        """Draws the tokens for widths, and adds up the shares of the stages."""
        split = self.settings.split
        self._narrow_batches = self.chosen(self.settings.width_tokens, "search.width_tokens")
        self._shares = np.cumsum(split) / sum(split)

    def search(self) -> AskTell[None]:
        """The three stages."""
        stages: list[Callable[[Genome], list[Genome]]] = [
            lambda whole: without_each(self.space, whole, present(self.space, whole)),
            partial(self._narrower, "mlp"),
            partial(self._narrower, "attention"),
        ]
        compared = (self.micro_batches, self._narrow_batches, self._narrow_batches)
        genome, shares = self.space.encoding.default, self._shares.tolist()
        for share, choices, micro_batches in zip(shares, stages, compared, strict=True):
            target = self._target(share)
            genome = yield from self.descend(genome, choices, target, micro_batches)
        yield from self.conclude(genome)

    def _target(self, share: float) -> SearchSpace:
        """The space with a budget that asks for a share of the saving."""
        costs = self.space.costs(self.space.encoding.default[None])
        bounds = {
            name: (1 - share) * float(costs[name][0]) + share * bound
            for name, bound in self.space.budget.items()
        }
        return replace(self.space, budget=bounds)

    def _narrower(self, kind: str, genome: Genome) -> list[Genome]:
        """The genome (U,) with each sub-layer of a kind at its next width."""
        genes = self.space.encoding
        inactive = genes.inactive(genome[None])[0]
        tries = []
        for gene in genes.widths.tolist():
            level = _next_width(genes.levels[gene], int(genome[gene]))
            if genes.units[gene].kind == kind and not inactive[gene] and level is not None:
                tries.append(genome.copy())
                tries[-1][gene] = level
        return tries


def _next_width(levels: tuple[Level, ...], index: int) -> int | None:
    """The index of the first narrower level that keeps nothing which the present one cuts."""
    narrower = range(index + 1, len(levels))
    return next((later for later in narrower if only_cuts(levels[later], levels[index])), None)
