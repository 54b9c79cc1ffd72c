"""Format ``padded``: the model's own class, every layer filled with zeros to the widest one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import ClassVar

from transformers import PreTrainedConfig, PreTrainedModel

from evocompress.core.types import Candidate
from evocompress.core.widths import Widths
from evocompress.export.configs import (
    are_channels_of_mlps_alone,
    cut_config,
    is_taken,
    set_widths,
    use_of_index,
)
from evocompress.export.filling import Target, filled, filled_followers
from evocompress.export.layout import (
    Block,
    Layout,
    layout,
    mixed_experts,
    no_block_left,
    second_round,
)
from evocompress.export.pretrained import Pretrained
from evocompress.export.running import OWN_CLASS, Programs, Running
from evocompress.export.weights import StateDict, assemble, renumbered
from evocompress.models.families import SubLayerName
from evocompress.models.families.uneven import text_config
from evocompress.models.loading import LoadedModel

NOTE = (
    "Format `padded`: every layer is filled up with zeros to the width of the widest, and a "
    "dropped sub-layer is all zeros. The function is that of the compressed model, but it is "
    "neither smaller nor faster than a model whose layers are all that wide. The measured "
    "costs count what is stored, zeros included in `params`. Format `hf` is really smaller."
)

BIAS_KEYS: dict[SubLayerName, str] = {"attention": "attention_bias", "mlp": "mlp_bias"}
"""The settings that give all matrices of a sub-layer a bias, where a class has them."""


class Padded(Pretrained):
    """The same function in the model's own class; no faster than if all layers were the widest."""

    programs: ClassVar[Programs] = dict.fromkeys(
        ("transformers", "vllm"), Running(OWN_CLASS, on_request=True)
    )

    def obstacle(self, loaded: LoadedModel, candidate: Candidate) -> str | None:
        """No block left, a bias that the class does not have, or a norm that would stay."""
        if compressed := second_round(loaded):
            return compressed
        if loaded.family.mixture is not None:
            return mixed_experts(loaded)
        left, config = layout(loaded, candidate), text_config(loaded.model.config)
        if "attention" not in left.sublayers:
            return f"cannot hold {loaded.family.model_type} models, whose layers differ in size"
        unit = left.first(lambda b, kind: kind in b.biased and not hasattr(config, BIAS_KEYS[kind]))
        if unit is not None:
            return f"cannot give the output of {unit} a bias"
        if loaded.family.attention.norm_after:
            unit = left.first(lambda block, kind: kind in block.dropped and not block.gone)
            if unit is not None:
                return f"cannot leave out {unit} alone, because the norm behind it would stay"
        return no_block_left(left)

    def note(self, loaded: LoadedModel, candidate: Candidate) -> str:
        """What it costs."""
        return NOTE

    def build(self, loaded: LoadedModel, state: StateDict, candidate: Candidate) -> PreTrainedModel:
        """A model of the dense model's class in which each layer is as wide as the widest."""
        left = layout(loaded, candidate)
        blocks = left.blocks if use_of_index(loaded.model.config) else left.kept
        target = _target(left, loaded)
        wide = dict(state)
        for block in blocks:
            for matrix in loaded.family.matrices:
                name = f"{left.path}.{block.index}.{matrix.path}"
                wide |= filled(name, matrix, block, target, state)
            wide |= filled_followers(loaded.family, left.names[block.index], block, target, state)
        config = _config(loaded, blocks, left.dense, target)
        names = renumbered(left.names, blocks)
        return assemble(type(loaded.model), config, wide, names)


def _target(left: Layout, loaded: LoadedModel) -> Target:
    """The least widths that hold every layer and that the model's class takes."""
    biased = frozenset(kind for block in left.blocks for kind in block.biased)
    channels = max((b.widths.channels for b in left.having("mlp")), default=left.dense.channels)
    if channels != left.dense.channels and not are_channels_of_mlps_alone(loaded):
        channels = left.dense.channels
    dense = replace(left.dense, channels=channels)
    for heads, kv_heads in _grids(left):
        widths = replace(dense, heads=heads, kv_heads=kv_heads)
        if is_taken(_config(loaded, left.blocks, left.dense, Target(widths, biased)), loaded):
            return Target(widths, biased)
    return Target(dense, biased)


def _grids(left: Layout) -> list[tuple[int, int]]:
    """(query heads, key-value heads) that hold every layer, fewest first, below the dense ones."""
    dense, kept = left.dense, [block.widths for block in left.having("attention")]
    groups = max((widths.kv_heads for widths in kept), default=1)
    within = max((widths.heads // widths.kv_heads for widths in kept), default=1)
    pairs = product(
        range(groups, dense.kv_heads + 1), range(within, dense.heads // dense.kv_heads + 1)
    )
    return sorted((g * q, g) for g, q in pairs if g * q < dense.heads)


def _config(
    loaded: LoadedModel, blocks: Sequence[Block], dense: Widths, target: Target
) -> PreTrainedConfig:
    """The config of a model of some blocks that all have the target's widths and biases."""
    config = cut_config(loaded.model.config, blocks)
    set_widths(config, target.widths, dense)
    for sublayer in target.biased:
        setattr(text_config(config), BIAS_KEYS[sublayer], True)
    return config
