"""Gradients of the next-token loss with respect to some of a model's parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from evocompress.models import LoadedModel


def summed_gradients(
    loaded: LoadedModel,
    parameters: Sequence[nn.Parameter],
    batches: Iterable[Tensor],
    *,
    scale: float = 1.0,
) -> list[Tensor]:
    """Gradients of the cross-entropy of every next token, summed with their signs.

    Args:
        loaded: The model in any state; it is as before when this returns or raises.
        parameters: Those of its parameters that are asked about.
        batches: Sequences (B, S) int64 of one backward pass each. How they are split changes
            the result only by rounding.
        scale: Factor of the loss, applied before the backward pass.

    Returns:
        For each parameter its gradient, float32.
    """
    sums = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in parameters]
    with _differentiable(parameters):
        for ids in batches:
            loss = scale * _loss(loaded, ids.to(loaded.model.device))
            for total, gradient in zip(sums, torch.autograd.grad(loss, parameters), strict=True):
                total.add_(gradient)
    return sums


@contextmanager
def _differentiable(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Lets gradients flow to parameters for a while."""
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)


def _loss(loaded: LoadedModel, ids: Tensor) -> Tensor:
    """The cross-entropy of every next token in `ids` (B, S), summed."""
    hidden = loaded.family.hidden_states(loaded.model, ids[:, :-1])
    logits = loaded.family.logits(loaded.model, hidden)
    return cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="sum")
