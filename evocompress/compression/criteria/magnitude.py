"""Magnitude pruning (Han et al. 2015, 1506.02626): the smallest weights of a matrix go.

```yaml
library: {criterion: magnitude}
space: {sparsity: {target: 0.5}}
```
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evocompress.compression.criteria.base import Statistics, check_levels
from evocompress.compression.criteria.masks import group_ranks, parse_pattern, ranks
from evocompress.core.types import Level


def compress(weight: Tensor, statistics: Statistics, levels: Sequence[Level]) -> list[Tensor]:
    """Zero the ``level.zeros`` smallest magnitudes, of the matrix or of each group.

    One sort serves all unstructured levels. `statistics` are not read.

    Raises:
        LibraryError: A level is impossible for the matrix.
    """
    check_levels(weight, levels)
    dense = weight.float()
    scores = dense.abs()
    order = ranks(scores.flatten()).view_as(scores)

    def masked(level: Level) -> Tensor:
        if not level.pattern:
            return order < level.zeros
        zeros, group = parse_pattern(level.pattern)
        return group_ranks(scores, group) < zeros

    return [torch.where(masked(level), 0.0, dense) for level in levels]
