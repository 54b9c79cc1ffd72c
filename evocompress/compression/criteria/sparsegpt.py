"""SparseGPT (Frantar & Alistarh 2023, 2301.00774): zeros whose error later columns make good.

All levels of all matrices of one shape that read the same input come out of one sweep: they share
the Hessian's factor, are stacked in a leading dimension of the working copy, and the update of the
inputs still to come is one batched product for all of them. Inputs, which are the columns of a
matrix, are the rows of the working copy: see `evocompress.compression.criteria.sweep`.

```yaml
library: {criterion: sparsegpt}
space: {sparsity: {target: 0.5}}
```
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from evocompress.compression.criteria.base import Statistics, check_levels
from evocompress.compression.criteria.factor import Factor
from evocompress.compression.criteria.masks import parse_pattern, shares, smallest
from evocompress.compression.criteria.sweep import BlockSweep, block_sweep_for
from evocompress.core.types import Level

BLOCK = 128
"""Inputs between two lazy updates, and over which an unstructured mask is chosen."""


@dataclass(frozen=True)
class _Block:
    """Consecutive inputs that are masked and swept together.

    Attributes:
        start, end: The inputs.
        counts: Zeros of each unstructured level among them.
    """

    start: int
    end: int
    counts: tuple[int, ...]


def compress(weight: Tensor, statistics: Statistics, levels: Sequence[Level]) -> list[Tensor]:
    """Prune input by input with the optimal update of the inputs that follow.

    Unstructured masks are the smallest |w|/Uⱼⱼ of each block of 128 inputs, all outputs together;
    the blocks' shares of ``level.zeros`` are rounded so that the sum is exact. A pattern is
    chosen for each group of inputs from the weights as updated so far. Weights of inputs that
    are always zero are masked first.

    The weights of levels with the same pattern are views of one tensor (levels, in, out).

    Raises:
        LibraryError: A level is impossible for the matrix, or the statistics are unusable.
    """
    return compress_together([weight], statistics, [levels])[0]


def compress_together(
    weights: Sequence[Tensor],
    statistics: Statistics,
    levels: Sequence[Sequence[Level]],
    sweep: BlockSweep | None = None,
) -> list[list[Tensor]]:
    """`compress` of several matrices of one shape in the same sweep, the device's fastest."""
    sweep = sweep or block_sweep_for(weights[0].device)
    for weight, own in zip(weights, levels, strict=True):
        check_levels(weight, own)
    dense = [weight.float() for weight in weights]
    sparse = dict.fromkeys(
        (place, level) for place, own in enumerate(levels) for level in own if not level.dense
    )
    results: dict[_Task, Tensor] = {}
    for pattern, group in groupby(sorted(sparse, key=_pattern), key=_pattern):
        tasks = list(group)
        swept = _sweep_matrices(dense, statistics.factor, pattern, tasks, sweep)
        results |= zip(tasks, swept.mT, strict=True)
    return [
        [dense[place] if level.dense else results[place, level] for level in own]
        for place, own in enumerate(levels)
    ]


_Task = tuple[int, Level]
"""A matrix and what to make of it."""


def _pattern(task: _Task) -> str:
    return task[1].pattern


def _sweep_matrices(
    dense: Sequence[Tensor],
    factor: Factor,
    pattern: str,
    tasks: Sequence[_Task],
    sweep: BlockSweep,
) -> Tensor:
    """The compressed weights (tasks, in, out) of tasks that share a pattern."""
    columns = [weight.T.contiguous() for weight in dense]
    work = torch.stack([columns[place] for place, _ in tasks])
    upper = factor.upper.to(work.device)
    salience = torch.where(factor.dead, 0.0, upper.diagonal().reciprocal())
    for one in _blocks(work.shape[1], pattern, [level for _, level in tasks]):
        inside, later = slice(one.start, one.end), slice(one.end, None)
        block, triangle = work[:, inside], upper[inside, inside].contiguous()
        if pattern:
            errors = sweep.patterned(block, triangle, salience[inside], *parse_pattern(pattern))
        else:
            scores = (block * salience[inside, None]).abs_()
            mask = smallest(scores.flatten(1), one.counts).view(block.shape)
            errors = sweep.masked(block, triangle, mask)
        if one.end < work.shape[1]:
            effects = upper[inside, later].T.expand(len(tasks), -1, -1)
            work[:, later].baddbmm_(effects, errors, alpha=-1)
    return work


def _blocks(inputs: int, pattern: str, levels: Sequence[Level]) -> Iterator[_Block]:
    """The blocks from left to right; a group of a pattern is never cut."""
    group = parse_pattern(pattern)[1] if pattern else 1
    width = max(BLOCK // group, 1) * group
    starts = range(0, inputs, width)
    ends = [min(start + width, inputs) for start in starts]
    counts = zip(*(shares(level.zeros, ends) for level in levels), strict=True)
    for start, end, zeros in zip(starts, ends, counts, strict=True):
        yield _Block(start, end, zeros)
