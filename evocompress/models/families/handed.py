"""Tensors that blocks hand on to later ones beside the hidden state, such as keys and values.

Blocks are run one by one from states that were kept, so a state must be all that a block needs of
those before it: what is handed on lies behind the channels of the hidden state, in one tensor.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from evocompress.models.families.names import BlockNames

TensorShape = tuple[int, int]
"""Heads and the width of a head, of a tensor (B, heads, S, width)."""


@dataclass(frozen=True)
class Handed:
    """Stands among the arguments of a block for the mapping that some fill and later ones read.

    Attributes:
        hidden: Channels of the hidden state.
        shapes: {key of the mapping: the shapes of its tensors}.

    Examples:
        >>> handed = Handed(3, {"full": ((2, 4), (2, 4))})
        >>> state = handed.first(torch.ones(1, 5, 3))
        >>> state.shape, handed.hidden_of(state).shape, handed.mapping_of(state)["full"][0].shape
        (torch.Size([1, 5, 19]), torch.Size([1, 5, 3]), torch.Size([1, 2, 5, 4]))
    """

    hidden: int
    shapes: Mapping[str, tuple[TensorShape, ...]]

    @cached_property
    def width(self) -> int:
        """Values of a token that are handed on."""
        return sum(heads * width for shapes in self.shapes.values() for heads, width in shapes)

    def first(self, hidden: Tensor) -> Tensor:
        """The state (B, S, H + width) of a hidden state (B, S, H) that enters the first block."""
        return torch.cat([hidden, hidden.new_zeros(*hidden.shape[:-1], self.width)], dim=-1)

    def hidden_of(self, state: Tensor) -> Tensor:
        """The hidden state (B, S, H) of a state."""
        return state[..., : self.hidden].contiguous()

    def mapping_of(self, state: Tensor) -> dict[str, Any]:
        """What a state hands on, as blocks read it."""
        mapping = {}
        sizes = [heads * width for shapes in self.shapes.values() for heads, width in shapes]
        parts = iter(torch.split(state[..., self.hidden :], sizes, dim=-1))
        for key, shapes in self.shapes.items():
            mapping[key] = tuple(_by_head(next(parts), *shape) for shape in shapes)
        return mapping

    def state_of(self, hidden: Tensor, mapping: Mapping[str, Any]) -> Tensor:
        """The state of a hidden state and what is handed on with it."""
        tensors = (tensor for key in self.shapes for tensor in mapping[key])
        return torch.cat([hidden, *(t.transpose(1, 2).flatten(2) for t in tensors)], dim=-1)


def _by_head(values: Tensor, heads: int, width: int) -> Tensor:
    """(B, heads, S, width) of (B, S, heads * width), laid out as blocks make them."""
    return values.contiguous().view(*values.shape[:-1], heads, width).transpose(1, 2)


def handed_in(arguments: Mapping[str, Any]) -> Iterator[tuple[str, Handed]]:
    """What stands for a mapping among the arguments of a block, with the argument's name."""
    return ((name, one) for name, one in arguments.items() if isinstance(one, Handed))


class Sharing(Protocol):
    """What a block shares.

    Attributes:
        stores: The keys under which it hands on its keys and values.
        reads: The keys whose keys and values it reads.
        classes: {module path: class} of what has parameters.
    """

    @property
    def stores(self) -> Sequence[str]: ...  # noqa: D102

    @property
    def reads(self) -> Sequence[str]: ...  # noqa: D102

    @property
    def classes(self) -> Mapping[str, str]: ...  # noqa: D102


def why_blocks_stay(blocks: Sequence[Sharing]) -> Iterator[str]:
    """Why blocks whose keys and values others read cannot be dropped."""
    for index, block in enumerate(blocks):
        later = enumerate(blocks[index + 1 :], index + 1)
        reading = [i for i, other in later if {*block.stores} & {*other.reads}]
        if reading:
            who = f"{len(reading)} blocks from {reading[0]} to {reading[-1]} read"
            who = who if len(reading) > 1 else f"block {reading[0]} reads"
            yield (
                f"neither block {index} nor its attention can be dropped: {who} its keys and values"
            )


def unread(blocks: Sequence[Sharing], names: BlockNames, attention: str) -> Iterator[str]:
    """Patterns of what checkpoints may hold of blocks that read: some have it as all others do.

    Args:
        blocks: All of a model.
        names: Theirs.
        attention: Path of that within a block.
    """
    every = {path for block in blocks if block.stores for path in block.classes}
    own = sorted(path for path in every if path.startswith(f"{attention}."))
    for index, block in enumerate(blocks):
        for path in own if block.reads else ():
            if path not in block.classes:
                yield re.escape(f"{names[index]}.{path}.") + ".*"
