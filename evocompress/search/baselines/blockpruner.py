"""BlockPruner (Zhong et al. 2024, 2406.10594): greedy removal of sub-layers or blocks."""

from __future__ import annotations

from evocompress.search.baselines.removal import GreedyRemoval


class BlockPruner(GreedyRemoval):
    """Every unit that is left may go; published with `proxy.kind` perplexity and sub-layers.

    Attention and MLP have unequal parameters, so the end is set by the budget, not by a count.

    ```yaml
    space: {drop: {}, budget: {params: 0.8}}
    search: {name: blockpruner, candidate_tokens: 16384}
    ```

    Examples:
        >>> from evocompress.testing.examples import winner
        >>> winner(BlockPruner)
        {'1.attention': 'drop', '2.attention': 'drop', '3.attention': 'drop'}
    """

    name = "blockpruner"
