"""Flips (Dutta et al. 2024, 2407.09141): how often the likeliest token is another one.

``proxy: {kind: flips}``
"""

from collections.abc import Callable

from torch import Tensor

from evocompress.evaluation.proxies import Metric
from evocompress.models.tasks import Task


class Flips(Metric):
    """The share of positions at which candidate and dense model tell another next token."""

    name = "flips"
    meaning = "share of positions whose likeliest token is not the dense model's"

    @classmethod
    def serves(cls, task: Task) -> bool:
        """Whether outputs have a likeliest one."""
        return task.compared == "logits"

    def targets(self, batch: Tensor, dense: Callable[[], Tensor]) -> list[Tensor]:
        """The dense model's likeliest tokens."""
        return [chunk.argmax(-1) for chunk in self.chunks(dense())]

    def values(self, chunk: Tensor, target: Tensor) -> Tensor:
        """One at each position where the candidate's is another one, else zero."""
        return (chunk.argmax(-1) != target).float()
