"""The uniform candidate alone: what every allocation must beat."""

from __future__ import annotations

from typing import ClassVar

from evocompress.search.base import CandidateSettings, SearcherSettings
from evocompress.search.generator_searcher import AskTell, GeneratorSearcher
from evocompress.space import sampling


class Uniform(GeneratorSearcher):
    """Measures the space's uniform candidate once and ends."""

    Settings: ClassVar[type[SearcherSettings]] = CandidateSettings

    def search(self) -> AskTell[None]:
        """The uniform candidate."""
        yield from self.select([sampling.uniform(self.space)])
