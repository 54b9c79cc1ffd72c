"""Qwen3 decoders lacking some attention and MLP sub-layers. Ships inside checkpoints."""
# mypy: disable-error-code="no-untyped-call"

from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model

from .skipped import NoAttention, NoMLP, SkippedConfig, remove_sublayers

PARTS = {
    "attention": {"input_layernorm": nn.Identity, "self_attn": NoAttention},
    "mlp": {"post_attention_layernorm": nn.Identity, "mlp": NoMLP},
}


@strict
class EvocompressQwen3Config(SkippedConfig, Qwen3Config):
    """The family's config; ``per_layer_config`` names the skipped sub-layers."""

    model_type = "evocompress_qwen3"


class EvocompressQwen3Model(Qwen3Model):
    """The body, without the skipped sub-layers."""

    config: EvocompressQwen3Config
    config_class = EvocompressQwen3Config

    def __init__(self, config: EvocompressQwen3Config) -> None:
        super().__init__(config)
        remove_sublayers(self.layers, config, PARTS)


class EvocompressQwen3ForCausalLM(Qwen3ForCausalLM):
    """The body and its language modeling head, without the skipped sub-layers."""

    config: EvocompressQwen3Config
    config_class = EvocompressQwen3Config

    def __init__(self, config: EvocompressQwen3Config) -> None:
        super().__init__(config)
        remove_sublayers(self.model.layers, config, PARTS)
