"""SparseGPT (Frantar & Alistarh 2023, 2301.00774): zeros whose error later columns make good.

All levels of a matrix come out of one sweep: they share the Hessian's factor, are stacked in a
leading dimension of the working copy, and the update of the columns still to come is one matrix
product for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from evocompress.criteria.base import Statistics, check_levels
from evocompress.criteria.factor import Factor
from evocompress.criteria.masks import parse_pattern, shares, smallest
from evocompress.criteria.sweep import BlockSweep, block_sweep_for
from evocompress.types import Level

BLOCK = 128
"""Columns between two lazy updates, and over which an unstructured mask is chosen."""


@dataclass(frozen=True)
class _Columns:
    """Consecutive columns that are masked and swept together.

    Attributes:
        start, end: The columns.
        counts: Zeros of each unstructured level among them.
    """

    start: int
    end: int
    counts: tuple[int, ...]


def compress(weight: Tensor, statistics: Statistics, levels: Sequence[Level]) -> list[Tensor]:
    """Prune column by column with the optimal update of the columns that follow.

    Unstructured masks are the smallest w²/U²ⱼⱼ of each block of 128 columns, all rows together;
    the blocks' shares of ``level.zeros`` are rounded so that the sum is exact. A pattern is
    chosen for each group of inputs from the weights as updated so far. Weights of inputs that
    are always zero are masked first.

    The weights of levels with the same pattern share one tensor (levels, out, in). See
    `evocompress.criteria.base.Criterion` for the arguments.

    Raises:
        LibraryError: A level is impossible for the matrix, or the statistics are unusable.
    """
    return compress_with(weight, statistics, levels, block_sweep_for(weight.device))


def compress_with(
    weight: Tensor, statistics: Statistics, levels: Sequence[Level], sweep: BlockSweep
) -> list[Tensor]:
    """As `compress`, with the given implementation of the sweep within a block."""
    check_levels(weight, levels)
    dense = weight.float()
    sparse = sorted(dict.fromkeys(level for level in levels if not level.dense), key=_pattern)
    results: dict[Level, Tensor] = {}
    for pattern, group in groupby(sparse, key=_pattern):
        same = list(group)
        swept = _sweep_matrix(dense, statistics.factor, pattern, same, sweep)
        results |= zip(same, swept, strict=True)
    return [dense if level.dense else results[level] for level in levels]


def _pattern(level: Level) -> str:
    return level.pattern


def _sweep_matrix(
    dense: Tensor, factor: Factor, pattern: str, levels: Sequence[Level], sweep: BlockSweep
) -> Tensor:
    """The compressed weights (levels, out, in) of levels that share a pattern."""
    work = dense.repeat(len(levels), 1, 1)
    rows = work.view(-1, dense.shape[1])
    upper = factor.upper.to(dense.device)
    salience = torch.where(factor.dead, 0.0, upper.diagonal().reciprocal())
    for columns in _blocks(dense.shape[1], pattern, levels):
        inside = slice(columns.start, columns.end)
        block, triangle = rows[:, inside].contiguous(), upper[inside, inside].contiguous()
        if pattern:
            errors = sweep.patterned(block, triangle, salience[inside], *parse_pattern(pattern))
        else:
            scores = (block * salience[inside]).square_().view(len(levels), -1)
            mask = smallest(scores, columns.counts).view(block.shape)
            errors = sweep.masked(block, triangle, mask)
        rows[:, inside] = block
        if columns.end < rows.shape[1]:
            rows[:, columns.end :].addmm_(errors, upper[inside, columns.end :], alpha=-1)
    return work


def _blocks(columns: int, pattern: str, levels: Sequence[Level]) -> Iterator[_Columns]:
    """The blocks from left to right; a group of a pattern is never cut."""
    group = parse_pattern(pattern)[1] if pattern else 1
    width = max(BLOCK // group, 1) * group
    starts = range(0, columns, width)
    ends = [min(start + width, columns) for start in starts]
    counts = zip(*(shares(level.zeros, ends) for level in levels), strict=True)
    for start, end, zeros in zip(starts, ends, counts, strict=True):
        yield _Columns(start, end, zeros)
