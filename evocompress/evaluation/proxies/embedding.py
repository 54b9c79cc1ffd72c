"""Distance of sentence embeddings to the dense model's, and how well similarities keep order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from torch import Tensor

from evocompress.evaluation.proxies.base import OutputsProxy
from evocompress.models.embedding_distance import disagreements
from evocompress.models.head import output_chunks


class EmbeddingProxy(OutputsProxy):
    """For each sequence: `disagreements` with the dense model's embeddings."""

    name: ClassVar[str] = "embedding distance"

    def _chunks(self, hidden: Tensor) -> Iterator[Tensor]:
        return output_chunks(self._family, self._model, hidden)

    def _row_values(self, chunk: Tensor, target: Tensor) -> Tensor:
        return disagreements(chunk.float(), target.float())
