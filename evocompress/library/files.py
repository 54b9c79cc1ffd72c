"""Writing the files of a level library: whole or not at all, one tensor in memory at a time."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from evocompress.errors import LibraryError
from evocompress.files import replacing

ALIGNMENT = 64
"""Bytes; where the tensors of a file begin, so that vector instructions like them."""

DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
READ_SIZE = 1 << 20


@contextmanager
def durable_file(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes its name only when it is complete and on the disk.

    Raises:
        LibraryError: It cannot be written, for instance because the disk is full.
    """
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        free = shutil.disk_usage(path.parent).free / 2**20
        raise LibraryError(
            f"cannot write {path} ({error.strerror}, {free:.0f} MiB free): "
            "free some space or choose another library.path, then run again to go on"
        ) from error


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed process left under temporary names."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


class TensorWriter:
    """Writes a safetensors file tensor by tensor.

    Args:
        file: Where to.
        layout: The shape of each tensor, in the order in which they will come.
        dtype: Of all of them.

    Raises:
        LibraryError: Weights of this type cannot be stored.
    """

    def __init__(
        self, file: BinaryIO, layout: Mapping[str, tuple[int, ...]], dtype: torch.dtype
    ) -> None:
        if dtype not in DTYPES:
            raise LibraryError(
                f"weights of type {dtype} are not supported: use model.dtype float32"
            )
        self._file = file
        self._expected = iter(layout.items())
        self._dtype = dtype
        self._hash = hashlib.sha256()
        self.bytes = 0
        self._put(_header(layout, dtype))

    @property
    def sha256(self) -> str:
        """Checksum of what was written so far."""
        return self._hash.hexdigest()

    def add(self, key: str, tensor: Tensor) -> None:
        """Write the next tensor; key, shape and order are as announced."""
        if (key, tuple(tensor.shape)) != next(self._expected, None):
            raise ValueError(f"tensor {key} of shape {tuple(tensor.shape)} was not announced here")
        stored = tensor.to("cpu", self._dtype).contiguous()
        self._put(stored.view(torch.uint8).numpy().data.cast("B"))

    def _put(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._hash.update(data)
        self.bytes += len(data)


def _header(layout: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> bytes:
    """Length and JSON of the safetensors header, padded with spaces as the format allows."""
    entries, end = {}, 0
    for key, shape in layout.items():
        begin, end = end, end + torch.Size(shape).numel() * dtype.itemsize
        entries[key] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def sha256_of(path: Path) -> str:
    """Checksum of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(READ_SIZE):
            digest.update(chunk)
    return digest.hexdigest()
