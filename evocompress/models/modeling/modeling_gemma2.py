"""Gemma 2 decoders of which each block has its own widths. Ships inside checkpoints."""
# mypy: disable-error-code="no-untyped-call"

from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma2ForSequenceClassification,
    Gemma2Model,
)

from .layers import Classifier, NoAttention, NoMLP, Parts, PerLayerConfig, shape_layers

PARTS = Parts(
    {
        "attention": {
            "input_layernorm": nn.Identity,
            "self_attn": NoAttention,
            "post_attention_layernorm": nn.Identity,
        },
        "mlp": {
            "pre_feedforward_layernorm": nn.Identity,
            "mlp": NoMLP,
            "post_feedforward_layernorm": nn.Identity,
        },
    }
)


@strict
class EvocompressGemma2Config(PerLayerConfig, Gemma2Config):
    """The family's config; ``per_layer_config`` says how layers differ."""

    model_type = "evocompress_gemma2"


class EvocompressGemma2Model(Gemma2Model):
    """The body, each layer with its own widths."""

    config: EvocompressGemma2Config
    config_class = EvocompressGemma2Config

    def __init__(self, config: EvocompressGemma2Config) -> None:
        super().__init__(config)
        shape_layers(self.layers, config, PARTS)


class EvocompressGemma2ForCausalLM(Gemma2ForCausalLM):
    """The body and its language modeling head, each layer with its own widths."""

    config: EvocompressGemma2Config
    config_class = EvocompressGemma2Config

    def __init__(self, config: EvocompressGemma2Config) -> None:
        super().__init__(config)
        shape_layers(self.model.layers, config, PARTS)


class EvocompressGemma2ForSequenceClassification(Classifier, Gemma2ForSequenceClassification):
    """The body and a classifier, each layer with its own widths."""

    config: EvocompressGemma2Config
    config_class = EvocompressGemma2Config
    body = EvocompressGemma2Model
