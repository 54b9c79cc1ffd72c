"""FLAP (An et al. 2023, 2312.11983): inputs that hardly fluctuate become a bias.

```yaml
library: {width_criterion: flap}
space: {width: {multiple_of: 32}, budget: {params: 0.8}}
```
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from evocompress.compression.criteria.base import Statistics
from evocompress.compression.criteria.structure import Cut, Structure, Width, by_part, cut_by_scores


def fluctuations(output: Tensor, statistics: Statistics) -> Tensor:
    """The paper's WIFV, variance of the input times ‖weights that read it‖², (in,)."""
    return statistics.variances * output.square().sum(0)


def cut(structure: Structure, statistics: Statistics, widths: Sequence[Width]) -> list[Cut]:
    """Keep the items that fluctuate most, and add the mean output of the others to the bias.

    A head's score is the sum of the squared WIFV of its inputs, as in the paper's code; for
    channels the squares do not change the order. The bias of a narrow cut is the own one plus
    W·(mean of the inputs that were cut).

    Raises:
        LibraryError: A width is impossible, or the statistics are not finite.
        ValueError: The statistics have no sums.
    """
    scores = fluctuations(structure.output, statistics).square()
    cuts = cut_by_scores(structure, widths, by_part([scores], structure.items))
    return [_compensated(structure, statistics.means, one) for one in cuts]


def _compensated(structure: Structure, means: Tensor, cut: Cut) -> Cut:
    if len(cut.items) == structure.items:
        return cut
    gone = means.clone()
    gone[structure.columns(cut.items)] = 0
    own = 0.0 if structure.bias is None else structure.bias
    return replace(cut, bias=torch.mv(structure.output, gone) + own)
