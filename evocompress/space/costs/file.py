"""The size of the file that a candidate is written as."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from evocompress.core.canonical import SUBLAYERS
from evocompress.core.storage import StorageType
from evocompress.core.types import DENSE, UnitKind
from evocompress.space.costs.model import Cost
from evocompress.space.costs.sublayers import Left, Part


@dataclass(frozen=True)
class FileLayout:
    """What a format makes of the tensors of a model, in bytes.

    Attributes:
        total: The file of the dense model.
        beside: {sub-layer: what goes with it beside the weights of its matrices: its norms and
            biases, and what the file says of each of its tensors}.
        weight: Of a weight of a matrix that has no type.
        other: Of a parameter that is in no matrix.
        align: Of which number the size of a tensor is a multiple.
        shared: The matrices that are in one tensor with others.
        copies: {matrix: how many tensors hold it}, where that is not one.
        typed: {matrix: what its type takes more, of what the file says of it}.
        typed_rows: The same of types whose block is a whole row.
        absent: Of a sub-layer of a kind that is left out while the other one of its block is
            there: of one of zeros.

    Examples:
        >>> FileLayout(total=1000, weight=2, align=32).dense("layers.0.mlp.up", 15)
        32
    """

    total: int
    beside: Mapping[str, int] = field(default_factory=dict)
    weight: int = 2
    other: int = 4
    align: int = 1
    shared: frozenset[str] = frozenset()
    copies: Mapping[str, int] = field(default_factory=dict)
    typed: Mapping[str, int] = field(default_factory=dict)
    typed_rows: Mapping[str, int] = field(default_factory=dict)
    absent: Mapping[UnitKind, int] = field(default_factory=dict)

    def dense(self, matrix: str, weights: int) -> int:
        """Of a matrix with so many weights that has no type."""
        return self._aligned(matrix, weights * self.weight)

    def saved(self, matrix: str, kind: StorageType, rows: int, columns: int) -> int:
        """What a type saves of a matrix (rows, columns)."""
        told = (self.typed if kind.block else self.typed_rows).get(matrix, 0)
        typed = self._aligned(matrix, kind.bytes(rows, columns)) + told
        return self.copies.get(matrix, 1) * (self.dense(matrix, rows * columns) - typed)

    def whole_blocks(self) -> FileLayout:
        """It where no sub-layer is left out without the other one of its block."""
        return replace(self, absent={})

    def _aligned(self, matrix: str, count: int) -> int:
        return count if matrix in self.shared else aligned(count, self.align)


def aligned(count: int, align: int) -> int:
    """The next multiple of a number."""
    return -(-count // align) * align


def file_cost(layout: FileLayout, parts: Sequence[Part]) -> Cost:
    """The cost ``file_bytes``.

    Where both sub-layers of a block are left out that counts the zeros which a file has in place
    of one alone, so that it is from above.
    """

    def amount(part: Part, left: Left) -> float:
        matrices = sum(layout.dense(name, count) for name, count in left.weights.items())
        own = layout.other * (left.own - part.own)
        absent = layout.absent.get(part.unit.kind, 0) if part.unit.kind in SUBLAYERS else 0
        return layout.beside.get(part.unit.name, 0) + matrices + own - absent

    alone = [part.alone_and_shared()[0] if part.users else part for part in parts]
    base = layout.total - sum(amount(part, part.left(DENSE)) for part in alone)
    return Cost(base, amount, per_file_byte=1)
