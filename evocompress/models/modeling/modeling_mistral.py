"""Mistral decoders of which each block has its own widths. Ships inside checkpoints."""
# mypy: disable-error-code="no-untyped-call"

from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import (
    MistralConfig,
    MistralForCausalLM,
    MistralForSequenceClassification,
    MistralModel,
)

from .layers import Classifier, NoAttention, NoMLP, Parts, PerLayerConfig, shape_layers

PARTS = Parts(
    {
        "attention": {"input_layernorm": nn.Identity, "self_attn": NoAttention},
        "mlp": {"post_attention_layernorm": nn.Identity, "mlp": NoMLP},
    }
)


@strict
class EvocompressMistralConfig(PerLayerConfig, MistralConfig):
    """The family's config; ``per_layer_config`` says how layers differ."""

    model_type = "evocompress_mistral"


class EvocompressMistralModel(MistralModel):
    """The body, each layer with its own widths."""

    config: EvocompressMistralConfig
    config_class = EvocompressMistralConfig

    def __init__(self, config: EvocompressMistralConfig) -> None:
        super().__init__(config)
        shape_layers(self.layers, config, PARTS)


class EvocompressMistralForCausalLM(MistralForCausalLM):
    """The body and its language modeling head, each layer with its own widths."""

    config: EvocompressMistralConfig
    config_class = EvocompressMistralConfig

    def __init__(self, config: EvocompressMistralConfig) -> None:
        super().__init__(config)
        shape_layers(self.model.layers, config, PARTS)


class EvocompressMistralForSequenceClassification(Classifier, MistralForSequenceClassification):
    """The body and a classifier, each layer with its own widths."""

    config: EvocompressMistralConfig
    config_class = EvocompressMistralConfig
    body = EvocompressMistralModel
