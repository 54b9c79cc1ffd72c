"""StarCoder2 decoders of which each block has its own widths. Ships inside checkpoints."""
# mypy: disable-error-code="no-untyped-call"

from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import Starcoder2Config, Starcoder2ForCausalLM, Starcoder2Model

from .layers import NoAttention, NoMLP, Parts, PerLayerConfig, shape_layers

PARTS = Parts(
    stand_ins={
        "attention": {"input_layernorm": nn.Identity, "self_attn": NoAttention},
        "mlp": {"post_attention_layernorm": nn.Identity, "mlp": NoMLP},
    },
    outputs={"attention": "self_attn.o_proj", "mlp": "mlp.c_proj"},
)


@strict
class EvocompressStarcoder2Config(PerLayerConfig, Starcoder2Config):
    """The family's config; ``per_layer_config`` says how layers differ."""

    model_type = "evocompress_starcoder2"


class EvocompressStarcoder2Model(Starcoder2Model):
    """The body, each layer with its own widths."""

    config: EvocompressStarcoder2Config
    config_class = EvocompressStarcoder2Config

    def __init__(self, config: EvocompressStarcoder2Config) -> None:
        super().__init__(config)
        shape_layers(self.layers, config, PARTS)


class EvocompressStarcoder2ForCausalLM(Starcoder2ForCausalLM):
    """The body and its language modeling head, each layer with its own widths."""

    config: EvocompressStarcoder2Config
    config_class = EvocompressStarcoder2Config

    def __init__(self, config: EvocompressStarcoder2Config) -> None:
        super().__init__(config)
        shape_layers(self.model.layers, config, PARTS)
