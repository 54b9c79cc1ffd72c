"""Qwen3 decoders of which each block has its own widths. Ships inside checkpoints."""
# mypy: disable-error-code="no-untyped-call"

from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3ForSequenceClassification, Qwen3Model

from .layers import Classifier, NoAttention, NoMLP, Parts, PerLayerConfig, shape_layers

PARTS = Parts(
    {
        "attention": {"input_layernorm": nn.Identity, "self_attn": NoAttention},
        "mlp": {"post_attention_layernorm": nn.Identity, "mlp": NoMLP},
    }
)


@strict
class EvocompressQwen3Config(PerLayerConfig, Qwen3Config):
    """The family's config; ``per_layer_config`` says how layers differ."""

    model_type = "evocompress_qwen3"


class EvocompressQwen3Model(Qwen3Model):
    """The body, each layer with its own widths."""

    config: EvocompressQwen3Config
    config_class = EvocompressQwen3Config

    def __init__(self, config: EvocompressQwen3Config) -> None:
        super().__init__(config)
        shape_layers(self.layers, config, PARTS)


class EvocompressQwen3ForCausalLM(Qwen3ForCausalLM):
    """The body and its language modeling head, each layer with its own widths."""

    config: EvocompressQwen3Config
    config_class = EvocompressQwen3Config

    def __init__(self, config: EvocompressQwen3Config) -> None:
        super().__init__(config)
        shape_layers(self.model.layers, config, PARTS)


class EvocompressQwen3ForSequenceClassification(Classifier, Qwen3ForSequenceClassification):
    """The body and a classifier, each layer with its own widths."""

    config: EvocompressQwen3Config
    config_class = EvocompressQwen3Config
    body = EvocompressQwen3Model
