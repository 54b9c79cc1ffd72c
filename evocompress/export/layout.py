"""What a candidate leaves of each block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from evocompress.families import SubLayerName
from evocompress.families.coupling import Widths, dense_widths
from evocompress.families.mixture import expert_path
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
        dense: The widths of every dense block.
        blocks: What is left of each block of the dense model, also of one that is gone.
    """

    path: str
    dense: Widths
    blocks: tuple[Block, ...]

    @cached_property
    def kept(self) -> tuple[Block, ...]:
        """The blocks of which anything is left, ascending."""
        return tuple(block for block in self.blocks if block.dropped != SUBLAYERS)

    def having(self, sublayer: SubLayerName) -> tuple[Block, ...]:
        """The blocks that still have a sub-layer."""
        return tuple(block for block in self.blocks if sublayer not in block.dropped)

    def first(self, holds: Callable[[Block, SubLayerName], bool]) -> str | None:
        """The name of the first attention or MLP unit that fulfils a condition."""
        return next(self._where(holds), None)

    def _where(self, holds: Callable[[Block, SubLayerName], bool]) -> Iterator[str]:
        for block in self.blocks:
            for sublayer in SUBLAYERS:
                if holds(block, sublayer):
                    yield f"{self.path}.{block.index}.{sublayer}"


def without_blocks(left: Layout) -> str | None:
    """The obstacle of a model of which no block is left."""
    return None if left.kept else f"cannot leave out every block, {left.path}.0 among them"


def mixed_experts(loaded: LoadedModel) -> str:
    """The obstacle of a format that knows no mixtures of experts."""
    return f"cannot hold {loaded.family.model_type} models, whose MLPs are mixtures of experts"


def layout(loaded: LoadedModel, candidate: Candidate) -> Layout:
    """What a candidate leaves of a model."""
    path, levels = loaded.family.layers_path, candidate.by_name
    dense = dense_widths(loaded.family.architecture(loaded.model), 0)
    unbiased = _unbiased(loaded)
    count = loaded.family.mixture.experts(loaded.model)[0] if loaded.family.mixture else 0
    blocks = []
    for index in range(len(loaded.family.blocks(loaded.model))):
        own = {kind: levels.get(f"{path}.{index}.{kind}", DENSE) for kind in SUBLAYERS}
        gone = {i for i in range(count) if levels.get(f"{path}.{index}.{expert_path(i)}") == DROP}
        block = Block(
            index,
            widths=dense.at(own["attention"]).at(own["mlp"]),
            dropped=tuple(kind for kind in SUBLAYERS if own[kind].drop),
            narrow=tuple(kind for kind in SUBLAYERS if own[kind].narrow),
            biased=tuple(kind for kind in unbiased if own[kind].bias),
            experts=tuple(i for i in range(count) if i not in gone),
            reduced=bool(gone),
        )
        blocks.append(block)
    return Layout(path, dense, tuple(blocks))


def _unbiased(loaded: LoadedModel) -> tuple[SubLayerName, ...]:
    """The sub-layers whose output matrix has no bias."""
    family = loaded.family
    block = family.blocks(loaded.model)[0]
    biases = {kind: block.get_submodule(family.output(kind).path).bias for kind in SUBLAYERS}
    return tuple(kind for kind in SUBLAYERS if biases[kind] is None)
