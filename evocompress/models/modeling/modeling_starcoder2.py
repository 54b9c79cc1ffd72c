"""StarCoder2 decoders whose blocks each have their own widths. Ships inside checkpoints."""

from huggingface_hub.dataclasses import strict
from transformers import Starcoder2Config, Starcoder2ForCausalLM, Starcoder2Model

from .layers import Parts, PerLayerConfig, UnevenModel


@strict
class EvocompressStarcoder2Config(PerLayerConfig, Starcoder2Config):
    """The family's config; ``per_layer_config`` says how layers differ."""

    model_type = "evocompress_starcoder2"
    parts = Parts(outputs={"attention": "self_attn.o_proj", "mlp": "mlp.c_proj"})


class EvocompressStarcoder2Model(UnevenModel, Starcoder2Model):
    """The body, each layer with its own widths."""

    config_class = EvocompressStarcoder2Config


class EvocompressStarcoder2ForCausalLM(UnevenModel, Starcoder2ForCausalLM):
    """The body and its language modeling head, each layer with its own widths."""

    config_class = EvocompressStarcoder2Config
