"""Mixtral decoders whose blocks each have their own widths and experts. Ships in checkpoints."""

from huggingface_hub.dataclasses import strict
from transformers import MixtralConfig, MixtralForCausalLM, MixtralModel

from .layers import Parts, PerLayerConfig, UnevenModel


@strict
class EvocompressMixtralConfig(PerLayerConfig, MixtralConfig):
    """The family's config; ``per_layer_config`` says how layers differ."""

    model_type = "evocompress_mixtral"
    parts = Parts(outputs={"attention": "self_attn.o_proj", "mlp": "mlp.experts.0.down_proj"})


class EvocompressMixtralModel(UnevenModel, MixtralModel):
    """The body, each layer with its own widths."""

    config_class = EvocompressMixtralConfig


class EvocompressMixtralForCausalLM(UnevenModel, MixtralForCausalLM):
    """The body and its language modeling head, each layer with its own widths."""

    config_class = EvocompressMixtralConfig
