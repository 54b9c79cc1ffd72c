"""The sweep over the columns of one block: compiled on the CPU, plain torch elsewhere.

Matrices are transposed, (inputs, outputs): a column of the paper is a row here, so that the
outputs, which are independent of one another given the block's mask, lie side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evocompress.compression.criteria.compiled import compiled, in_threads
from evocompress.compression.criteria.masks import Array

TILE = 128
"""Outputs that are swept together: few enough to stay in a near cache."""

EIGHT = 8
"""Inputs whose errors are subtracted from later ones at once."""

PIECES_PER_THREAD = 4


@dataclass(frozen=True)
class BlockSweep:
    """Two functions that prune the inputs of a block in place, from first to last.

    Each takes the block's weights (matrices, width, outputs), overwritten, where those of a
    matrix are contiguous, and the block's part of the factor U (width, width). Pruning a weight w
    of input j makes the error e = w/Uⱼⱼ and subtracts e·Uⱼₖ from every later input k. They
    return the errors (matrices, width, outputs), zero for weights that stay.

    Attributes:
        masked: ``masked(block, upper, mask)`` with a boolean mask (matrices, width, outputs).
        patterned: ``patterned(block, upper, salience, zeros, group)`` chooses, at the first of
            each `group` inputs, the `zeros` smallest |weight|·salience of each output.
    """

    masked: Callable[[Tensor, Tensor, Tensor], Tensor]
    patterned: Callable[[Tensor, Tensor, Tensor, int, int], Tensor]


def block_sweep_for(device: torch.device) -> BlockSweep:
    """The fastest implementation for a device."""
    return COMPILED if device.type == "cpu" else PLAIN


def _plain_masked(block: Tensor, upper: Tensor, mask: Tensor) -> Tensor:
    errors = torch.empty_like(mask, dtype=block.dtype)
    _plain_inputs(block, upper, mask, errors, 0)
    return errors


def _plain_patterned(
    block: Tensor, upper: Tensor, salience: Tensor, zeros: int, group: int
) -> Tensor:
    errors = torch.empty(block.shape, device=block.device)
    for start in range(0, block.shape[1], group):
        scores = block[:, start : start + group].abs() * salience[start : start + group, None]
        smallest = scores.argsort(dim=1, stable=True)[:, :zeros]
        mask = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, smallest, True)
        _plain_inputs(block, upper, mask, errors, start)
    return errors


def _plain_inputs(block: Tensor, upper: Tensor, mask: Tensor, errors: Tensor, start: int) -> None:
    """Prune as many inputs as the mask has, from `start` on: two operations for each of them."""
    end = start + mask.shape[1]
    shares = mask / upper.diagonal()[start:end, None]
    for place in range(start, end):
        torch.mul(block[:, place], shares[:, place - start], out=errors[:, place])
        later = upper[place, place + 1 :, None]
        block[:, place + 1 :].addcmul_(errors[:, place, None], later, value=-1)
    block[:, start:end].masked_fill_(mask, 0.0)


# The compiled version loops over a fixed number of outputs in slices that begin at 0: so the
# compiler finds the vector instructions, and there are no remainders.


@compiled
def _copy(source: Array, target: Array) -> None:
    for output in range(len(source)):
        target[output] = source[output]


@compiled
def _choose(weights: Array, mask: Array, salience: Array, zeros: int) -> None:
    """Mask the smallest weights of a group (group, TILE)."""
    for output in range(TILE):
        mask[:, output] = False
        for _ in range(zeros):
            least, chosen = np.inf, -1
            for place in range(len(weights)):
                score = abs(weights[place, output]) * salience[place]
                if not mask[place, output] and (chosen < 0 or score < least):
                    least, chosen = score, place
            mask[chosen, output] = True


@compiled
def _divide(weights: Array, mask: Array, pivot: float, errors: Array) -> None:
    for output in range(TILE):
        errors[output] = weights[output] / pivot if mask[output] else np.float32(0)


@compiled
def _subtract(weights: Array, factor: float, errors: Array) -> None:
    for output in range(TILE):
        weights[output] -= factor * errors[output]


@compiled
def _subtract_eight(weights: Array, factors: Array, errors: Array) -> None:
    f0, f1, f2, f3 = factors[0], factors[1], factors[2], factors[3]
    f4, f5, f6, f7 = factors[4], factors[5], factors[6], factors[7]
    for output in range(TILE):
        weight = weights[output]
        weight -= f0 * errors[output]
        weight -= f1 * errors[output + TILE]
        weight -= f2 * errors[output + 2 * TILE]
        weight -= f3 * errors[output + 3 * TILE]
        weight -= f4 * errors[output + 4 * TILE]
        weight -= f5 * errors[output + 5 * TILE]
        weight -= f6 * errors[output + 6 * TILE]
        weight -= f7 * errors[output + 7 * TILE]
        weights[output] = weight


@compiled
def _subtract_all(weights: Array, factors: Array, errors: Array) -> None:
    """Subtract errors (n · TILE) from later inputs (rest, TILE); factors (rest, n)."""
    rest, count = factors.shape
    for later in range(rest):
        for place in range(0, count - EIGHT + 1, EIGHT):
            _subtract_eight(weights[later], factors[later, place:], errors[place * TILE :])
        for place in range(count - count % EIGHT, count):
            _subtract(weights[later], factors[later, place], errors[place * TILE :])


@compiled
def _prune(
    weights: Array,
    mask: Array,
    errors: Array,
    lower: Array,
    salience: Array,
    zeros: int,
    group: int,
) -> None:
    """Prune a few inputs (n, TILE), choosing the mask where there is a group."""
    for place in range(len(weights)):
        if group and place % group == 0:
            end = place + group
            _choose(weights[place:end], mask[place:end], salience[place:end], zeros)
        error = errors[place * TILE :]
        _divide(weights[place], mask[place], lower[place, place], error)
        for later in range(place + 1, len(weights)):
            _subtract(weights[later], lower[later, place], error)


@compiled
def _sweep(
    block: Array,
    mask: Array,
    errors: Array,
    lower: Array,
    salience: Array,
    zeros: int,
    group: int,
    begin: int,
    end: int,
) -> None:
    """Prune outputs `begin` to `end` of a matrix (width, outputs), a tile at a time; L = Uᵀ."""
    width = len(block)
    step = group * max(1, EIGHT // group) if group else EIGHT
    weights = np.zeros((width, TILE), np.float32)
    masked = np.zeros((width, TILE), np.bool_)
    found = np.zeros(step * TILE, np.float32)
    for start in range(begin, end, TILE):
        stop = min(start + TILE, end)
        for place in range(width):
            _copy(block[place, start:stop], weights[place])
            if not group:
                _copy(mask[place, start:stop], masked[place])
        for first in range(0, width, step):
            last = min(first + step, width)
            now, triangle = slice(first, last), lower[first:last, first:last]
            _prune(weights[now], masked[now], found, triangle, salience[now], zeros, group)
            for place in range(first, last):
                error = found[(place - first) * TILE :]
                _copy(error[: stop - start], errors[place, start:stop])
            _subtract_all(weights[last:], lower[last:, first:last], found)
        for place in range(width):
            _keep(weights[place], masked[place], block[place, start:stop])


@compiled
def _keep(weights: Array, mask: Array, target: Array) -> None:
    for output in range(len(target)):
        target[output] = np.float32(0) if mask[output] else weights[output]


def _compiled_masked(block: Tensor, upper: Tensor, mask: Tensor) -> Tensor:
    return _swept(block, upper, mask, torch.empty(0), 0, 0)


def _compiled_patterned(
    block: Tensor, upper: Tensor, salience: Tensor, zeros: int, group: int
) -> Tensor:
    nothing = torch.empty(len(block), 0, 0, dtype=torch.bool)
    return _swept(block, upper, nothing, salience, zeros, group)


def _swept(
    block: Tensor, upper: Tensor, mask: Tensor, salience: Tensor, zeros: int, group: int
) -> Tensor:
    errors = torch.empty(block.shape)
    shared = upper.T.contiguous().numpy(), salience.numpy(), zeros, group
    each = [tensor.numpy() for tensor in (block, mask, errors)]
    in_threads(
        _sweep,
        (
            (*(arrays[matrix] for arrays in each), *shared, begin, end)
            for matrix in range(len(block))
            for begin, end in _pieces(len(block), block.shape[2])
        ),
    )
    return errors


def _pieces(matrices: int, outputs: int) -> Iterator[tuple[int, int]]:
    """Parts of the outputs of a matrix, so that there is enough for all threads."""
    parts = -(-torch.get_num_threads() * PIECES_PER_THREAD // matrices)
    size = -(-outputs // parts // TILE) * TILE
    for begin in range(0, outputs, size):
        yield begin, min(begin + size, outputs)


PLAIN = BlockSweep(_plain_masked, _plain_patterned)
"""For any device."""

COMPILED = BlockSweep(_compiled_masked, _compiled_patterned)
"""For the CPU."""
