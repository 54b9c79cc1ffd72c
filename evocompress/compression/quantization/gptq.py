"""GPTQ (Frantar et al. 2022, 2210.17323): rounding whose error later columns make good.

All types of all matrices of one shape that read the same input come out of one sweep per block
size: they share the Hessian's factor and the products with it. A block's grid is chosen from its
weights as they are when the sweep comes to it; of a block that is a whole row, from all of them.
Zeros of a mask stay zero, and what they would have been given goes on to later columns as well, as
in SparseGPT (2301.00774).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from evocompress.compression.criteria.factor import Factor
from evocompress.compression.quantization.grids import BlockGrid, choose_grid
from evocompress.compression.quantization.rounding import COMPILED, PLAIN, Round
from evocompress.core.storage import StorageType

WINDOW = 128
"""Inputs whose errors are applied to all later ones in one product."""


@dataclass(frozen=True, eq=False)
class RoundingTask:
    """A matrix and how to store it.

    Attributes:
        weight: (out, in), float32.
        kind: A type with a uniform grid.
        mask: Which weights are zero (out, in); ``None`` where none must be.
    """

    weight: Tensor
    kind: StorageType
    mask: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Rounded:
    """A matrix as it is stored.

    Attributes:
        codes: (out, in), uint8.
        scales: Of each row's blocks (out, blocks), float32 that the stored type can hold.
        minima: The same of the values of code 0.
    """

    codes: Tensor
    scales: Tensor
    minima: Tensor

    @property
    def weight(self) -> Tensor:
        """What is read back, (out, in) float32."""
        size = self.codes.shape[1] // self.scales.shape[1]
        scales, minima = (t.repeat_interleave(size, 1) for t in (self.scales, self.minima))
        return self.codes.float() * scales + minima


def gptq(
    tasks: Sequence[RoundingTask],
    factor: Factor,
    stored: torch.dtype,
    rounding: Round | None = None,
) -> list[Rounded]:
    """Rounds matrices of one shape that read the same input.

    Args:
        tasks: What to round to what.
        factor: Of the damped inverse Hessian of their inputs.
        stored: Type in which scales are stored.
        rounding: The device's fastest by default.

    Returns:
        What is made of each task, in order.
    """
    rounding = rounding or (COMPILED if tasks[0].weight.device.type == "cpu" else PLAIN)
    order = sorted(range(len(tasks)), key=lambda place: tasks[place].kind.block)
    found: dict[int, Rounded] = {}
    for _, group in groupby(order, key=lambda place: tasks[place].kind.block):
        places = list(group)
        swept = _Sweep([tasks[place] for place in places], factor, stored, rounding).run()
        found |= zip(places, swept, strict=True)
    return [found[place] for place in range(len(tasks))]


class _Sweep:
    """Tasks whose types have blocks of one size."""

    def __init__(
        self, tasks: Sequence[RoundingTask], factor: Factor, stored: torch.dtype, rounding: Round
    ) -> None:
        self._tasks = tasks
        self._stored = stored
        self._round = rounding
        self._upper = factor.upper.to(tasks[0].weight.device)
        self._block = tasks[0].kind.block or WINDOW
        columns = {id(task.weight): task.weight.T.contiguous() for task in tasks}
        self._work = torch.stack([columns[id(task.weight)] for task in tasks])
        self._codes = torch.empty(self._work.shape, dtype=torch.uint8, device=self._work.device)
        self._masks = [None if task.mask is None else task.mask.T for task in tasks]
        self._grids: list[list[BlockGrid]] = [[] for _ in tasks]
        if not tasks[0].kind.block:
            pairs = zip(self._work, tasks, strict=True)
            self._grids = [[choose_grid(work, task.kind, stored)] for work, task in pairs]

    def run(self) -> list[Rounded]:
        """The matrices, blocks of inputs from first to last."""
        inputs = self._work.shape[1]
        window = max(WINDOW // self._block, 1) * self._block
        for start in range(0, inputs, window):
            end = min(start + window, inputs)
            errors = torch.empty_like(self._work[:, start:end])
            for first in range(start, end, self._block):
                last = min(first + self._block, end)
                errors[:, first - start : last - start] = self._round_block(first, last)
                self._carry(errors[:, first - start : last - start], (first, last), (last, end))
            self._carry(errors, (start, end), (end, inputs))
        return [self._rounded(place) for place in range(len(self._tasks))]

    def _round_block(self, first: int, last: int) -> Tensor:
        """Rounds inputs of all tasks; returns the errors, by U's diagonal, (tasks, block, out)."""
        errors = torch.empty_like(self._work[:, first:last])
        triangle = self._upper[first:last, first:last].contiguous()
        for place, task in enumerate(self._tasks):
            block = self._work[place, first:last]
            if task.kind.block:
                self._grids[place].append(choose_grid(block, task.kind, self._stored))
            mask = self._masks[place]
            kept = None if mask is None else mask[first:last].contiguous()
            grid, codes = self._grids[place][-1], self._codes[place, first:last]
            self._round(block, triangle, grid, kept, codes, errors[place])
        return errors

    def _carry(self, errors: Tensor, of: tuple[int, int], to: tuple[int, int]) -> None:
        """Takes what errors of some inputs do to the outputs off later ones."""
        if to[0] < to[1]:
            effects = self._upper[slice(*of), slice(*to)].T.expand(len(self._tasks), -1, -1)
            self._work[:, slice(*to)].baddbmm_(effects, errors, alpha=-1)

    def _rounded(self, place: int) -> Rounded:
        grids = self._grids[place]
        return Rounded(
            codes=self._codes[place].T.contiguous(),
            scales=torch.stack([grid.scale for grid in grids], 1),
            minima=torch.stack([grid.minimum for grid in grids], 1),
        )


def round_to_nearest(task: RoundingTask, stored: torch.dtype) -> Rounded:
    """Rounds each weight of a matrix to the nearest value of its block's grid."""
    grids, codes = [], []
    size = task.kind.block or task.weight.shape[1]
    for block in torch.split(task.weight.T, size):
        grid = choose_grid(block, task.kind, stored)
        own = grid.codes(block)
        grids.append(grid)
        codes.append(own)
    every = torch.cat(codes)
    if task.mask is not None:
        zeros = torch.cat([grid.zero.expand(size, -1) for grid in grids])
        every = torch.where(task.mask.T, zeros, every)
    return Rounded(
        codes=every.T.to(torch.uint8).contiguous(),
        scales=torch.stack([grid.scale for grid in grids], 1),
        minima=torch.stack([grid.minimum for grid in grids], 1),
    )
