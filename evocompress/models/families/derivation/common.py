"""What the matrices take that several blocks run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from torch import nn

from evocompress.core.beside import Beside
from evocompress.core.types import Axis
from evocompress.core.widths import Widths, per_item
from evocompress.models.families.branches import Matrix
from evocompress.models.families.derivation.block_kind import Kind
from evocompress.models.families.shapes import matrix_shape


def common_law(kind: Kind, block: nn.Module, heads: tuple[int, int, int]) -> Beside:
    """What the matrices that a block shares take with their heads, each time they are run.

    Args:
        kind: Of the block.
        block: One that runs them.
        heads: Query heads, key-value heads and the width of a head.
    """
    lengths = Widths(*heads, 0).lengths
    every = [matrix for part in kind.common.values() for matrix in part.matrices]
    weights = sum(prod(matrix_shape(block, matrix)) for matrix in every)
    outputs = [matrix_shape(block, matrix)[1] for matrix in every if "query" in matrix.columns]
    pair = 2 * (_rows_of("query", block, every, lengths) + sum(outputs))
    kept = sum(_rows_of(axis, block, every, lengths) for axis in ("key", "value"))
    return Beside(
        token=2 * weights,
        decoded=2 * weights,
        pair=pair,
        seen=pair,
        kept=kept if kind.attends else 0,
    )


def _rows_of(
    axis: Axis, block: nn.Module, matrices: Sequence[Matrix], lengths: Mapping[Axis, int]
) -> int:
    """Rows that matrices have for the heads of an axis, be they few or many."""
    return sum(
        matrix_shape(block, matrix)[0]
        if matrix.rows == (axis,)
        else lengths[axis] * per_item(matrix.rows, lengths, matrix_shape(block, matrix)[0])
        for matrix in matrices
        if {axis, "grouped"} & {*matrix.rows}
    )
