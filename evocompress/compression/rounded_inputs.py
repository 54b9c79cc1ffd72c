"""What a matrix reads, rounded to 8 bits token by token, as integer kernels do while a model runs.

As compressed-tensors has it for inputs of strategy ``token`` that are dynamic and symmetric.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

LEAST, MOST = -128, 127
"""Of the integers."""

ROUNDING = "input_rounding"
"""Of a module whose rounding is differentiated: a parameter a (1,), 1 where inputs x are rounded to
Q(x), else 0. They are x + a (Q(x) - x), so that its gradient tells what the rounding does."""


def round_tokens(inputs: Tensor, kept: Tensor | None = None) -> Tensor:
    """The nearest of 256 equal steps of each token's own.

    Args:
        inputs: (..., in); what is behind one index of all but the last axis is a token.
        kept: The inputs that there are, by which a token's largest value is found; all by default.

    Returns:
        The same in shape and type, in which all is computed.

    Examples:
        >>> round_tokens(torch.tensor([[127.5, 3.2, -0.6]]))
        tensor([[127.,   3.,  -1.]])
    """
    there = inputs if kept is None else inputs.index_select(-1, kept)
    scale = there.abs().amax(-1, keepdim=True) / ((MOST - LEAST) / 2)
    scale = torch.where(scale == 0, 1, scale)
    return (inputs / scale).clamp(LEAST, MOST).round() * scale


@dataclass(eq=False)
class InputRounding:
    """A forward pre-hook of a linear module, whose input is rounded.

    Gradients pass the rounding as if it was not there (1308.3432), and where the module has a
    parameter `ROUNDING` go to that as well.

    Attributes:
        on: Whether anything is rounded; else it is there for `ROUNDING` alone.
        kept: As of `round_tokens`.

    Examples:
        >>> linear = nn.Linear(2, 1, bias=False)
        >>> linear.weight.data = torch.ones(1, 2)
        >>> hook = linear.register_forward_pre_hook(InputRounding())
        >>> linear(torch.tensor([127.5, 3.2])).item()
        130.0
    """

    on: bool = True
    kept: Tensor | None = None

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments of a call with the first of them rounded."""
        inputs, *rest = arguments
        share = getattr(module, ROUNDING, None)
        rounded = _Rounding.apply(inputs, share, self)  # type: ignore[no-untyped-call]
        return rounded, *rest


class _Rounding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, share: Tensor | None, how: InputRounding) -> Tensor:
        ctx.how = how
        if share is not None:
            ctx.save_for_backward(inputs)
        return round_tokens(inputs, how.kept) if how.on else inputs.view_as(inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), own = gradients, None
        if ctx.needs_input_grad[1]:
            (inputs,) = ctx.saved_tensors
            change = round_tokens(inputs, ctx.how.kept) - inputs
            own = (gradient.float() * change.float()).sum().reshape(1)
        return gradient, own, None
