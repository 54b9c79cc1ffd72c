"""Cosine distance of the final hidden states to the dense model's (LaCo, 2402.11187)."""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor

from evocompress.evaluation.proxies.base import Metric
from evocompress.models.tasks import Task


class Cosine(Metric):
    """1 - cosine of the states after the final norm, mean over positions.

    LaCo takes one cosine of all positions of a sentence, flattened; here each position counts
    the same, so that long sequences compare like short ones.
    """

    name = "cosine"
    meaning = "cosine distance of final states to the dense model's"
    by_logits = False

    @classmethod
    def serves(cls, task: Task) -> bool:
        """Language models."""
        return task.causal

    def chunks(self, hidden: Tensor) -> Iterator[Tensor]:
        """The final states of all positions but the last."""
        yield hidden[:, :-1].flatten(0, 1)

    def values(self, chunk: Tensor, target: Tensor) -> Tensor:
        """1 - cosine of each state to the dense model's."""
        cosines = F.cosine_similarity(chunk.float(), target.float(), dim=-1)
        # Rounding may take the cosine of equal states a little above one.
        return (1 - cosines).clamp(min=0)
