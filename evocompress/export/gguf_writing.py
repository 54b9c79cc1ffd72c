"""The tensors and the metadata of a GGUF file of architecture ``deci``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from evocompress.core.errors import ExportError
from evocompress.export.gguf_tokenizer import add_tokenizer
from evocompress.models.loading import LoadedModel

GGUF_FILE = "model.gguf"

ZERO_CHANNELS = 32
"""Width of the MLP of zeros where there is none: a block of quantised weights."""

ROPE_FACTORS = "rope_freqs.weight"


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


def write_gguf(
    model: PreTrainedModel, loaded: LoadedModel, path: Path, weights: str | None = None
) -> None:
    """Writes a model of format ``hf`` as one GGUF file.

    Matrices are of the type `weights`, a key of `TYPES`, or the model's; vectors are float32.

    Raises:
        ExportError: A weight is too large for the type.
    """
    from gguf import GGUFWriter

    kind = TYPES[weights or str(model.dtype).removeprefix("torch.")]
    tensors = dict(_tensors(model, loaded))
    writer = GGUFWriter(path, "deci")
    _add_metadata(writer, model, loaded, kind)
    add_tokenizer(writer, loaded, len(tensors["token_embd.weight"]))
    for name, tensor in tensors.items():
        _announce(writer, name, tensor, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor in tensors.items():
        writer.write_tensor_data(_stored(name, tensor, kind))
    writer.close()


def _add_metadata(
    writer: Any, model: PreTrainedModel, loaded: LoadedModel, kind: WeightType
) -> None:
    import gguf

    config = model.config
    layers = config.per_layer_config
    attends = ["attention" not in layer.skip for layer in layers]
    keys = [layer.num_key_value_heads * has for layer, has in zip(layers, attends, strict=True)]
    heads = [layer.num_attention_heads * has for layer, has in zip(layers, attends, strict=True)]
    channels = [
        ZERO_CHANNELS if "mlp" in layer.skip else layer.intermediate_size for layer in layers
    ]
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(Path(loaded.source).name)
    writer.add_file_type(getattr(gguf.LlamaFileType, _FILE_TYPES[kind.name]))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(channels)
    writer.add_head_count(heads)
    writer.add_head_count_kv(keys)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)


_FILE_TYPES = {
    "F32": "ALL_F32",
    "F16": "MOSTLY_F16",
    "BF16": "MOSTLY_BF16",
    "Q8_0": "MOSTLY_Q8_0",
}


def _tensors(model: PreTrainedModel, loaded: LoadedModel) -> Iterator[tuple[str, Tensor]]:
    """The tensors by llama.cpp's names."""
    import gguf

    config, state = model.config, model.state_dict()
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.DECI, config.num_hidden_layers)
    factors = _rope_factors(loaded)
    if factors is not None:
        yield ROPE_FACTORS, factors
    for name, tensor in state.items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        turned = ".q_proj." in name or ".k_proj." in name
        tensor = interleaved(tensor, config.head_dim) if turned else tensor
        place = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if place is None:
            raise ExportError(f"llama.cpp's architecture deci has no place for {name}")
        yield place, tensor
    for layer, own in enumerate(config.per_layer_config):
        if "mlp" in own.skip:
            yield from _zero_mlp(layer, state["model.norm.weight"])


def interleaved(tensor: Tensor, head_dim: int) -> Tensor:
    """Rows of queries or keys, weight (heads * head_dim, H) or bias, as llama.cpp rotates them.

    Hugging Face rotates element i of a head together with element i + head_dim / 2, llama.cpp
    neighbours.
    """
    heads = tensor.reshape(-1, 2, head_dim // 2, *tensor.shape[1:])
    return heads.transpose(1, 2).reshape(tensor.shape)


def _zero_mlp(layer: int, norm: Tensor) -> Iterator[tuple[str, Tensor]]:
    hidden = len(norm)
    yield f"blk.{layer}.ffn_norm.weight", torch.ones_like(norm)
    for name, shape in (
        ("ffn_gate", (ZERO_CHANNELS, hidden)),
        ("ffn_up", (ZERO_CHANNELS, hidden)),
        ("ffn_down", (hidden, ZERO_CHANNELS)),
    ):
        yield f"blk.{layer}.{name}.weight", norm.new_zeros(shape)


def _rope_factors(loaded: LoadedModel) -> Tensor | None:
    """By what each rotary frequency is divided (head_dim / 2,); ``None`` where by nothing."""
    body: Any = loaded.model.base_model
    frequencies = body.rotary_emb.inv_freq.double().cpu()
    theta = float(loaded.model.config.rope_parameters["rope_theta"])
    steps = torch.arange(len(frequencies), dtype=torch.float64) / len(frequencies)
    factors = theta**-steps / frequencies
    return None if torch.allclose(factors, torch.ones_like(factors)) else factors.float()


def _announce(writer: Any, name: str, tensor: Tensor, kind: WeightType) -> None:
    """Reserves the place of a tensor in the file, before it is converted."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    qtype = GGMLQuantizationType[_type_of(tensor, kind)]
    block, size = GGML_QUANT_SIZES[qtype]
    count = tensor.numel() // block * size
    # The element type says nothing here: what is stored is given by `raw_dtype`.
    writer.add_tensor_info(name, tensor.shape, np.dtype(np.float32), count, raw_dtype=qtype)


def _stored(name: str, tensor: Tensor, kind: WeightType) -> NDArray[Any]:
    """A tensor as it is written."""
    from gguf import GGMLQuantizationType, quantize

    values = tensor.detach().float().cpu().contiguous().numpy()
    with np.errstate(over="ignore"):
        stored: NDArray[Any] = quantize(values, GGMLQuantizationType[_type_of(tensor, kind)])
    if stored.dtype.kind == "f" and not np.isfinite(stored).all():
        raise ExportError(f"{name} has weights beyond the range of {kind.name}: choose bfloat16")
    return stored


def _type_of(tensor: Tensor, kind: WeightType) -> str:
    return kind.name if tensor.dim() > 1 else "F32"
