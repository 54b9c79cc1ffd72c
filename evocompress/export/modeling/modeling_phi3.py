"""Phi3 decoders lacking some attention and MLP sub-layers. Ships inside checkpoints."""
# mypy: disable-error-code="no-untyped-call"

from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import Phi3Config, Phi3ForCausalLM, Phi3Model

from .skipped import NoAttention, NoMLP, SkippedConfig, remove_sublayers

PARTS = {
    "attention": {"input_layernorm": nn.Identity, "self_attn": NoAttention},
    "mlp": {"post_attention_layernorm": nn.Identity, "mlp": NoMLP},
}


@strict
class EvocompressPhi3Config(SkippedConfig, Phi3Config):
    """The family's config; ``per_layer_config`` names the skipped sub-layers."""

    model_type = "evocompress_phi3"


class EvocompressPhi3Model(Phi3Model):
    """The body, without the skipped sub-layers."""

    config: EvocompressPhi3Config
    config_class = EvocompressPhi3Config

    def __init__(self, config: EvocompressPhi3Config) -> None:
        super().__init__(config)
        remove_sublayers(self.layers, config, PARTS)


class EvocompressPhi3ForCausalLM(Phi3ForCausalLM):
    """The body and its language modeling head, without the skipped sub-layers."""

    config: EvocompressPhi3Config
    config_class = EvocompressPhi3Config

    def __init__(self, config: EvocompressPhi3Config) -> None:
        super().__init__(config)
        remove_sublayers(self.model.layers, config, PARTS)
