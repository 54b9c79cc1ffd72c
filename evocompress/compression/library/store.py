"""Reading a level library: tensors are memory-mapped, so that loading one costs nothing."""

from __future__ import annotations

import hashlib
from pathlib import Path

from torch import Tensor

from evocompress.compression.library.dense import DenseModel, dense_model
from evocompress.compression.library.manifest import BlockRecord, Manifest, read_manifest
from evocompress.compression.library.narrowed import NarrowedMatrices
from evocompress.compression.library.reader import REBUILD, BlockReader
from evocompress.core.config import LibraryConfig
from evocompress.core.errors import LibraryError
from evocompress.core.files import checksum_of
from evocompress.core.types import DENSE, Level
from evocompress.models.loading import LoadedModel

MIB = 2**20
DEFAULT_CACHE_MIB: int = LibraryConfig.model_fields["cache_mib"].default


class Library:
    """A complete level library on disk; see `open_library`.

    Args:
        path: Its folder.
        manifest: How it was made and what it holds.
        dense: The dense model, from which narrowed matrices are cut.
        cache_mib: Memory for matrices that are both narrowed and given zeros.

    Examples:
        >>> from evocompress.testing.examples import library
        >>> [level.key for level in library(Path("library")).levels("model.layers.0.mlp.up_proj")]
        ['zeros=5632']
    """

    def __init__(self, path: Path, manifest: Manifest, dense: DenseModel, cache_mib: int) -> None:
        self.path = path
        self.manifest = manifest
        self._dense = dense
        self._reader = BlockReader(path, manifest, dense)
        self._narrowed = NarrowedMatrices(manifest, dense, self._reader, cache_mib * MIB)

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits that identify the contents: a hash of the files' checksums."""
        checksums = [record.sha256 for _, record in sorted(self.manifest.blocks.items())]
        return hashlib.blake2b("".join(checksums).encode(), digest_size=8).hexdigest()

    def levels(self, unit: str) -> tuple[Level, ...]:
        """The levels of a matrix, attention or MLP unit, dense included where it is admissible.

        Raises:
            LibraryError: The library has no such unit.
        """
        if unit not in self.manifest.units:
            raise LibraryError(f"the level library at {self.path} has no unit {unit}")
        return self.manifest.recipe.levels[unit]

    def load(self, unit: str, level: Level, width: Level = DENSE) -> dict[str, Tensor]:
        """The compressed tensors of a unit.

        They are backed by the file: no memory is used until they are read, and they stay valid
        as long as they are referenced. Only a matrix with zeros in a narrowed sub-layer is
        computed when it is first loaded, and kept in memory as long as there is room.

        Args:
            unit: A matrix, attention or MLP unit.
            level: Its level; not dense.
            width: For a matrix unit, the level of its sub-layer.

        Returns:
            Of a matrix unit its ``weight``, in type and orientation of the module's own
            parameter, whose ``data`` it can become; in a narrowed sub-layer it is as narrow. Where
            the criterion changes the bias too, there is a ``bias``.
            Of a sub-layer the ``groups`` (key-value heads; of an MLP 0) and ``items`` (query
            heads or channels) kept, ascending int64, the ``weight`` of its output matrix, and
            the ``bias`` of that where it has one or gets one. Where an MLP has channels twice,
            ``groups`` are the inner ones kept, and ``inner`` is the matrix that reads them, with
            all of its rows.

        Raises:
            LibraryError: The level is dense or not in the library, it is impossible at this
                width, or the file is damaged.
        """
        self._check_stored(unit, level)
        if width.dense:
            return self._reader.level(unit, level)
        self._check_stored(self._dense.units[unit].parent or unit, width)
        return self._narrowed.tensors(unit, level, width)

    def parts(self, unit: str, level: Level, width: Level = DENSE) -> dict[str, Tensor]:
        """What a file holds of a matrix of a coarser type.

        Args:
            unit: A matrix unit.
            level: Its level.
            width: The level of its sub-layer.

        Returns:
            The parts of `evocompress.compression.quantization.quantized.QuantizedMatrix`, of the
            matrix (out, in); none where the level says no type.

        Raises:
            LibraryError: As `load`.
        """
        self._check_stored(unit, level)
        if width.dense:
            return self._reader.parts(unit, level)
        self._check_stored(self._dense.units[unit].parent or unit, width)
        return self._narrowed.parts(unit, level, width)

    def _check_stored(self, unit: str, level: Level) -> None:
        if level.dense or level not in self.levels(unit):
            raise LibraryError(f"the level library at {self.path} stores no {level.key} of {unit}")

    def error(self, unit: str, level: Level) -> float | None:
        """Relative output error of a unit at a level; ``None`` where it was not measured.

        That of an attention or MLP unit is its output matrix's.
        """
        if level.dense:
            return 0.0
        errors = self.manifest.blocks[self.manifest.units[unit]].errors.get(unit)
        return errors[self.manifest.recipe.stored(unit).index(level)] if errors else None

    def verify(self) -> None:
        """Read every file and compare its checksum.

        Raises:
            LibraryError: A file is missing or its content has changed.
        """
        verify_files(self.path, self.manifest)


def open_library(path: Path, loaded: LoadedModel, *, cache_mib: int = DEFAULT_CACHE_MIB) -> Library:
    """Open a complete library, whose files are read once and verified.

    Args:
        path: Its folder.
        loaded: The model it is going to be used with, dense; its matrices are referenced, so
            that what is put into the model later does not matter.
        cache_mib: Memory for matrices that are both narrowed and given zeros.

    Raises:
        LibraryError: It is missing, unfinished, damaged or of another model.
    """
    manifest = read_manifest(path)
    if manifest.recipe.model != loaded.fingerprint:
        raise LibraryError(
            f"the level library at {path} was made for model {manifest.recipe.model}, "
            f"not {loaded.fingerprint}: choose another library.path"
        )
    if manifest.missing:
        raise LibraryError(
            f"the level library at {path} lacks {len(manifest.missing)} of "
            f"{len(set(manifest.units.values()))} blocks: run the build again to finish it"
        )
    verify_files(path, manifest)
    return Library(path, manifest, dense_model(loaded), cache_mib)


def verify_files(path: Path, manifest: Manifest) -> None:
    """Read every file of a library, finished or not, and compare its checksum.

    Raises:
        LibraryError: A file is missing or its content has changed.
    """
    for record in manifest.blocks.values():
        check_size(path, record)
        _verify(path / record.file, record)


def _verify(file: Path, record: BlockRecord) -> None:
    """Compares a file's checksum; libraries of older versions have the slow one only."""
    try:
        whole = (
            checksum_of(file) == record.xxh3 if record.xxh3 else _sha256_of(file) == record.sha256
        )
    except OSError as error:
        raise LibraryError(f"{file} cannot be read ({error.strerror}): {REBUILD}") from error
    if not whole:
        raise LibraryError(f"{file} is corrupted: {REBUILD}")


def _sha256_of(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def check_size(path: Path, record: BlockRecord) -> None:
    """Raise `LibraryError` where a block file is missing or not of its full size."""
    file = path / record.file
    if not file.is_file():
        raise LibraryError(f"{file} is missing: run the build again to have it made")
    size = file.stat().st_size
    if size != record.bytes:
        raise LibraryError(f"{file} has {size} bytes instead of {record.bytes}: {REBUILD}")
