"""Gradients of the next-token loss with respect to some of a model's parameters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from evocompress.models.backward import Loss, Outputs, differentiable, read_gradients
from evocompress.models.loading import LoadedModel, require_next_token


def summed_gradients(
    loaded: LoadedModel,
    parameters: Sequence[nn.Parameter],
    batches: Iterable[Tensor],
    *,
    scale: float = 1.0,
) -> list[Tensor]:
    """Gradients, float32, of the cross-entropy of every next token, summed with their signs.

    One backward pass a sequence; one parameter's gradient is in memory at a time beside the sums.
    How sequences are split into batches (B, S) changes nothing. The loss is multiplied by `scale`
    before the backward pass. The model, in any state, is as before when this returns or raises.

    Raises:
        ModelError: The model does not tell a next token.
    """
    require_next_token(loaded, "a gradient of the loss")
    sums = {parameter: torch.zeros_like(parameter, dtype=torch.float32) for parameter in parameters}
    named = {name: p for name, p in loaded.model.named_parameters() if p in sums}

    def add(name: str, gradient: Tensor) -> None:
        total = sums[named[name]]
        total.add_(gradient.to(total.device))

    with differentiable(named):
        for batch in batches:
            for ids in torch.split(batch.to(loaded.model.device), 1):
                loss = _cross_entropy(ids, scale)
                read_gradients(loaded, ids, [loss], [add], by_block=loaded.cache is not None)
    return [sums[parameter] for parameter in parameters]


def _cross_entropy(ids: Tensor, scale: float) -> Loss:
    """The gradient of the scaled negative log-likelihood of each next token of `ids` (1, S)."""
    following = ids[0, 1:, None]

    def gradient(outputs: Outputs, rows: slice) -> Tensor:
        probabilities = outputs.probabilities
        ones = torch.full_like(following[rows], -1, dtype=probabilities.dtype)
        return probabilities.scatter_add(-1, following[rows], ones).mul_(scale)

    return gradient
