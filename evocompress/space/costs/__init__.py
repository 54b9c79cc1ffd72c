"""What a candidate costs: every cost is a base plus a sum over the sub-layers that are kept."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from evocompress.core.architecture import Architecture
from evocompress.core.errors import ConfigError
from evocompress.core.storage import StorageType
from evocompress.core.types import Unit
from evocompress.space.costs.counted import (
    flops_costs,
    memory_costs,
    parameter_costs,
    saved_in_cache,
    typed_costs,
)
from evocompress.space.costs.file import FileLayout, file_cost
from evocompress.space.costs.latency import LatencyTable
from evocompress.space.costs.memory import Serving, memory_cost, saved_in_service
from evocompress.space.costs.model import Cost, CostModel, CostTable
from evocompress.space.costs.sublayers import Left, Part, cost_parts, level_of
from evocompress.space.costs.timing import TIMED, amount_text, timing_costs

__all__ = [
    "CACHED",
    "COSTS",
    "DEFAULT_LENGTH",
    "OPERATIONS",
    "ROUTED",
    "SERVED",
    "TIMED",
    "TYPED",
    "WRITTEN",
    "Cost",
    "CostModel",
    "CostTable",
    "FileLayout",
    "LatencyTable",
    "Left",
    "Part",
    "Serving",
    "amount_text",
    "cost_model",
    "level_of",
    "cost_parts",
]

DEFAULT_LENGTH = 512

COSTS: dict[str, str] = {
    "params": "all parameters: tied weights once, zeros counted",
    "active_params": "parameters that a token uses, of a mixture of experts, zeros counted",
    "body_params": "parameters of the blocks, zeros counted",
    "nonzeros": "all parameters without the zeros in matrices",
    "body_nonzeros": "parameters of the blocks without the zeros in matrices",
    "matrix_nonzeros": "non-zero weights of the blocks' linear matrices (0.5 is 50% sparsity)",
    "flops": "floating-point operations of a prefill of one sequence, logits at each position",
    "decode_flops": "floating-point operations of one decoded token at full context",
    "weight_bytes": "bytes of all weights: tied weights once, zeros counted, in their types",
    "file_bytes": "bytes of the file that it is written as, with names, shapes and vocabulary",
    "bits_per_weight": "bits of the blocks' matrices for each weight that they have when dense",
    "kv_bytes": "bytes of the cache of one sequence: keys, values, states",
    "memory": "bytes of a served model: weights, a full cache, and the program's buffers",
    "latency": "seconds of a prefill, from a table measured by `evocompress profile`",
    "decode_latency": "seconds of a decoding step of decode[0] sequences, same table",
}


CACHED = ("decode_flops", "kv_bytes", "memory", "decode_latency")
"""The costs that only a model with a key-value cache has: a causal one."""

OPERATIONS = ("flops", "decode_flops")
"""The costs that count operations."""

TYPED = ("bits_per_weight",)
"""The costs that only a space with types of stored weights has."""

SERVED = ("memory",)
"""The costs that depend on how the model is served."""

WRITTEN = ("file_bytes",)
"""The costs that depend on the format."""

ROUTED = ("active_params",)
"""The costs that only a mixture of experts has; elsewhere a token uses all parameters."""


def cost_model(
    units: Sequence[Unit],
    architecture: Architecture,
    *,
    length: int | None = None,
    latency: LatencyTable | None = None,
    typed: bool = False,
    serving: Serving | None = None,
    file: FileLayout | None = None,
) -> CostModel:
    """The costs of every candidate of a model.

    Args:
        units: All units of the model, in model order.
        architecture: The model's dimensions.
        length: Tokens of the sequence of ``flops`` and ``kv_bytes``, and context of
            ``decode_flops``; 512 where the model takes as many, and where it takes sequences of
            one length only, as of images, that one.
        latency: Adds the costs ``latency`` and ``decode_latency``, which a mixture of experts
            does not have.
        typed: Adds the costs of types of stored weights.
        serving: Adds the cost ``memory``.
        file: Adds the cost ``file_bytes``.

    Raises:
        ConfigError: `length` is not between 1 and the model's context, or the model cannot be
            served as `serving` says.
    """
    if length is None:
        length = architecture.tokens or min(DEFAULT_LENGTH, architecture.context)
    if not 1 <= length <= architecture.context:
        raise ConfigError(
            f"cost length {length}: give 1 to {architecture.context} tokens, the model's context"
        )
    parts = cost_parts(units, architecture)
    costs = (
        parameter_costs(architecture)
        | flops_costs(architecture, length)
        | memory_costs(architecture, length)
        | (timing_costs(latency) if latency and not architecture.experts else {})
        | (typed_costs(parts, architecture) if typed else {})
    )
    if file is not None:
        costs["file_bytes"] = file_cost(file, parts)
    if serving is not None:
        costs["memory"] = memory_cost(costs["weight_bytes"], parts, architecture, serving)
    cached = partial(_saved_in_cache, length=length, itemsize=architecture.dtype_bytes)
    served = partial(saved_in_service, serving=serving) if serving else _nothing_saved
    known = COSTS if architecture.causal else [name for name in COSTS if name not in CACHED]
    ordered = {name: costs[name] for name in known if name in costs}
    return CostModel(
        parts,
        ordered,
        length,
        architecture.uncounted,
        architecture.dtype_bytes,
        tuple(unit for unit in units if unit.kind == "outer"),
        None if file is None else file.saved,
        (cached, served),
    )


def _saved_in_cache(part: Part, left: Left, kind: StorageType, length: int, itemsize: int) -> int:
    """As ``kv_bytes`` has it: a windowed layer caches no more than its window."""
    return saved_in_cache(part, left, kind, min(length, part.window or length), itemsize)


def _nothing_saved(*_: object) -> int:
    return 0
