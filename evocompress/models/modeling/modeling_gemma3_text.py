"""Gemma 3 text decoders whose blocks each have their own widths. Ships inside checkpoints."""

from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Gemma3TextForSequenceClassification,
    Gemma3TextModel,
)

from .layers import Classifier, NoAttention, NoMLP, Parts, PerLayerConfig, UnevenModel

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
class EvocompressGemma3TextConfig(PerLayerConfig, Gemma3TextConfig):
    """The family's config; ``per_layer_config`` says how layers differ."""

    model_type = "evocompress_gemma3_text"
    parts = PARTS


class EvocompressGemma3TextModel(UnevenModel, Gemma3TextModel):
    """The body, each layer with its own widths."""

    config_class = EvocompressGemma3TextConfig


class EvocompressGemma3ForCausalLM(UnevenModel, Gemma3ForCausalLM):
    """The body and its language modeling head, each layer with its own widths."""

    config_class = EvocompressGemma3TextConfig


class EvocompressGemma3TextForSequenceClassification(
    Classifier, Gemma3TextForSequenceClassification
):
    """The body and a classifier, each layer with its own widths."""

    config_class = EvocompressGemma3TextConfig
    body = EvocompressGemma3TextModel
