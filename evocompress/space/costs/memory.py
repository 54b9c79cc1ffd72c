"""Bytes of the weights and of the key-value cache."""

from __future__ import annotations

from evocompress.core.types import Architecture
from evocompress.space.costs.model import Cost
from evocompress.space.costs.sublayers import Left, Part


def memory_costs(architecture: Architecture, length: int) -> dict[str, Cost]:
    """The bytes that a served model takes.

    A windowed layer caches no more than its window.
    """
    size = architecture.dtype_bytes

    def weights(part: Part, left: Left) -> float:
        return size * (left.weight + left.own)

    def cache(part: Part, left: Left) -> float:
        """Keys and values of an attention; an MLP has no key-value heads."""
        tokens = min(length, part.window or length)
        return 2 * tokens * left.kv_heads * part.head_dim * size

    return {
        "weight_bytes": Cost(size * architecture.outer_params, weights),
        "kv_bytes": Cost(0, cache),
    }
