"""Llama decoders whose blocks each have their own widths. Ships inside checkpoints."""

from huggingface_hub.dataclasses import strict
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, LlamaModel

from .layers import Classifier, PerLayerConfig, UnevenModel


@strict
class EvocompressLlamaConfig(PerLayerConfig, LlamaConfig):
    """The family's config; ``per_layer_config`` says how layers differ."""

    model_type = "evocompress_llama"


class EvocompressLlamaModel(UnevenModel, LlamaModel):
    """The body, each layer with its own widths."""

    config_class = EvocompressLlamaConfig


class EvocompressLlamaForCausalLM(UnevenModel, LlamaForCausalLM):
    """The body and its language modeling head, each layer with its own widths."""

    config_class = EvocompressLlamaConfig


class EvocompressLlamaForSequenceClassification(Classifier, LlamaForSequenceClassification):
    """The body and a classifier, each layer with its own widths."""

    config_class = EvocompressLlamaConfig
    body = EvocompressLlamaModel
