"""What a candidate leaves of each block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from evocompress.families import SubLayerName
from evocompress.families.coupling import Widths, dense_widths
from evocompress.families.mixture import expert_path
from evocompress.families.names import BlockNames
from evocompress.models import LoadedModel
from evocompress.types import DENSE, DROP, Candidate

SUBLAYERS: tuple[SubLayerName, ...] = ("attention", "mlp")


@dataclass(frozen=True)
class Block:
    """What is left of one block.

    Attributes:
        index: Of the block in the dense model.
        widths: Of its sub-layers; the dense width of one that is dropped.
        dropped: Its dropped sub-layers, in the order of the block.
        narrow: Its sub-layers that have lost heads or channels.
        biased: Its sub-layers whose output matrix gets a bias that it had not.
        experts: Of an MLP that is a mixture, the experts that are left, ascending.
        reduced: Whether experts of a mixture that is not dropped are gone.
    """

    index: int
    widths: Widths
    dropped: tuple[SubLayerName, ...] = ()
    narrow: tuple[SubLayerName, ...] = ()
    biased: tuple[SubLayerName, ...] = ()
    experts: tuple[int, ...] = ()
    reduced: bool = False

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
        sublayers: Those that a whole block has.
    """

    path: str
    dense: Widths
    blocks: tuple[Block, ...]
    names: BlockNames
    sublayers: tuple[SubLayerName, ...]

    @cached_property
    def kept(self) -> tuple[Block, ...]:
        """The blocks of which anything is left, ascending."""
        return tuple(block for block in self.blocks if block.dropped != self.sublayers)

    def having(self, sublayer: SubLayerName) -> tuple[Block, ...]:
        """The blocks that still have a sub-layer."""
        return tuple(block for block in self.blocks if sublayer not in block.dropped)

    def first(self, holds: Callable[[Block, SubLayerName], bool]) -> str | None:
        """The name of the first attention or MLP unit that fulfils a condition."""
        return next(self._where(holds), None)

    def _where(self, holds: Callable[[Block, SubLayerName], bool]) -> Iterator[str]:
        for block in self.blocks:
            for sublayer in self.sublayers:
                if holds(block, sublayer):
                    yield f"{self.names[block.index]}.{sublayer}"


def without_blocks(left: Layout) -> str | None:
    """The obstacle of a model of which no block is left."""
    return None if left.kept else f"cannot leave out every block, {left.names[0]} among them"


def mixed_experts(loaded: LoadedModel) -> str:
    """The obstacle of a format that knows no mixtures of experts."""
    return f"cannot hold {loaded.family.model_type} models, whose MLPs are mixtures of experts"


def layout(loaded: LoadedModel, candidate: Candidate) -> Layout:
    """What a candidate leaves of a model."""
    names, kinds = loaded.family.block_names, loaded.family.sublayers
    levels, architecture = candidate.by_name, loaded.family.architecture(loaded.model)
    unbiased = _unbiased(loaded)
    count = loaded.family.mixture.experts(loaded.model)[0] if loaded.family.mixture else 0
    blocks = []
    for index in range(len(loaded.family.blocks(loaded.model))):
        own = {kind: levels.get(f"{names[index]}.{kind}", DENSE) for kind in kinds}
        gone = {i for i in range(count) if levels.get(f"{names[index]}.{expert_path(i)}") == DROP}
        widths = dense_widths(architecture, index)
        for level in own.values():
            widths = widths.at(level)
        block = Block(
            index,
            widths=widths,
            dropped=tuple(kind for kind in kinds if own[kind].drop),
            narrow=tuple(kind for kind in kinds if own[kind].narrow),
            biased=tuple(kind for kind in unbiased if own[kind].bias),
            experts=tuple(i for i in range(count) if i not in gone),
            reduced=bool(gone),
        )
        blocks.append(block)
    dense = dense_widths(architecture, 0)
    return Layout(loaded.family.layers_path, dense, tuple(blocks), names, kinds)


def _unbiased(loaded: LoadedModel) -> tuple[SubLayerName, ...]:
    """The sub-layers whose output matrix has no bias."""
    family = loaded.family
    block = family.blocks(loaded.model)[0]
    kinds = family.sublayers
    biases = {kind: block.get_submodule(family.output(kind).path).bias for kind in kinds}
    return tuple(kind for kind in kinds if biases[kind] is None)
