"""The levels of matrices that read the same input: zeros first, then the type of storage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from evocompress.compression.criteria import Criterion, Statistics
from evocompress.compression.quantization.gptq import RoundingTask
from evocompress.compression.quantization.quantized import (
    QuantizedMatrix,
    Rounding,
    quantize_all,
)
from evocompress.core.errors import LibraryError
from evocompress.core.storage import StorageType, storage_type
from evocompress.core.types import Level


@dataclass(frozen=True, eq=False)
class MadeLevel:
    """A matrix at a level.

    Attributes:
        weight: (out, in), float32.
        stored: The same as a file holds it, where it has a coarser type.
    """

    weight: Tensor
    stored: QuantizedMatrix | None = None


def make_levels(
    weights: Sequence[Tensor],
    known: Statistics,
    levels: Sequence[Sequence[Level]],
    criterion: Criterion | None,
    rounding: Rounding | None,
    stored: torch.dtype,
) -> list[list[MadeLevel]]:
    """Makes all levels of matrices.

    Args:
        weights: Of one shape (out, in) where there are several.
        known: Statistics of the input that they read.
        levels: Of each matrix.
        criterion: Gives zeros; ``None`` where no level has any.
        rounding: To coarser types; ``None`` where no level has one.
        stored: Of the weights of the model's files.

    Raises:
        LibraryError: A level is impossible.
    """
    plain = [list(dict.fromkeys(replace(one, bits="") for one in own)) for own in levels]
    sparse = _with_zeros(weights, known, plain, criterion)
    tasks: dict[tuple[int, Level], RoundingTask] = {}
    for place, own in enumerate(levels):
        for level in own:
            if level.bits:
                weight = sparse[place][replace(level, bits="")]
                mask = weight == 0 if level.zeros else None
                kind = _fitting(storage_type(level.bits), weight.shape[1])
                tasks[place, level] = RoundingTask(weight, kind, mask)
    coarser: dict[tuple[int, Level], QuantizedMatrix] = {}
    if tasks:
        assert rounding is not None
        every = quantize_all(list(tasks.values()), known, rounding, stored)
        coarser = dict(zip(tasks, every, strict=True))
    return [
        [
            MadeLevel(coarser[place, level].weight, coarser[place, level])
            if level.bits
            else MadeLevel(sparse[place][level])
            for level in own
        ]
        for place, own in enumerate(levels)
    ]


def _fitting(kind: StorageType, columns: int) -> StorageType:
    """A type whose blocks rows of a length can be cut into."""
    if not kind.fits(columns):
        raise LibraryError(
            f"type {kind.name} is impossible for a matrix with {columns} inputs, which its blocks "
            f"of {kind.block} do not divide: choose another type"
        )
    return kind


def _with_zeros(
    weights: Sequence[Tensor],
    known: Statistics,
    levels: Sequence[Sequence[Level]],
    criterion: Criterion | None,
) -> list[dict[Level, Tensor]]:
    """Each matrix at its levels without types."""
    if criterion is None:
        for level in (level for own in levels for level in own):
            if not level.dense:
                raise LibraryError(f"level {level.key} is impossible for a matrix")
        return [
            {level: weight for level in own} for weight, own in zip(weights, levels, strict=True)
        ]
    found = criterion.compress_all(weights, known, levels)
    return [dict(zip(own, made, strict=True)) for own, made in zip(levels, found, strict=True)]
