"""OPT decoders whose blocks each have their own widths. Ships inside checkpoints."""

from typing import Any

from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import OPTConfig, OPTForCausalLM, OPTModel

from .layers import LayerConfig, NoAttention, NoMLP, Parts, PerLayerConfig, UnevenModel


def rebuild_attention(block: Any, config: LayerConfig, layer: int) -> None:
    """Fewer heads of the same size, which the class would derive from their number."""
    attention, hidden, bias = block.self_attn, config.hidden_size, config.enable_bias
    attention.num_heads = config.num_attention_heads
    width = attention.num_heads * attention.head_dim
    for name in ("q_proj", "k_proj", "v_proj"):
        setattr(attention, name, nn.Linear(hidden, width, bias=bias))
    attention.out_proj = nn.Linear(width, hidden, bias=bias)


def rebuild_mlp(block: Any, config: LayerConfig, layer: int) -> None:
    """New matrices, which lie in the block itself."""
    hidden, channels, bias = config.hidden_size, config.intermediate_size, config.enable_bias
    block.fc1 = nn.Linear(hidden, channels, bias=bias)
    block.fc2 = nn.Linear(channels, hidden, bias=bias)


PARTS = Parts(
    stand_ins={
        "attention": {"self_attn_layer_norm": nn.Identity, "self_attn": NoAttention},
        "mlp": {
            "final_layer_norm": nn.Identity,
            "fc1": nn.Identity,
            "activation_fn": nn.Identity,
            "fc2": NoMLP,
        },
    },
    outputs={"attention": "self_attn.out_proj", "mlp": "fc2"},
    rebuild={"attention": rebuild_attention, "mlp": rebuild_mlp},
    blocks="decoder.layers",
)


@strict
class EvocompressOPTConfig(PerLayerConfig, OPTConfig):
    """The family's config; ``per_layer_config`` says how layers differ."""

    model_type = "evocompress_opt"
    attribute_map = {**OPTConfig.attribute_map, "intermediate_size": "ffn_dim"}
    parts = PARTS


class EvocompressOPTModel(UnevenModel, OPTModel):
    """The body, each layer with its own widths."""

    config_class = EvocompressOPTConfig


class EvocompressOPTForCausalLM(UnevenModel, OPTForCausalLM):
    """The body and its language modeling head, each layer with its own widths."""

    config_class = EvocompressOPTConfig
