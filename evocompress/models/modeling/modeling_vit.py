"""ViT and DeiT of which each block has its own widths. Ships inside checkpoints."""
# mypy: disable-error-code="no-untyped-call"

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
    rebuild_mlp,
    shape_layers,
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


class EvocompressViTModel(ViTModel):
    """The body, each layer with its own widths."""

    config: EvocompressViTConfig
    config_class = EvocompressViTConfig

    def __init__(self, config: EvocompressViTConfig, **settings: Any) -> None:
        super().__init__(config, **settings)
        shape_layers(self.layers, config, PARTS)


class EvocompressViTForImageClassification(ViTForImageClassification):
    """The body and a classifier, each layer with its own widths."""

    config: EvocompressViTConfig
    config_class = EvocompressViTConfig

    def __init__(self, config: EvocompressViTConfig) -> None:
        super().__init__(config)
        shape_layers(self.vit.layers, config, PARTS)


@strict
class EvocompressDeiTConfig(PerLayerConfig, DeiTConfig):
    """The family's config; ``per_layer_config`` says how layers differ."""

    model_type = "evocompress_deit"


class EvocompressDeiTModel(DeiTModel):
    """The body, each layer with its own widths."""

    config: EvocompressDeiTConfig
    config_class = EvocompressDeiTConfig

    def __init__(self, config: EvocompressDeiTConfig, **settings: Any) -> None:
        super().__init__(config, **settings)
        shape_layers(self.layers, config, PARTS)


class EvocompressDeiTForImageClassification(DeiTForImageClassification):
    """The body and a classifier, each layer with its own widths."""

    config: EvocompressDeiTConfig
    config_class = EvocompressDeiTConfig

    def __init__(self, config: EvocompressDeiTConfig) -> None:
        super().__init__(config)
        shape_layers(self.deit.layers, config, PARTS)


@strict
class EvocompressDistilledDeiTConfig(PerLayerConfig, DeiTConfig):
    """The same of models with two classifiers; the Auto classes tell them apart by its type."""

    model_type = "evocompress_deit-distilled"


class EvocompressDistilledDeiTModel(DeiTModel):
    """The body, each layer with its own widths."""

    config: EvocompressDistilledDeiTConfig
    config_class = EvocompressDistilledDeiTConfig

    def __init__(self, config: EvocompressDistilledDeiTConfig, **settings: Any) -> None:
        super().__init__(config, **settings)
        shape_layers(self.layers, config, PARTS)


class EvocompressDeiTForImageClassificationWithTeacher(DeiTForImageClassificationWithTeacher):
    """The body and two classifiers, each layer with its own widths."""

    config: EvocompressDistilledDeiTConfig
    config_class = EvocompressDistilledDeiTConfig

    def __init__(self, config: EvocompressDistilledDeiTConfig) -> None:
        super().__init__(config)
        shape_layers(self.deit.layers, config, PARTS)
