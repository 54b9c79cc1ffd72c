"""Integers and scales of matrices of coarser types, beside a checkpoint that holds their values.

Such a checkpoint can be healed through the rounding, and written in a format that has these types,
as its weights alone could not: those are rounded once more, to the type of all others.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

PARTS_FILE = "types.parts"
"""A safetensors file, under a name by which no program takes it for weights of the model."""

Parts = Mapping[str, Mapping[str, Tensor]]
"""{parameter in the dense model: `evocompress.compression.quantization.quantized.QuantizedMatrix`'s
parts}."""


def parts_bytes(parts: Parts) -> int:
    """What the file takes."""
    return sum(tensor.nbytes for own in parts.values() for tensor in own.values())


def write_parts(folder: Path, parts: Parts) -> None:
    """Writes the file into the folder of a checkpoint, if there is anything to write."""
    tensors = {
        f"{name}.{part}": tensor.contiguous()
        for name, own in parts.items()
        for part, tensor in own.items()
    }
    if tensors:
        save_file(tensors, folder / PARTS_FILE)


def read_parts(folder: Path) -> dict[str, dict[str, Tensor]]:
    """What `write_parts` wrote; nothing where there is no such file."""
    found: dict[str, dict[str, Tensor]] = {}
    if (folder / PARTS_FILE).exists():
        for key, tensor in load_file(folder / PARTS_FILE).items():
            name, _, part = key.rpartition(".")
            found.setdefault(name, {})[part] = tensor
    return found
