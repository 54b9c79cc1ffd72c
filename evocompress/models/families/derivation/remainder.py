"""What a block still does to the hidden state without its sub-layers."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import torch
from torch import Tensor

from evocompress.models.families.derivation.residual_branch import ResidualBranch
from evocompress.models.families.derivation.tracing import TracedBlock, replaced


def remainder(example: TracedBlock, branches: Iterable[ResidualBranch]) -> str:
    """Why a block does not pass the hidden state on without its branches; empty where it does.

    Args:
        example: The block, in float64; as it was afterwards.
        branches: All of its sub-layers.

    Returns:
        The parameters and buffers of which other values change what is left of the block, or by
        what that multiplies the state.
    """
    every = (branch.removal(example.block).items() for branch in branches)
    with replaced(example.block, dict(chain.from_iterable(every))):
        found = example.run()
        if torch.equal(found, example.hidden):
            return ""
        tensors = chain(example.block.named_parameters(), example.block.named_buffers())
        acting = [name for name, tensor in tensors if _acts(example, tensor, found)]
    if acting:
        return f"{', '.join(acting)} still {'act' if acting[1:] else 'acts'} on the state"
    if not found.any():
        return "nothing passes them by"
    factors = found / example.hidden
    if torch.allclose(factors, factors.mean()):
        return f"the state is still multiplied by {factors.mean():.3g}"
    return "the state is still changed without any parameters"


def _acts(example: TracedBlock, tensor: Tensor, before: Tensor) -> bool:
    """Whether other values of a tensor change what a block makes of the hidden state."""
    if not tensor.is_floating_point():
        return False
    former = tensor.detach().clone()
    try:
        tensor.data.mul_(torch.linspace(1.5, 2.0, tensor.numel()).view(tensor.shape).to(tensor))
        return not torch.equal(example.run(), before)
    finally:
        tensor.data.copy_(former)
