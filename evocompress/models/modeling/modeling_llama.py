"""Llama decoders of which each block has its own widths. Ships inside checkpoints."""
# mypy: disable-error-code="no-untyped-call"

from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, LlamaModel

from .layers import Classifier, NoAttention, NoMLP, Parts, PerLayerConfig, shape_layers

PARTS = Parts(
    {
        "attention": {"input_layernorm": nn.Identity, "self_attn": NoAttention},
        "mlp": {"post_attention_layernorm": nn.Identity, "mlp": NoMLP},
    }
)


@strict
class EvocompressLlamaConfig(PerLayerConfig, LlamaConfig):
    """The family's config; ``per_layer_config`` says how layers differ."""

    model_type = "evocompress_llama"


class EvocompressLlamaModel(LlamaModel):
    """The body, each layer with its own widths."""

    config: EvocompressLlamaConfig
    config_class = EvocompressLlamaConfig

    def __init__(self, config: EvocompressLlamaConfig) -> None:
        super().__init__(config)
        shape_layers(self.layers, config, PARTS)


class EvocompressLlamaForCausalLM(LlamaForCausalLM):
    """The body and its language modeling head, each layer with its own widths."""

    config: EvocompressLlamaConfig
    config_class = EvocompressLlamaConfig

    def __init__(self, config: EvocompressLlamaConfig) -> None:
        super().__init__(config)
        shape_layers(self.model.layers, config, PARTS)


class EvocompressLlamaForSequenceClassification(Classifier, LlamaForSequenceClassification):
    """The body and a classifier, each layer with its own widths."""

    config: EvocompressLlamaConfig
    config_class = EvocompressLlamaConfig
    body = EvocompressLlamaModel
