"""Hill climbing: of a candidate and a changed copy of it the better one goes on.

``search: {name: hill_climb, steps: 50}``
"""

from evocompress.core.fields import Positive
from evocompress.search.base import SearcherSettings
from evocompress.search.generator_searcher import AskTell, GeneratorSearcher
from evocompress.search.operators.mutation import exchange
from evocompress.space import sampling


class HillClimb(GeneratorSearcher):
    """Begins with the even candidate of the budget."""

    class Settings(SearcherSettings):
        """How many copies are tried."""

        steps: Positive = 20

    settings: Settings

    def search(self) -> AskTell[None]:
        """Tries one copy after the other."""
        parent = sampling.uniform(self.space)
        for _ in range(self.settings.steps):
            child = exchange(self.space, parent, self.rng)
            parent = yield from self.select([parent, child])
