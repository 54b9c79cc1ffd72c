"""GPT-2 decoders lacking some attention and MLP sub-layers. Ships inside checkpoints."""
# mypy: disable-error-code="no-untyped-call"

from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

from .skipped import NoAttention, NoMLP, SkippedConfig, remove_sublayers

PARTS = {
    "attention": {"ln_1": nn.Identity, "attn": NoAttention},
    "mlp": {"ln_2": nn.Identity, "mlp": NoMLP},
}


@strict
class EvocompressGPT2Config(SkippedConfig, GPT2Config):
    """The family's config; ``per_layer_config`` names the skipped sub-layers."""

    model_type = "evocompress_gpt2"


class EvocompressGPT2Model(GPT2Model):
    """The body, without the skipped sub-layers."""

    config: EvocompressGPT2Config
    config_class = EvocompressGPT2Config

    def __init__(self, config: EvocompressGPT2Config) -> None:
        super().__init__(config)
        remove_sublayers(self.h, config, PARTS)


class EvocompressGPT2LMHeadModel(GPT2LMHeadModel):
    """The body and its language modeling head, without the skipped sub-layers."""

    config: EvocompressGPT2Config
    config_class = EvocompressGPT2Config

    def __init__(self, config: EvocompressGPT2Config) -> None:
        super().__init__(config)
        remove_sublayers(self.transformer.h, config, PARTS)
