"""How large GGUF files are, told without writing any: what the cost ``file_bytes`` is made of."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from evocompress.core.types import UnitKind
from evocompress.export.gguf_architectures import architecture_of
from evocompress.export.gguf_tensors import named_tensors
from evocompress.export.gguf_uneven import zero_sublayers
from evocompress.export.gguf_writing import TYPES, announced, type_of
from evocompress.export.stored import StoredMatrices
from evocompress.models.loading import LoadedModel
from evocompress.space.costs.file import FileLayout, aligned

ALIGNMENT = 32
"""Of which number the place of a tensor is a multiple: gguf-py's default, which llama.cpp reads."""

LISTED, LIST = 3, 8
"""Numbers of heads, key-value heads and channels, and bytes by which a list of one is longer."""

BLOCK = re.compile(r"blk\.(\d+)\.(.+)")


def gguf_layout(model: PreTrainedModel, loaded: LoadedModel, stored: StoredMatrices) -> FileLayout:
    """What a file of a dense model is made of.

    Args:
        model: What `StoredMatrices.numbered` of all matrices becomes in a form of the format.
        loaded: The dense model.
        stored: Its matrices.
    """
    found = architecture_of(loaded, alike=type(model) is type(loaded.model))
    tensors = named_tensors(model, loaded, found)
    kind = TYPES[str(loaded.stored).removeprefix("torch.")]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "header.gguf"
        writer = announced(model, loaded, path, kind, tensors)
        sizes = {name: each.nbytes for own in writer.tensors for name, each in own.items()}
        writer.close()
        header = path.stat().st_size
    owners = {name: stored.owners(tensor) for name, tensor in tensors.items()}
    held = Counter(own for each in owners.values() for own in each)
    beside: Counter[str] = Counter()
    for name, tensor in tensors.items():
        if within := BLOCK.fullmatch(name):
            part = f"{loaded.family.block_names[int(within[1])]}.{_sublayer(within[2])}"
            size = 0 if owners[name] else aligned(sizes[name], ALIGNMENT)
            beside[part] += _told(name, tensor) + size
    norm = tensors.get("output_norm.weight")
    zeros = {} if norm is None else zero_sublayers(found, norm, loaded)
    return FileLayout(
        total=aligned(header, ALIGNMENT) + sum(aligned(n, ALIGNMENT) for n in sizes.values()),
        beside=beside,
        weight=int(kind.bytes),
        align=ALIGNMENT,
        shared=frozenset(own for each in owners.values() if len(each) > 1 for own in each),
        copies={own: count for own, count in held.items() if count > 1},
        absent={part: _size(own, kind) for part, own in zeros.items()},
    )


def room_for_lists(loaded: LoadedModel) -> int:
    """The most that a header takes more where layers differ, with what it is filled up by."""
    return LISTED * (LIST + 4 * len(loaded.family.blocks(loaded.model))) + ALIGNMENT - 1


def _sublayer(name: str) -> UnitKind:
    """Which sub-layer a tensor of a block goes with."""
    return "mlp" if re.search("ffn|ffw|_exp", name) else "attention"


def _told(name: str, tensor: Tensor) -> int:
    """Bytes of what the header says of a tensor: its name, dimensions, type and place."""
    return 8 + len(name.encode()) + 4 + 8 * tensor.dim() + 4 + 8


def _size(tensors: dict[str, Tensor], kind: Any) -> int:
    """Bytes of some tensors with what the header says of them."""
    each = (
        _told(name, tensor) + aligned(_bytes(name, tensor, kind), ALIGNMENT)
        for name, tensor in tensors.items()
    )
    return sum(each)


def _bytes(name: str, tensor: Tensor, kind: Any) -> int:
    width = 4 if type_of(name, tensor, kind) == "F32" else int(kind.bytes)
    return tensor.numel() * width
