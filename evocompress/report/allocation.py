"""How much of each unit a candidate keeps, as a grid of roles by blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evocompress.core.architecture import Architecture
from evocompress.core.types import DENSE, DROP, Level, Unit
from evocompress.core.units import UnitTree
from evocompress.core.widths import dense_widths


@dataclass(frozen=True)
class GridCell:
    """One unit of the grid.

    Attributes:
        unit: Its name.
        level: Its own level, or the dropped one of the unit that holds it.
        zeros: Fraction of its weights that are zero; 1 where it is dropped.
        kept: Fraction of a sub-layer's heads or channels that is left; ``None`` for a matrix,
            and where the model's dimensions are not known.
        width: The same in words; empty where nothing is cut.
        merged: How many blocks after it are merged into its block.
    """

    unit: str
    level: Level
    zeros: float
    kept: float | None = None
    width: str = ""
    merged: int = 0


@dataclass(frozen=True)
class UnitGrid:
    """Roles (rows, in the order of the first block) by blocks (columns, from 0).

    Attributes:
        roles: Names of the rows.
        cells: ``cells[row][block]``; ``None`` where a block has no such unit.
    """

    roles: tuple[str, ...]
    cells: tuple[tuple[GridCell | None, ...], ...]

    @property
    def present(self) -> tuple[GridCell, ...]:
        """Every unit of the grid."""
        return tuple(cell for row in self.cells for cell in row if cell is not None)


def unit_grid(
    units: Sequence[Unit], levels: Mapping[str, Level], architecture: Architecture | None = None
) -> UnitGrid:
    """Lays a candidate, {unit name: level}, out by role and block, beside the model's dimensions.

    Rows are the sub-layers where the candidate narrows any, and the matrices where it has zeros in
    any; the sub-layers too where all it does is drop, and experts where any is dropped.
    """
    sparse = any(level.zeros for level in levels.values())
    narrow = any(level.narrow for level in levels.values()) or not sparse
    experts = any(unit.kind == "expert" and levels.get(unit.name) == DROP for unit in units)
    kinds = {"attention": narrow, "mlp": narrow, "expert": experts, "matrix": sparse}
    shown = [unit for unit in units if kinds.get(unit.kind)]
    roles = tuple(
        dict.fromkeys(unit.role for unit in sorted(shown, key=lambda unit: unit.kind == "matrix"))
    )
    blocks = 1 + max((unit.block for unit in shown), default=-1)
    tree = UnitTree(units)
    found = {
        (unit.role, unit.block): _cell((unit, *tree.above(unit)), levels, architecture)
        for unit in shown
    }
    cells = tuple(tuple(found.get((role, block)) for block in range(blocks)) for role in roles)
    return UnitGrid(roles, cells)


def _cell(
    path: Sequence[Unit], levels: Mapping[str, Level], architecture: Architecture | None
) -> GridCell:
    """The cell of a unit, the first of a path from it to its block."""
    unit, owners = path[0], [levels.get(each.name, DENSE) for each in path]
    for level in owners:
        if level.drop:
            return GridCell(unit.name, level, 1.0, None if unit.numel else 0.0)
    level, merged = owners[0], owners[-1].merge
    if unit.numel:
        return GridCell(unit.name, level, level.zeros / unit.numel, merged=merged)
    kept, width = _width(unit, level, architecture)
    return GridCell(unit.name, level, 0.0, kept, width, merged)


def _width(unit: Unit, level: Level, architecture: Architecture | None) -> tuple[float | None, str]:
    """What is left of the heads or channels of a sub-layer, as a fraction and in words."""
    if not level.narrow:
        return 1.0, ""
    if architecture is None:
        return None, level.key
    whole = dense_widths(architecture, unit.block)
    left = whole.at(level)
    if level.channels is not None:
        return left.channels / whole.channels, f"{left.channels} of {whole.channels} channels"
    heads = f"{left.heads} of {whole.heads} heads"
    if whole.heads != whole.kv_heads:
        within = f"{level.group_heads} of {whole.heads // whole.kv_heads} query heads"
        heads = f"{left.kv_heads} of {whole.kv_heads} KV heads × {within}: {heads}"
    return left.heads / whole.heads, heads
