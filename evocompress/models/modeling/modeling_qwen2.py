"""Qwen2 decoders of which each block has its own widths. Ships inside checkpoints."""
# mypy: disable-error-code="no-untyped-call"

from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2ForSequenceClassification, Qwen2Model

from .layers import Classifier, NoAttention, NoMLP, Parts, PerLayerConfig, shape_layers

PARTS = Parts(
    {
        "attention": {"input_layernorm": nn.Identity, "self_attn": NoAttention},
        "mlp": {"post_attention_layernorm": nn.Identity, "mlp": NoMLP},
    }
)


@strict
class EvocompressQwen2Config(PerLayerConfig, Qwen2Config):
    """The family's config; ``per_layer_config`` says how layers differ."""

    model_type = "evocompress_qwen2"


class EvocompressQwen2Model(Qwen2Model):
    """The body, each layer with its own widths."""

    config: EvocompressQwen2Config
    config_class = EvocompressQwen2Config

    def __init__(self, config: EvocompressQwen2Config) -> None:
        super().__init__(config)
        shape_layers(self.layers, config, PARTS)


class EvocompressQwen2ForCausalLM(Qwen2ForCausalLM):
    """The body and its language modeling head, each layer with its own widths."""

    config: EvocompressQwen2Config
    config_class = EvocompressQwen2Config

    def __init__(self, config: EvocompressQwen2Config) -> None:
        super().__init__(config)
        shape_layers(self.model.layers, config, PARTS)


class EvocompressQwen2ForSequenceClassification(Classifier, Qwen2ForSequenceClassification):
    """The body and a classifier, each layer with its own widths."""

    config: EvocompressQwen2Config
    config_class = EvocompressQwen2Config
    body = EvocompressQwen2Model
