"""Gemma 2 decoders whose blocks each have their own widths. Ships inside checkpoints."""

from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma2ForSequenceClassification,
    Gemma2Model,
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
class EvocompressGemma2Config(PerLayerConfig, Gemma2Config):
    """The family's config; ``per_layer_config`` says how layers differ."""

    model_type = "evocompress_gemma2"
    parts = PARTS


class EvocompressGemma2Model(UnevenModel, Gemma2Model):
    """The body, each layer with its own widths."""

    config_class = EvocompressGemma2Config


class EvocompressGemma2ForCausalLM(UnevenModel, Gemma2ForCausalLM):
    """The body and its language modeling head, each layer with its own widths."""

    config_class = EvocompressGemma2Config


class EvocompressGemma2ForSequenceClassification(Classifier, Gemma2ForSequenceClassification):
    """The body and a classifier, each layer with its own widths."""

    config_class = EvocompressGemma2Config
    body = EvocompressGemma2Model
