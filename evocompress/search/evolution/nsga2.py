"""NSGA-II (Deb et al. 2002): a whole front of quality against costs in one search."""

from __future__ import annotations

from evocompress.search.evolution.evolved_front import EvolvedFront


class NSGA2(EvolvedFront):
    """Survivors by layers of the front, and within the last layer by crowding.

    ```yaml
    space: {drop: {}}
    search: {name: nsga2, objectives: [params], population: 8, generations: 6}
    ```

    Examples:
        >>> from evocompress.testing.examples import winner
        >>> winner(NSGA2)
        {'0.mlp': 'drop', '1.attention': 'drop', '2.attention': 'drop', '3.attention': 'drop',
        '3.mlp': 'drop'}
    """

    algorithm = "nsga2"
