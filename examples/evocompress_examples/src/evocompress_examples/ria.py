"""RIA (Zhang et al. 2024, ICLR): weights go that matter little to their row and their column.

``library: {criterion: ria}``
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from evocompress.compression.criteria import Criterion, Statistics
from evocompress.compression.criteria.base import check_levels
from evocompress.compression.criteria.masks import group_ranks, parse_pattern, smallest
from evocompress.core.types import Level


def compress(weight: Tensor, statistics: Statistics, levels: Sequence[Level]) -> list[Tensor]:
    """Zeroes what has the least share in its row and its column, times the root of its input.

    Args:
        weight: The dense matrix (out, in).
        statistics: Of its inputs.
        levels: How many zeros each result gets.
    """
    check_levels(weight, levels)
    dense = weight.float()
    sizes = dense.abs()
    shares = [sizes / sizes.sum(side, keepdim=True).clamp(min=1e-12) for side in (0, 1)]
    scores = sum(shares) * statistics.norms.sqrt()

    def masked(level: Level) -> Tensor:
        if not level.pattern:
            return smallest(scores.view(1, -1), [level.zeros]).view_as(scores)
        zeros, group = parse_pattern(level.pattern)
        return group_ranks(scores, group) < zeros

    return [torch.where(masked(level), 0.0, dense) for level in levels]


RIA = Criterion(needs="squares", compress=compress)
