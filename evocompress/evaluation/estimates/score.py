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
from collections.abc import Callable

import torch
from torch import Tensor

from evocompress.core.types import Candidate
from evocompress.models.backward import Loss, Outputs
from evocompress.models.loading import LoadedModel


def sampled_score(ids: Tensor, candidate: Candidate, positions: int) -> Loss:
    """The gradient of the log-likelihood of tokens that the model itself draws.

    Token ids (1, S) and the candidate are the seed, so that the same question has one answer; a
    token or class is drawn for each of the `positions` that have an output.
    """
    uniform = uniforms(ids, candidate, positions)

    def gradient(outputs: Outputs, rows: slice) -> Tensor:
        probabilities = outputs.probabilities
        sums = probabilities.double().cumsum(-1)
        drawn = torch.searchsorted(sums, uniform[rows].to(sums.device) * sums[:, -1:])
        # Only where the model gives no numbers: these come out as none, and are a failure.
        drawn.clamp_(max=sums.shape[-1] - 1)
        ones = torch.ones_like(drawn, dtype=probabilities.dtype)
        return (-probabilities).scatter_add_(-1, drawn, ones)

    return gradient


def uniforms(ids: Tensor, candidate: Candidate, positions: int) -> Tensor:
    """The random numbers (positions, 1) with which tokens are drawn, float64."""
    return torch.rand(positions, 1, generator=_generator(ids, candidate), dtype=torch.float64)


def _generator(ids: Tensor, candidate: Candidate) -> torch.Generator:
    digest = hashlib.sha256(candidate.id.encode() + ids.cpu().numpy().tobytes()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def divergence(loaded: LoadedModel, dense_hidden: Tensor) -> Loss:
    """The gradient of KL(dense || model), from dense states (positions, H) of `Task.states`."""
    return _by_dense(
        loaded, dense_hidden, lambda outputs, dense: outputs.probabilities - dense.softmax(-1)
    )


def distance(loaded: LoadedModel, dense_hidden: Tensor) -> Loss:
    """The gradient of one minus the cosine to the dense embedding, from dense states (1, S, H)."""
    return _by_dense(loaded, dense_hidden, lambda outputs, dense: -dense)


def error(loaded: LoadedModel, dense_hidden: Tensor) -> Loss:
    """The gradient of half the squared difference to dense scores, from dense states (1, S, H)."""
    return _by_dense(loaded, dense_hidden, lambda outputs, dense: outputs.values.float() - dense)


def _by_dense(
    loaded: LoadedModel, dense_hidden: Tensor, compared: Callable[[Outputs, Tensor], Tensor]
) -> Loss:
    """A gradient by the outputs and the dense model's, whose final hidden states are given."""

    def gradient(outputs: Outputs, rows: slice) -> Tensor:
        dense = loaded.family.outputs(loaded.model, dense_hidden[rows])
        return compared(outputs, dense.float())

    return gradient


def random_direction(ids: Tensor, candidate: Candidate, width: int) -> Loss:
    """The gradient of ⟨v, output⟩ with v standard normal: the counterpart of a likelihood's.

    The distance 1 - cos of unit vectors is half the square of their difference, and so is the error
    of scores; so to second order a weight change d causes ½·E_v⟨∇⟨v, output⟩, d⟩². The tokens (1,
    S) and the candidate are the seed; `width` that of the embedding or scores.
    """
    direction = torch.randn(1, width, generator=_generator(ids, candidate))

    def gradient(outputs: Outputs, rows: slice) -> Tensor:
        return direction.to(outputs.values.device)

    return gradient
