"""Counts of parameters and of non-zero weights."""

from __future__ import annotations

from evocompress.core.types import Architecture
from evocompress.space.costs.model import Cost
from evocompress.space.costs.sublayers import Left, Part


def parameter_costs(architecture: Architecture) -> dict[str, Cost]:
    """Parameters in all, in the blocks and in matrices, with zeros and without.

    Of mixtures of experts also those that a token uses: of an expert itself only its row of the
    router.
    """
    outer = architecture.outer_params
    active = (
        {"active_params": Cost(outer, lambda part, left: left.used + left.own)}
        if architecture.experts
        else {}
    )
    return active | {
        "params": Cost(outer, parameters),
        "body_params": Cost(0, parameters),
        "nonzeros": Cost(outer, parameters, per_zero=1),
        "body_nonzeros": Cost(0, parameters, per_zero=1),
        "matrix_nonzeros": Cost(0, lambda part, left: left.weight, per_zero=1),
    }


def parameters(part: Part, left: Left) -> float:
    """All parameters of a sub-layer: matrices, biases and norms."""
    return left.weight + left.own
