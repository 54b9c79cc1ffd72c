"""GPT-2 decoders whose blocks each have their own widths. Ships inside checkpoints."""

from typing import Any

from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, GPT2Model
from transformers.pytorch_utils import Conv1D

from .layers import LayerConfig, NoAttention, NoMLP, Parts, PerLayerConfig, UnevenModel


def rebuild_attention(block: Any, config: LayerConfig, layer: int) -> None:
    """Fewer heads of the same size, which the class would derive from their number."""
    attention = block.attn
    attention.num_heads = config.num_attention_heads
    attention.split_size = attention.num_heads * attention.head_dim
    attention.c_attn = Conv1D(3 * attention.split_size, attention.embed_dim)
    attention.c_proj = Conv1D(attention.embed_dim, attention.split_size)


def rebuild_mlp(block: Any, config: LayerConfig, layer: int) -> None:
    """A new ``mlp`` of the same class."""
    block.mlp = type(block.mlp)(config.intermediate_size, config)


PARTS = Parts(
    stand_ins={
        "attention": {"ln_1": nn.Identity, "attn": NoAttention},
        "mlp": {"ln_2": nn.Identity, "mlp": NoMLP},
    },
    outputs={"attention": "attn.c_proj", "mlp": "mlp.c_proj"},
    rebuild={"attention": rebuild_attention, "mlp": rebuild_mlp},
    blocks="h",
)


@strict
class EvocompressGPT2Config(PerLayerConfig, GPT2Config):
    """The family's config; ``per_layer_config`` says how layers differ."""

    model_type = "evocompress_gpt2"
    attribute_map = {**GPT2Config.attribute_map, "intermediate_size": "n_inner"}
    parts = PARTS


class EvocompressGPT2Model(UnevenModel, GPT2Model):
    """The body, each layer with its own widths."""

    config_class = EvocompressGPT2Config


class EvocompressGPT2LMHeadModel(UnevenModel, GPT2LMHeadModel):
    """The body and its language modeling head, each layer with its own widths."""

    config_class = EvocompressGPT2Config


class EvocompressGPT2ForSequenceClassification(UnevenModel, GPT2ForSequenceClassification):
    """The body and a classifier, each layer with its own widths."""

    config_class = EvocompressGPT2Config
