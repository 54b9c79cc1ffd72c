"""Latent attention as llama.cpp's ``deepseek2`` holds it: a key-value head as wide as the latent.

What makes keys and values of the latent are two tensors with a matrix for each head, and that of
keys is transposed, so that queries are multiplied by it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from evocompress.export.layout import Layout
from evocompress.models.families.uneven import text_config
from evocompress.models.loading import LoadedModel

LITE = 26, 27
"""The numbers of layers by which llama.cpp takes queries to be without a latent of their own."""

LITE_VOCABULARY = 48, 128256
"""Likewise a number of layers together with one of tokens."""


def is_latent(config: Any) -> bool:
    """Whether keys and values of a model are made of one latent."""
    return bool(getattr(config, "kv_lora_rank", None))


def by_heads(name: str, tensor: Tensor, config: Any) -> Iterator[tuple[str, Tensor]]:
    """A tensor by llama.cpp's name, that of keys and values as two."""
    layer, found, part = name.partition(".attn_kv_b.")
    if not found:
        yield name, tensor
        return
    keys, values = config.qk_nope_head_dim, config.v_head_dim
    heads = tensor.reshape(-1, keys + values, tensor.shape[1])
    yield f"{layer}.attn_k_b.{part}", heads[:, :keys].transpose(1, 2)
    yield f"{layer}.attn_v_b.{part}", heads[:, keys:]


def add_latent(writer: Any, config: Any, tensors: Mapping[str, Tensor]) -> None:
    """Adds ranks, the widths of the cache and of heads, and that there are no experts."""
    rank, turned = config.kv_lora_rank, config.qk_rope_head_dim
    if config.q_lora_rank:
        writer.add_q_lora_rank(config.q_lora_rank)
    writer.add_kv_lora_rank(rank)
    writer.add_key_length(rank + turned)
    writer.add_value_length(rank)
    writer.add_key_length_mla(config.qk_nope_head_dim + turned)
    writer.add_value_length_mla(config.v_head_dim)
    if not any("_exps." in name for name in tensors):
        writer.add_leading_dense_block_count(config.num_hidden_layers)
        writer.add_expert_feed_forward_length(config.intermediate_size)
        writer.add_expert_shared_count(0)


def latent_obstacle(loaded: LoadedModel, left: Layout) -> str | None:
    """The obstacle of a number of layers by which llama.cpp takes queries to be made otherwise."""
    config = text_config(loaded.model.config)
    if not is_latent(config):
        return None
    layers = len(left.kept)
    lite = layers in LITE or (layers, config.vocab_size) == LITE_VOCABULARY
    if lite == (config.q_lora_rank is None):
        return None
    return (
        f"cannot hold {layers} layers of this {loaded.family.model_type} model, because llama.cpp "
        f"wants queries with{'out' if lite else ''} a latent there"
    )
