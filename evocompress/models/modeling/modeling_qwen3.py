"""Qwen3 decoders whose blocks each have their own widths. Ships inside checkpoints."""

from huggingface_hub.dataclasses import strict
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3ForSequenceClassification, Qwen3Model

from .layers import Classifier, PerLayerConfig, UnevenModel


@strict
class EvocompressQwen3Config(PerLayerConfig, Qwen3Config):
    """The family's config; ``per_layer_config`` says how layers differ."""

    model_type = "evocompress_qwen3"


class EvocompressQwen3Model(UnevenModel, Qwen3Model):
    """The body, each layer with its own widths."""

    config_class = EvocompressQwen3Config


class EvocompressQwen3ForCausalLM(UnevenModel, Qwen3ForCausalLM):
    """The body and its language modeling head, each layer with its own widths."""

    config_class = EvocompressQwen3Config


class EvocompressQwen3ForSequenceClassification(Classifier, Qwen3ForSequenceClassification):
    """The body and a classifier, each layer with its own widths."""

    config_class = EvocompressQwen3Config
    body = EvocompressQwen3Model
