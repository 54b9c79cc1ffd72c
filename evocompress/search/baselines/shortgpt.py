"""ShortGPT (Men et al. 2024, 2403.03853): removal of what turns the residual stream least."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evocompress.search.baselines.one_shot import OneShotRemoval
from evocompress.search.generator_searcher import AskTell


class ShortGPT(OneShotRemoval):
    """Block influence, lowest first; published for whole blocks, here for sub-layers, too.

    ```yaml
    space: {drop: {units: [block]}, budget: {params: 0.8}}
    search: {name: shortgpt}
    ```

    Examples:
        >>> from evocompress.testing.examples import winner
        >>> winner(ShortGPT)
        {'2.attention': 'drop', '2.mlp': 'drop'}
    """

    name = "shortgpt"

    def _importance(self) -> AskTell[NDArray[np.float64] | None]:
        return (yield from self._estimated("block_influence"))
