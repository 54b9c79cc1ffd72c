"""What small changes of the weights do to a model's next-token distributions: gradients of them.

To second order, the divergence that a weight change d causes at one position is
½·E_y⟨∇ log q(y), d⟩² with y drawn from the model itself: the Fisher information, which needs no
labels. Different positions' terms are uncorrelated, so the square of a whole sequence's
⟨Σ_t ∇ log q(y_t), d⟩ is an unbiased estimate of the sum over its positions, and one backward pass
serves any number of changes d at once (as in Optimal Brain Damage, LeCun et al. 1989, with the
Fisher of WoodFisher, Singh & Alistarh 2020, 2004.14340).
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from evocompress.backward import Loss
from evocompress.models import LoadedModel
from evocompress.types import Candidate


def sampled_score(ids: Tensor, candidate: Candidate, positions: int) -> Loss:
    """The gradient of the log-likelihood of tokens that the model itself draws.

    Args:
        ids: Tokens (1, S): with `candidate` the seed, so that the same question has one answer.
        candidate: What the model is.
        positions: Number of positions.
    """
    uniform = uniforms(ids, candidate, positions)

    def gradient(probabilities: Tensor, rows: slice) -> Tensor:
        sums = probabilities.double().cumsum(-1)
        drawn = torch.searchsorted(sums, uniform[rows].to(sums.device) * sums[:, -1:])
        # Only where the model gives no numbers: these come out as none, and are a failure.
        drawn.clamp_(max=sums.shape[-1] - 1)
        ones = torch.ones_like(drawn, dtype=probabilities.dtype)
        return (-probabilities).scatter_add_(-1, drawn, ones)

    return gradient


def uniforms(ids: Tensor, candidate: Candidate, positions: int) -> Tensor:
    """The random numbers (positions, 1) with which tokens are drawn, float64."""
    digest = hashlib.sha256(candidate.id.encode() + ids.cpu().numpy().tobytes()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.rand(positions, 1, generator=generator, dtype=torch.float64)


def divergence(loaded: LoadedModel, dense_hidden: Tensor) -> Loss:
    """The gradient of KL(dense || model).

    Args:
        loaded: The model; its head is used.
        dense_hidden: The dense model's final hidden states (positions, H).
    """

    def gradient(probabilities: Tensor, rows: slice) -> Tensor:
        logits = loaded.family.logits(loaded.model, dense_hidden[rows])
        return probabilities - logits.float().softmax(-1)

    return gradient
