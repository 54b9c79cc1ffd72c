"""How large safetensors files are, told without writing any."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from functools import partial
from math import prod
from pathlib import Path

import torch

from evocompress.compression.library.files import DTYPES
from evocompress.models.families.outer import every_unit
from evocompress.models.loading import LoadedModel
from evocompress.space.costs.file import FileLayout, aligned

LENGTH = 8
"""Bytes of the length of a header, of which the header's own is a multiple."""

PACKED = {"packed": "I32", "scale": "BF16", "shape": "I64"}
"""What compressed-tensors has in the place of a weight, and of which types."""


def safetensors_layout(loaded: LoadedModel) -> FileLayout:
    """What a file of the dense model is made of, and of one with packed matrices.

    Names are those of the model's modules.
    """
    model, stored = loaded.model, loaded.stored
    tree = every_unit(loaded.family, model)
    matrices = {f"{u.name}.weight": u for u in tree if u.shape}
    shapes = {name: tuple(one.shape) for name, one in model.named_parameters()}
    size = sum(map(prod, shapes.values())) * stored.itemsize
    told_of = partial(_told, place=size // 2)
    inner = tuple(f"{unit.name}." for unit in tree if unit.kind == "block")
    beside: Counter[str] = Counter()
    for name, shape in shapes.items():
        told, unit = told_of(name, shape, DTYPES[stored]), matrices.get(name)
        if unit is not None:
            beside[tree.sublayer(unit).name] += told
        elif name.startswith(inner):
            block, kind = _block(name, inner), "attention" if "input" in name else "mlp"
            beside[f"{block}.{kind}"] += told + stored.itemsize * prod(shape)
    header = len(json.dumps({"__metadata__": {"format": "pt"}}, separators=(",", ":")))
    header += sum(told_of(name, shape, DTYPES[stored]) for name, shape in shapes.items())
    return FileLayout(
        total=LENGTH + aligned(header, LENGTH) + size,
        beside=beside,
        weight=stored.itemsize,
        other=stored.itemsize,
        typed={
            unit.name: _packed(name, unit.shape or (), stored, size // 4)
            for name, unit in matrices.items()
        },
    )


def file_bytes_of(folder: Path) -> int:
    """Bytes of all files with weights in a folder."""
    files = (*folder.glob("*.gguf"), *folder.glob("*.safetensors"))
    return sum(file.stat().st_size for file in files)


def _block(name: str, inner: Sequence[str]) -> str:
    return next(block for block in inner if name.startswith(block)).removesuffix(".")


def _told(name: str, shape: Sequence[int], kind: str, place: int) -> int:
    """Bytes of what a header says of a tensor, whose place has as many digits as another one."""
    entry = {name: {"dtype": kind, "shape": list(shape), "data_offsets": [place, place]}}
    return len(json.dumps(entry, separators=(",", ":"))) - 1  # a comma, and no braces


def _packed(name: str, shape: Sequence[int], stored: torch.dtype, place: int) -> int:
    """Bytes that a packed matrix takes beside its words and scales, more than another one."""
    parts = sum(_told(f"{name}_{part}", shape, kind, place) for part, kind in PACKED.items())
    own = _told(name, shape, DTYPES[stored], place)
    return parts - own + torch.int64.itemsize * len(shape)
