"""Qwen2 decoders lacking some attention and MLP sub-layers. Ships inside checkpoints."""
# mypy: disable-error-code="no-untyped-call"

from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Model

from .skipped import NoAttention, NoMLP, SkippedConfig, remove_sublayers

PARTS = {
    "attention": {"input_layernorm": nn.Identity, "self_attn": NoAttention},
    "mlp": {"post_attention_layernorm": nn.Identity, "mlp": NoMLP},
}


@strict
class EvocompressQwen2Config(SkippedConfig, Qwen2Config):
    """The family's config; ``per_layer_config`` names the skipped sub-layers."""

    model_type = "evocompress_qwen2"


class EvocompressQwen2Model(Qwen2Model):
    """The body, without the skipped sub-layers."""

    config: EvocompressQwen2Config
    config_class = EvocompressQwen2Config

    def __init__(self, config: EvocompressQwen2Config) -> None:
        super().__init__(config)
        remove_sublayers(self.layers, config, PARTS)


class EvocompressQwen2ForCausalLM(Qwen2ForCausalLM):
    """The body and its language modeling head, without the skipped sub-layers."""

    config: EvocompressQwen2Config
    config_class = EvocompressQwen2Config

    def __init__(self, config: EvocompressQwen2Config) -> None:
        super().__init__(config)
        remove_sublayers(self.model.layers, config, PARTS)
