"""Gemma 3 text decoders lacking some attention and MLP sub-layers. Ships inside checkpoints."""
# mypy: disable-error-code="no-untyped-call"

from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, Gemma3TextModel

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
class EvocompressGemma3TextConfig(SkippedConfig, Gemma3TextConfig):
    """The family's config; ``per_layer_config`` names the skipped sub-layers."""

    model_type = "evocompress_gemma3_text"


class EvocompressGemma3TextModel(Gemma3TextModel):
    """The body, without the skipped sub-layers."""

    config: EvocompressGemma3TextConfig
    config_class = EvocompressGemma3TextConfig

    def __init__(self, config: EvocompressGemma3TextConfig) -> None:
        super().__init__(config)
        remove_sublayers(self.layers, config, PARTS)


class EvocompressGemma3ForCausalLM(Gemma3ForCausalLM):
    """The body and its language modeling head, without the skipped sub-layers."""

    config: EvocompressGemma3TextConfig
    config_class = EvocompressGemma3TextConfig

    def __init__(self, config: EvocompressGemma3TextConfig) -> None:
        super().__init__(config)
        remove_sublayers(self.model.layers, config, PARTS)
