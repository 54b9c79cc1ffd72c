"""SLEB (Song et al. 2024, 2402.09025): greedy removal of whole blocks."""

from __future__ import annotations

import numpy as np

from evocompress.core.arrays import Genome
from evocompress.search.baselines.removal import GreedyRemoval, present, without_each


class SLEB(GreedyRemoval):
    """The first and the last of the blocks that are left stay; published with perplexity.

    Where the budget asks for more, `SearchSpace.repair` compresses what there is.

    ```yaml
    space: {drop: {units: [block]}, budget: {params: 0.8}}
    search: {name: sleb, candidate_tokens: 16384}
    ```

    Examples:
        >>> from evocompress.testing.examples import winner
        >>> winner(SLEB)
        {'1.attention': 'drop', '1.mlp': 'drop'}
    """

    name = "sleb"
    kinds = ("block",)

    def _choices(self, genome: Genome) -> list[Genome]:
        units, genes = self.space.units, self.space.encoding
        dropped = {units[gene].block for gene in np.flatnonzero(genes.dropped(genome))}
        alive = sorted({unit.block for unit in genes.tree} - dropped)
        left = present(self.space, genome)
        inner = left[[alive[0] < units[gene].block < alive[-1] for gene in left]]
        return without_each(self.space, genome, inner)
