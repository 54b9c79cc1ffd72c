"""Format ``padded``: the model's own class, every layer filled with zeros to the widest one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import ClassVar

from transformers import PreTrainedConfig, PreTrainedModel

from evocompress.core.types import Candidate
from evocompress.core.widths import Widths, dense_widths
from evocompress.export.configs import (
    are_channels_of_mlps_alone,
    cut_config,
    is_taken,
    set_widths,
    whole_widths,
)
from evocompress.export.filling import Target, filled, filled_followers
from evocompress.export.layout import (
    Block,
    Layout,
    layout,
    no_attention_left,
    no_block_left,
    of_matrices,
    second_round,
)
from evocompress.export.pretrained import Pretrained
from evocompress.export.renumbering import not_silenced, numbers_matter
from evocompress.export.running import OWN_CLASS, Programs, Running
from evocompress.export.weights import StateDict, assemble, renumbered, with_shared
from evocompress.models.families import SubLayerName
from evocompress.models.families.base import block_matrices
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

    adds_zeros: ClassVar[bool] = True
    programs: ClassVar[Programs] = dict.fromkeys(
        ("transformers", "vllm"), Running(OWN_CLASS, on_request=True)
    )

    def obstacle(self, loaded: LoadedModel, candidate: Candidate) -> str | None:
        """No block left, a bias that the class does not have, or a norm that would stay."""
        if reason := second_round(loaded) or of_matrices(loaded):
            return reason
        left, config = layout(loaded, candidate), text_config(loaded.model.config)
        unit = left.first(lambda block, kind: kind == "mlp" and block.reduced)
        if unit is not None:
            return f"cannot leave out experts of {unit}"
        if "attention" not in left.sublayers:
            return f"cannot hold {loaded.family.model_type} models, whose layers differ in size"
        unit = left.first(lambda b, kind: kind in b.biased and not hasattr(config, BIAS_KEYS[kind]))
        if unit is not None:
            return f"cannot give the output of {unit} a bias"
        if loaded.family.attention.norm_after:
            unit = left.first(lambda block, kind: kind in block.dropped and not block.gone)
            if unit is not None:
                return f"cannot leave out {unit} alone, because the norm behind it would stay"
        if reason := _not_zero(left, loaded):
            return reason
        return (
            no_block_left(left) or _without_cache(left, loaded) or _of_several_widths(left, loaded)
        )

    def note(self, loaded: LoadedModel, candidate: Candidate) -> str:
        """What it costs."""
        return NOTE

    def name_of(self, loaded: LoadedModel, candidate: Candidate) -> Callable[[str], str]:
        """Blocks may have other numbers."""
        left = layout(loaded, candidate)
        return renumbered(left.names, _blocks(left, loaded))

    def build(self, loaded: LoadedModel, state: StateDict, candidate: Candidate) -> PreTrainedModel:
        """A model of the dense model's class in which each layer is as wide as the widest."""
        left = layout(loaded, candidate)
        blocks = _blocks(left, loaded)
        matrices = block_matrices(loaded.family, loaded.model)
        target = _target(left, loaded)
        wide = dict(state)
        for block in blocks:
            family = loaded.family.at(block.index)
            own = _of_block(target, block, loaded)
            for matrix in matrices[block.index]:
                name = f"{left.path}.{block.index}.{matrix.path}"
                shared = f"{matrix.path}.weight" in family.tied  # other blocks may run it
                there = replace(block, dropped=()) if shared else block
                wide |= filled(name, matrix, there, own, state)
            wide |= filled_followers(family, left.names[block.index], block, own, state)
        config = _config(loaded, blocks, target)
        names = self.name_of(loaded, candidate)
        return assemble(type(loaded.model), config, with_shared(loaded.family, wide), names)


def _blocks(left: Layout, loaded: LoadedModel) -> Sequence[Block]:
    """The blocks that are written: all where they must keep their numbers, else what is left."""
    return left.blocks if numbers_matter(loaded) else left.kept


def _not_zero(left: Layout, loaded: LoadedModel) -> str | None:
    """The obstacle of a sub-layer that adds something also where its matrices are zero."""
    order = getattr(loaded.family, "order", ())
    every = numbers_matter(loaded)
    for block in left.blocks if order else ():
        for kind in block.dropped if every or not block.gone else ():
            if why := not_silenced(loaded).get((order[block.index], kind)):
                return f"cannot leave out {left.names[block.index]}.{kind}, {why}"
    return None


def _without_cache(left: Layout, loaded: LoadedModel) -> str | None:
    """The obstacle of a hybrid of which no block with a cache of keys and values is left."""
    family = loaded.family
    if not family.attends or any(family.at(b.index).attends for b in left.blocks if not b.gone):
        return None
    return no_attention_left(left, loaded)


def _of_several_widths(left: Layout, loaded: LoadedModel) -> str | None:
    """The obstacle of narrow sub-layers whose dense widths differ: no setting says them all."""
    whole = loaded.family.architecture(loaded.model)
    sizes = {"attention": zip(whole.heads, whole.kv_heads, strict=True), "mlp": whole.channels}
    several = [kind for kind, each in sizes.items() if len({*each} - {0, (0, 0)}) > 1]
    unit = left.first(lambda block, kind: kind in several and kind in block.narrow)
    return unit and f"cannot make {unit} narrower, because not all such sub-layers are as wide"


def _of_block(target: Target, block: Block, loaded: LoadedModel) -> Target:
    """What one block becomes: what the target says of the sub-layers that have heads, channels."""
    dense, own = (
        whole_widths(loaded),
        dense_widths(loaded.family.architecture(loaded.model), block.index),
    )
    if (own.heads, own.kv_heads) == (dense.heads, dense.kv_heads):
        own = replace(own, heads=target.widths.heads, kv_heads=target.widths.kv_heads)
    if own.channels == dense.channels:
        own = replace(own, channels=target.widths.channels)
    return replace(target, widths=own)


def _target(left: Layout, loaded: LoadedModel) -> Target:
    """The least widths that hold every layer and that the model's class takes."""
    biased = frozenset(kind for block in left.blocks for kind in block.biased)
    whole = whole_widths(loaded)
    mlps = _computed(left, "mlp", loaded)
    channels = max((block.widths.channels for block in mlps), default=whole.channels)
    if channels != whole.channels and not are_channels_of_mlps_alone(loaded):
        channels = whole.channels
    attentions = [b.widths for b in _computed(left, "attention", loaded) if b.widths.kv_heads]
    grids = [*_grids(attentions, whole), (whole.heads, whole.kv_heads)]
    for wide, (heads, kv_heads) in product((channels, whole.channels), grids):
        target = Target(replace(whole, heads=heads, kv_heads=kv_heads, channels=wide), biased)
        of_block = partial(_of_block, target, loaded=loaded)
        blocks = [replace(b, widths=of_block(b).widths, dropped=()) for b in left.blocks]
        if is_taken(_config(loaded, left.blocks, target), loaded, blocks):
            return target
    return Target(whole, biased)


def _computed(left: Layout, sublayer: SubLayerName, loaded: LoadedModel) -> list[Block]:
    """The blocks that have a sub-layer, or have had one whose matrices others share."""
    shared = {*loaded.family.sharing}
    having = left.having(sublayer)
    return [block for block in left.blocks if block in having or block.index in shared]


def _grids(kept: Sequence[Widths], dense: Widths) -> list[tuple[int, int]]:
    """(query heads, key-value heads) that hold every layer, fewest first, below the dense ones."""
    if not dense.kv_heads:
        return []
    groups = max((widths.kv_heads for widths in kept), default=1)
    within = max((widths.heads // widths.kv_heads for widths in kept), default=1)
    pairs = product(
        range(groups, dense.kv_heads + 1), range(within, dense.heads // dense.kv_heads + 1)
    )
    return sorted((g * q, g) for g, q in pairs if g * q < dense.heads)


def _config(loaded: LoadedModel, blocks: Sequence[Block], target: Target) -> PreTrainedConfig:
    """The config of a model of some blocks that all have the target's widths and biases."""
    config = cut_config(loaded.model.config, blocks, loaded.family.calls)
    set_widths(config, target.widths, whole_widths(loaded))
    for sublayer in target.biased:
        setattr(text_config(config), BIAS_KEYS[sublayer], True)
    return config
