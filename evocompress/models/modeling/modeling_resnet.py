"""ResNets whose layers each have their own width. Ships inside checkpoints.

``config.layers[i]`` says how layer i, counted over all stages, differs: ``channels`` between the
convolutions of its branch, ``skip`` where it has no branch and passes its input on, and ``bias``
where the branch's last convolution has one.
"""
# mypy: disable-error-code="no-untyped-call"

from typing import Any

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn, zeros, zeros_like
from transformers import ResNetConfig, ResNetForImageClassification, ResNetModel


class NoBranch(nn.Module):
    """Stands where a branch was: zeros, to which the shortcut is added in place."""

    def forward(self, hidden_state: Tensor) -> Tensor:
        """Zeros of the shape of `hidden_state` (B, C, H, W)."""
        return zeros_like(hidden_state)


@strict
class EvocompressResNetConfig(ResNetConfig):
    """The family's config; ``layers`` says how layers differ."""

    model_type = "evocompress_resnet"

    layers: dict[int | str, Any] | None = None


def shape_layers(model: ResNetModel, config: EvocompressResNetConfig) -> None:
    """Give each layer, in place, the branch and width that the config says."""
    own = {int(index): settings for index, settings in (config.layers or {}).items()}
    stages: Any = model.encoder.stages
    layers = [layer for stage in stages for layer in stage.layers]
    for index, settings in own.items():
        shape_layer(layers[index], settings)


def shape_layer(layer: Any, own: dict[str, Any]) -> None:
    """Give a layer, in place, its own branch."""
    if own.get("skip"):
        layer.layer, layer.activation = NoBranch(), nn.Identity()
        return
    if "channels" in own:
        for before, after in zip(layer.layer[:-1], layer.layer[1:], strict=True):
            before.convolution = resized(before.convolution, out_channels=own["channels"])
            before.normalization = nn.BatchNorm2d(own["channels"])
            after.convolution = resized(after.convolution, in_channels=own["channels"])
    if own.get("bias"):
        last = layer.layer[-1].convolution
        last.bias = nn.Parameter(zeros(last.out_channels))


def resized(
    convolution: nn.Conv2d, *, in_channels: int | None = None, out_channels: int | None = None
) -> nn.Conv2d:
    """A convolution of another width."""
    return nn.Conv2d(
        in_channels or convolution.in_channels,
        out_channels or convolution.out_channels,
        convolution.kernel_size,  # type: ignore[arg-type]
        convolution.stride,  # type: ignore[arg-type]
        convolution.padding,  # type: ignore[arg-type]
        bias=convolution.bias is not None,
    )


class EvocompressResNetModel(ResNetModel):
    """The body, each layer with its own width."""

    config: EvocompressResNetConfig
    config_class = EvocompressResNetConfig

    def __init__(self, config: EvocompressResNetConfig) -> None:
        super().__init__(config)
        shape_layers(self, config)


class EvocompressResNetForImageClassification(ResNetForImageClassification):
    """The body and a classifier, each layer with its own width."""

    config: EvocompressResNetConfig
    config_class = EvocompressResNetConfig

    def __init__(self, config: EvocompressResNetConfig) -> None:
        super().__init__(config)
        shape_layers(self.resnet, config)
