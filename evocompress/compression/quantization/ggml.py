"""The bytes of llama.cpp's types: made by ggml where it is installed, read back by gguf-py.

ggml, in the package llama-cpp-python, knows all types and the importance of inputs; gguf-py alone
makes some types, and ranks all inputs alike.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evocompress.compression.quantization.gptq import Rounded
from evocompress.core.errors import LibraryError
from evocompress.core.storage import HALVES, StorageType

PLAIN = frozenset(("f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "mxfp4"))
"""Types that gguf-py makes."""

LIBRARY = "libggml-base.so"

LEAST_IMPORTANCE = 1e-6
"""Of an input, as a share of the greatest."""

PACKAGES = frozenset(("gguf", "llama-cpp-python"))
"""Which decide the bytes."""

PackedRows = NDArray[np.uint8]


def makes_all_types() -> bool:
    """Whether ggml is installed."""
    return _ggml() is not None


def quantized(weight: Tensor, kind: StorageType, importance: Tensor | None = None) -> Tensor:
    """The bytes of a matrix's rows.

    Args:
        weight: (out, in), float32.
        kind: A type of lane `GGUF` that fits.
        importance: Of the inputs (in,), by which ggml weighs the errors of its types: the mean
            squares of the inputs. gguf-py does without.

    Returns:
        (out, bytes of a row), uint8.

    Raises:
        LibraryError: The type needs ggml, which is not installed, or there are numbers that are
            not finite, with which ggml ends the process.
    """
    values = np.ascontiguousarray(weight.detach().float().cpu().numpy())
    check_makeable(kind)
    finite = np.isfinite(values).all() and (importance is None or importance.isfinite().all())
    if not bool(finite):
        raise LibraryError(
            f"weights, or mean squares of inputs, are not finite, of which type {kind.name} cannot "
            "be made: load the model in bfloat16 or float32, or mend the checkpoint"
        )
    ggml = _ggml()
    if ggml is not None and kind.name not in HALVES:
        return torch.from_numpy(_by_ggml(ggml, values, kind, importance))
    made = _gguf().quantize(values, _number(kind))
    return torch.from_numpy(np.ascontiguousarray(made).view(np.uint8))


def check_makeable(kind: StorageType) -> None:
    """Refuses a type of lane `GGUF` for which packages are missing.

    Raises:
        LibraryError: They are not installed.
    """
    _gguf()
    if kind.name not in PLAIN and _ggml() is None:
        raise LibraryError(
            f"type {kind.name} is made by ggml, which is not installed: pip install "
            f"llama-cpp-python, or choose among {', '.join(sorted(PLAIN))}"
        )


def dequantized(stored: Tensor, kind: StorageType) -> Tensor:
    """The matrix (out, in) float32 of bytes (out, bytes of a row)."""
    gguf = _gguf()
    found = gguf.dequantize(stored.cpu().numpy(), _number(kind))
    return torch.from_numpy(np.ascontiguousarray(found, dtype=np.float32))


def pack_blocks(rounded: Rounded, kind: StorageType) -> Tensor:
    """The bytes (out, bytes of a row) of a matrix that was rounded to a uniform type."""
    rows, columns = rounded.codes.shape
    codes = rounded.codes.cpu().numpy().reshape(rows, columns // kind.block, kind.block)
    scales = _halves(rounded.scales)
    if kind.name == "q8_0":
        parts: Sequence[PackedRows] = (
            scales,
            (codes.astype(np.int16) - 128).astype(np.int8).view("u1"),
        )
    else:
        minima = (_halves(rounded.minima),) if kind.ranges == "affine" else ()
        high = (np.packbits(codes >> 4, axis=-1, bitorder="little"),) if kind.bits == 5 else ()
        parts = (scales, *minima, *high, _nibbles(codes))
    return torch.from_numpy(np.concatenate(parts, axis=-1).reshape(rows, -1))


def unpack_blocks(packed: Tensor, kind: StorageType) -> Rounded:
    """The matrix of a uniform type whose rows have the bytes (out, bytes of a row)."""
    blocks = packed.cpu().numpy().reshape(len(packed), -1, kind.block_bytes)
    halves = 2 if kind.ranges == "affine" else 1
    numbers = np.ascontiguousarray(blocks[..., : 2 * halves]).view(np.float16).astype(np.float32)
    rest = blocks[..., 2 * halves :]
    if kind.bits == 8:
        codes = (rest.view(np.int8).astype(np.int16) + 128).astype(np.uint8)
    else:
        nibbles = rest[..., -kind.block // 2 :]
        codes = np.concatenate([nibbles & 15, nibbles >> 4], axis=-1)
        if kind.bits == 5:
            high = np.unpackbits(rest[..., : kind.block // 8], axis=-1, bitorder="little")
            codes |= high << 4
    scales = torch.from_numpy(np.ascontiguousarray(numbers[..., 0]))
    minima = (
        torch.from_numpy(np.ascontiguousarray(numbers[..., 1]))
        if halves == 2
        else -scales * 2 ** (kind.bits - 1)
    )
    return Rounded(torch.from_numpy(codes.reshape(len(packed), -1)), scales, minima)


def _nibbles(codes: PackedRows) -> PackedRows:
    """The lower four bits: a byte has one of a block's first half and one of its second."""
    first, second = np.split(codes & 15, 2, axis=-1)
    found: PackedRows = first | (second << 4)
    return found


def _halves(values: Tensor) -> PackedRows:
    """Float16 numbers (rows, blocks) as bytes (rows, blocks, 2)."""
    numbers: PackedRows = values.cpu().numpy().astype(np.float16)[..., None].view(np.uint8)
    return numbers


def _number(kind: StorageType) -> Any:
    return _gguf().GGMLQuantizationType[kind.name.upper()]


def _gguf() -> Any:
    """gguf-py, which reads all types."""
    try:
        import gguf
    except ModuleNotFoundError:
        raise LibraryError(
            "llama.cpp's types need a package that is not installed: pip install "
            "'evocompress[gguf]'"
        ) from None
    return gguf


@cache
def _ggml() -> Any:
    """The library, or ``None`` where it is not installed."""
    spec = find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "lib" / LIBRARY
    if not path.exists():
        return None
    library: Any = ctypes.CDLL(str(path))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = (
        *(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p),
        *(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p),
    )
    return library


def _by_ggml(
    ggml: Any, values: NDArray[np.float32], kind: StorageType, importance: Tensor | None
) -> PackedRows:
    rows, columns = values.shape
    made = np.empty((rows, kind.bytes(1, columns)), dtype=np.uint8)
    weights = None
    if importance is not None and bool(importance.any()):
        # An input that is always zero weighs next to nothing, but ggml divides by sums of weights.
        whole = importance.float().clamp_min(float(importance.max()) * LEAST_IMPORTANCE)
        weights = np.ascontiguousarray(whole.cpu().numpy())
    elif ggml.ggml_quantize_requires_imatrix(int(_number(kind))):
        weights = np.ones(columns, dtype=np.float32)  # without any ggml ends the process
    pointer = None if weights is None else weights.ctypes.data
    size = ggml.ggml_quantize_chunk(
        int(_number(kind)), values.ctypes.data, made.ctypes.data, 0, rows, columns, pointer
    )
    if size != made.nbytes:
        raise LibraryError(
            f"ggml made {size:,} bytes of type {kind.name} instead of {made.nbytes:,}"
        )
    return made
