"""What takes the place of a block or of parts of it for a while."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from evocompress.models.families.handed import handed_in


def among_others(tensor: Tensor, among: int) -> Any:
    """A tensor as a module yields it: alone where `among` is 0, else the first of that number."""
    return (tensor, *[None] * (among - 1)) if among else tensor


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


REPEATED = "calls"
"""Among the arguments of a block: those of each call, where a model calls it several times.

Blocks that share their weights, as ALBERT's do, are one block, which is run as often as the model
runs it before anything else goes on. So whatever is done to it acts at every call, statistics and
gradients are sums over all, and what leaves it is what leaves the last.
"""


def run_block(block: nn.Module, state: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    """The state (B, S, H) that a block makes of one; some yield it with other things.

    Where blocks hand on more than the hidden state, `Handed` is among the arguments; see also
    `REPEATED`.
    """
    if REPEATED in arguments:
        for own in arguments[REPEATED]:
            state = run_block(block, state, own)
        return state
    for name, handed in handed_in(arguments):
        mapping = handed.mapping_of(state)
        given = {**arguments, name: mapping}
        return handed.state_of(run_block(block, handed.hidden_of(state), given), mapping)
    output = block(state, **arguments)
    found: Tensor = output if isinstance(output, Tensor) else output[0]
    return found


class Recorder(nn.Module):
    """Stands in for a block: keeps what it was called with and passes the state through.

    Args:
        block: Whose place it takes.
        among: Of how many things that the block yields the state is the first; 0 for a tensor.
    """

    def __init__(self, block: nn.Module, among: int = 0) -> None:
        super().__init__()
        # Not a part of this module, but some models ask a block what it is.
        self.__dict__["block"] = block
        self.among = among
        self.names = list(inspect.signature(block.forward).parameters)[1:]
        self.hidden = torch.empty(0)
        self.calls: list[dict[str, Any]] = []

    @property
    def arguments(self) -> dict[str, Any]:
        """What `run_block` takes to do what the block would have done."""
        return self.calls[0] if len(self.calls) == 1 else {REPEATED: self.calls}

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["block"], name)

    def forward(self, hidden_states: Tensor, *positional: Any, **keywords: Any) -> Any:
        """The state itself, and ``None`` for each other thing."""
        self.hidden = hidden_states
        self.calls.append(dict(zip(self.names, positional, strict=False)) | keywords)
        return among_others(hidden_states, self.among)
