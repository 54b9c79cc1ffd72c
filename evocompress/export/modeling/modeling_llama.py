"""Llama decoders lacking some attention and MLP sub-layers. Ships inside checkpoints."""
# mypy: disable-error-code="no-untyped-call"

from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

from .skipped import NoAttention, NoMLP, SkippedConfig, remove_sublayers

PARTS = {
    "attention": {"input_layernorm": nn.Identity, "self_attn": NoAttention},
    "mlp": {"post_attention_layernorm": nn.Identity, "mlp": NoMLP},
}


@strict
class EvocompressLlamaConfig(SkippedConfig, LlamaConfig):
    """The family's config; ``per_layer_config`` names the skipped sub-layers."""

    model_type = "evocompress_llama"


class EvocompressLlamaModel(LlamaModel):
    """The body, without the skipped sub-layers."""

    config: EvocompressLlamaConfig
    config_class = EvocompressLlamaConfig

    def __init__(self, config: EvocompressLlamaConfig) -> None:
        super().__init__(config)
        remove_sublayers(self.layers, config, PARTS)


class EvocompressLlamaForCausalLM(LlamaForCausalLM):
    """The body and its language modeling head, without the skipped sub-layers."""

    config: EvocompressLlamaConfig
    config_class = EvocompressLlamaConfig

    def __init__(self, config: EvocompressLlamaConfig) -> None:
        super().__init__(config)
        remove_sublayers(self.model.layers, config, PARTS)
