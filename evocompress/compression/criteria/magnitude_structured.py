"""Magnitude of heads and channels, as MultiPruner orders them (2501.09949).

```yaml
library: {width_criterion: magnitude}
space: {width: {multiple_of: 32}, budget: {params: 0.8}}
```
"""

from __future__ import annotations

from collections.abc import Sequence

from evocompress.compression.criteria.base import Statistics
from evocompress.compression.criteria.structure import Cut, Structure, Width, by_part, cut_by_scores


def cut(structure: Structure, statistics: Statistics, widths: Sequence[Width]) -> list[Cut]:
    """Keep the largest L1 norms of the rows that make an item.

    A channel's are its rows of gate and up, a query head's its rows of the query matrix; the
    key and value rows of a group count for the group. The output matrix and `statistics` are
    not read. See `evocompress.compression.criteria.structure.StructuredCriterion` for the
    arguments.

    Raises:
        LibraryError: A width is impossible, or a weight is not finite.
    """
    items = by_part([matrix.abs().sum(1) for matrix in structure.inputs], structure.items)
    if not structure.shared:
        return cut_by_scores(structure, widths, items)
    shared = by_part([matrix.abs().sum(1) for matrix in structure.shared], structure.groups)
    return cut_by_scores(structure, widths, items, shared)
