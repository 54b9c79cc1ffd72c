"""Cosine distance of the final hidden states to the dense model's (LaCo, 2402.11187)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from evocompress.apply import LiveModel
from evocompress.config import ProxyConfig
from evocompress.proxies.base import PositionProxy, States
from evocompress.proxies.tuned import Treatments


class CosineProxy(PositionProxy[Tensor]):
    """1 - cosine of the states after the final norm, mean over positions.

    LaCo takes one cosine of all positions of a sentence, flattened; here each position counts
    the same, so that long sequences compare like short ones.
    """

    name: ClassVar[str] = "cosine"

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
        yield hidden[:, :-1].flatten(0, 1)

    @torch.inference_mode()
    def _make_targets(self, micro_batch: int, dense: States) -> list[Tensor]:
        return list(self._chunks(dense(micro_batch).to(self._model.device)))

    def _row_values(self, chunk: Tensor, target: Tensor) -> Tensor:
        cosines = F.cosine_similarity(chunk.float(), target.float(), dim=-1)
        # Rounding may take the cosine of equal states a little above one.
        return (1 - cosines).clamp(min=0)
