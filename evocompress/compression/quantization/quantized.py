"""A matrix in a type of stored weights: what computes, and the tensors that a file holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from evocompress.compression.criteria import Statistics
from evocompress.compression.quantization.ggml import (
    dequantized,
    pack_blocks,
    quantized,
    unpack_blocks,
)
from evocompress.compression.quantization.gptq import (
    Rounded,
    RoundingTask,
    gptq,
    round_to_nearest,
)
from evocompress.compression.quantization.grids import divisor
from evocompress.core.storage import GROUPS, WORD, StorageType

ROWS = 64
"""That are packed into words at a time."""

Rounding = Literal["gptq", "nearest"]


@dataclass(frozen=True, eq=False)
class QuantizedMatrix:
    """A matrix in a type.

    Attributes:
        weight: What is read back of its parts, (out, in) float32.
        kind: The type.
        stored: Of the weights of the model's files.
        made: Codes with their grids, or the bytes of its rows.
    """

    weight: Tensor
    kind: StorageType
    stored: torch.dtype
    made: Rounded | Tensor

    @property
    def parts(self) -> dict[str, Tensor]:
        """The tensors that a file holds, in main memory.

        Of llama.cpp's types ``packed``, the bytes of the rows (out, bytes) uint8. Of groups
        ``packed``, their integers in words (out, words) int32, ``scale`` (out, groups), and of
        types with a zero point ``zero_point``, in words over the rows (words, groups) int32. Of
        ``w8a8`` ``packed`` are the signed integers themselves (out, in) int8.
        """
        if isinstance(self.made, Tensor):
            return {"packed": self.made}
        if self.kind.lane != GROUPS:
            return {"packed": pack_blocks(self.made, self.kind)}
        return _group_parts(self.made, self.kind, self.stored)


def needs_of(kind: StorageType, rounding: Rounding) -> Literal["gram", "squares", "nothing"]:
    """Which statistics of the inputs a type is made by."""
    if kind.uniform and rounding == "gptq":
        return "gram"
    return "nothing" if kind.lane == GROUPS else "squares"


def scale_type(kind: StorageType, stored: torch.dtype) -> torch.dtype:
    """The type of a type's scales: float16, but for groups in a file of bfloat16."""
    return torch.bfloat16 if kind.lane == GROUPS and stored == torch.bfloat16 else torch.float16


def quantize_all(
    tasks: Sequence[RoundingTask], known: Statistics, rounding: Rounding, stored: torch.dtype
) -> list[QuantizedMatrix]:
    """Stores matrices of one shape that read the same input.

    Args:
        tasks: Matrices with their types.
        known: Statistics of their inputs.
        rounding: Whether later columns make good for rounding (GPTQ), where a type's values have
            equal steps; other types are made by ggml, which weighs errors by the squared inputs.
        stored: Of the weights of the model's files.
    """
    swept = [task for task in tasks if needs_of(task.kind, rounding) == "gram"]
    rounded = {}
    if swept:
        scales = scale_type(swept[0].kind, stored)  # all are of one lane
        found = gptq(swept, known.factor, scales)
        rounded = {id(task): one for task, one in zip(swept, found, strict=True)}
    return [_made(task, rounded.get(id(task)), known, stored) for task in tasks]


def _made(
    task: RoundingTask, rounded: Rounded | None, known: Statistics, stored: torch.dtype
) -> QuantizedMatrix:
    kind = task.kind
    if rounded is None and kind.lane == GROUPS:
        rounded = round_to_nearest(task, scale_type(kind, stored))
    if rounded is not None:
        return QuantizedMatrix(rounded.weight, kind, stored, rounded)
    packed = quantized(task.weight, kind, known.norms.square())
    weight = dequantized(packed, kind).to(task.weight.device)
    if task.mask is not None:
        weight = weight.masked_fill(task.mask, 0)  # it was zero, but for its sign
    return QuantizedMatrix(weight, kind, stored, packed)


def _group_parts(rounded: Rounded, kind: StorageType, stored: torch.dtype) -> dict[str, Tensor]:
    scales = rounded.scales.to(scale_type(kind, stored))
    codes = rounded.codes
    packed = _as_bytes(codes) if kind.rounds_inputs else in_words(codes, kind.bits)
    parts = {"packed": packed, "scale": scales}
    if kind.ranges == "zero point":
        # A scale that was trained may have become 0, whose weights are 0 with any zero point.
        zeros = (-rounded.minima / divisor(rounded.scales)).round().to(torch.uint8)
        parts["zero_point"] = in_words(zeros.T, kind.bits).T.contiguous()
    return {part: tensor.cpu() for part, tensor in parts.items()}


def _as_bytes(codes: Tensor) -> Tensor:
    """Integers from 0 to 255 as the signed ones that they stand for."""
    return (codes.to(torch.int16) - 128).to(torch.int8)


def in_words(codes: Tensor, bits: int) -> Tensor:
    """Integers (rows, columns) of a few bits, packed along the rows into words (rows, words).

    They lie one after the other, the first in the lowest bits, and some are in two words: as
    compressed-tensors packs them since 0.20. Of 2, 4 and 8 bits none is, as before.
    """
    return torch.cat([_few_in_words(part, bits) for part in torch.split(codes.cpu(), ROWS)])


def _few_in_words(codes: Tensor, bits: int) -> Tensor:
    """`in_words` of some rows: there are bits times as many numbers meanwhile."""
    each = ((codes[..., None] >> torch.arange(bits)) & 1).flatten(1).to(torch.int64)
    each = torch.nn.functional.pad(each, (0, -each.shape[1] % WORD))
    words = (each.view(len(codes), -1, WORD) << torch.arange(WORD)).sum(2)
    return words.to(torch.uint32).view(torch.int32)


def unpack_parts(parts: Mapping[str, Tensor], kind: StorageType, columns: int) -> Rounded:
    """The matrix with so many inputs whose `QuantizedMatrix.parts` these are; of a uniform type."""
    if kind.lane != GROUPS:
        return unpack_blocks(parts["packed"], kind)
    scales = parts["scale"].float()
    zeros: Tensor | int = 2 ** (kind.bits - 1)
    if kind.ranges == "zero point":
        zeros = out_of_words(parts["zero_point"].T, kind.bits, len(scales)).T
    if kind.rounds_inputs:
        codes = (parts["packed"].to(torch.int16) + 128).to(torch.uint8)
    else:
        codes = out_of_words(parts["packed"], kind.bits, columns)
    return Rounded(codes, scales, -scales * zeros)


def read_back(parts: Mapping[str, Tensor], kind: StorageType, columns: int) -> Tensor:
    """The weights (out, in) float32 of `QuantizedMatrix.parts`."""
    if kind.lane != GROUPS:
        return dequantized(parts["packed"], kind)
    return unpack_parts(parts, kind, columns).weight


def out_of_words(words: Tensor, bits: int, columns: int) -> Tensor:
    """The inverse of `in_words`: integers (rows, columns) uint8."""
    return torch.cat([_few_out_of_words(p, bits, columns) for p in torch.split(words.cpu(), ROWS)])


def _few_out_of_words(words: Tensor, bits: int, columns: int) -> Tensor:
    each = (words[..., None].to(torch.int64) >> torch.arange(WORD)) & 1
    found = each.flatten(1)[:, : columns * bits].view(len(words), columns, bits)
    return (found << torch.arange(bits)).sum(2).to(torch.uint8)


def part_specs(
    kind: StorageType, shape: tuple[int, int], stored: torch.dtype
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """The shapes and types of the parts of a matrix of shape (out, in)."""
    rows, columns = shape
    if kind.lane != GROUPS:
        return {"packed": ((rows, kind.bytes(1, columns)), torch.uint8)}
    groups = columns // (kind.block or columns)
    words = (rows, -(-columns * kind.bits // WORD)), torch.int32
    specs: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        "packed": ((rows, columns), torch.int8) if kind.rounds_inputs else words,
        "scale": ((rows, groups), scale_type(kind, stored)),
    }
    if kind.ranges == "zero point":
        specs["zero_point"] = ((-(-rows * kind.bits // WORD), groups), torch.int32)
    return specs
