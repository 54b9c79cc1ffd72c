"""Writes a GGUF file, tensor after tensor."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from evocompress.core.errors import ExportError
from evocompress.core.storage import StorageType
from evocompress.export.gguf_architectures import architecture_of
from evocompress.export.gguf_metadata import add_metadata
from evocompress.export.gguf_mixers import FLOAT32
from evocompress.export.gguf_tensors import named_tensors
from evocompress.export.gguf_tokenizer import add_tokenizer
from evocompress.export.stored import StoredMatrices, TypedRows
from evocompress.models.loading import LoadedModel

GGUF_FILE = "model.gguf"

KEPT = re.compile(rf".*(ffn_gate_inp\.weight|\.bias)|{FLOAT32}")
"""Tensors that llama.cpp reads as float32: routers and biases, also those of all experts, and what
mixers that are no attention hold beside matrices."""


@dataclass(frozen=True)
class WeightType:
    """A way to store weights.

    Attributes:
        name: gguf-py's.
        bytes: Of a weight.
        block: How many weights of a row are stored together.
    """

    name: str
    bytes: float
    block: int = 1


TYPES: dict[str, WeightType] = {
    "float32": WeightType("F32", bytes=4),
    "float16": WeightType("F16", bytes=2),
    "bfloat16": WeightType("BF16", bytes=2),
    "q8_0": WeightType("Q8_0", bytes=34 / 32, block=32),
}


def typed_tensors(
    model: PreTrainedModel, numbered: PreTrainedModel, loaded: LoadedModel, stored: StoredMatrices
) -> dict[str, TypedRows]:
    """The tensors of coarser types, by llama.cpp's names.

    Args:
        model: What is to be written.
        numbered: The model with the numbers of the rows, see `StoredMatrices.numbered`.
        loaded: The dense model.
        stored: The rows.

    Raises:
        ExportError: A tensor of the file has matrices of several types.
    """
    found = architecture_of(loaded, alike=type(numbered) is type(loaded.model))
    numbers = named_tensors(numbered, loaded, found)
    values = named_tensors(model, loaded, found)
    rows = {
        name: stored.rows(own, values[name], name) for name, own in numbers.items() if own.dim() > 1
    }
    typed = {name: each for name, each in rows.items() if each is not None}
    if sum(len(each.rows) for each in typed.values()) < stored.row_count:
        raise ExportError("some matrices with types of their own are in no tensor of the file")
    return typed


def write_gguf(
    model: PreTrainedModel,
    loaded: LoadedModel,
    path: Path,
    weights: str | None = None,
    typed: Mapping[str, TypedRows] | None = None,
) -> None:
    """Writes a model of format ``hf`` or ``stock`` as one GGUF file.

    Matrices are of the type `weights`, a key of `TYPES`, or the model's, but for those that are
    `typed`; vectors are float32.

    Raises:
        ExportError: A weight is too large for the type, rows cannot be cut into its blocks, or
            there is no such type.
    """
    held = weights or str(model.dtype).removeprefix("torch.")
    if held not in TYPES:
        raise ExportError(
            f"no GGUF file has weights of type {held}, as this model's are: choose "
            f"one of {', '.join(TYPES)} with --weights"
        )
    kind = TYPES[held]
    found = architecture_of(loaded, alike=type(model) is type(loaded.model))
    tensors, typed = named_tensors(model, loaded, found), typed or {}
    writer = announced(model, loaded, path, kind, tensors, typed)
    for name, tensor in tensors.items():
        own = typed.get(name)
        writer.write_tensor_data(_stored(name, tensor, kind) if own is None else own.rows.numpy())
    writer.close()


def announced(
    model: PreTrainedModel,
    loaded: LoadedModel,
    path: Path,
    kind: WeightType,
    tensors: Mapping[str, Tensor],
    typed: Mapping[str, TypedRows] | None = None,
) -> Any:
    """gguf-py's writer of a file that has everything but the tensors themselves.

    Args:
        model: Of format ``hf`` or ``stock``.
        loaded: The dense model.
        path: The file.
        kind: The type of matrices that are not `typed`.
        tensors: What is to come, by llama.cpp's names.
        typed: The same of coarser types.
    """
    from gguf import GGUFWriter

    found, typed = architecture_of(loaded, alike=type(model) is type(loaded.model)), typed or {}
    writer = GGUFWriter(path, found.name)
    add_metadata(writer, model, loaded, tensors, found)
    _add_kind(writer, kind, mixed=bool(typed))
    add_tokenizer(writer, loaded, len(tensors["token_embd.weight"]))
    for name, tensor in tensors.items():
        own = typed.get(name)
        _announce(writer, name, tensor, type_of(name, tensor, kind) if own is None else own.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    return writer


def _add_kind(writer: Any, kind: WeightType, *, mixed: bool) -> None:
    """Adds the type of the weights; of several types it says that they are to be looked at."""
    import gguf

    name = "GUESSED" if mixed else _FILE_TYPES[kind.name]
    writer.add_file_type(getattr(gguf.LlamaFileType, name))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


_FILE_TYPES = {
    "F32": "ALL_F32",
    "F16": "MOSTLY_F16",
    "BF16": "MOSTLY_BF16",
    "Q8_0": "MOSTLY_Q8_0",
}


def _announce(writer: Any, name: str, tensor: Tensor, kind: str | StorageType) -> None:
    """Reserves the place of a tensor in the file, before it is converted."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    word = kind if isinstance(kind, str) else kind.name.upper()
    qtype = GGMLQuantizationType[word]
    block, size = GGML_QUANT_SIZES[qtype]
    if tensor.shape[-1] % block:
        raise ExportError(
            f"weights {word.lower()}: {name} has {tensor.shape[-1]} columns, no multiple of "
            f"{block}: choose other weights"
        )
    count = tensor.numel() // block * size
    # The element type says nothing here: what is stored is given by `raw_dtype`.
    writer.add_tensor_info(name, tensor.shape, np.dtype(np.float32), count, raw_dtype=qtype)


def _stored(name: str, tensor: Tensor, kind: WeightType) -> NDArray[Any]:
    """A tensor as it is written."""
    from gguf import GGMLQuantizationType, quantize

    values = tensor.detach().float().cpu().contiguous().numpy()
    with np.errstate(over="ignore"):
        stored: NDArray[Any] = quantize(values, GGMLQuantizationType[type_of(name, tensor, kind)])
    if stored.dtype.kind == "f" and not np.isfinite(stored).all():
        raise ExportError(f"{name} has weights beyond the range of {kind.name}: choose bfloat16")
    return stored


def type_of(name: str, tensor: Tensor, kind: WeightType) -> str:
    """gguf-py's name of the type of a tensor where weights are of a kind."""
    return kind.name if tensor.dim() > 1 and not KEPT.fullmatch(name) else "F32"
