"""Phi3 decoders of which each block has its own widths. Ships inside checkpoints."""
# mypy: disable-error-code="no-untyped-call"

from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import Phi3Config, Phi3ForCausalLM, Phi3Model

from .layers import NoAttention, NoMLP, Parts, PerLayerConfig, shape_layers

PARTS = Parts(
    {
        "attention": {"input_layernorm": nn.Identity, "self_attn": NoAttention},
        "mlp": {"post_attention_layernorm": nn.Identity, "mlp": NoMLP},
    }
)


@strict
class EvocompressPhi3Config(PerLayerConfig, Phi3Config):
    """The family's config; ``per_layer_config`` says how layers differ."""

    model_type = "evocompress_phi3"


class EvocompressPhi3Model(Phi3Model):
    """The body, each layer with its own widths."""

    config: EvocompressPhi3Config
    config_class = EvocompressPhi3Config

    def __init__(self, config: EvocompressPhi3Config) -> None:
        super().__init__(config)
        shape_layers(self.layers, config, PARTS)


class EvocompressPhi3ForCausalLM(Phi3ForCausalLM):
    """The body and its language modeling head, each layer with its own widths."""

    config: EvocompressPhi3Config
    config_class = EvocompressPhi3Config

    def __init__(self, config: EvocompressPhi3Config) -> None:
        super().__init__(config)
        shape_layers(self.model.layers, config, PARTS)
