"""How wide the sub-layers of a block are, and what a level leaves of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from evocompress.core.architecture import Architecture
from evocompress.core.types import Axis, Level, Unit


def narrowable(axes: tuple[Axis, ...]) -> bool:
    """Whether a level can cut any of what rows or columns belong to."""
    return bool(axes) and "shared" not in axes


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
        axes["grouped"] = self.heads + 2 * keys
        return axes | {"channel": self.channels, "inner": self.channels}

    def shape(self, unit: Unit, dense: Widths) -> tuple[int, int]:
        """The shape (out, in) that a matrix of the `dense` sub-layer has at these widths."""
        assert unit.shape is not None
        rows, columns = unit.shape
        return self.size(unit.rows, rows, dense), self.size(unit.columns, columns, dense)

    def size(self, axes: tuple[Axis, ...], whole: int, dense: Widths) -> int:
        """What is left here of the `whole` rows or columns that belong to axes at other widths."""
        if not narrowable(axes):
            return whole
        return per_item(axes, dense.lengths, whole) * sum(self.lengths[axis] for axis in axes)

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
        head_dim=(architecture.head_dims or (architecture.head_dim,) * (block + 1))[block],
        channels=architecture.channels[block],
    )


def per_item(axes: tuple[Axis, ...], lengths: Mapping[Axis, int], whole: int) -> int:
    """How many of the `whole` rows (or columns) of a matrix each head or channel has."""
    return whole // (sum(lengths[axis] for axis in axes) or 1)


def axis_lengths(architecture: Architecture, block: int) -> dict[Axis, int]:
    """How many heads (of queries, keys, values) or channels a dense block has."""
    return dense_widths(architecture, block).lengths
