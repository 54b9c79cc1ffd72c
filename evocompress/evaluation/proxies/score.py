"""Distance of scores, such as a reward model's or reranker's, to the dense model's."""

from __future__ import annotations

from torch import Tensor

from evocompress.evaluation.proxies.base import Metric
from evocompress.models.tasks import Task


class ScoreError(Metric):
    """For each sequence: half the squared difference to the dense model's scores, summed."""

    name = "squared error of scores"
    meaning = "half the squared difference of scores to the dense model's"
    by_logits = False

    @classmethod
    def serves(cls, task: Task) -> bool:
        """Reward models and rerankers."""
        return task.compared == "scores"

    def values(self, chunk: Tensor, target: Tensor) -> Tensor:
        """Half the squared difference of each sequence's scores."""
        return (chunk.float() - target.float()).square().sum(-1) / 2
