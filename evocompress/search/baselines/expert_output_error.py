"""Removal of the experts without which outputs change least (Lu et al. 2024, 2402.14800)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evocompress.search.baselines.one_shot import OneShotRemoval
from evocompress.search.generator_searcher import AskTell


class ExpertOutputError(OneShotRemoval):
    """Error of the layer's output without an expert, lowest first.

    Published with all combinations of a layer, the same number of experts in each.

    ```yaml
    space: {drop: {units: [expert]}, budget: {params: 0.8}}
    search: {name: expert_output_error}
    ```

    Examples:
        >>> from evocompress.testing.examples import winner
        >>> winner(ExpertOutputError)
        {'0.mlp.experts.1': 'drop', '0.mlp.experts.2': 'drop'}
    """

    name = "expert_output_error"
    kinds = ("expert",)

    def _importance(self) -> AskTell[NDArray[np.float64] | None]:
        active = max(unit.active for unit in self.space.encoding.tree)
        return (yield from self._estimated("expert_output_error", forwards=1 + active))
