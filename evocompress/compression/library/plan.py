"""How much disk and memory a level library will take, said before it is made."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import Tensor

from evocompress.compression.library.dense import Coupled, DenseModel, Linear, dense_model
from evocompress.compression.library.files import file_bytes
from evocompress.compression.library.order import Batch, BlockOrder, Levels, block_orders
from evocompress.compression.library.recipe import Wanted, methods_for
from evocompress.core.config import LibraryConfig
from evocompress.core.errors import LibraryError
from evocompress.models.loading import LoadedModel

FLOAT32 = 4
MIB = 2**20

WORKING_MATRICES = 8
"""Float32 copies of a matrix beside its levels: the dense one, and sorting or products."""

WORKING_HESSIANS = 6
"""Float32 matrices of the size of a Hessian that exist while it is factored."""

LEVEL_BYTES = 8
"""Bytes for each weight and level: the float32 result, and its share of masks and errors."""

ACTIVATIONS = 6
"""Tensors as wide as the widest input that exist while a batch passes a block."""

SAVED_ACTIVATIONS = 2
"""Tensors as large as all inputs and outputs of a block's matrices kept for a backward pass."""

SAVED_LOGITS = 4
"""Tensors as large as the logits, float32, at the end of a backward pass."""


@dataclass(frozen=True)
class LibraryPlan:
    """What making a library takes.

    Attributes:
        disk_bytes: Size of the files that are still to be made.
        memory_bytes: Main memory beside the model while they are made, an estimate from above.
        cache_bytes: Main memory that matrices narrowed and given zeros may take later.

    Examples:
        >>> LibraryPlan(disk_bytes=10**6, memory_bytes=10**7).cache_bytes
        0
    """

    disk_bytes: int
    memory_bytes: int
    cache_bytes: int = 0


def plan_library(
    loaded: LoadedModel,
    wanted: Wanted,
    tokens: Tensor,
    config: LibraryConfig,
    *,
    batch: int,
    done: Collection[int] = (),
) -> LibraryPlan:
    """Foresee what `build_library` takes for the same arguments.

    Args:
        loaded: The dense model.
        wanted: Levels of matrix, attention and MLP units.
        tokens: Calibration sequences (N, S); only their shape counts.
        config: Criteria, Hessians and cache.
        batch: Sequences that pass a block together.
        done: Blocks that are there already.

    Raises:
        LibraryError: A criterion or unit does not exist.
    """
    dense = dense_model(loaded)
    methods = methods_for(dense, wanted, config)
    orders = block_orders(dense, wanted, methods)
    missing = [order for block, order in orders.items() if block not in done]
    disk = sum(file_bytes(order.layout(dense.dtype, dense.stored)) for order in missing)
    memory = max((_block_bytes(order) for order in missing), default=0)
    if any(order.needs for order in missing):
        memory += _activation_bytes(loaded, dense, tokens, batch)
    if methods.gradients and missing:
        memory += _gradient_bytes(missing)
        memory = max(memory, _backward_bytes(loaded, dense, missing, tokens, batch))
    return LibraryPlan(disk, memory, _cache_bytes(orders.values(), dense.dtype, config))


def check_fits(plan: LibraryPlan, path: Path) -> None:
    """Refuse a library that the disk or the memory cannot take."""
    folder = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    free = shutil.disk_usage(folder).free
    if plan.disk_bytes > free:
        raise LibraryError(
            f"the level library needs {_mib(plan.disk_bytes)} on the disk of {path}, which has "
            f"{_mib(free)} free: choose another library.path or fewer levels"
        )
    available = psutil.virtual_memory().available
    if plan.memory_bytes > available:
        raise LibraryError(
            f"making the level library needs {_mib(plan.memory_bytes)} of memory, but "
            f"{_mib(available)} is available: give fewer levels or calibration sequences"
        )
    if plan.cache_bytes > available:
        raise LibraryError(
            f"narrowed matrices with zeros or types may take {_mib(plan.cache_bytes)} of "
            f"memory, but {_mib(available)} is available: give a smaller library.cache_mib"
        )


def _block_bytes(order: BlockOrder) -> int:
    """Statistics of a block, and the most that one of its units takes beside them."""
    matrices = (_batch_bytes(order, batch) for batch in order.batches)
    widths = (_width_bytes(order, coupled, levels) for coupled, levels in order.widths)
    return _statistics_bytes(order) + max((*matrices, *widths), default=0)


def _batch_bytes(order: BlockOrder, batch: Batch) -> int:
    copies = sum(WORKING_MATRICES * FLOAT32 + len(levels) * LEVEL_BYTES for _, levels in batch)
    linear = batch[0][0]
    return linear.unit.numel * copies + _factoring_bytes(order, linear)


def _width_bytes(order: BlockOrder, coupled: Coupled, levels: Levels) -> int:
    output = coupled.output.unit.numel * (WORKING_MATRICES * FLOAT32 + len(levels) * LEVEL_BYTES)
    others = sum(linear.unit.numel * 2 * FLOAT32 for linear in coupled.matrices)
    return output + others + _factoring_bytes(order, coupled.output)


def _factoring_bytes(order: BlockOrder, linear: Linear) -> int:
    if "gram" not in order.needs.get(linear.input, ()):
        return 0
    return WORKING_HESSIANS * FLOAT32 * linear.shape[1] ** 2


def _statistics_bytes(order: BlockOrder) -> int:
    """For each input its Gram matrix and the factor, and the sums of each feature."""
    entries = 0
    for word, kinds in order.needs.items():
        features = order.readers[word].shape[1]
        entries += sum(2 * features**2 if kind == "gram" else features for kind in kinds)
    return FLOAT32 * entries


def _activation_bytes(loaded: LoadedModel, dense: DenseModel, tokens: Tensor, batch: int) -> int:
    """Hidden states of all sequences, and what one batch makes within a block."""
    length = loaded.length(tokens)
    state = loaded.family.architecture(loaded.model).state_values(length)
    units = [linear.unit for linear in dense.linears.values()]
    widest = max((unit.positions or length) * max(unit.shape or ()) for unit in units)
    in_flight = min(batch, len(tokens)) * widest * FLOAT32 * ACTIVATIONS
    return len(tokens) * state * dense.dtype.itemsize + in_flight


def _gradient_bytes(orders: Iterable[BlockOrder]) -> int:
    """The summed gradients of all matrices of the narrowed sub-layers."""
    coupled = [coupled for order in orders for coupled, _ in order.widths]
    return FLOAT32 * sum(one.unit.numel for each in coupled for one in each.matrices)


def _backward_bytes(
    loaded: LoadedModel,
    dense: DenseModel,
    orders: Iterable[BlockOrder],
    tokens: Tensor,
    batch: int,
) -> int:
    """What the gradients take while they are computed: those of one batch, its activations."""
    length = loaded.length(tokens)
    architecture = loaded.family.architecture(loaded.model)
    features = sum(
        (linear.unit.positions or length)
        * sum(linear.shape)
        * (architecture.routed_share if linear.routed else 1)
        * architecture.runs[linear.unit.block]
        for linear in dense.linears.values()
    )
    logits = length * architecture.vocabulary
    saved = SAVED_ACTIVATIONS * features + SAVED_LOGITS * logits
    in_flight = min(batch, len(tokens)) * int(saved) * FLOAT32
    return 2 * _gradient_bytes(orders) + in_flight


def _cache_bytes(orders: Iterable[BlockOrder], dtype: torch.dtype, config: LibraryConfig) -> int:
    """What the cache of narrowed matrices with zeros may come to hold later."""
    largest = sum(_narrowed_bytes(order, dtype) for order in orders)
    return min(config.cache_mib * MIB, largest)


def _narrowed_bytes(order: BlockOrder, dtype: torch.dtype) -> int:
    """Every matrix of a block at every level and width, from above, and the Hessians."""
    widths = {coupled.unit.name: len(levels) for coupled, levels in order.widths}
    total = 0
    for linear, levels in order.matrices:
        count = widths.get(linear.unit.owner, 0)
        hessians = 2 * FLOAT32 * linear.shape[1] ** 2 if "gram" in order.methods.matrix_needs else 0
        total += count * (len(levels) * linear.unit.numel * dtype.itemsize + hessians)
    return total


def _mib(count: int) -> str:
    return f"{count / MIB:,.0f} MiB"
