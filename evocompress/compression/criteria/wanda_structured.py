"""Wanda's score (Sun et al. 2023, 2306.11695) summed over the columns of a head or channel.

```yaml
library: {width_criterion: wanda}
space: {width: {multiple_of: 32}, budget: {params: 0.8}}
```
"""

from __future__ import annotations

from collections.abc import Sequence

from evocompress.compression.criteria.base import Statistics
from evocompress.compression.criteria.structure import Cut, Structure, Width, by_part, cut_by_scores


def cut(structure: Structure, statistics: Statistics, widths: Sequence[Width]) -> list[Cut]:
    """Keep the largest Σ |weight|·‖input‖ over an item's columns of the output matrix.

    This is Wanda-sp, the structured baseline of FLAP (2312.11983).

    Raises:
        LibraryError: A width is impossible, or the statistics are not finite.
    """
    scores = structure.output.abs().sum(0) * statistics.norms
    return cut_by_scores(structure, widths, by_part([scores], structure.items))
