"""Qwen3 mixtures whose blocks each have their own widths and experts. Ships inside checkpoints."""

from huggingface_hub.dataclasses import strict
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM, Qwen3MoeModel

from .layers import Parts, PerLayerConfig, UnevenModel


@strict
class EvocompressQwen3MoeConfig(PerLayerConfig, Qwen3MoeConfig):
    """The family's config; ``per_layer_config`` says how layers differ."""

    model_type = "evocompress_qwen3_moe"
    parts = Parts(outputs={"attention": "self_attn.o_proj", "mlp": "mlp.experts.0.down_proj"})


class EvocompressQwen3MoeModel(UnevenModel, Qwen3MoeModel):
    """The body, each layer with its own widths."""

    config_class = EvocompressQwen3MoeConfig


class EvocompressQwen3MoeForCausalLM(UnevenModel, Qwen3MoeForCausalLM):
    """The body and its language modeling head, each layer with its own widths."""

    config_class = EvocompressQwen3MoeConfig
