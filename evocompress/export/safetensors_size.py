"""How large safetensors files are, told without writing any."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

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
    held = _held(model)
    kinds = {name: stored if one.is_floating_point() else one.dtype for name, one in held.items()}
    sizes = {name: one.numel() * kinds[name].itemsize for name, one in held.items()}
    size = sum(sizes.values())
    told = {
        name: _told(name, tuple(one.shape), DTYPES.get(kinds[name], "BOOL"), size // 2)
        for name, one in held.items()
    }
    beside: Counter[str] = Counter()
    for name, part in _homes(loaded, held).items():
        beside[part] += told[name] + (0 if name in matrices else sizes[name])
    header = len(json.dumps({"__metadata__": {"format": "pt"}}, separators=(",", ":")))
    header += sum(told.values())
    return FileLayout(
        total=LENGTH + aligned(header, LENGTH) + size,
        beside=beside,
        weight=stored.itemsize,
        other=stored.itemsize,
        typed={
            unit.name: _packed(name, unit.shape or (), stored, size // 4)
            for name, unit in matrices.items()
        },
        typed_rows={
            unit.name: _told(f"{name}_scale", unit.shape or (), "BF16", size // 4)
            for name, unit in matrices.items()
        },
    )


def file_bytes_of(folder: Path) -> int:
    """Bytes of all files with weights in a folder."""
    files = (*folder.glob("*.gguf"), *folder.glob("*.safetensors"))
    return sum(file.stat().st_size for file in files)


def _held(model: PreTrainedModel) -> dict[str, Tensor]:
    """What a file has: every parameter once, and what a model keeps beside them, as of a norm."""
    lasting = model.state_dict().keys()
    buffers = {name: one for name, one in model.named_buffers() if name in lasting}
    return dict(model.named_parameters()) | buffers


def _homes(loaded: LoadedModel, names: Iterable[str]) -> dict[str, str]:
    """The sub-layer that each tensor goes with; not those outside of them."""
    family, tree = loaded.family, loaded.family.units(loaded.model)
    parts: dict[str, str] = {}
    for index in range(len(family.blocks(loaded.model))):
        own, block = family.at(index), family.block_names[index]
        for kind in own.sublayers:
            branch = own.attention if kind == "attention" else own.mlp
            modules = [m for m in (*branch.identity_modules, branch.zero_module) if m]
            parts |= {f"{block}.{module}": f"{block}.{kind}" for module in modules}
        if len(own.sublayers) == 1:
            parts[block] = f"{block}.{own.sublayers[0]}"
    parts |= {unit.name: tree.sublayer(unit).name for unit in tree if unit.kind == "matrix"}
    around = {name: next((m for m in _modules(name) if m in parts), "") for name in names}
    return {name: parts[module] for name, module in around.items() if module}


def _modules(name: str) -> Iterator[str]:
    """The modules that a tensor is in, the innermost first."""
    while name := name.rpartition(".")[0]:
        yield name


def _told(name: str, shape: Sequence[int], kind: str, place: int) -> int:
    """Bytes of what a header says of a tensor, whose place has as many digits as another one."""
    entry = {name: {"dtype": kind, "shape": list(shape), "data_offsets": [place, place]}}
    return len(json.dumps(entry, separators=(",", ":"))) - 1  # a comma, and no braces


def _packed(name: str, shape: Sequence[int], stored: torch.dtype, place: int) -> int:
    """Bytes that a packed matrix takes beside its words and scales, more than another one."""
    parts = sum(_told(f"{name}_{part}", shape, kind, place) for part, kind in PACKED.items())
    own = _told(name, shape, DTYPES[stored], place)
    return parts - own + torch.int64.itemsize * len(shape)
