"""Qwen2 mixtures whose blocks each have their own widths and experts. Ships inside checkpoints."""

from huggingface_hub.dataclasses import strict
from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM, Qwen2MoeModel

from .layers import Parts, PerLayerConfig, UnevenModel


@strict
class EvocompressQwen2MoeConfig(PerLayerConfig, Qwen2MoeConfig):
    """The family's config; ``per_layer_config`` says how layers differ."""

    model_type = "evocompress_qwen2_moe"
    parts = Parts(outputs={"attention": "self_attn.o_proj", "mlp": "mlp.experts.0.down_proj"})


class EvocompressQwen2MoeModel(UnevenModel, Qwen2MoeModel):
    """The body, each layer with its own widths."""

    config_class = EvocompressQwen2MoeConfig


class EvocompressQwen2MoeForCausalLM(UnevenModel, Qwen2MoeForCausalLM):
    """The body and its language modeling head, each layer with its own widths."""

    config_class = EvocompressQwen2MoeConfig
