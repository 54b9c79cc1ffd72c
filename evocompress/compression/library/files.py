"""Writing the files of a level library: whole or not at all, one tensor in memory at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor
from xxhash import xxh3_128

from evocompress.core.errors import LibraryError
from evocompress.core.files import disk_problem, replacing

ALIGNMENT = 64
"""Bytes; where the tensors of a file begin, so that vector instructions like them."""

DTYPES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.int8: "I8",
}


@dataclass(frozen=True)
class TensorSpec:
    """Shape and type of a tensor in a file."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Size of its values."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


TensorSpecs = Mapping[str, TensorSpec]
"""The tensors of a file in their order."""


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
    except OSError as error:
        problem = disk_problem(error, path) or f"cannot write {path} ({error.strerror})"
        raise LibraryError(
            f"{problem}, or choose another library.path, then run again to go on"
        ) from error


class TensorWriter:
    """Writes a safetensors file tensor by tensor.

    Raises:
        LibraryError: Weights of this type cannot be stored.
    """

    def __init__(self, file: BinaryIO, layout: TensorSpecs) -> None:
        self._file = file
        self._expected = iter(layout.items())
        self._sha256, self._xxh3 = hashlib.sha256(), xxh3_128()
        self.bytes = 0
        self._put(_header(layout))

    @property
    def sha256(self) -> str:
        """Of what was written so far: it names the content."""
        return self._sha256.hexdigest()

    @property
    def xxh3(self) -> str:
        """Of what was written so far: with it the content is verified, ten times as fast."""
        return self._xxh3.hexdigest()

    def add(self, key: str, tensor: Tensor) -> None:
        """Write the next tensor, in the announced type; key, shape and order are as announced."""
        expected, spec = next(self._expected, (None, None))
        if spec is None or (key, tuple(tensor.shape)) != (expected, spec.shape):
            raise ValueError(f"tensor {key} of shape {tuple(tensor.shape)} was not announced here")
        stored = tensor.to("cpu", spec.dtype).contiguous()
        # A dimension of one element may have any stride.
        self._put(stored.flatten().view(torch.uint8).numpy().data.cast("B"))

    def _put(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self._xxh3.update(data)
        self.bytes += len(data)


def file_bytes(layout: TensorSpecs) -> int:
    """Size of a file with these tensors."""
    return len(_header(layout)) + sum(spec.bytes for spec in layout.values())


def _header(layout: TensorSpecs) -> bytes:
    """Length and JSON of the safetensors header, padded with spaces as the format allows."""
    entries, end = {}, 0
    for key, spec in layout.items():
        begin, end = end, end + spec.bytes
        entries[key] = {
            "dtype": _name(spec.dtype),
            "shape": list(spec.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _name(dtype: torch.dtype) -> str:
    if dtype not in DTYPES:
        raise LibraryError(f"weights of type {dtype} are not supported: use model.dtype float32")
    return DTYPES[dtype]
