"""Gemma 2 decoders lacking some attention and MLP sub-layers. Ships inside checkpoints."""
# mypy: disable-error-code="no-untyped-call"

from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import Gemma2Config, Gemma2ForCausalLM, Gemma2Model

from .skipped import NoAttention, NoMLP, SkippedConfig, remove_sublayers

PARTS = {
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


@strict
class EvocompressGemma2Config(SkippedConfig, Gemma2Config):
    """The family's config; ``per_layer_config`` names the skipped sub-layers."""

    model_type = "evocompress_gemma2"


class EvocompressGemma2Model(Gemma2Model):
    """The body, without the skipped sub-layers."""

    config: EvocompressGemma2Config
    config_class = EvocompressGemma2Config

    def __init__(self, config: EvocompressGemma2Config) -> None:
        super().__init__(config)
        remove_sublayers(self.layers, config, PARTS)


class EvocompressGemma2ForCausalLM(Gemma2ForCausalLM):
    """The body and its language modeling head, without the skipped sub-layers."""

    config: EvocompressGemma2Config
    config_class = EvocompressGemma2Config

    def __init__(self, config: EvocompressGemma2Config) -> None:
        super().__init__(config)
        remove_sublayers(self.model.layers, config, PARTS)
