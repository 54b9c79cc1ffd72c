"""The sweep over the columns of one block: compiled on the CPU, plain torch elsewhere.

Given a block's mask, the rows of all levels are independent of one another, so both
implementations take them as one long list of rows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, Any]

PIECES_PER_THREAD = 8


@dataclass(frozen=True)
class BlockSweep:
    """Two functions that prune the columns of a block in place, from left to right.

    Each takes the block's weights (rows, width), contiguous and overwritten, and the block's
    part of the factor U (width, width). Pruning a weight w of column j makes the error
    e = w/Uⱼⱼ and subtracts e·Uⱼₖ from every later column k. They return the errors
    (rows, width), zero for weights that stay.

    Attributes:
        masked: ``masked(block, upper, mask)`` with a boolean mask (rows, width).
        patterned: ``patterned(block, upper, salience, zeros, group)`` chooses, at the first of
            each `group` columns, the `zeros` smallest |weight|·salience of each row.
    """

    masked: Callable[[Tensor, Tensor, Tensor], Tensor]
    patterned: Callable[[Tensor, Tensor, Tensor, int, int], Tensor]


def block_sweep_for(device: torch.device) -> BlockSweep:
    """The fastest implementation for a device."""
    return COMPILED if device.type == "cpu" else PLAIN


def _plain_masked(block: Tensor, upper: Tensor, mask: Tensor) -> Tensor:
    errors = torch.zeros_like(block, memory_format=torch.contiguous_format)
    for column in range(block.shape[1]):
        _prune_column(block, upper, mask[:, column], errors, column)
    return errors


def _plain_patterned(
    block: Tensor, upper: Tensor, salience: Tensor, zeros: int, group: int
) -> Tensor:
    errors = torch.zeros_like(block, memory_format=torch.contiguous_format)
    for start in range(0, block.shape[1], group):
        scores = block[:, start : start + group].abs() * salience[start : start + group]
        smallest = scores.argsort(dim=1, stable=True)[:, :zeros]
        mask = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, smallest, True)
        for offset in range(group):
            _prune_column(block, upper, mask[:, offset], errors, start + offset)
    return errors


def _prune_column(block: Tensor, upper: Tensor, mask: Tensor, errors: Tensor, column: int) -> None:
    error = torch.where(mask, block[:, column] / upper[column, column], 0.0)
    errors[:, column] = error
    block[:, column + 1 :].addr_(error, upper[column, column + 1 :], alpha=-1)
    block[:, column].masked_fill_(mask, 0.0)


def _compiled(function: Callable[..., None]) -> Any:
    """Compile, without the interpreter's lock; kept on disk where a folder can be written."""
    kernel = numba.njit(nogil=True, fastmath={"contract"})(function)
    with contextlib.suppress(RuntimeError):  # neither the package nor the home is writable
        kernel.enable_caching()
    return kernel


@_compiled
def _subtract(weights: Array, factor: float, direction: Array) -> None:
    # On slices that begin at 0 the compiler finds the vector instructions.
    for index in range(len(weights)):
        weights[index] -= factor * direction[index]


@_compiled
def _sweep_row(
    weights: Array, upper: Array, mask: Array, errors: Array, start: int, end: int
) -> None:
    for column in range(start, end):
        if mask[column]:
            error = weights[column] / upper[column, column]
            errors[column] = error
            weights[column] = 0
            _subtract(weights[column + 1 :], error, upper[column, column + 1 :])


@_compiled
def _choose(weights: Array, salience: Array, mask: Array, zeros: int, start: int, end: int) -> None:
    for _ in range(zeros):
        least, chosen = np.inf, -1
        for column in range(start, end):
            score = abs(weights[column]) * salience[column]
            if not mask[column] and (chosen < 0 or score < least):
                least, chosen = score, column
        mask[chosen] = True


@_compiled
def _sweep_masked(block: Array, mask: Array, errors: Array, upper: Array) -> None:
    rows, width = block.shape
    for row in range(rows):
        _sweep_row(block[row], upper, mask[row], errors[row], 0, width)


@_compiled
def _sweep_patterned(
    block: Array, mask: Array, errors: Array, upper: Array, salience: Array, zeros: int, group: int
) -> None:
    rows, width = block.shape
    for row in range(rows):
        for start in range(0, width, group):
            end = start + group
            _choose(block[row], salience, mask[row], zeros, start, end)
            _sweep_row(block[row], upper, mask[row], errors[row], start, end)


def _compiled_masked(block: Tensor, upper: Tensor, mask: Tensor) -> Tensor:
    errors = torch.zeros(block.shape)
    _over_rows(_sweep_masked, (block, mask, errors), upper.numpy())
    return errors


def _compiled_patterned(
    block: Tensor, upper: Tensor, salience: Tensor, zeros: int, group: int
) -> Tensor:
    errors, mask = torch.zeros(block.shape), torch.zeros(block.shape, dtype=torch.bool)
    shared = upper.numpy(), salience.numpy(), zeros, group
    _over_rows(_sweep_patterned, (block, mask, errors), *shared)
    return errors


def _over_rows(
    kernel: Callable[..., None], by_row: tuple[Tensor, ...], *shared: Array | int
) -> None:
    """Call a kernel on pieces of the rows in as many threads as torch uses.

    The pieces are many more than the threads, as rows of sparser levels take longer. Numba's
    own threads are not used: they spin, which is ruinous on a busy machine, and must not be
    started from two threads at once.
    """
    threads = torch.get_num_threads()
    size = -(-len(by_row[0]) // (threads * PIECES_PER_THREAD))
    arrays = [tensor.numpy() for tensor in by_row]
    pieces = [
        [array[start : start + size] for array in arrays]
        for start in range(0, len(by_row[0]), size)
    ]
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(kernel, *piece, *shared) for piece in pieces]:
            done.result()


PLAIN = BlockSweep(_plain_masked, _plain_patterned)
"""For any device."""

COMPILED = BlockSweep(_compiled_masked, _compiled_patterned)
"""For the CPU."""
