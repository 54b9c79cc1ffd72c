"""How much disk and memory a level library will take, said before it is made."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from torch import Tensor

from evocompress.config import LibraryConfig
from evocompress.criteria import CRITERIA
from evocompress.criteria.base import Needs
from evocompress.errors import LibraryError
from evocompress.models import LoadedModel
from evocompress.types import Level, Unit

FLOAT32 = 4
HEADER = 256
"""Bytes allowed for the description of a tensor in its file."""

WORKING_MATRICES = 8
"""Float32 copies of a matrix beside its levels: the dense one, and sorting or products."""

WORKING_HESSIANS = 6
"""Float32 matrices of the size of a Hessian that exist while it is factored."""

LEVEL_BYTES = 8
"""Bytes for each weight and level: the float32 result, and its share of masks and errors."""

ACTIVATIONS = 6
"""Tensors as wide as the widest input that exist while a batch passes a block."""


@dataclass(frozen=True)
class LibraryPlan:
    """What making a library takes.

    Attributes:
        disk_bytes: Size of the files.
        memory_bytes: Main memory beside the model, an estimate from above.
    """

    disk_bytes: int
    memory_bytes: int


def plan_library(
    loaded: LoadedModel,
    wanted: Mapping[str, Sequence[Level]],
    tokens: Tensor,
    config: LibraryConfig,
    *,
    batch: int,
) -> LibraryPlan:
    """Foresee what `build_library` takes for the same arguments.

    Args:
        loaded: The dense model.
        wanted: Levels of each matrix unit.
        tokens: Calibration sequences (N, S); only their shape counts.
        config: Criterion and Hessians.
        batch: Sequences that pass a block together.
    """
    units = [unit for unit in loaded.family.units(loaded.model) if unit.name in wanted]
    stored = {unit.name: _stored(wanted[unit.name]) for unit in units}
    itemsize = loaded.model.dtype.itemsize
    disk = sum(stored[unit.name] * (unit.numel * itemsize + HEADER) for unit in units)
    needs = CRITERIA[config.criterion].needs
    memory = max((_matrix_bytes(unit, stored[unit.name], needs) for unit in units), default=0)
    if needs != "nothing":
        memory += _statistics_bytes(loaded, units, needs)
        memory += _activation_bytes(loaded, units, tokens, batch)
    return LibraryPlan(disk, memory)


def check_fits(plan: LibraryPlan, path: Path) -> None:
    """Refuse a library that the disk or the memory cannot take.

    Raises:
        LibraryError: Says how much is needed and how much there is.
    """
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


def _stored(levels: Sequence[Level]) -> int:
    return sum(not level.dense for level in levels)


def _matrix_bytes(unit: Unit, levels: int, needs: Needs) -> int:
    assert unit.shape is not None
    copies = WORKING_MATRICES * FLOAT32 + levels * LEVEL_BYTES
    hessians = WORKING_HESSIANS * FLOAT32 * unit.shape[1] ** 2 if needs == "gram" else 0
    return unit.numel * copies + hessians


def _statistics_bytes(loaded: LoadedModel, units: Sequence[Unit], needs: Needs) -> int:
    """For each input of one block its Gram matrix and the factor, or the diagonal."""
    inputs = {matrix.path: matrix.input for matrix in loaded.family.matrices()}
    first = units[0].block if units else 0
    path = f"{loaded.family.block_path()}.{first}."
    widths = {
        inputs[unit.name.removeprefix(path)]: unit.shape[1]
        for unit in units
        if unit.block == first and unit.shape
    }
    entries = (2 * width**2 if needs == "gram" else width for width in widths.values())
    return FLOAT32 * sum(entries)


def _activation_bytes(
    loaded: LoadedModel, units: Sequence[Unit], tokens: Tensor, batch: int
) -> int:
    """Hidden states of all sequences, and what one batch makes within a block."""
    hidden = loaded.family.architecture(loaded.model).hidden
    widest = max((max(unit.shape) for unit in units if unit.shape), default=0)
    in_flight = min(batch, len(tokens)) * tokens.shape[1] * widest * FLOAT32 * ACTIVATIONS
    return tokens.numel() * hidden * loaded.model.dtype.itemsize + in_flight


def _mib(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"
