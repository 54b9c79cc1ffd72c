"""Reading a level library: tensors are memory-mapped, so that loading one costs nothing."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from evocompress.errors import LibraryError
from evocompress.library.files import sha256_of
from evocompress.library.manifest import BlockRecord, Manifest, read_manifest
from evocompress.types import Level

REBUILD = "delete the file to have only this block built again"


class Library:
    """A complete level library on disk; see `open_library`.

    Attributes:
        path: Its folder.
        manifest: How it was made and what it holds.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._open: dict[int, Any] = {}

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits that identify the contents: a hash of the files' checksums."""
        checksums = [record.sha256 for _, record in sorted(self.manifest.blocks.items())]
        return hashlib.blake2b("".join(checksums).encode(), digest_size=8).hexdigest()

    def levels(self, unit: str) -> tuple[Level, ...]:
        """The levels of a matrix unit, dense included where it is admissible.

        Raises:
            LibraryError: The library has no such unit.
        """
        if unit not in self.manifest.units:
            raise LibraryError(f"the level library at {self.path} has no unit {unit}")
        return self.manifest.recipe.levels[unit]

    def load(self, unit: str, level: Level) -> dict[str, Tensor]:
        """The compressed tensors of a unit, by parameter name.

        They are backed by the file: no memory is used until they are read, and they stay valid
        as long as they are referenced. Type and orientation are those of the module's own
        parameter, whose ``data`` they can become.

        Raises:
            LibraryError: The level is dense or not in the library, or the file is damaged.
        """
        if level.dense or level not in self.levels(unit):
            raise LibraryError(f"the level library at {self.path} stores no {level.key} of {unit}")
        block = self.manifest.units[unit]
        try:
            if block not in self._open:
                file = self.path / self.manifest.blocks[block].file
                self._open[block] = safe_open(file, framework="pt")
            return {"weight": self._open[block].get_tensor(tensor_key(unit, level))}
        except (OSError, SafetensorError) as error:
            raise LibraryError(
                f"{self.path / self.manifest.blocks[block].file} is damaged: {REBUILD}"
            ) from error

    def error(self, unit: str, level: Level) -> float | None:
        """Relative output error of a unit at a level; ``None`` where it was not measured."""
        if level.dense:
            return 0.0
        errors = self.manifest.blocks[self.manifest.units[unit]].errors.get(unit)
        return errors[self.manifest.recipe.stored(unit).index(level)] if errors else None

    def verify(self) -> None:
        """Read every file and compare its checksum.

        Raises:
            LibraryError: A file is missing or its content has changed.
        """
        for record in self.manifest.blocks.values():
            check_size(self.path, record)
            if sha256_of(self.path / record.file) != record.sha256:
                raise LibraryError(f"{self.path / record.file} is corrupted: {REBUILD}")


def open_library(path: Path, *, model_fingerprint: str) -> Library:
    """Open a complete library; sizes are checked, contents only by `Library.verify`.

    Args:
        path: Its folder.
        model_fingerprint: Of the dense model it is going to be used with.

    Raises:
        LibraryError: It is missing, unfinished, damaged or of another model.
    """
    manifest = read_manifest(path)
    if manifest.recipe.model != model_fingerprint:
        raise LibraryError(
            f"the level library at {path} was made for model {manifest.recipe.model}, "
            f"not {model_fingerprint}: choose another library.path"
        )
    if manifest.missing:
        raise LibraryError(
            f"the level library at {path} lacks {len(manifest.missing)} of "
            f"{len(set(manifest.units.values()))} blocks: run the build again to finish it"
        )
    for record in manifest.blocks.values():
        check_size(path, record)
    return Library(path, manifest)


def check_size(path: Path, record: BlockRecord) -> None:
    """Raise `LibraryError` where a block file is missing or not of its full size."""
    file = path / record.file
    if not file.is_file():
        raise LibraryError(f"{file} is missing: run the build again to have it made")
    size = file.stat().st_size
    if size != record.bytes:
        raise LibraryError(f"{file} has {size} bytes instead of {record.bytes}: {REBUILD}")


def tensor_key(unit: str, level: Level) -> str:
    """Name of a unit's weight at a level within the block file."""
    return f"{unit}::{level.key}"
