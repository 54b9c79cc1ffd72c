"""A tiny random model of the class of a large one, with the same kinds of layers."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

HEADS = 6
"""Query heads of a tiny model: all its sizes differ, so that a number tells its meaning."""

KV_HEADS = 2
"""Key-value heads of a tiny model whose query heads share them."""

CHANNELS = 88
"""Channels of its MLPs."""

EXPERTS = 4
"""Experts of its mixtures."""

EXPERT_CHANNELS = 24
"""Channels of an expert."""

VOCABULARY = 320
"""Tokens that it knows."""

CONTEXT = 256
"""Its longest sequence."""

HIDDEN_KEYS = ("hidden_size", "d_model", "n_embd", "dim")
CHANNEL_KEYS = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "decoder_ffn_dim")
EXPERT_CHANNEL_KEYS = ("moe_intermediate_size", "shared_expert_intermediate_size")
EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def shrunk(config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    """A copy of a language model's config in which all sizes are small.

    The kinds of layers, norms, activations, biases and whatever else tells how layers compute stay.

    Args:
        config: Of the text model.
        layers: How many of the first ones are kept.
    """
    small = copy.deepcopy(config)
    for name, values in _lists(config):
        setattr(small, name, values[:layers])
    for name, value in _sizes(config, layers).items():
        # Some classes compute a size from others and refuse to be told.
        with contextlib.suppress(AttributeError):
            if hasattr(config, name):
                setattr(small, name, value)
    # The kernels for all experts at once know no float64.
    small._experts_implementation = "eager"
    return small


def random_model(
    cls: type[PreTrainedModel], config: PreTrainedConfig, seed: int = 0
) -> PreTrainedModel:
    """A model in evaluation mode with random weights in float64, every part of which matters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = cls(config)
    model.double().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if parameter.ndim == 1:
            parameter.add_(0.2 * noise)
        else:
            parameter.copy_(noise / parameter.shape[-1] ** 0.5)
    found: PreTrainedModel = model
    return found


def _lists(config: PreTrainedConfig) -> Iterator[tuple[str, Any]]:
    """The settings with an entry for each layer."""
    for name, value in vars(config).items():
        if isinstance(value, list | tuple) and len(value) == config.num_hidden_layers:
            yield name, value


def _sizes(config: Any, layers: int) -> dict[str, Any]:
    """The small value of each setting that is a size."""
    dense_heads = getattr(config, "num_attention_heads", None) or HEADS
    dense_hidden = getattr(config, "hidden_size", None) or 0
    head_dim = getattr(config, "head_dim", None) or dense_hidden // dense_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or dense_heads
    own_size = dense_heads * head_dim != dense_hidden
    sizes: dict[str, Any] = {
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": {1: 1, dense_heads: HEADS}.get(kv_heads, KV_HEADS),
        "head_dim": head_dim,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": CONTEXT,
        "num_experts_per_tok": min(2, getattr(config, "num_experts_per_tok", None) or 2),
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    hidden = (HEADS - own_size) * head_dim
    for keys, size in (
        (HIDDEN_KEYS, hidden),
        (CHANNEL_KEYS, CHANNELS),
        (EXPERT_CHANNEL_KEYS, EXPERT_CHANNELS),
        (EXPERT_KEYS, EXPERTS),
    ):
        sizes |= {key: size for key in keys if isinstance(getattr(config, key, None), int)}
    return sizes
