"""How wide the sub-layers of a block are, and what a level leaves of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from evocompress.core.types import Architecture, Axis, Level, Unit, narrowable

CHANNELS: tuple[Axis, ...] = ("channel", "inner")


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

    def shape(self, unit: Unit) -> tuple[int, int]:
        """The shape (out, in) that a matrix of the sub-layer has at these widths."""
        assert unit.shape is not None
        columns = unit.patch * self.size(unit.columns, unit.shape[1] // unit.patch)
        return self.size(unit.rows, unit.shape[0]), columns

    def size(self, axes: tuple[Axis, ...], whole: int) -> int:
        """Rows or columns that belong to axes; `whole` where no level cuts any."""
        if not narrowable(axes):
            return whole
        sizes = (1 if axis in CHANNELS else self.head_dim for axis in axes)
        return sum(self.lengths[axis] * size for axis, size in zip(axes, sizes, strict=True))

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
