"""Which blocks and sub-layers a candidate removes, and the config that is left."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedConfig

from evocompress.types import Candidate, Unit

SUBLAYERS = ("attention", "mlp")


@dataclass(frozen=True)
class Removal:
    """The sub-layers that a candidate drops.

    Attributes:
        blocks: Number of blocks of the dense model.
        dropped: For each block that loses something, the names of its dropped sub-layers,
            in the order of the block.
    """

    blocks: int
    dropped: dict[int, tuple[str, ...]]

    @cached_property
    def kept(self) -> tuple[int, ...]:
        """The blocks of which anything is left, ascending."""
        return tuple(index for index in range(self.blocks) if self.dropped.get(index) != SUBLAYERS)

    @cached_property
    def single(self) -> dict[int, tuple[str, ...]]:
        """The dropped sub-layers of blocks that keep their other sub-layer."""
        return {index: self.dropped[index] for index in self.kept if index in self.dropped}

    @cached_property
    def attentions(self) -> int:
        """How many attention sub-layers are left."""
        return sum("attention" not in self.dropped.get(i, ()) for i in range(self.blocks))


def removal(candidate: Candidate, units: Sequence[Unit]) -> Removal:
    """What a candidate drops, given all units of the model in tree order."""
    gone = {name for name, level in candidate.levels if level.drop}
    dropped: dict[int, tuple[str, ...]] = {}
    for unit in units:
        if unit.kind in SUBLAYERS and unit.name in gone:
            dropped[unit.block] = (*dropped.get(unit.block, ()), unit.kind)
    return Removal(sum(unit.kind == "block" for unit in units), dropped)


def depends_on_index(config: PreTrainedConfig) -> bool:
    """Whether a block computes something else when it is numbered differently."""
    return bool(getattr(config, "scale_attn_by_inverse_layer_idx", False))


def cut_config(config: PreTrainedConfig, kept: Sequence[int]) -> PreTrainedConfig:
    """A copy of the config for a model of which only the blocks `kept` are left."""
    cut = copy.deepcopy(config)
    if getattr(config, "layer_types", None) is not None:
        cut.layer_types = [config.layer_types[index] for index in kept]
    if getattr(config, "max_window_layers", None) is not None:
        cut.max_window_layers = sum(index < config.max_window_layers for index in kept)
    cut.num_hidden_layers = len(kept)
    return cut
