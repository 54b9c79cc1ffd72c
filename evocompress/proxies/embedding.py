"""Distance of sentence embeddings, and of their pairwise similarities, to the dense model's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from torch import Tensor

from evocompress.embedding_distance import distances
from evocompress.proxies.base import OutputsProxy
from evocompress.proxies.head import output_chunks


class EmbeddingProxy(OutputsProxy):
    """For each sequence: `distances` to the dense model's embeddings."""

    name: ClassVar[str] = "embedding distance"

    def _chunks(self, hidden: Tensor) -> Iterator[Tensor]:
        return output_chunks(self._family, self._model, hidden)

    def _row_values(self, chunk: Tensor, target: Tensor) -> Tensor:
        return distances(chunk.float(), target.float())
