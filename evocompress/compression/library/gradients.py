"""Gradients of the loss with respect to matrices, for first-order criteria."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from evocompress.models.gradients import summed_gradients
from evocompress.models.loading import LoadedModel


def loss_gradients(
    loaded: LoadedModel,
    units: Sequence[str],
    tokens: Tensor,
    *,
    batch: int,
    advance: Callable[[int], None],
) -> dict[str, Tensor]:
    """Gradients of the next-token cross-entropy, summed with their signs over all tokens.

    The dense model is as before when this returns or raises. `advance` is told before each batch
    how many sequences are done.
    """
    parameters = [loaded.model.get_parameter(f"{unit}.weight") for unit in units]

    def batches() -> Iterator[Tensor]:
        for position, ids in enumerate(torch.split(tokens, batch)):
            advance(position * batch)
            yield ids

    return dict(zip(units, summed_gradients(loaded, parameters, batches()), strict=True))
