"""The candidate's own loss on the calibration tokens; nothing is compared with the dense model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from evocompress.core.config import ProxyConfig
from evocompress.evaluation.proxies.base import Metric
from evocompress.models.head import bucket_log_probabilities, chunk_rows
from evocompress.models.tasks import Task


class LogPerplexity(Metric):
    """Negative log-likelihood of the next token, in nats: the logarithm of the perplexity."""

    name = "log-perplexity"
    meaning = "log-perplexity, nats/token"

    @classmethod
    def serves(cls, task: Task) -> bool:
        """Language models."""
        return task.causal

    @classmethod
    def target_bytes(cls, config: ProxyConfig, vocabulary: int) -> int:
        """A token's."""
        return torch.int64.itemsize

    def targets(self, batch: Tensor, dense: Callable[[], Tensor]) -> list[Tensor]:
        """The next tokens."""
        return list(torch.split(batch[:, 1:].flatten(), chunk_rows(self.model)))

    def values(self, chunk: Tensor, target: Tensor) -> Tensor:
        """The negative log-likelihood of each next token."""
        of_next, _ = bucket_log_probabilities(chunk, target[:, None])
        return -of_next[:, 0]
