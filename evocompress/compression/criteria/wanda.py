"""Wanda (Sun et al. 2023, 2306.11695): weights of small magnitude times input norm go.

```yaml
library: {criterion: wanda}
space: {sparsity: {target: 0.5}}
```
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evocompress.compression.criteria.base import Statistics, check_levels
from evocompress.compression.criteria.masks import group_ranks, parse_pattern, ranks, shares
from evocompress.core.types import Level


def compress(weight: Tensor, statistics: Statistics, levels: Sequence[Level]) -> list[Tensor]:
    """Zero the smallest |weight|·‖input‖ of each output row, or of each group within it.

    The zeros of a level are dealt to the rows as evenly as integers allow. One sort serves all
    unstructured levels.

    Raises:
        LibraryError: A level is impossible for the matrix.
    """
    check_levels(weight, levels)
    dense = weight.float()
    scores = dense.abs() * statistics.norms
    order = ranks(scores)
    row_ends = range(1, len(weight) + 1)

    def masked(level: Level) -> Tensor:
        if level.pattern:
            zeros, group = parse_pattern(level.pattern)
            return group_ranks(scores, group) < zeros
        counts = torch.tensor(shares(level.zeros, row_ends), device=order.device)
        return order < counts[:, None]

    return [torch.where(masked(level), 0.0, dense) for level in levels]
