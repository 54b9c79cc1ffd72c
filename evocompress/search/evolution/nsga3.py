"""NSGA-III (Deb & Jain 2014): a front kept even along reference directions."""

from __future__ import annotations

from evocompress.search.evolution.evolved_front import EvolvedFront


class NSGA3(EvolvedFront):
    """Survivors by layers of the front, and within the last layer by reference directions.

    Made for three objectives and more, where crowding tells little: directions are spread
    evenly over the costs and the value, each scaled to the range of the front.

    ```yaml
    space: {drop: {}}
    search: {name: nsga3, objectives: [params, flops], population: 8, generations: 6}
    ```

    Examples:
        >>> from evocompress.testing.examples import winner
        >>> winner(NSGA3)
        {'0.mlp': 'drop', '1.attention': 'drop', '1.mlp': 'drop', '2.attention': 'drop', '2.mlp':
        'drop', '3.attention': 'drop', '3.mlp': 'drop'}
    """

    algorithm = "nsga3"
