"""BlockPruner (Zhong et al. 2024, 2406.10594): greedy removal of sub-layers or blocks."""

from __future__ import annotations

from typing import ClassVar

from evocompress.search.baselines.removal import GreedyRemoval


class BlockPruner(GreedyRemoval):
    """Every unit that is left may go; published with `proxy.kind` perplexity and sub-layers.

    Attention and MLP have unequal parameters, so the end is set by the budget, not by a count.
    """

    name: ClassVar[str] = "blockpruner"
