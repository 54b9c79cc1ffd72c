"""Costs that follow from the architecture: parameters, bytes, and floating-point operations.

A multiplication and an addition are two operations. Counted are linear matrices, attention scores
with their weighted sum, and the head. Norms, activations, rotations and softmax are not. Of what
mixes tokens in another way those products and convolutions are counted that torch counts in the
model's own class. Of a mixture of experts those count that a token uses, its router, and a shared
expert with what weighs it. What a forward pass runs several times has parameters once, and
operations and a cache each time: those of what several blocks share are theirs. Zeros in a matrix
save nothing: a dense kernel multiplies by them, and a sparse one gains less than their share.
"""

from __future__ import annotations

from collections.abc import Sequence

from evocompress.core.architecture import Architecture
from evocompress.core.storage import StorageType
from evocompress.core.types import DENSE
from evocompress.space.costs.model import Cost
from evocompress.space.costs.sublayers import Left, Part


def parameter_costs(architecture: Architecture) -> dict[str, Cost]:
    """Parameters in all, in the blocks and in matrices, with zeros and without.

    Of mixtures of experts also those that a token uses: of an expert itself only its row of the
    router.
    """
    shared = architecture.shared
    outer = architecture.outer_params + shared
    active = (
        {"active_params": Cost(outer, lambda part, left: left.used + left.own)}
        if architecture.experts
        else {}
    )
    return active | {
        "params": Cost(outer, parameters),
        "body_params": Cost(shared, parameters),
        "nonzeros": Cost(outer, parameters, per_zero=1),
        "body_nonzeros": Cost(shared, parameters, per_zero=1),
        "matrix_nonzeros": Cost(shared, lambda part, left: left.weight, per_zero=1),
    }


def parameters(part: Part, left: Left) -> float:
    """All parameters of a sub-layer: matrices, biases and norms."""
    return left.weight + left.own


def memory_costs(architecture: Architecture, length: int) -> dict[str, Cost]:
    """The bytes that a served model takes with a cache of `length` tokens.

    A windowed layer caches no more than its window.
    """
    size = architecture.dtype_bytes

    def weights(part: Part, left: Left) -> float:
        return size * parameters(part, left)

    def cache(part: Part, left: Left) -> float:
        return cached_bytes(part, left, min(length, part.window or length), size)

    return {
        "weight_bytes": Cost(
            size * (architecture.outer_params + architecture.shared),
            weights,
            per_byte=1,
            per_outer_byte=1,
        ),
        "kv_bytes": Cost(0, cache, per_cached_byte=1, each_use=True),
    }


def cached_bytes(
    part: Part, left: Left, tokens: int, itemsize: float, of_state: float | None = None
) -> float:
    """Keys and values of an attention, or the state of what mixes tokens in another way.

    Those that a block reads of another one are cached once, for that.

    Args:
        part: The sub-layer.
        left: What is left of it.
        tokens: That are cached.
        itemsize: Bytes of each key's or value's number.
        of_state: Of each number of a state; by default as many.
    """
    own = part.beside.cached(tokens, itemsize, of_state)
    each = part.latent or _cached_values(part, left)
    return part.runs * (tokens * each * itemsize + own)


def _cached_values(part: Part, left: Left) -> int:
    """Of keys and values, for each token."""
    heads = left.heads if part.repeated else left.kv_heads
    return heads * part.unit.attends * part.head_width


def saved_in_cache(part: Part, left: Left, kind: StorageType, tokens: int, itemsize: float) -> int:
    """Bytes that a type saves of keys and values, whose numbers take `itemsize` bytes without."""
    each = itemsize - kind.bits_per_weight / 8
    return round(part.runs * tokens * _cached_values(part, left) * each)


def typed_costs(parts: Sequence[Part], architecture: Architecture) -> dict[str, Cost]:
    """The mean bits of the weights of the blocks' matrices, with scales and the rest.

    They are divided by the number of weights that the dense matrices have, so that what is cut
    counts as stored in no bits, and costs of parts add up.
    """
    alone = (part.alone_and_shared()[0] if part.users else part for part in parts)
    weights = sum(part.left(DENSE).weight for part in alone) + architecture.shared
    each = 8 * architecture.dtype_bytes / weights

    def bits(part: Part, left: Left) -> float:
        return each * left.weight

    return {"bits_per_weight": Cost(each * architecture.shared, bits, per_byte=8 / weights)}


def flops_costs(architecture: Architecture, length: int) -> dict[str, Cost]:
    """The operations of running the model over one sequence.

    Returns:
        ``flops`` of a prefill of `length` tokens with all outputs;
        ``decode_flops`` of one token that attends to `length` tokens, itself included.
    """
    token = 2 * architecture.hidden * architecture.vocabulary + architecture.token_flops

    def prefill(part: Part, left: Left) -> float:
        pairs = _attended(length, part.window) if architecture.one_way else length**2
        own = part.beside.prefill(length) + part.beside.pair * pairs
        each = 2 * _products(part, left, length, length) + _per_pair(part, left) * pairs + own
        return part.runs * each

    def decode(part: Part, left: Left) -> float:
        seen = min(length, part.window or length)
        own = part.beside.decoded + part.beside.seen * seen
        each = 2 * _products(part, left, 1, seen) + _per_pair(part, left) * seen + own
        return part.runs * each

    outer = token * length + architecture.outer_flops
    return {
        "flops": Cost(outer, prefill, each_use=True),
        "decode_flops": Cost(token, decode, each_use=True),
    }


def _products(part: Part, left: Left, length: int, seen: int) -> int:
    """Weights that a sequence is multiplied with, each as often as it is, and `seen` are cached.

    Of an expert itself only its row of the router: its MLP counts those that a token is sent to.
    """
    if part.unit.kind == "expert":
        return part.gate * length
    own = sum(
        left.weights[unit.name] * (unit.positions or (seen if unit.of_cache else length))
        for unit in part.matrices
    )
    return own + (left.used - left.weight + part.gate) * length


def _per_pair(part: Part, left: Left) -> int:
    """Operations of all heads for one pair (query, key); none in an MLP."""
    return 2 * left.heads * part.head_width


def _attended(length: int, window: int | None) -> int:
    """Pairs (query, key) of causal attention in which a query sees at most `window` keys."""
    seen = min(length, window or length)
    return seen * (seen + 1) // 2 + (length - seen) * seen
