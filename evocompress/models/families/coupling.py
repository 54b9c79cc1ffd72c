"""Which rows and columns of a sub-layer's matrices belong to its heads or channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from evocompress.core.types import Axis, UnitKind
from evocompress.core.widths import Widths, per_item


@dataclass(frozen=True)
class Follower:
    """What has values for each head or channel, which go with it, and is no matrix.

    Attributes:
        path: Relative to the block, of a module, such as a norm between two matrices, or of a
            parameter, such as the sinks of an attention.
        axis: Whose heads or channels.
    """

    path: str
    axis: Axis = "channel"

    def tensors(self, block: nn.Module) -> dict[str, Tensor]:
        """Its tensors by their names in a block; none where the block does not have it."""
        return {
            name: tensor.data
            for name, tensor in block.state_dict(keep_vars=True).items()
            # What a norm counts has no channels.
            if tensor.ndim and (name == self.path or name.startswith(f"{self.path}."))
        }


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
    axes: tuple[Axis, ...], kept: Kept, lengths: Mapping[Axis, int], whole: int
) -> Tensor | None:
    """The rows (or columns) of a matrix that stay: ascending positions (n,) int64, or ``None``.

    `axes` are what they belong to, one part after the other; where there are none all stay.
    `lengths` are those of the dense sub-layer (`axis_lengths`), whose matrix has `whole` rows: as
    many for each head or channel.
    """
    parts, start = [], 0
    size = per_item(axes, lengths, whole)
    for axis in axes:
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
