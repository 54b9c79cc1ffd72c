"""Counts of parameters and of non-zero weights."""

from __future__ import annotations

from collections.abc import Sequence

from evocompress.costs.model import Part, Terms
from evocompress.types import Architecture


def parameter_terms(parts: Sequence[Part], architecture: Architecture) -> dict[str, Terms]:
    """Parameters in all, in the blocks and in matrices, with zeros and without."""
    outer = architecture.outer_params
    whole = tuple(float(part.weights + part.own) for part in parts)
    weights = tuple(float(part.weights) for part in parts)
    return {
        "params": Terms(outer, whole),
        "body_params": Terms(0, whole),
        "nonzeros": Terms(outer, whole, per_zero=1),
        "body_nonzeros": Terms(0, whole, per_zero=1),
        "matrix_nonzeros": Terms(0, weights, per_zero=1),
    }
