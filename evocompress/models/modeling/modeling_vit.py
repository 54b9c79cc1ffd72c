"""ViT and DeiT whose blocks each have their own widths. Ships inside checkpoints."""

from typing import Any

from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import (
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from .layers import (
    LayerConfig,
    NoAttention,
    NoMLP,
    Parts,
    PerLayerConfig,
    UnevenModel,
    rebuild_mlp,
)


def rebuild_attention(block: Any, config: LayerConfig, layer: int) -> None:
    """A new ``attention`` of the same class."""
    block.attention = type(block.attention)(config)


PARTS = Parts(
    stand_ins={
        "attention": {"layernorm_before": nn.Identity, "attention": NoAttention},
        "mlp": {"layernorm_after": nn.Identity, "mlp": NoMLP},
    },
    outputs={"attention": "attention.o_proj", "mlp": "mlp.fc2"},
    rebuild={"attention": rebuild_attention, "mlp": rebuild_mlp},
)


@strict
class EvocompressViTConfig(PerLayerConfig, ViTConfig):
    """The family's config; ``per_layer_config`` says how layers differ."""

    model_type = "evocompress_vit"
    parts = PARTS


class EvocompressViTModel(UnevenModel, ViTModel):
    """The body, each layer with its own widths."""

    config_class = EvocompressViTConfig


class EvocompressViTForImageClassification(UnevenModel, ViTForImageClassification):
    """The body and a classifier, each layer with its own widths."""

    config_class = EvocompressViTConfig


@strict
class EvocompressDeiTConfig(PerLayerConfig, DeiTConfig):
    """The family's config; ``per_layer_config`` says how layers differ."""

    model_type = "evocompress_deit"
    parts = PARTS


class EvocompressDeiTModel(UnevenModel, DeiTModel):
    """The body, each layer with its own widths."""

    config_class = EvocompressDeiTConfig


class EvocompressDeiTForImageClassification(UnevenModel, DeiTForImageClassification):
    """The body and a classifier, each layer with its own widths."""

    config_class = EvocompressDeiTConfig


@strict
class EvocompressDistilledDeiTConfig(PerLayerConfig, DeiTConfig):
    """The same of models with two classifiers; the Auto classes tell them apart by its type."""

    model_type = "evocompress_deit-distilled"
    parts = PARTS


class EvocompressDistilledDeiTModel(UnevenModel, DeiTModel):
    """The body, each layer with its own widths."""

    config_class = EvocompressDistilledDeiTConfig


class EvocompressDeiTForImageClassificationWithTeacher(
    UnevenModel, DeiTForImageClassificationWithTeacher
):
    """The body and two classifiers, each layer with its own widths."""

    config_class = EvocompressDistilledDeiTConfig
