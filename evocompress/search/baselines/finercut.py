"""FinerCut (Zhang et al. 2024, 2405.18218): greedy removal by the distance of outputs."""

from __future__ import annotations

from evocompress.search.baselines.removal import GreedyRemoval


class FinerCut(GreedyRemoval):
    """Every sub-layer that is left may go; published with the metric of `proxy.kind` js.

    ```yaml
    space: {drop: {}, budget: {params: 0.8}}
    search: {name: finercut, candidate_tokens: 16384}
    ```

    Examples:
        >>> from evocompress.testing.examples import winner
        >>> winner(FinerCut)
        {'1.attention': 'drop', '2.attention': 'drop', '3.attention': 'drop'}
    """

    name = "finercut"
    kinds = ("attention", "mlp")
