"""Distance of sentence embeddings to the dense model's, and how well similarities keep order."""

from __future__ import annotations

from torch import Tensor

from evocompress.evaluation.proxies.base import Metric
from evocompress.models.embedding_distance import FEWEST, disagreements
from evocompress.models.tasks import Task


class EmbeddingDistance(Metric):
    """For each sequence: `disagreements` with the dense model's embeddings."""

    name = "embedding distance"
    meaning = "distance of embeddings and their similarities to the dense model's"
    version = 2
    by_logits = False
    fewest = FEWEST

    @classmethod
    def serves(cls, task: Task) -> bool:
        """Embedding models."""
        return task.compared == "embeddings"

    def values(self, chunk: Tensor, target: Tensor) -> Tensor:
        """The distance of each embedding, and that of its similarities to the others."""
        return disagreements(chunk.float(), target.float())
