"""Decoder blocks without attention or without MLP, for any family. Ships inside checkpoints.

``config.per_layer_config[i].skip`` names the sub-layers that block i does not have. The
family's own block runs unchanged; what belongs to a missing sub-layer is replaced by modules
without weights that add nothing to the residual stream.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import Cache
from transformers.cache_utils import DummyLayer

Parts = Mapping[str, Mapping[str, type[nn.Module]]]
"""{sub-layer: {module path within the block: module that stands in for it}}."""


class NoMLP(nn.Module):
    """Stands where an MLP was: a zero for the residual addition."""

    def __init__(self, layer_idx: int) -> None:
        super().__init__()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """A scalar zero, which broadcasts over the residual stream."""
        return hidden_states.new_zeros(())


class NoAttention(nn.Module):
    """Stands where an attention was: a zero for the residual addition, and no cache entry.

    A cache that gives this layer a slot for keys would report a length of zero here, and
    positions and masks would silently be wrong; so such a cache is refused.
    """

    def __init__(self, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx

    def forward(
        self, hidden_states: torch.Tensor, *, past_key_values: Cache | None = None, **_: Any
    ) -> tuple[torch.Tensor, None]:
        """A scalar zero and no attention weights.

        Raises:
            ValueError: If the cache was made without this model's config.
        """
        if past_key_values is not None and not self._without_slot(past_key_values):
            raise ValueError(
                f"layer {self.layer_idx} has no attention, but the cache has a slot for it: make "
                "the cache with DynamicCache(config=model.config) and transformers 5.23 or newer"
            )
        return hidden_states.new_zeros(()), None

    def _without_slot(self, cache: Cache) -> bool:
        layers = cache.layers
        return self.layer_idx < len(layers) and isinstance(layers[self.layer_idx], DummyLayer)


class SkippedConfig:
    """Mixin for a family's config: which layers have no keys and values to cache."""

    def skipped(self, layer: int) -> list[str]:
        """The sub-layers that a layer does not have, of ``attention`` and ``mlp``."""
        return getattr(self.per_layer_config[layer], "skip", [])  # type: ignore[attr-defined]

    @property
    def kv_sharing_modes(self) -> list[str | None]:
        """``"reuse"`` for a layer without attention: transformers gives it no cache slot.

        Unlike a mark in ``layer_types`` this leaves the masks and rotary embeddings alone
        that Qwen and Gemma choose by layer type.
        """
        layers = range(self.num_hidden_layers)  # type: ignore[attr-defined]
        return ["reuse" if "attention" in self.skipped(layer) else None for layer in layers]


def remove_sublayers(blocks: nn.ModuleList, config: SkippedConfig, parts: Parts) -> None:
    """Replace, in place, the modules of the sub-layers that the config skips."""
    for layer, block in enumerate(blocks):
        for sublayer in config.skipped(layer):
            for path, stand_in in parts[sublayer].items():
                block.set_submodule(path, stand_in(layer))
