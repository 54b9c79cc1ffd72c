"""Mistral decoders lacking some attention and MLP sub-layers. Ships inside checkpoints."""
# mypy: disable-error-code="no-untyped-call"

from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import MistralConfig, MistralForCausalLM, MistralModel

from .skipped import NoAttention, NoMLP, SkippedConfig, remove_sublayers

PARTS = {
    "attention": {"input_layernorm": nn.Identity, "self_attn": NoAttention},
    "mlp": {"post_attention_layernorm": nn.Identity, "mlp": NoMLP},
}


@strict
class EvocompressMistralConfig(SkippedConfig, MistralConfig):
    """The family's config; ``per_layer_config`` names the skipped sub-layers."""

    model_type = "evocompress_mistral"


class EvocompressMistralModel(MistralModel):
    """The body, without the skipped sub-layers."""

    config: EvocompressMistralConfig
    config_class = EvocompressMistralConfig

    def __init__(self, config: EvocompressMistralConfig) -> None:
        super().__init__(config)
        remove_sublayers(self.layers, config, PARTS)


class EvocompressMistralForCausalLM(MistralForCausalLM):
    """The body and its language modeling head, without the skipped sub-layers."""

    config: EvocompressMistralConfig
    config_class = EvocompressMistralConfig

    def __init__(self, config: EvocompressMistralConfig) -> None:
        super().__init__(config)
        remove_sublayers(self.model.layers, config, PARTS)
