"""Quantiles of LAMP's scores (Lee et al. 2020, 2010.07611)."""

from __future__ import annotations

import torch
from torch import Tensor

from evocompress.evaluation.estimates.base import Rows, Subject
from evocompress.evaluation.estimates.magnitude import POINTS
from evocompress.evaluation.estimates.matrices import kept_matrices, part_ends


def lamp(subject: Subject) -> Rows:
    """The score below or at which 1/256, 2/256, ... 256/256 of a matrix's weights lie.

    The score of a weight is its square over the sum of the squares of all weights of its matrix
    that are not smaller; so the largest weight of every matrix has the score 1. Looks at weights
    alone: ask for it without micro-batches.

    Returns:
        For every matrix that the candidate keeps 256 values, ascending.
    """
    return {
        matrix.name: _quantiles(matrix.weight)
        for matrix in kept_matrices(subject.live, subject.candidate)
    }


def _quantiles(weight: Tensor) -> tuple[float, ...]:
    squares = weight.flatten().double().square().sort().values.cpu()
    chosen = squares[part_ends(len(squares), POINTS)]
    # Equal weights share a sum: it begins at the first of them. Nothing is as large as a NaN.
    first = torch.searchsorted(squares, chosen).clamp(max=len(squares) - 1)
    sums = squares.flip(0).cumsum(0).flip(0)[first]
    return tuple((chosen / sums.clamp(min=torch.finfo(torch.float64).tiny)).tolist())
