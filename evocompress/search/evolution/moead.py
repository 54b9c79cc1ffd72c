"""MOEA/D (Zhang & Li 2007): a front as many neighbouring problems of a single objective."""

from __future__ import annotations

from evocompress.core.errors import ConfigError
from evocompress.search.evolution.evolved_front import EvolvedFront


class MOEAD(EvolvedFront):
    """Each candidate of the population is the best one for a weighting of the objectives.

    A child's parents are neighbours, and it takes the place of every neighbour for whose
    weighting it is better.

    ```yaml
    space: {drop: {}}
    search: {name: moead, objectives: [params], population: 8, generations: 6}
    ```

    Examples:
        >>> from evocompress.testing.examples import winner
        >>> winner(MOEAD)
        {'1.attention': 'drop', '1.mlp': 'drop', '2.attention': 'drop', '3.mlp': 'drop'}
    """

    algorithm = "moead"

    def check(self) -> None:
        """Refuses more offspring than there are directions."""
        super().check()
        offspring, population = self.settings.offspring, self.settings.population
        if offspring is not None and offspring > population:
            raise ConfigError(
                f"search.offspring: {offspring} is more than the population of {population}, and "
                "moead makes one child for each of its candidates"
            )
