"""BERT and RoBERTa models whose blocks each have their own widths. Ships inside checkpoints."""

from typing import Any

from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
    XLMRobertaModel,
)

from .layers import LayerConfig, NoAttention, NoMLP, Parts, PerLayerConfig, UnevenModel


def rebuild_attention(block: Any, config: LayerConfig, layer: int) -> None:
    """Fewer heads of the same size, which the class would derive from their number."""
    attention, hidden = block.attention.self, config.hidden_size
    attention.num_attention_heads = config.num_attention_heads
    attention.all_head_size = attention.num_attention_heads * attention.attention_head_size
    for name in ("query", "key", "value"):
        setattr(attention, name, nn.Linear(hidden, attention.all_head_size))
    block.attention.output.dense = nn.Linear(attention.all_head_size, hidden)


def rebuild_mlp(block: Any, config: LayerConfig, layer: int) -> None:
    """New matrices, which lie in two modules."""
    block.intermediate.dense = nn.Linear(config.hidden_size, config.intermediate_size)
    block.output.dense = nn.Linear(config.intermediate_size, config.hidden_size)


# A missing sub-layer takes along the norm of its sum: the state that enters it passes unchanged.
PARTS = Parts(
    stand_ins={
        "attention": {
            "attention.self": NoAttention,
            "attention.output.dense": nn.Identity,
            "attention.output.LayerNorm": nn.Identity,
        },
        "mlp": {
            "intermediate.dense": nn.Identity,
            "intermediate.intermediate_act_fn": nn.Identity,
            "output.dense": NoMLP,
            "output.LayerNorm": nn.Identity,
        },
    },
    outputs={"attention": "attention.output.dense", "mlp": "output.dense"},
    rebuild={"attention": rebuild_attention, "mlp": rebuild_mlp},
    blocks="encoder.layer",
)


@strict
class EvocompressBertConfig(PerLayerConfig, BertConfig):
    """The family's config; ``per_layer_config`` says how layers differ."""

    model_type = "evocompress_bert"
    parts = PARTS


class EvocompressBertModel(UnevenModel, BertModel):
    """The body, each layer with its own widths."""

    config_class = EvocompressBertConfig


class EvocompressBertForSequenceClassification(UnevenModel, BertForSequenceClassification):
    """The body and a classifier, each layer with its own widths."""

    config_class = EvocompressBertConfig


@strict
class EvocompressRobertaConfig(PerLayerConfig, RobertaConfig):
    """The family's config; ``per_layer_config`` says how layers differ."""

    model_type = "evocompress_roberta"
    parts = PARTS


class EvocompressRobertaModel(UnevenModel, RobertaModel):
    """The body, each layer with its own widths."""

    config_class = EvocompressRobertaConfig


class EvocompressRobertaForSequenceClassification(UnevenModel, RobertaForSequenceClassification):
    """The body and a classifier, each layer with its own widths."""

    config_class = EvocompressRobertaConfig


@strict
class EvocompressXLMRobertaConfig(PerLayerConfig, XLMRobertaConfig):
    """The family's config; ``per_layer_config`` says how layers differ."""

    model_type = "evocompress_xlm-roberta"
    parts = PARTS


class EvocompressXLMRobertaModel(UnevenModel, XLMRobertaModel):
    """The body, each layer with its own widths."""

    config_class = EvocompressXLMRobertaConfig


class EvocompressXLMRobertaForSequenceClassification(
    UnevenModel, XLMRobertaForSequenceClassification
):
    """The body and a classifier, each layer with its own widths."""

    config_class = EvocompressXLMRobertaConfig
