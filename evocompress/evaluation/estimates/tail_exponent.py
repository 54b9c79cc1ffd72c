"""How heavy the tail of a matrix's spectrum is (AlphaPruning, Lu et al. 2024, 2410.10912)."""

from __future__ import annotations

from math import nan

import numpy as np
import torch
from torch import Tensor

from evocompress.core.arrays import Floats
from evocompress.evaluation.estimates.base import Rows, Subject
from evocompress.evaluation.estimates.matrices import kept_matrices

_BINS = 100
_AROUND_PEAK = (0.95, 1.5)
_ZERO = 1e-12
"""Eigenvalues below this share of the largest are none."""


def tail_exponent(subject: Subject) -> Rows:
    """The exponent of the power law that fits the largest eigenvalues of the squared matrix.

    Hill's estimate 1 + n / sum of ln(eigenvalue / smallest) of the n eigenvalues of the tail.
    The tail begins at the eigenvalue around the peak of the spectrum (0.95 to 1.5 times the
    peak of the histogram of the logarithms) from which on the law fits best, by the distance of
    Kolmogorov and Smirnov. Looks at weights alone: ask for it without micro-batches.

    Returns:
        One value for every matrix that the candidate keeps.
    """
    return {
        matrix.name: (_exponent(matrix.weight),)
        for matrix in kept_matrices(subject.live, subject.candidate)
    }


def _exponent(weight: Tensor) -> float:
    """The exponent of a matrix; NaN where one of its values is not finite."""
    return hill_exponent(_spectrum(weight)) if weight.isfinite().all() else nan


def hill_exponent(eigenvalues: Floats) -> float:
    """The exponent of ascending eigenvalues (n,); NaN where fewer than two are above zero."""
    positive = eigenvalues[eigenvalues > _ZERO * eigenvalues[-1]]
    if len(positive) < 2:
        return nan
    counts, edges = np.histogram(np.log10(positive), bins=_BINS)
    peak = 10 ** edges[int(np.argmax(counts))]
    low, high = (factor * peak for factor in _AROUND_PEAK)
    begins = np.flatnonzero((positive >= low) & (positive <= high))
    # A tail of one has no shape; a spectrum with a gap above its peak begins behind the gap.
    begins = begins[begins < len(positive) - 1]
    if not begins.size:
        begins = np.array([min(np.searchsorted(positive, low), len(positive) - 2)])
    fits = [_fit(positive[begin:]) for begin in begins]
    return min(fits)[1]


def _fit(tail: Floats) -> tuple[float, float]:
    """The distance of a tail (n,) from its power law, and the law's exponent."""
    logs = np.log(tail / tail[0])
    exponent = 1 + len(tail) / float(logs.sum())
    law = 1 - np.exp((1 - exponent) * logs)
    return float(np.abs(law - np.arange(len(tail)) / len(tail)).max()), exponent


def _spectrum(weight: Tensor) -> Floats:
    """The squared singular values, ascending."""
    wide = weight.double() if weight.shape[0] <= weight.shape[1] else weight.T.double()
    spectrum: Floats = torch.linalg.eigvalsh(wide @ wide.T).clamp(min=0).cpu().numpy()
    return spectrum
