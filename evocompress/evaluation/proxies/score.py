"""Distance of scores, such as a reward model's or reranker's, to the dense model's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from torch import Tensor

from evocompress.evaluation.proxies.base import OutputsProxy
from evocompress.models.head import output_chunks


class ScoreProxy(OutputsProxy):
    """For each sequence: half the squared difference to the dense model's scores, summed."""

    name: ClassVar[str] = "squared error of scores"

    def _chunks(self, hidden: Tensor) -> Iterator[Tensor]:
        return output_chunks(self._family, self._model, hidden)

    def _row_values(self, chunk: Tensor, target: Tensor) -> Tensor:
        return (chunk.float() - target.float()).square().sum(-1) / 2
