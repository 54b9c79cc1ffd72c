"""BERT and RoBERTa models of which each block has its own widths. Ships inside checkpoints."""
# mypy: disable-error-code="no-untyped-call"

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

from .layers import LayerConfig, NoAttention, NoMLP, Parts, PerLayerConfig, shape_layers


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
)


@strict
class EvocompressBertConfig(PerLayerConfig, BertConfig):
    """The family's config; ``per_layer_config`` says how layers differ."""

    model_type = "evocompress_bert"


class EvocompressBertModel(BertModel):
    """The body, each layer with its own widths."""

    config: EvocompressBertConfig
    config_class = EvocompressBertConfig

    def __init__(self, config: EvocompressBertConfig, **settings: Any) -> None:
        super().__init__(config, **settings)
        shape_layers(self.encoder.layer, config, PARTS)


class EvocompressBertForSequenceClassification(BertForSequenceClassification):
    """The body and a classifier, each layer with its own widths."""

    config: EvocompressBertConfig
    config_class = EvocompressBertConfig

    def __init__(self, config: EvocompressBertConfig) -> None:
        super().__init__(config)
        shape_layers(self.bert.encoder.layer, config, PARTS)


@strict
class EvocompressRobertaConfig(PerLayerConfig, RobertaConfig):
    """The family's config; ``per_layer_config`` says how layers differ."""

    model_type = "evocompress_roberta"


class EvocompressRobertaModel(RobertaModel):
    """The body, each layer with its own widths."""

    config: EvocompressRobertaConfig
    config_class = EvocompressRobertaConfig

    def __init__(self, config: EvocompressRobertaConfig, **settings: Any) -> None:
        super().__init__(config, **settings)
        shape_layers(self.encoder.layer, config, PARTS)


class EvocompressRobertaForSequenceClassification(RobertaForSequenceClassification):
    """The body and a classifier, each layer with its own widths."""

    config: EvocompressRobertaConfig
    config_class = EvocompressRobertaConfig

    def __init__(self, config: EvocompressRobertaConfig) -> None:
        super().__init__(config)
        shape_layers(self.roberta.encoder.layer, config, PARTS)


@strict
class EvocompressXLMRobertaConfig(PerLayerConfig, XLMRobertaConfig):
    """The family's config; ``per_layer_config`` says how layers differ."""

    model_type = "evocompress_xlm-roberta"


class EvocompressXLMRobertaModel(XLMRobertaModel):
    """The body, each layer with its own widths."""

    config: EvocompressXLMRobertaConfig
    config_class = EvocompressXLMRobertaConfig

    def __init__(self, config: EvocompressXLMRobertaConfig, **settings: Any) -> None:
        super().__init__(config, **settings)
        shape_layers(self.encoder.layer, config, PARTS)


class EvocompressXLMRobertaForSequenceClassification(XLMRobertaForSequenceClassification):
    """The body and a classifier, each layer with its own widths."""

    config: EvocompressXLMRobertaConfig
    config_class = EvocompressXLMRobertaConfig

    def __init__(self, config: EvocompressXLMRobertaConfig) -> None:
        super().__init__(config)
        shape_layers(self.roberta.encoder.layer, config, PARTS)
