"""Removal of the experts that routers choose least, the common baseline (2402.14800)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evocompress.search.baselines.one_shot import OneShotRemoval
from evocompress.search.generator_searcher import AskTell


class RoutingFrequency(OneShotRemoval):
    """Share of the tokens of its layer that are sent to an expert, lowest first.

    ```yaml
    space: {drop: {units: [expert]}, budget: {params: 0.8}}
    search: {name: routing_frequency}
    ```

    Examples:
        >>> from evocompress.testing.examples import winner
        >>> winner(RoutingFrequency)
        {'0.mlp.experts.1': 'drop', '0.mlp.experts.2': 'drop'}
    """

    name = "routing_frequency"
    kinds = ("expert",)

    def _importance(self) -> AskTell[NDArray[np.float64] | None]:
        return (yield from self._estimated("routing_frequency"))
