"""Rounding the inputs of one block, compiled on the CPU, plain torch elsewhere.

Matrices are transposed, (inputs, outputs), as in `evocompress.compression.criteria.sweep`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from evocompress.compression.criteria.compiled import compiled, in_threads
from evocompress.compression.criteria.masks import Array
from evocompress.compression.quantization.grids import BlockGrid

Round = Callable[[Tensor, Tensor, BlockGrid, Tensor | None, Tensor, Tensor], None]
"""``round(block, upper, grid, mask, codes, errors)``: rounds a block (width, outputs) in place,
from the first input to the last. Rounding a weight w of input j to v makes the error
e = (w − v)/Uⱼⱼ and subtracts e·Uⱼₖ from every later input k. Where there is a mask the value is 0.
``codes`` and ``errors`` (width, outputs) are filled in.
"""

TILE = 128
"""Outputs that are swept together: few enough to stay in a near cache."""


def _plain(
    block: Tensor,
    upper: Tensor,
    grid: BlockGrid,
    mask: Tensor | None,
    codes: Tensor,
    errors: Tensor,
) -> None:
    for place in range(len(block)):
        row = block[place]
        code = grid.codes(row)
        if mask is not None:
            code = torch.where(mask[place], grid.zero, code)
        value = grid.values(code)
        codes[place] = code.to(torch.uint8)
        errors[place] = (row - value) / upper[place, place]
        block[place] = value
        block[place + 1 :].addcmul_(upper[place, place + 1 :, None], errors[place], value=-1)


@compiled
def _round_tile(
    block: Array,
    lower: Array,
    scale: Array,
    minimum: Array,
    zero: Array,
    bounds: Array,
    mask: Array,
    codes: Array,
    errors: Array,
    begin: int,
    end: int,
) -> None:
    """Rounds outputs `begin` to `end`; L = Uᵀ; a mask without rows is none."""
    width = len(block)
    low, high = bounds[0], bounds[1]
    for start in range(begin, end, TILE):
        stop = min(start + TILE, end)
        for place in range(width):
            pivot = lower[place, place]
            for output in range(start, stop):
                weight, step, least = block[place, output], scale[output], minimum[output]
                code = np.rint((weight - least) / step)
                code = min(max(code, low), high)
                if len(mask) and mask[place, output]:
                    code = zero[output]
                value = np.float32(code * step) + least
                codes[place, output] = np.uint8(code)
                errors[place, output] = (weight - value) / pivot
                block[place, output] = value
            for later in range(place + 1, width):
                factor = lower[later, place]
                for output in range(start, stop):
                    block[later, output] -= factor * errors[place, output]


def _compiled(
    block: Tensor,
    upper: Tensor,
    grid: BlockGrid,
    mask: Tensor | None,
    codes: Tensor,
    errors: Tensor,
) -> None:
    nothing = torch.empty(0, 0, dtype=torch.bool)
    tensors = (
        *(block, upper.T.contiguous(), grid.scale, grid.minimum, grid.zero),
        *(torch.tensor([grid.low, grid.high], dtype=torch.float32),),
        *(nothing if mask is None else mask, codes, errors),
    )
    arrays = [tensor.numpy() for tensor in tensors]
    outputs = block.shape[1]
    size = -(-outputs // torch.get_num_threads() // TILE) * TILE
    in_threads(
        _round_tile,
        ((*arrays, begin, min(begin + size, outputs)) for begin in range(0, outputs, size)),
    )


PLAIN: Round = _plain
"""For any device."""

COMPILED: Round = _compiled
"""For the CPU."""
