"""Matrices of narrow and of dropped sub-layers, filled up with zeros to a common width."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from evocompress.core.types import Axis
from evocompress.core.widths import Widths, narrowable
from evocompress.export.layout import Block
from evocompress.models.families import Family, Matrix, SubLayer, SubLayerName
from evocompress.models.families.coupling import Kept, first_items, index_of


@dataclass(frozen=True)
class Target:
    """What all layers become.

    Attributes:
        widths: At least those of the widest layer, query heads counted within a group.
        biased: Sub-layers whose matrices all get a bias, which they had not.
    """

    widths: Widths
    biased: frozenset[SubLayerName]


def filled(
    name: str, matrix: Matrix, block: Block, target: Target, state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The weight and bias of a matrix at the common width; all zeros where it is dropped.

    What is filled in changes nothing: its columns in the output matrix are zero. `state` has the
    tensors by parameter name, at the widths of `block`.
    """
    rows, columns = (1, 0) if matrix.transposed else (0, 1)
    spread = _spreading(matrix.sublayer, block, target)
    weight = spread(state[f"{name}.weight"], rows, matrix.rows)
    weight = spread(weight, columns, matrix.columns)
    tensors = {f"{name}.weight": weight}
    if f"{name}.bias" in state:
        tensors[f"{name}.bias"] = spread(state[f"{name}.bias"], 0, matrix.rows)
    elif matrix.sublayer in target.biased:
        tensors[f"{name}.bias"] = weight.new_zeros(weight.shape[rows])
    return tensors


def filled_followers(
    family: Family, name: str, block: Block, target: Target, state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What has values for each head or channel of a block, at the common width."""
    branches: tuple[tuple[SubLayerName, SubLayer], ...]
    branches = (("attention", family.attention), ("mlp", family.mlp))
    return {
        path: _spreading(sublayer, block, target)(tensor, 0, (follower.axis,))
        for sublayer, branch in branches
        for follower in branch.followers
        for path, tensor in state.items()
        if path.startswith(f"{name}.{follower.path}")
    }


def _spreading(sublayer: SubLayerName, block: Block, target: Target) -> partial[Tensor]:
    places = None
    if sublayer not in block.dropped and (sublayer == "mlp" or block.widths.kv_heads):
        places = first_items(sublayer, block.widths, target.widths)
    gone = sublayer in block.dropped
    return partial(_spread, own=block.widths, places=places, wide=target.widths, gone=gone)


def _spread(
    tensor: Tensor,
    dim: int,
    axes: tuple[Axis, ...],
    *,
    own: Widths,
    places: Kept | None,
    wide: Widths,
    gone: bool,
) -> Tensor:
    """A tensor with its rows or columns at their places among zeros; all zeros where it is gone."""
    if not (gone or narrowable(axes)):
        return tensor
    shape = list(tensor.shape)
    shape[dim] = wide.size(axes, shape[dim], own)
    zeros = tensor.new_zeros(shape)
    if gone:
        return zeros
    assert places is not None
    index = index_of(axes, places, wide.lengths, shape[dim])
    return tensor if index is None else zeros.index_copy_(dim, index.to(tensor.device), tensor)
