"""Jensen-Shannon divergence between the dense model and the candidate, in top-k buckets.

FinerCut (2405.18218) removes sub-layers by it. Unlike the Kullback-Leibler divergence it is
symmetric and at most log 2: candidates that are beyond help differ little.
"""

from __future__ import annotations

from math import log

import torch
from torch import Tensor

from evocompress.evaluation.proxies.kl import Buckets, Divergence


class JensenShannon(Divergence):
    """The mean KL of dense and candidate to their mixture, in nats per position.

    In the same buckets as `Divergence`, so a lower bound over the whole vocabulary, too.
    """

    name = "js"
    meaning = "Jensen-Shannon divergence to the dense model, nats/token"

    def values(self, chunk: Tensor, target: Buckets) -> Tensor:
        """The divergence at each position."""
        target = target.to(chunk.device)
        top, rest = self._log_probabilities(chunk, target.tokens)
        candidate = torch.cat([top, rest[:, None]], dim=-1)
        dense = torch.cat([target.top, target.rest[:, None]], dim=-1)
        mixture = torch.logaddexp(dense, candidate) - log(2)
        to_mixture = dense.exp() * (dense - mixture) + candidate.exp() * (candidate - mixture)
        # Rounding may leave the divergence of equal distributions a little below zero.
        return (to_mixture.sum(-1) / 2).clamp(min=0)
