"""The PQ index: how sparse a matrix is already (Diao et al. 2023, 2302.05601)."""

from __future__ import annotations

from torch import Tensor

from evocompress.evaluation.estimates.base import Rows, Subject
from evocompress.evaluation.estimates.matrices import kept_matrices


def pq_index(subject: Subject) -> Rows:
    """1 - d^(1/q - 1/p) * (p-norm / q-norm) of the d weights that are not zero; p = 1/2, q = 1.

    Looks at weights alone: ask for it without micro-batches.

    Returns:
        One value for every matrix that the candidate keeps: 0 where all weights are equal, near
        1 where few of them stand out. Zeros alone have no index: NaN.
    """
    return {
        matrix.name: (_index(matrix.weight),)
        for matrix in kept_matrices(subject.live, subject.candidate)
    }


def _index(weight: Tensor) -> float:
    magnitudes = weight.abs().double()
    count = int((magnitudes > 0).sum())
    if not count:
        return float("nan")
    half_norm = float(magnitudes.sqrt().sum()) ** 2
    return 1 - half_norm / float(magnitudes.sum()) / count
