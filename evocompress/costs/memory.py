"""Bytes of the weights and of the key-value cache."""

from __future__ import annotations

from collections.abc import Sequence

from evocompress.costs.model import Part, Terms
from evocompress.types import Architecture


def memory_terms(
    parts: Sequence[Part], architecture: Architecture, length: int
) -> dict[str, Terms]:
    """The bytes that a served model takes.

    Args:
        parts: The sub-layers.
        architecture: The model's dimensions.
        length: Tokens of the one cached sequence; a windowed layer keeps no more than its
            window.

    Returns:
        ``weight_bytes`` and ``kv_bytes``.
    """
    size = architecture.dtype_bytes
    weights = tuple(float(size * (part.weights + part.own)) for part in parts)
    cache = tuple(float(_cached(part, architecture, length)) for part in parts)
    return {
        "weight_bytes": Terms(size * architecture.outer_params, weights),
        "kv_bytes": Terms(0, cache),
    }


def _cached(part: Part, architecture: Architecture, length: int) -> int:
    """Bytes of the keys and values of one sub-layer."""
    if part.unit.kind != "attention":
        return 0
    block = part.unit.block
    tokens = min(length, architecture.windows[block] or length)
    width = architecture.kv_heads[block] * architecture.head_dim
    return 2 * tokens * width * architecture.dtype_bytes
