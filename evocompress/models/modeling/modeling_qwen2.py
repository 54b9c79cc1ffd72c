"""Qwen2 decoders whose blocks each have their own widths. Ships inside checkpoints."""

from huggingface_hub.dataclasses import strict
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2ForSequenceClassification, Qwen2Model

from .layers import Classifier, PerLayerConfig, UnevenModel


@strict
class EvocompressQwen2Config(PerLayerConfig, Qwen2Config):
    """The family's config; ``per_layer_config`` says how layers differ."""

    model_type = "evocompress_qwen2"


class EvocompressQwen2Model(UnevenModel, Qwen2Model):
    """The body, each layer with its own widths."""

    config_class = EvocompressQwen2Config


class EvocompressQwen2ForCausalLM(UnevenModel, Qwen2ForCausalLM):
    """The body and its language modeling head, each layer with its own widths."""

    config_class = EvocompressQwen2Config


class EvocompressQwen2ForSequenceClassification(Classifier, Qwen2ForSequenceClassification):
    """The body and a classifier, each layer with its own widths."""

    config_class = EvocompressQwen2Config
    body = EvocompressQwen2Model
