"""Which rows and columns of a sub-layer's matrices belong to its heads or channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from evocompress.core.types import Axis, UnitKind
from evocompress.core.widths import CHANNELS, Widths


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


def first_items(kind: UnitKind, widths: Widths, wide: Widths) -> Kept:
    """The first channels of an MLP, or the first query heads of an attention's first groups."""
    if kind == "mlp":
        return Kept(torch.zeros(1, dtype=torch.int64), torch.arange(widths.channels))
    groups = torch.arange(widths.kv_heads)
    within = torch.arange(widths.heads // widths.kv_heads)
    return Kept(groups, (groups[:, None] * (wide.heads // wide.kv_heads) + within).flatten())


def index_of(
    axes: tuple[Axis, ...], kept: Kept, lengths: Mapping[Axis, int], head_dim: int
) -> Tensor | None:
    """The rows (or columns) of a matrix that stay: ascending positions (n,) int64, or ``None``.

    `axes` are what they belong to, one part after the other; where there are none all stay.
    `lengths` are those of the dense sub-layer (`axis_lengths`); a head has `head_dim` rows, a
    channel one.
    """
    parts, start = [], 0
    for axis in axes:
        size = 1 if axis in CHANNELS else head_dim
        chosen = kept.groups if axis in ("key", "value", "inner") else kept.items
        if axis == "grouped":
            chosen = _grouped(kept, lengths["query"] // lengths["key"])
        parts.append(start + (chosen[:, None] * size + torch.arange(size)).flatten())
        start += lengths[axis] * size
    return torch.cat(parts) if parts else None


def _grouped(kept: Kept, each: int) -> Tensor:
    """Which heads stay where `each` queries, a key and a value of a group are together."""
    group = kept.items // each
    queries = kept.items + 2 * group
    keys = kept.groups * (each + 2) + each
    return torch.cat([queries, keys, keys + 1]).sort().values


def ungrouped(rows: Tensor, groups: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The rows of all queries, all keys and all values of ``grouped`` ones (R, C)."""
    heads = rows.view(groups, -1, size, rows.shape[1])
    queries, keys, values = heads[:, :-2], heads[:, -2], heads[:, -1]
    return queries.flatten(0, 2), keys.flatten(0, 1), values.flatten(0, 1)
