"""The shares of outliers among Wanda's scores of a block (OWL, Yin et al. 2023, 2310.05175)."""

from __future__ import annotations

from math import isfinite, nan

import torch
from torch import Tensor, nn

from evocompress.evaluation.estimates.base import Rows, Subject, run_hooked
from evocompress.evaluation.estimates.matrices import KeptMatrix, kept_matrices

MULTIPLES = 10
"""Outliers are told above 1, 2, ... 10 times the mean."""


def outliers(subject: Subject) -> Rows:
    """Percent of a block's scores |weight| * norm of its input above M times their mean.

    The scores of all matrices of a block are pooled; inputs are those of the candidate itself.

    Returns:
        For every block that is left in part the values of M = 1, 2, ... 10.
    """
    live = subject.live
    observed = [_Observed(matrix) for matrix in kept_matrices(live, subject.candidate)]
    handles = [each.matrix.module.register_forward_pre_hook(each.add) for each in observed]
    run_hooked(subject, handles)
    blocks = dict.fromkeys(o.matrix.block for o in observed)
    return {
        block: _percentages([o for o in observed if o.matrix.block == block]) for block in blocks
    }


class _Observed:
    """A matrix and the squares of what it reads."""

    def __init__(self, matrix: KeptMatrix) -> None:
        self.matrix = matrix
        self._squares = torch.zeros(matrix.weight.shape[1], dtype=torch.float64)

    def add(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """A forward pre-hook."""
        squares = inputs[0].flatten(0, -2).double().square().sum(0)
        self._squares = self._squares.to(squares.device) + squares

    def scores(self) -> Tensor:
        """Wanda's scores (out, in)."""
        return self.matrix.weight.abs().float() * self._squares.sqrt().float()


def _percentages(observed: list[_Observed]) -> tuple[float, ...]:
    """For each multiple of the mean the percentage of scores above it; NaN without a mean."""
    pooled = torch.cat([each.scores().flatten() for each in observed])
    mean = float(pooled.mean(dtype=torch.float64))
    if not isfinite(mean):
        return (nan,) * MULTIPLES
    above = [int((pooled > multiple * mean).sum()) for multiple in range(1, MULTIPLES + 1)]
    return tuple(100 * count / len(pooled) for count in above)
