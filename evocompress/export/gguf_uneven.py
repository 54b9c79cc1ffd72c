"""Tensors as those architectures of llama.cpp hold them whose layers may differ.

They are few, and types whose blocks compute the same are written as one of them: matrices are put
together or taken apart, multipliers of the config go into weights, and a missing sub-layer that the
architecture needs is one of zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from evocompress.core.types import UnitKind
from evocompress.export.gguf_architectures import LlamaCpp
from evocompress.export.gguf_latent import is_latent
from evocompress.models.families.uneven import text_config
from evocompress.models.loading import LoadedModel

ZERO_CHANNELS = 32
"""Width of the MLP of zeros where there is none: a block of quantised weights."""

Tensors = Mapping[str, Tensor]


def as_uneven(
    tensors: Tensors, config: Any, loaded: LoadedModel, found: LlamaCpp
) -> dict[str, Tensor]:
    """The tensors of a type's own architecture as the architecture `found` holds them.

    The `config` is that of the model that has them.
    """
    if found.own:
        return _whole_layers(tensors, config, head_sizes(loaded, config))
    head_dim = loaded.family.architecture(loaded.model).head_dim
    held = dict(_separate(tensors))
    held |= _multiplied(held, text_config(loaded.model.config), head_dim)
    held |= _zero_mlps(held)
    if not found.fused:
        return held
    held |= _zero_attentions(held, head_dim)
    return dict(_fused(held))


def head_sizes(loaded: LoadedModel, config: Any) -> list[int]:
    """How wide a head of each layer is, of which `config` tells."""
    architecture = loaded.family.architecture(loaded.model)
    if is_latent(config):
        return [config.v_head_dim] * config.num_hidden_layers
    if not architecture.head_widths or not hasattr(config, "layer_types"):
        return [architecture.head_dim] * config.num_hidden_layers
    kinds = zip(text_config(loaded.model.config).layer_types, architecture.head_widths, strict=True)
    sizes = {kind: width // 2 for kind, width in kinds}  # of a key and a value together
    return [sizes[kind] for kind in config.layer_types]


def _whole_layers(tensors: Tensors, config: Any, sizes: list[int]) -> dict[str, Tensor]:
    """The tensors with an MLP, or an attention, of zeros in layers without one.

    A layer that reads the keys of another has none, and as many queries as that one has keys.
    """
    found, norm = {**tensors}, tensors["output_norm.weight"]
    readers = len(sizes) - (getattr(config, "num_kv_shared_layers", None) or 0)
    keys: dict[int, Tensor] = {}
    for layer, size in enumerate(sizes):
        name = f"blk.{layer}"
        keys[size] = tensors.get(f"{name}.attn_k.weight", keys.get(size, norm))
        if f"{name}.ffn_down.weight" not in tensors:
            found |= _zero_mlp(name, norm) | {f"{name}.post_ffw_norm.weight": torch.ones_like(norm)}
        if f"{name}.attn_output.weight" not in tensors:
            found[f"{name}.post_attention_norm.weight"] = torch.ones_like(norm)
            read = len(keys[size]) // size if layer >= readers else 0
            found |= _zero_attention(name, norm, size, read)
    return found


def has_multipliers(config: Any) -> bool:
    """Whether a model multiplies its hidden state, scores and logits as Granite does."""
    return hasattr(config, "residual_multiplier")


def residual_scale(config: Any) -> float:
    """By what the hidden state is divided where a model's embeddings are not multiplied.

    Each layer adds as much less, so that norms see the same but for what they add to a variance.
    """
    return float(getattr(config, "embedding_multiplier", None) or 1.0)


def _separate(tensors: Tensors) -> Iterator[tuple[str, Tensor]]:
    """Queries, keys and values, and gate and up, as matrices of their own.

    The norm before an MLP has the name that it has with Llama, whatever transformers calls it.
    """
    for name, tensor in tensors.items():
        layer, _, part = name.partition(".attn_qkv.")
        if part:
            queries = tensors[f"{layer}.attn_output.weight"].shape[1]
            keys = (len(tensor) - queries) // 2
            for letter, rows in zip("qkv", torch.split(tensor, [queries, keys, keys]), strict=True):
                yield f"{layer}.attn_{letter}.{part}", rows
            continue
        layer, _, part = name.partition(".ffn_up.")
        if part and len(tensor) == 2 * tensors[f"{layer}.ffn_down.weight"].shape[1]:
            gate, up = tensor.chunk(2)
            yield from ((f"{layer}.ffn_gate.{part}", gate), (f"{layer}.ffn_up.{part}", up))
            continue
        yield name.replace(".post_attention_norm.", ".ffn_norm."), tensor


def _multiplied(tensors: Tensors, config: Any, head_dim: int) -> dict[str, Tensor]:
    """Weights with Granite's multipliers in them, which the architecture does not know."""
    scale = getattr(config, "attention_multiplier", None)
    residual = getattr(config, "residual_multiplier", 1.0) / residual_scale(config)
    by = {
        ".attn_q.": 1.0 if scale is None else scale * head_dim**0.5,
        ".attn_output.": residual,
        ".ffn_down.": residual,
        "output_norm.": 1 / getattr(config, "logits_scaling", 1.0),
    }
    return {
        name: (tensor.float() * factor).to(tensor.dtype)
        for name, tensor in tensors.items()
        for part, factor in by.items()
        if part in name and factor != 1
    }


def _zero_mlps(tensors: Tensors) -> dict[str, Tensor]:
    """An MLP of zeros for every layer that has an attention alone."""
    return _added(tensors, "attn_output", "ffn_down", _zero_mlp)


def _zero_attentions(tensors: Tensors, head_dim: int) -> dict[str, Tensor]:
    """An attention of one head of zeros for every layer that has an MLP alone."""
    zeros = partial(_zero_attention, head_dim=head_dim)
    return _added(tensors, "ffn_down", "attn_output", zeros)


def _zero_attention(layer: str, norm: Tensor, head_dim: int, read: int = 0) -> dict[str, Tensor]:
    """One head of zeros, or as many as there are key-value heads that it reads."""
    matrix, scale = norm.new_zeros(head_dim * (read or 1), len(norm)), norm.new_ones(head_dim)
    letters = "q" if read else "qkv"
    return {
        f"{layer}.attn_norm.weight": torch.ones_like(norm),
        **{f"{layer}.attn_{letter}.weight": matrix for letter in letters},
        **{f"{layer}.attn_{letter}_norm.weight": scale for letter in letters if letter != "v"},
        f"{layer}.attn_output.weight": matrix.T.contiguous(),
    }


def zero_sublayers(
    found: LlamaCpp, norm: Tensor, loaded: LoadedModel
) -> dict[UnitKind, dict[str, Tensor]]:
    """What stands for a missing sub-layer of a kind beside the other one, with the `norm`'s width.

    Nothing where layers are alike, or each may lack what it lacks.
    """
    if found.uneven and not found.differing:
        head_dim = loaded.family.architecture(loaded.model).head_dim
        both = found.fused or found.own
        attention = _zero_attention("blk.0", norm, head_dim) if both else {}
        return {"mlp": _zero_mlp("blk.0", norm), "attention": attention}
    return {}


def _added(
    tensors: Tensors, there: str, missing: str, zeros: Callable[[str, Tensor], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Zeros for layers that have one part and lack another."""
    found: dict[str, Tensor] = {}
    for name in tensors:
        layer, _, part = name.rpartition(f".{there}.")
        if part == "weight" and f"{layer}.{missing}.weight" not in tensors:
            found |= zeros(layer, tensors["output_norm.weight"])
    return found


def _zero_mlp(layer: str, norm: Tensor) -> dict[str, Tensor]:
    hidden = len(norm)
    return {
        f"{layer}.ffn_norm.weight": torch.ones_like(norm),
        f"{layer}.ffn_gate.weight": norm.new_zeros(ZERO_CHANNELS, hidden),
        f"{layer}.ffn_up.weight": norm.new_zeros(ZERO_CHANNELS, hidden),
        f"{layer}.ffn_down.weight": norm.new_zeros(hidden, ZERO_CHANNELS),
    }


def _fused(tensors: Tensors) -> Iterator[tuple[str, Tensor]]:
    """Queries, keys and values as one matrix."""
    for name, tensor in tensors.items():
        layer, _, part = name.partition(".attn_q.")
        if part:
            own = [tensors[f"{layer}.attn_{letter}.{part}"] for letter in "qkv"]
            yield f"{layer}.attn_qkv.{part}", torch.cat(own)
        elif ".attn_k." not in name and ".attn_v." not in name:
            yield name, tensor
