"""What a candidate leaves of each block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from evocompress.core.types import DENSE, DROP, Candidate, Level
from evocompress.core.widths import Widths, dense_widths
from evocompress.models.families import SubLayerName
from evocompress.models.families.names import BlockNames
from evocompress.models.families.uneven import added_biases, is_compressed, missing
from evocompress.models.loading import LoadedModel, once

SUBLAYERS: tuple[SubLayerName, ...] = ("attention", "mlp")


@dataclass(frozen=True)
class Block:
    """What is left of one block.

    Attributes:
        index: Of the block in the dense model.
        widths: Of its sub-layers; the dense width of one that is dropped.
        dropped: Its sub-layers that are dropped or that it lacked, in the order of the block.
        narrow: Its sub-layers that have lost heads or channels, now or, in a compressed model,
            perhaps before.
        biased: Its sub-layers whose output matrix has a bias that the family's has not.
        experts: Of an MLP that is a mixture, the experts that are left, ascending.
        reduced: Whether experts of a mixture that is not dropped are gone.
        sublayers: Those that it has when it is whole.
        removable: Whether it is the identity without them.
    """

    index: int
    widths: Widths
    dropped: tuple[SubLayerName, ...] = ()
    narrow: tuple[SubLayerName, ...] = ()
    biased: tuple[SubLayerName, ...] = ()
    experts: tuple[int, ...] = ()
    reduced: bool = False
    sublayers: tuple[SubLayerName, ...] = SUBLAYERS
    removable: bool = True

    @property
    def gone(self) -> bool:
        """Whether nothing of it is left."""
        return self.removable and self.dropped == self.sublayers

    def width(self, sublayer: SubLayerName) -> tuple[int, ...]:
        """(query heads, key-value heads) of the attention, (channels, experts) of the MLP."""
        widths = self.widths
        if sublayer == "attention":
            return widths.heads, widths.kv_heads
        return widths.channels, len(self.experts)


@dataclass(frozen=True)
class Layout:
    """What is left of a model.

    Attributes:
        path: Module path of the list of blocks.
        dense: The widths of every dense block; of a CNN, whose blocks differ, the first one's.
        blocks: What is left of each block of the dense model, also of one that is gone.
        names: Of the blocks of the dense model.
        sublayers: Those that whole blocks have.
    """

    path: str
    dense: Widths
    blocks: tuple[Block, ...]
    names: BlockNames
    sublayers: tuple[SubLayerName, ...]

    @cached_property
    def kept(self) -> tuple[Block, ...]:
        """The blocks of which something is left, ascending."""
        return tuple(block for block in self.blocks if not block.gone)

    def having(self, sublayer: SubLayerName) -> tuple[Block, ...]:
        """The blocks that still have a sub-layer."""
        return tuple(
            block
            for block in self.blocks
            if sublayer in block.sublayers and sublayer not in block.dropped
        )

    def first(self, holds: Callable[[Block, SubLayerName], bool]) -> str | None:
        """The name of the first attention or MLP unit that fulfils a condition."""
        return next(self._where(holds), None)

    def _where(self, holds: Callable[[Block, SubLayerName], bool]) -> Iterator[str]:
        for block in self.blocks:
            for sublayer in block.sublayers:
                if holds(block, sublayer):
                    yield f"{self.names[block.index]}.{sublayer}"


def no_block_left(left: Layout) -> str | None:
    """The obstacle of a model without any block."""
    return None if left.kept else f"cannot leave out every block, {left.names[0]} among them"


def no_attention_left(left: Layout, loaded: LoadedModel) -> str | None:
    """The obstacle of a model in which no block has an attention with a cache any more."""
    family, having = loaded.family, left.having("attention")
    attend = any(family.at(block.index).attends for block in having)
    if family.task.cached and family.attends and left.kept and not attend:
        # The cache would have no layer that knows how many tokens there have been.
        return f"cannot leave out every attention, {left.path}.0.attention among them"
    return None


def second_round(loaded: LoadedModel) -> str | None:
    """The obstacle of a format that knows no dense model whose layers differ already."""
    if not is_compressed(loaded.model.config.model_type):
        return None
    return (
        f"cannot hold this {loaded.family.model_type} model, a compressed checkpoint whose layers "
        "differ already"
    )


def of_matrices(loaded: LoadedModel) -> str | None:
    """The obstacle of a model of which only the matrices are known; its class can hold it."""
    kind = loaded.family.model_type
    return f"cannot hold {kind} models, whose blocks are not known" if loaded.family.alone else None


def layout(loaded: LoadedModel, candidate: Candidate) -> Layout:
    """What a candidate leaves of a model; that of the latest candidate is remembered."""
    known = _latest(loaded)
    if candidate not in known:
        known.clear()
        known[candidate] = _layout(loaded, candidate)
    return known[candidate]


@once
def _latest(loaded: LoadedModel) -> dict[Candidate, Layout]:
    return {}


@once
def _removable(loaded: LoadedModel) -> frozenset[int]:
    units = loaded.family.units(loaded.model)
    return frozenset(unit.block for unit in units if unit.kind == "block" and unit.droppable)


def _layout(loaded: LoadedModel, candidate: Candidate) -> Layout:
    names = loaded.family.block_names
    levels, architecture = candidate.by_name, loaded.family.architecture(loaded.model)
    blocks = []
    for index in range(len(loaded.family.blocks(loaded.model))):
        family = loaded.family.at(index)
        kinds, mixture = family.sublayers, family.mixture
        count = mixture.count if mixture else 0
        own = {kind: levels.get(f"{names[index]}.{kind}", DENSE) for kind in kinds}
        experts = [f"{names[index]}.{mixture.expert_path(i)}" for i in range(count) if mixture]
        gone = {i for i, name in enumerate(experts) if levels.get(name) == DROP}
        widths = dense_widths(architecture, index)
        for level in own.values():
            widths = widths.at(level)
        dropped, narrow, biased = _sublayers(loaded, index, own)
        block = Block(
            index,
            widths=widths,
            dropped=dropped,
            narrow=narrow,
            biased=biased,
            experts=tuple(i for i in range(count) if i not in gone),
            reduced=bool(gone),
            sublayers=kinds,
            removable=index in _removable(loaded),
        )
        blocks.append(block)
    dense = dense_widths(architecture, 0)
    path, every = loaded.family.layers_path, loaded.family.sublayers
    return Layout(path, dense, tuple(blocks), names, every)


def _sublayers(
    loaded: LoadedModel, index: int, own: Mapping[SubLayerName, Level]
) -> tuple[tuple[SubLayerName, ...], ...]:
    """Which sub-layers of a block are dropped, narrow and biased, at their levels."""
    config = loaded.model.config
    uneven, lacking = is_compressed(config.model_type), missing(config, index)
    dropped = tuple(kind for kind in own if kind in lacking or own[kind].drop)
    if "attention" in dropped and loaded.family.at(index).within:
        dropped = tuple(own)
    kept = tuple(kind for kind in own if kind not in dropped)
    given = added_biases(config, index)
    return (
        dropped,
        tuple(kind for kind in kept if uneven or own[kind].narrow),
        tuple(kind for kind in kept if kind in given or _gets_bias(loaded, index, kind, own[kind])),
    )


def _gets_bias(loaded: LoadedModel, index: int, sublayer: SubLayerName, level: Level) -> bool:
    """Whether a level gives the output matrix of a sub-layer a bias that it does not have."""
    if not level.bias:
        return False
    block = loaded.family.blocks(loaded.model)[index]
    path = loaded.family.at(index).output(sublayer).path
    return block.get_submodule(path).bias is None
