"""Mistral decoders whose blocks each have their own widths. Ships inside checkpoints."""

from huggingface_hub.dataclasses import strict
from transformers import (
    MistralConfig,
    MistralForCausalLM,
    MistralForSequenceClassification,
    MistralModel,
)

from .layers import Classifier, PerLayerConfig, UnevenModel


@strict
class EvocompressMistralConfig(PerLayerConfig, MistralConfig):
    """The family's config; ``per_layer_config`` says how layers differ."""

    model_type = "evocompress_mistral"


class EvocompressMistralModel(UnevenModel, MistralModel):
    """The body, each layer with its own widths."""

    config_class = EvocompressMistralConfig


class EvocompressMistralForCausalLM(UnevenModel, MistralForCausalLM):
    """The body and its language modeling head, each layer with its own widths."""

    config_class = EvocompressMistralConfig


class EvocompressMistralForSequenceClassification(Classifier, MistralForSequenceClassification):
    """The body and a classifier, each layer with its own widths."""

    config_class = EvocompressMistralConfig
    body = EvocompressMistralModel
