"""Qwen2 mixtures of which each block has its own widths and experts. Ships inside checkpoints."""
# mypy: disable-error-code="no-untyped-call"

from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM, Qwen2MoeModel

from .layers import NoAttention, NoMLP, Parts, PerLayerConfig, shape_layers, split_experts

PARTS = Parts(
    {
        "attention": {"input_layernorm": nn.Identity, "self_attn": NoAttention},
        "mlp": {"post_attention_layernorm": nn.Identity, "mlp": NoMLP},
    },
    outputs={"attention": "self_attn.o_proj", "mlp": "mlp.experts.0.down_proj"},
)


@strict
class EvocompressQwen2MoeConfig(PerLayerConfig, Qwen2MoeConfig):
    """The family's config; ``per_layer_config`` says how layers differ."""

    model_type = "evocompress_qwen2_moe"


class EvocompressQwen2MoeModel(Qwen2MoeModel):
    """The body, each layer with its own widths."""

    config: EvocompressQwen2MoeConfig
    config_class = EvocompressQwen2MoeConfig

    def __init__(self, config: EvocompressQwen2MoeConfig) -> None:
        super().__init__(config)
        shape_layers(self.layers, config, PARTS)
        split_experts(self.layers)


class EvocompressQwen2MoeForCausalLM(Qwen2MoeForCausalLM):
    """The body and its language modeling head, each layer with its own widths."""

    config: EvocompressQwen2MoeConfig
    config_class = EvocompressQwen2MoeConfig

    def __init__(self, config: EvocompressQwen2MoeConfig) -> None:
        super().__init__(config)
        shape_layers(self.model.layers, config, PARTS)
        split_experts(self.model.layers)
