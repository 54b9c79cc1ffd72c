"""First-order Taylor importance of heads and channels (LLM-Pruner, Ma et al. 2023, 2305.11627).

```yaml
library: {width_criterion: taylor}
space: {width: {multiple_of: 32}, budget: {params: 0.8}}
```
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from evocompress.compression.criteria.base import Statistics
from evocompress.compression.criteria.structure import Cut, Structure, Width, by_part, cut_by_scores


def cut(structure: Structure, statistics: Statistics, widths: Sequence[Width]) -> list[Cut]:
    """Keep the items whose removal changes the loss most, to first order.

    This is the paper's "vector" importance: |Σ weight·gradient| over each row, or column of
    the output matrix, that goes with an item, summed over these. The key and value rows of a
    group count for the group. `statistics` are not read.

    Raises:
        LibraryError: A width is impossible, or a gradient is not finite.
        ValueError: The structure has no gradients.
    """
    matrices = (structure.output, *structure.inputs, *structure.shared)
    if len(structure.gradients) != len(matrices):
        raise ValueError("this criterion needs the gradients of all matrices of the sub-layer")
    products = [w * g for w, g in zip(matrices, structure.gradients, strict=True)]
    split = 1 + len(structure.inputs)
    columns = products[0].sum(0).abs()
    items = by_part([columns, *_rows(products[1:split])], structure.items)
    if not structure.shared:
        return cut_by_scores(structure, widths, items)
    shared = by_part(_rows(products[split:]), structure.groups)
    return cut_by_scores(structure, widths, items, shared)


def _rows(products: Sequence[Tensor]) -> list[Tensor]:
    return [product.sum(1).abs() for product in products]
