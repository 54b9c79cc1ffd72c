"""Random search (Li & Talwalkar 2019, 1902.07638): the baseline that others must beat."""

from __future__ import annotations

from functools import partial

from evocompress.core.arrays import Genome
from evocompress.search.fidelity.staged import StagedSearcher, StagedSettings
from evocompress.search.operators.mutation import distinct
from evocompress.space import sampling


class RandomSearch(StagedSearcher):
    """Random feasible candidates in place of mutations; selection is that of EvoPress.

    So both are compared on the same tokens, and the best so far is measured anew beside each
    generation's survivors. With one stage every candidate gets the same tokens.

    ```yaml
    space: {drop: {}, budget: {params: 0.8}}
    search: {name: random, generations: 10, offspring: 16, survivors: [1], stage_tokens: [16384]}
    ```

    Examples:
        >>> from evocompress.testing.examples import winner
        >>> winner(RandomSearch)
        {'1.attention': 'drop', '3.mlp': 'drop'}
    """

    Settings = StagedSettings

    def _offspring(self, parent: Genome | None) -> list[Genome]:
        make = partial(sampling.random, self.space, self.rng)
        return distinct(make, self._schedule.offspring, excluded=parent)
