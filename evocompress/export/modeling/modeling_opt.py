"""OPT decoders lacking some attention and MLP sub-layers. Ships inside checkpoints."""
# mypy: disable-error-code="no-untyped-call"

from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import OPTConfig, OPTForCausalLM, OPTModel

from .skipped import NoAttention, NoMLP, SkippedConfig, remove_sublayers

PARTS = {
    "attention": {"self_attn_layer_norm": nn.Identity, "self_attn": NoAttention},
    "mlp": {
        "final_layer_norm": nn.Identity,
        "fc1": nn.Identity,
        "activation_fn": nn.Identity,
        "fc2": NoMLP,
    },
}


@strict
class EvocompressOPTConfig(SkippedConfig, OPTConfig):
    """The family's config; ``per_layer_config`` names the skipped sub-layers."""

    model_type = "evocompress_opt"


class EvocompressOPTModel(OPTModel):
    """The body, without the skipped sub-layers."""

    config: EvocompressOPTConfig
    config_class = EvocompressOPTConfig

    def __init__(self, config: EvocompressOPTConfig) -> None:
        super().__init__(config)
        remove_sublayers(self.decoder.layers, config, PARTS)


class EvocompressOPTForCausalLM(OPTForCausalLM):
    """The body and its language modeling head, without the skipped sub-layers."""

    config: EvocompressOPTConfig
    config_class = EvocompressOPTConfig

    def __init__(self, config: EvocompressOPTConfig) -> None:
        super().__init__(config)
        remove_sublayers(self.model.decoder.layers, config, PARTS)
