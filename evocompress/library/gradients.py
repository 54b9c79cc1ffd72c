"""Gradients of the loss with respect to matrices, for first-order criteria."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from evocompress.models import LoadedModel


def loss_gradients(
    loaded: LoadedModel,
    units: Sequence[str],
    tokens: Tensor,
    *,
    batch: int,
    advance: Callable[[int], None],
) -> dict[str, Tensor]:
    """Gradients of the next-token cross-entropy, summed with their signs over all tokens.

    Args:
        loaded: The dense model; it is as before when this returns or raises.
        units: Matrix units.
        tokens: Sequences (N, S), int64.
        batch: Sequences of one backward pass; it changes the result only by rounding.
        advance: Told before each pass how many sequences are done.

    Returns:
        For each unit its gradient, float32, in the module's orientation.
    """
    parameters = [loaded.model.get_parameter(f"{unit}.weight") for unit in units]
    sums = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in parameters]
    with _differentiable(parameters):
        for position, ids in enumerate(torch.split(tokens, batch)):
            advance(position * batch)
            loss = _loss(loaded, ids.to(loaded.model.device))
            for total, gradient in zip(sums, torch.autograd.grad(loss, parameters), strict=True):
                total.add_(gradient)
    return dict(zip(units, sums, strict=True))


@contextmanager
def _differentiable(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
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
