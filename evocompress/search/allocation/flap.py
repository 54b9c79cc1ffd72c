"""FLAP's allocation of widths (An et al. 2023, 2312.11983): one ranking of all heads and channels.

Every head and channel has a score that is comparable across layers. What is below one threshold
goes, and the threshold is where the budget is met: a layer of little fluctuation loses much.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from evocompress.core.arrays import Floats, Genome
from evocompress.core.errors import ConfigError
from evocompress.core.types import Level
from evocompress.search.base import CandidateSettings, SearcherSettings
from evocompress.search.generator_searcher import (
    AskTell,
    GeneratorSearcher,
    first_feasible,
)
from evocompress.space.space import SearchSpace

Thresholds = dict[int, Floats]
"""By gene the threshold at which each of its levels is reached (levels,)."""


class Flap(GeneratorSearcher):
    """Takes the scores at the dense model once, and of all thresholds the lowest that suffices.

    ```yaml
    space: {width: {multiple_of: 4}, budget: {body_params: 0.7}}
    search: {name: flap, candidate_tokens: 8192}
    ```

    Examples:
        >>> from evocompress.testing.examples import winner
        >>> winner(Flap)
        {'0.mlp': 'channels=16', '1.attention': 'kv_groups=1,group_heads=2', '1.mlp': 'channels=20',
        '2.mlp': 'channels=20', '3.mlp': 'channels=20'}
    """

    Settings: ClassVar[type[SearcherSettings]] = CandidateSettings

    def check(self) -> None:
        """Refuses a space without widths."""
        if not self.space.encoding.widths.size:
            raise ConfigError("search.name: flap cuts heads and channels, so it needs space.width")

    def search(self) -> AskTell[None]:
        """The scores, then the lowest threshold that suffices."""
        start = self.space.encoding.default
        scores = yield from self.estimate(start, "fluctuation", self.micro_batches)
        if scores.failed is None:
            path = trajectory(self.space, thresholds(self.space, scores.by_unit))
            yield from self.conclude(first_feasible(self.space, path))


def thresholds(space: SearchSpace, scores: Mapping[str, Sequence[float]]) -> Thresholds:
    """For each gene with widths the lowest threshold at which each of its levels is reached.

    A level is reached once the threshold is as high as every score that the level removes, in all
    units of the gene. The dense level removes nothing: its threshold is minus infinity. Scores are
    given by sub-layer, one for each channel or query head.
    """
    groups = {part.unit.name: part.kv_heads for part in space.cost_model.parts}

    def threshold(gene: int, level: Level) -> float:
        units = [unit.name for unit in space.encoding.members[gene]]
        return max(_highest_removed(np.array(scores[u]), groups[u], level) for u in units)

    return {
        gene: np.array([threshold(gene, level) for level in space.levels[gene]])
        for gene in space.encoding.widths.tolist()
    }


def trajectory(space: SearchSpace, tables: Thresholds) -> Genome:
    """The genomes (N, U) at every threshold that changes something, from the lowest on.

    Each gene has its last level, which is its smallest, among those within the threshold.
    """
    path = []
    for threshold in np.unique(np.concatenate(list(tables.values()))):
        genome = space.encoding.default.copy()
        for gene, table in tables.items():
            genome[gene] = np.flatnonzero(table <= threshold)[-1]
        path.append(genome)
    return space.deactivate(np.stack(path))


def _highest_removed(scores: Floats, groups: int, level: Level) -> float:
    """The highest of the scores (items,) that a level removes.

    An attention with `groups` key-value heads keeps the groups of the highest mean, and in each
    of them the highest heads.
    """
    if level.dense:
        return -np.inf
    if level.drop:
        return float(scores.max())
    if level.channels is not None:
        return float(np.sort(scores)[-level.channels - 1])
    heads = -np.sort(-scores.reshape(groups, -1), axis=1)
    heads = heads[np.argsort(-heads.mean(axis=1), kind="stable")]
    heads[: level.kv_groups, : level.group_heads] = -np.inf
    return float(heads.max())
