"""Tensors out of the block files of a library, memory-mapped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from evocompress.compression.library.dense import DenseModel
from evocompress.compression.library.manifest import Manifest
from evocompress.compression.library.order import tensor_key
from evocompress.core.errors import LibraryError
from evocompress.core.types import Level

REBUILD = "delete the file to have only this block built again"
TENSOR_NAMES = ("weight", "groups", "items", "bias", "inner")
PARTS = ("packed", "scale", "zero_point")
"""What a file holds of a matrix of a coarser type."""


class BlockReader:
    """Reads the finished blocks of a library."""

    def __init__(self, path: Path, manifest: Manifest, dense: DenseModel) -> None:
        self._path = path
        self._manifest = manifest
        self._dense = dense
        self._checked: set[tuple[str, Level]] = set()
        self._open: dict[int, tuple[Any, frozenset[str]]] = {}

    def tensor(self, block: int, key: str) -> Tensor:
        """One tensor, backed by the file.

        Raises:
            LibraryError: The file is damaged.
        """
        file = self._path / self._manifest.blocks[block].file
        try:
            tensor: Tensor = self._file(block)[0].get_tensor(key)
            return tensor
        except (OSError, SafetensorError) as error:
            raise LibraryError(f"{file} is damaged: {REBUILD}") from error

    def level(self, unit: str, level: Level) -> dict[str, Tensor]:
        """The tensors of a unit at a stored level by part.

        Raises:
            LibraryError: The file is damaged.
        """
        block = self._manifest.units[unit]
        keys = {part: tensor_key(unit, level, part) for part in TENSOR_NAMES}
        found = {
            part: self.tensor(block, key)
            for part, key in keys.items()
            if part == "weight" or key in self._file(block)[1]
        }
        if level.narrow and (unit, level) not in self._checked:
            self._check_kept(unit, level, found)
            self._checked.add((unit, level))
        return found

    def parts(self, unit: str, level: Level) -> dict[str, Tensor]:
        """What a file holds of a matrix at a stored level of a coarser type.

        Raises:
            LibraryError: The file is damaged.
        """
        block = self._manifest.units[unit]
        keys = {part: tensor_key(unit, level, part) for part in PARTS}
        there = self._file(block)[1]
        return {part: self.tensor(block, key) for part, key in keys.items() if key in there}

    def _check_kept(self, unit: str, level: Level, found: Mapping[str, Tensor]) -> None:
        """Refuse heads or channels that the dense unit does not have."""
        coupled = self._dense.coupled[unit]
        for part, (count, limit) in coupled.kept_ranges(level).items():
            kept = found.get(part)
            if kept is None or not _is_choice(kept, count, limit):
                file = self._path / self._manifest.blocks[self._manifest.units[unit]].file
                raise LibraryError(
                    f"{file} is damaged (the {part} of {unit} at {level.key} are no {count} of "
                    f"{limit}): {REBUILD}"
                )

    def _file(self, block: int) -> tuple[Any, frozenset[str]]:
        """The open file of a block, and the keys of its tensors."""
        if block not in self._open:
            path = self._path / self._manifest.blocks[block].file
            try:
                file: Any = safe_open(path, framework="pt")
            except (OSError, SafetensorError) as error:
                raise LibraryError(f"{path} is damaged: {REBUILD}") from error
            self._open[block] = file, frozenset(file.keys())
        return self._open[block]


def _is_choice(kept: Tensor, count: int, limit: int) -> bool:
    """Whether a tensor holds `count` different numbers below `limit`, ascending."""
    if kept.dtype != torch.int64 or tuple(kept.shape) != (count,) or not count:
        return False
    return bool(kept[0] >= 0 and kept[-1] < limit and (kept.diff() > 0).all())
