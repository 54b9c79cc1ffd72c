"""Floating-point operations: a multiplication and an addition are two.

Counted are linear matrices, attention scores with their weighted sum, and the head. Norms,
activations, rotations and softmax are not. Of a mixture of experts those count that a token
uses, its router, and a shared expert with what weighs it. Zeros in a matrix save nothing: a dense
kernel multiplies by them, and a sparse one gains less than their share.
"""

from __future__ import annotations

from evocompress.core.types import Architecture
from evocompress.space.costs.model import Cost
from evocompress.space.costs.sublayers import Left, Part


def flops_costs(architecture: Architecture, length: int) -> dict[str, Cost]:
    """The operations of running the model over one sequence.

    Returns:
        ``flops`` of a prefill of `length` tokens with all outputs;
        ``decode_flops`` of one token that attends to `length` tokens, itself included.
    """
    head = 2 * architecture.hidden * architecture.vocabulary

    def prefill(part: Part, left: Left) -> float:
        pairs = _attended(length, part.window) if architecture.one_way else length**2
        return 2 * _products(part, left, length) + _per_pair(part, left) * pairs

    def decode(part: Part, left: Left) -> float:
        seen = min(length, part.window or length)
        return 2 * _products(part, left, 1) + _per_pair(part, left) * seen

    outer = head * length + architecture.outer_flops
    return {"flops": Cost(outer, prefill), "decode_flops": Cost(head, decode)}


def _products(part: Part, left: Left, length: int) -> int:
    """Weights that a sequence is multiplied with, each as often as it is.

    Of an expert itself only its row of the router: its MLP counts those that a token is sent to.
    """
    if part.unit.kind == "expert":
        return left.own * length
    own = sum(left.weights[unit.name] * (unit.positions or length) for unit in part.matrices)
    return own + (left.used - left.weight + part.gate) * length


def _per_pair(part: Part, left: Left) -> int:
    """Operations of all heads for one pair (query, key); none in an MLP."""
    return 4 * left.heads * part.head_dim


def _attended(length: int, window: int | None) -> int:
    """Pairs (query, key) of causal attention in which a query sees at most `window` keys."""
    seen = min(length, window or length)
    return seen * (seen + 1) // 2 + (length - seen) * seen
