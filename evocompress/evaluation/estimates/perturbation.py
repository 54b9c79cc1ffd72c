"""What small random changes of a matrix do to the loss (ECoFLaP, Sung et al. 2023, 2310.02998)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from evocompress.evaluation.estimates.base import Rows, Subject
from evocompress.evaluation.estimates.matrices import KeptMatrix, kept_matrices
from evocompress.models.loading import LoadedModel, require_next_token

EPSILON = 1e-3


def perturbation(subject: Subject) -> Rows:
    """The zeroth-order gradient of the loss along a random direction, as a magnitude.

    Only one matrix is changed at a time, by plus and by minus 0.001 times normal noise, new for
    each micro-batch: |difference of the losses| / 0.002, the sum over micro-batches. The loss is
    the mean cross-entropy of the next token. Two forward passes for each matrix: ask for it with
    as many.

    Returns:
        One value for every matrix that the candidate keeps.
    """
    loaded = subject.live.loaded
    require_next_token(loaded, "the estimate 'perturbation'")
    return {
        matrix.name: (
            sum(
                abs(_slope(loaded, matrix, ids, noise(matrix.name, index, matrix.parameter.shape)))
                for index, ids in enumerate(subject.micro_batches)
            ),
        )
        for matrix in kept_matrices(subject.live, subject.candidate)
    }


def noise(name: str, index: int, shape: torch.Size) -> Tensor:
    """The direction of a matrix for the micro-batch of an index, the same on every device."""
    digest = hashlib.sha256(f"{name}/{index}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.randn(shape, generator=generator)


def _slope(loaded: LoadedModel, matrix: KeptMatrix, ids: Tensor, direction: Tensor) -> float:
    losses = []
    for sign in (1, -1):
        with _moved(matrix, sign * EPSILON * direction):
            losses.append(_losses(loaded, ids))
    # Position by position: their mean would lose the small difference.
    return float((losses[0] - losses[1]).mean()) / (2 * EPSILON)


@contextmanager
def _moved(matrix: KeptMatrix, change: Tensor) -> Iterator[None]:
    """Another weight in place of a matrix's, which may belong to a library and is not touched."""
    parameter, before = matrix.parameter, matrix.parameter.data
    parameter.data = (before.float() + change.to(before.device)).to(before.dtype)
    try:
        yield
    finally:
        parameter.data = before


@torch.inference_mode()
def _losses(loaded: LoadedModel, ids: Tensor) -> Tensor:
    """The cross-entropy of every next token of `ids` (B, S), float64 (B * (S - 1),)."""
    hidden = loaded.family.hidden_states(loaded.model, ids[:, :-1])
    logits = loaded.family.outputs(loaded.model, hidden).flatten(0, 1).float()
    return cross_entropy(logits, ids[:, 1:].flatten(), reduction="none").double()
