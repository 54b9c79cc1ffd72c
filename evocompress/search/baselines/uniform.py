"""The uniform candidate alone: what every allocation must beat."""

from __future__ import annotations

from evocompress.search.base import CandidateSettings
from evocompress.search.generator_searcher import AskTell, GeneratorSearcher
from evocompress.space import sampling


class Uniform(GeneratorSearcher):
    """Measures the space's uniform candidate once and ends.

    ```yaml
    space: {width: {units: [mlp], multiple_of: 16}, budget: {params: 0.9}}
    search: {name: uniform}
    ```

    Examples:
        >>> from evocompress.testing.examples import winner
        >>> winner(Uniform)
        {'0.mlp': 'channels=16', '2.mlp': 'channels=16'}
    """

    Settings = CandidateSettings

    def search(self) -> AskTell[None]:
        """The uniform candidate."""
        yield from self.select([sampling.uniform(self.space)])
