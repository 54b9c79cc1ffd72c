"""The candidate's own loss on the calibration tokens; nothing is compared with the dense model."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from evocompress.evaluation.proxies.base import LogitsProxy, States
from evocompress.models.head import bucket_log_probabilities, chunk_rows


class PerplexityProxy(LogitsProxy[Tensor]):
    """Negative log-likelihood of the next token, in nats: the logarithm of the perplexity."""

    name: ClassVar[str] = "log-perplexity"

    def _make_targets(self, micro_batch: int, dense: States) -> list[Tensor]:
        following = self._ids[micro_batch][:, 1:].flatten()
        return list(torch.split(following, chunk_rows(self._model)))

    def _row_values(self, chunk: Tensor, target: Tensor) -> Tensor:
        of_next, _ = bucket_log_probabilities(chunk, target[:, None])
        return -of_next[:, 0]
