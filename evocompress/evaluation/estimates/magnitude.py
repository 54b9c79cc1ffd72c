"""Quantiles of the magnitudes of weights: what one threshold for all matrices removes."""

from __future__ import annotations

from evocompress.evaluation.estimates.base import Rows, Subject
from evocompress.evaluation.estimates.matrices import kept_matrices, part_ends

POINTS = 256
"""Quantiles of a matrix."""


def magnitude(subject: Subject) -> Rows:
    """The magnitude below or at which 1/256, 2/256, ... 256/256 of a matrix's weights lie.

    Looks at weights alone: ask for it without micro-batches.

    Returns:
        For every matrix that the candidate keeps 256 values, ascending.
    """
    rows: Rows = {}
    for matrix in kept_matrices(subject.live, subject.candidate):
        magnitudes = matrix.weight.abs().flatten().float().sort().values.cpu()
        rows[matrix.name] = tuple(magnitudes[part_ends(len(magnitudes), POINTS)].double().tolist())
    return rows
