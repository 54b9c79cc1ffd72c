"""Distance of sentence embeddings, and of their pairwise similarities, to the dense model's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from evocompress.apply import LiveModel
from evocompress.config import ProxyConfig
from evocompress.embedding_distance import distances
from evocompress.proxies.base import PositionProxy, States
from evocompress.proxies.head import output_chunks
from evocompress.proxies.tuned import Treatments


class EmbeddingProxy(PositionProxy[Tensor]):
    """For each sequence: `distances` to the dense model's embeddings."""

    name: ClassVar[str] = "embedding distance"

    def __init__(
        self,
        live: LiveModel,
        micro_batches: Sequence[Tensor],
        config: ProxyConfig,
        treatments: Treatments | None = None,
    ) -> None:
        """See `PositionProxy`; nothing of `config` matters here."""
        super().__init__(live, micro_batches, treatments)

    def _chunks(self, hidden: Tensor) -> Iterator[Tensor]:
        return output_chunks(self._family, self._model, hidden)

    @torch.inference_mode()
    def _make_targets(self, micro_batch: int, dense: States) -> list[Tensor]:
        return list(self._chunks(dense(micro_batch).to(self._model.device)))

    def _row_values(self, chunk: Tensor, target: Tensor) -> Tensor:
        return distances(chunk.float(), target.float())
