"""What a model really holds, counted from its parameters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Counts:
    """Size of a model, tied weights counted once.

    Attributes:
        parameters: Stored weights, zeros included.
        nonzeros: Of these, the ones that are not zero.
        weight_bytes: Bytes that all stored weights take.

    Examples:
        >>> from evocompress.testing.tiny import tiny_model
        >>> count(tiny_model("llama")).parameters
        127424
    """

    parameters: int
    nonzeros: int
    weight_bytes: int


def count(model: PreTrainedModel) -> Counts:
    """Count the parameters of a model in memory."""
    parameters = list(model.parameters())
    return Counts(
        parameters=sum(parameter.numel() for parameter in parameters),
        nonzeros=sum(int(torch.count_nonzero(parameter)) for parameter in parameters),
        weight_bytes=sum(parameter.nbytes for parameter in parameters),
    )
