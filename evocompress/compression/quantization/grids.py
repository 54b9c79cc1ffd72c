"""The values that a block of weights can have: chosen from the weights, before any is rounded.

A block's grid is ``minimum + scale · code`` with codes from `low` to `high`. Scales, and minima
that are stored, are numbers of the type in which they are stored.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from evocompress.core.errors import LibraryError
from evocompress.core.storage import GROUPS, StorageType


@dataclass(frozen=True, eq=False)
class BlockGrid:
    """The grids of blocks, one of each row.

    Attributes:
        scale: Step between two values (rows,); never 0.
        minimum: Value of code 0 (rows,).
        zero: The code of 0.0 (rows,), of types that have one.
        low, high: The least and the greatest code.
    """

    scale: Tensor
    minimum: Tensor
    zero: Tensor
    low: int
    high: int

    def codes(self, weights: Tensor) -> Tensor:
        """The nearest codes of weights (inputs, rows), as floats."""
        places = (weights - self.minimum) / self.scale
        return places.round().clamp(self.low, self.high)

    def values(self, codes: Tensor) -> Tensor:
        """What codes (inputs, rows) stand for."""
        return codes * self.scale + self.minimum


def least_code(kind: StorageType) -> int:
    """Of a type with a uniform grid; the greatest has all bits. Of q8_0 ±127 are the ends."""
    return int(kind.lane != GROUPS and kind.bits == 8)


def choose_grid(
    block: Tensor, kind: StorageType, stored: torch.dtype, *, check: bool = True
) -> BlockGrid:
    """The grid that just holds the weights of a block.

    As ggml's own code does for its types, and as compressed-tensors does for groups.

    Args:
        block: Weights (inputs, rows), float32.
        kind: A type with a uniform grid.
        stored: Type in which scales are stored.
        check: Whether scales beyond its range are refused, for which a GPU is waited for; what is
            on their grids is otherwise not finite.

    Raises:
        LibraryError: A scale is beyond the range of its type.
    """
    least, most = block.amin(0), block.amax(0)
    steps = 2**kind.bits - 1
    if kind.ranges == "affine":
        scale = as_stored((most - least) / steps, stored, check=check)
        minimum = as_stored(least, stored, check=check)
        return BlockGrid(divisor(scale), minimum, torch.zeros_like(scale), 0, steps)
    if kind.ranges == "zero point":
        least, most = least.clamp_max(0), most.clamp_min(0)
        scale = divisor(as_stored((most - least) / steps, stored, check=check))
        zero = (-least / scale).round().clamp(0, steps)
        return BlockGrid(scale, -scale * zero, zero, 0, steps)
    middle = 2 ** (kind.bits - 1)
    size = torch.maximum(most, -least)
    if kind.lane == GROUPS:
        scale = size / (steps / 2)
    elif kind.bits == 8:
        scale = size / (middle - 1)
    else:  # the weight of largest size, whatever its sign, has the code whose value is largest
        scale = torch.where(most >= -least, most, least) / -middle
    scale = divisor(as_stored(scale, stored, check=check))
    return BlockGrid(
        scale, -scale * middle, torch.full_like(scale, middle), least_code(kind), steps
    )


def as_stored(values: Tensor, stored: torch.dtype, *, check: bool = True) -> Tensor:
    """Numbers as they are read back from their type."""
    found = values.to(stored).to(values.dtype)
    if check and not bool(found.isfinite().all()):
        raise LibraryError(
            f"weights are too large, or not finite, for scales of type {stored}: leave the matrix "
            "out"
        )
    return found


def divisor(scale: Tensor) -> Tensor:
    """A scale, or 1 where all weights are alike: their codes are then all the same."""
    return torch.where(scale == 0, 1.0, scale)
