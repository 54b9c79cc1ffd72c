"""Which rows and columns of a sub-layer's matrices belong to its heads or channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from evocompress.core.types import Architecture, Axis, Level, UnitKind

CHANNELS: tuple[Axis, ...] = ("channel", "inner")


@dataclass(frozen=True)
class ChannelwiseModule:
    """A module with a value for each channel, which goes with it: a norm between two matrices.

    Attributes:
        path: Module path relative to the block.
        axis: Whose channels.
    """

    path: str
    axis: Axis = "channel"


@dataclass(frozen=True, eq=False)
class Kept:
    """What stays of one sub-layer; int64 tensors, ascending.

    Attributes:
        groups: Key-value heads of an attention; of an MLP ``[0]``, or its inner channels.
        items: Query heads of an attention or channels of an MLP, counted over the whole layer.
    """

    groups: Tensor
    items: Tensor


@dataclass(frozen=True)
class Widths:
    """How wide the two sub-layers of one block are.

    Attributes:
        heads: Query heads.
        kv_heads: Key-value heads.
        head_dim: Width of one head; never changed.
        channels: FFN channels.
    """

    heads: int
    kv_heads: int
    head_dim: int
    channels: int

    @property
    def lengths(self) -> dict[Axis, int]:
        """How many heads or channels each axis has."""
        keys = self.kv_heads
        axes: dict[Axis, int] = {"query": self.heads, "key": keys, "value": keys}
        return axes | {"channel": self.channels, "inner": self.channels}

    def at(self, level: Level) -> Widths:
        """These widths with one sub-layer at a level of its width; itself for other levels."""
        if level.channels is not None:
            return replace(self, channels=level.channels)
        if level.kv_groups is None or level.group_heads is None:
            return self
        return replace(self, heads=level.kv_groups * level.group_heads, kv_heads=level.kv_groups)


def dense_widths(architecture: Architecture, block: int) -> Widths:
    """How wide the sub-layers of a dense block are."""
    return Widths(
        heads=architecture.heads[block],
        kv_heads=architecture.kv_heads[block],
        head_dim=architecture.head_dim,
        channels=architecture.channels[block],
    )


def axis_lengths(architecture: Architecture, block: int) -> dict[Axis, int]:
    """How many heads (of queries, keys, values) or channels a dense block has."""
    return dense_widths(architecture, block).lengths


def first_items(kind: UnitKind, widths: Widths, wide: Widths) -> Kept:
    """The first channels of an MLP, or the first query heads of an attention's first groups.

    Args:
        kind: ``mlp`` or ``attention``.
        widths: How many.
        wide: The widths of the sub-layer that they are in.
    """
    if kind == "mlp":
        return Kept(torch.zeros(1, dtype=torch.int64), torch.arange(widths.channels))
    groups = torch.arange(widths.kv_heads)
    within = torch.arange(widths.heads // widths.kv_heads)
    return Kept(groups, (groups[:, None] * (wide.heads // wide.kv_heads) + within).flatten())


def index_of(
    axes: tuple[Axis, ...], kept: Kept, lengths: Mapping[Axis, int], head_dim: int
) -> Tensor | None:
    """The rows (or columns) of a matrix that stay.

    Args:
        axes: What they belong to, one part after the other: a unit's ``rows`` or ``columns``.
        kept: What stays of the sub-layer.
        lengths: Heads or channels of each axis in the dense sub-layer, see `axis_lengths`.
        head_dim: Rows (or columns) of a head; a channel has one.

    Returns:
        Ascending positions (n,) int64, or ``None`` where `axes` is empty: all stay.
    """
    parts, start = [], 0
    for axis in axes:
        size = 1 if axis in CHANNELS else head_dim
        chosen = kept.groups if axis in ("key", "value", "inner") else kept.items
        parts.append(start + (chosen[:, None] * size + torch.arange(size)).flatten())
        start += lengths[axis] * size
    return torch.cat(parts) if parts else None
