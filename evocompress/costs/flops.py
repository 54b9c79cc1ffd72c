"""Floating-point operations: a multiplication and an addition are two.

Counted are linear matrices, attention scores with their weighted sum, and the head. Norms,
activations, rotations and softmax are not. Zeros in a matrix save nothing: a dense kernel
multiplies by them, and a sparse one gains less than their share.
"""

from __future__ import annotations

from collections.abc import Sequence

from evocompress.costs.model import Part, Terms
from evocompress.types import Architecture


def flops_terms(parts: Sequence[Part], architecture: Architecture, length: int) -> dict[str, Terms]:
    """The operations of running the model over one sequence.

    Args:
        parts: The sub-layers.
        architecture: The model's dimensions.
        length: Tokens of the sequence.

    Returns:
        ``flops`` of a prefill of `length` tokens with logits at each of them;
        ``decode_flops`` of one token that attends to `length` tokens, itself included.
    """
    head = 2 * architecture.hidden * architecture.vocabulary
    prefill, decode = [], []
    for part in parts:
        pairs, last = 0, 0
        if part.unit.kind == "attention":
            window = architecture.windows[part.unit.block]
            pairs, last = _attended(length, window), min(length, window or length)
        per_pair = 4 * architecture.heads[part.unit.block] * architecture.head_dim
        prefill.append(2.0 * part.weights * length + per_pair * pairs)
        decode.append(2.0 * part.weights + per_pair * last)
    return {
        "flops": Terms(head * length, tuple(prefill)),
        "decode_flops": Terms(head, tuple(decode)),
    }


def _attended(length: int, window: int | None) -> int:
    """Pairs (query, key) of causal attention in which a query sees at most `window` keys."""
    seen = min(length, window or length)
    return seen * (seen + 1) // 2 + (length - seen) * seen
