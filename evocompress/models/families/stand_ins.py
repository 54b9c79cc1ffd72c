"""What takes the place of a block or of parts of it for a while."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn


class ZeroAttention(nn.Module):
    """Takes the place of a removed attention module: exactly zero, nothing computed."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        """A zero for `hidden_states` (B, S, H), and no attention weights."""
        return zero_like(hidden_states), None


class ZeroOutput(nn.Module):
    """Takes the place of a removed module with one input and one output: exactly zero."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """A zero of the shape of `hidden_states` (..., H)."""
        return zero_like(hidden_states)


def zero_like(hidden: Tensor) -> Tensor:
    """Zeros of the same shape that take up one element of memory."""
    return hidden.new_zeros(()).expand_as(hidden)


class Recorder(nn.Module):
    """Stands in for a block: keeps what it was called with and passes the state through."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.names = list(inspect.signature(block.forward).parameters)[1:]
        self.hidden = torch.empty(0)
        self.arguments: dict[str, Any] = {}

    def forward(self, hidden_states: Tensor, *positional: Any, **keywords: Any) -> Tensor:
        """The state itself."""
        self.hidden = hidden_states
        self.arguments = dict(zip(self.names, positional, strict=False)) | keywords
        return hidden_states
