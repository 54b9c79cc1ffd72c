"""Minitron's activation importance (Muralidharan et al. 2024, 2407.14679).

```yaml
library: {width_criterion: minitron}
space: {width: {multiple_of: 32}, budget: {params: 0.8}}
```
"""

from __future__ import annotations

from collections.abc import Sequence

from evocompress.compression.criteria.base import Statistics
from evocompress.compression.criteria.structure import Cut, Structure, Width, by_part, cut_by_scores


def cut(structure: Structure, statistics: Statistics, widths: Sequence[Width]) -> list[Cut]:
    """Keep the items with the largest inputs to the output matrix.

    An input's magnitude is the mean of |x| over a sequence, then the norm over the sequences;
    an item's, and a group's, is the norm over its inputs. The squares of these norms add up,
    so it is them that are compared. No weight is read.

    Raises:
        LibraryError: A width is impossible, or the statistics are not finite.
        ValueError: The statistics have no magnitudes.
    """
    if statistics.magnitudes is None:
        raise ValueError("this criterion needs the magnitudes of the inputs")
    scores = by_part([statistics.magnitudes.square()], structure.items)
    return cut_by_scores(structure, widths, scores)
