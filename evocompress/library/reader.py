"""Tensors out of the block files of a library, memory-mapped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from evocompress.errors import LibraryError
from evocompress.library.manifest import Manifest
from evocompress.library.order import tensor_key
from evocompress.types import Level

REBUILD = "delete the file to have only this block built again"
PARTS = ("weight", "groups", "items", "bias", "inner")


class BlockReader:
    """Reads the finished blocks of a library.

    Args:
        path: Folder of the library.
        manifest: What it holds.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self._path = path
        self._manifest = manifest
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
        keys = {part: tensor_key(unit, level, part) for part in PARTS}
        return {
            part: self.tensor(block, key)
            for part, key in keys.items()
            if part == "weight" or key in self._file(block)[1]
        }

    def _file(self, block: int) -> tuple[Any, frozenset[str]]:
        """The open file of a block, and the keys of its tensors."""
        if block not in self._open:
            path = self._path / self._manifest.blocks[block].file
            file: Any = safe_open(path, framework="pt")
            self._open[block] = file, frozenset(file.keys())
        return self._open[block]
