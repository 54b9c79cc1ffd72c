"""Phi3 decoders whose blocks each have their own widths. Ships inside checkpoints."""

from huggingface_hub.dataclasses import strict
from transformers import Phi3Config, Phi3ForCausalLM, Phi3Model

from .layers import PerLayerConfig, UnevenModel


@strict
class EvocompressPhi3Config(PerLayerConfig, Phi3Config):
    """The family's config; ``per_layer_config`` says how layers differ."""

    model_type = "evocompress_phi3"


class EvocompressPhi3Model(UnevenModel, Phi3Model):
    """The body, each layer with its own widths."""

    config_class = EvocompressPhi3Config


class EvocompressPhi3ForCausalLM(UnevenModel, Phi3ForCausalLM):
    """The body and its language modeling head, each layer with its own widths."""

    config_class = EvocompressPhi3Config
