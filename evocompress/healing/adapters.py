"""Low-rank adapters beside the matrices of a student, which keep its zeros.

LoRA (2106.09685) by the package `peft`. Where a matrix has zeros its update is cut to the other
places, in training as in the checkpoint (MaskLoRA of PERP, 2312.15230).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from evocompress.core.errors import ConfigError
from evocompress.models.families import Family

if TYPE_CHECKING:
    from peft.tuners.lora import Linear

ADAPTER = "default"
SCALE = 2
"""The update is multiplied by it: with rank r that is LoRA's alpha of 2r."""


def add_adapters(
    model: PreTrainedModel, family: Family, zeros: Mapping[str, Tensor], rank: int, seed: int
) -> None:
    """Puts an adapter beside every linear layer of the blocks; fused experts get none.

    Args:
        model: The student, which as yet has the same outputs; what has gradients, keeps them.
        family: The dense model's.
        zeros: Where weights stay zero, by parameter name, as `zero_masks` gives them.
        rank: Of every adapter.
        seed: Of their first values; the updates begin at zero.

    Raises:
        ConfigError: The model has no such layers.
    """
    from peft import LoraConfig, inject_adapter_in_model

    names = _linear_layers(model, family)
    if not names:
        raise ConfigError(
            f"heal.train=lora: {type(model).__name__} has no linear layers in its blocks: train "
            "all, or norms"
        )
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    config = LoraConfig(r=rank, lora_alpha=SCALE * rank, target_modules=names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model, ADAPTER)
    for parameter in trained:
        parameter.requires_grad_(True)
    for name in names:
        if (mask := zeros.get(f"{name}.weight")) is not None:
            layer: Any = model.get_submodule(name)
            layer.lora_variant[ADAPTER] = _UnderMask(mask)


@torch.no_grad()
def without_adapters(model: PreTrainedModel) -> PreTrainedModel:
    """The model, or where it has adapters a copy whose matrices have their updates."""
    if find_spec("peft") is None:
        return model
    from peft.tuners.lora import LoraLayer

    names = [name for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    if not names:
        return model
    merged = copy.deepcopy(model)
    for name in names:
        layer: Any = merged.get_submodule(name)
        layer.merge(safe_merge=True)
        merged.set_submodule(name, layer.get_base_layer())
    return merged


def adapter_weights(model: PreTrainedModel, family: Family, rank: int) -> int:
    """How many weights the adapters of a model have."""
    names = _linear_layers(model, family)
    return sum(rank * sum(model.get_parameter(f"{name}.weight").shape) for name in names)


def _linear_layers(model: PreTrainedModel, family: Family) -> list[str]:
    blocks = {id(module) for block in family.blocks(model) for module in block.modules()}
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and id(module) in blocks
    ]


@dataclass(frozen=True, eq=False)
class _UnderMask:
    """What `peft` asks for the forward pass and the merging of a layer's adapter.

    Attributes:
        zeros: Where the weight stays zero (boolean, its shape).
    """

    zeros: Tensor

    def _update(self, layer: Linear, adapter: str) -> Tensor:
        update: Tensor = layer.get_delta_weight(adapter)
        return update.masked_fill(self.zeros, 0.0)

    def forward(
        self, layer: Linear, active_adapter: str, x: Tensor, result: Tensor, **_: Any
    ) -> Tensor:
        """The layer's output with the adapter's."""
        update = self._update(layer, active_adapter)
        return result + linear(x, update.T if layer.fan_in_fan_out else update)

    def merge_safe(self, layer: Linear, adapter: str, weight: Tensor) -> Tensor:
        """The weight with the adapter's update."""
        return weight + self._update(layer, adapter)
