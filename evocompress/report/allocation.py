"""How much of each unit the winner keeps, as a grid of roles by blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evocompress.types import DENSE, Level, Unit


@dataclass(frozen=True)
class GridCell:
    """One unit of the grid.

    Attributes:
        unit: Its name.
        level: Its own level, or the dropped one of the unit that holds it.
        zeros: Fraction of its weights that are zero; 1 where it is dropped.
    """

    unit: str
    level: Level
    zeros: float


@dataclass(frozen=True)
class Grid:
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


def grid(units: Sequence[Unit], levels: Mapping[str, Level]) -> Grid:
    """Lays a candidate out by role and block.

    Rows are matrices where the candidate has zeros in any, and sub-layers where all it does
    is drop.

    Args:
        units: All units of the model in tree order.
        levels: Levels by unit name; a unit that is not named is dense.
    """
    sparse = any(level.zeros for level in levels.values())
    shown = [unit for unit in units if (unit.kind == "matrix") == sparse and unit.kind != "block"]
    roles = tuple(dict.fromkeys(unit.role for unit in shown))
    blocks = 1 + max((unit.block for unit in shown), default=-1)
    parents = {unit.name: unit.parent for unit in units}
    found = {(unit.role, unit.block): _cell(unit, parents, levels) for unit in shown}
    cells = tuple(tuple(found.get((role, block)) for block in range(blocks)) for role in roles)
    return Grid(roles, cells)


def _cell(unit: Unit, parents: Mapping[str, str | None], levels: Mapping[str, Level]) -> GridCell:
    owner: str | None = unit.name
    while owner is not None:
        level = levels.get(owner, DENSE)
        if level.drop:
            return GridCell(unit.name, level, 1.0)
        owner = parents.get(owner)
    level = levels.get(unit.name, DENSE)
    return GridCell(unit.name, level, level.zeros / unit.numel if unit.numel else 0.0)
