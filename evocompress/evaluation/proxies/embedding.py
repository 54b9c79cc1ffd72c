"""Distance of sentence embeddings and of their similarities to the dense model's."""

from __future__ import annotations

from torch import Tensor

from evocompress.evaluation.proxies.base import Metric
from evocompress.models.embedding_distance import distances
from evocompress.models.tasks import Task


class EmbeddingDistance(Metric):
    """For each sequence: `distances` to the dense model's embeddings."""

    name = "embedding distance"
    meaning = "distance of embeddings and their similarities to the dense model's"
    by_logits = False

    @classmethod
    def serves(cls, task: Task) -> bool:
        """Embedding models."""
        return task.compared == "embeddings"

    def values(self, chunk: Tensor, target: Tensor) -> Tensor:
        """The distance of each embedding, and that of its similarities to the others."""
        return distances(chunk.float(), target.float())
