"""Cosine distance of the final hidden states to the dense model's (LaCo, 2402.11187)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from evocompress.evaluation.proxies.base import OutputsProxy


class CosineProxy(OutputsProxy):
    """1 - cosine of the states after the final norm, mean over positions.

    LaCo takes one cosine of all positions of a sentence, flattened; here each position counts
    the same, so that long sequences compare like short ones.
    """

    name: ClassVar[str] = "cosine"

    def _chunks(self, hidden: Tensor) -> Iterator[Tensor]:
        yield hidden[:, :-1].flatten(0, 1)

    def _row_values(self, chunk: Tensor, target: Tensor) -> Tensor:
        cosines = F.cosine_similarity(chunk.float(), target.float(), dim=-1)
        # Rounding may take the cosine of equal states a little above one.
        return (1 - cosines).clamp(min=0)
