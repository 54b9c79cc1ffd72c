"""The tree of units of a model, and what is asked of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from functools import cached_property

from evocompress.core.types import Unit


class UnitTree(tuple[Unit, ...]):
    """All units of a model, parents before their children.

    Examples:
        >>> block = Unit("layers.0", "block", None, 0, "block")
        >>> tree = UnitTree([block, Unit("layers.0.mlp", "mlp", "layers.0", 0, "mlp")])
        >>> [unit.name for unit in tree.children["layers.0"]]
        ['layers.0.mlp']
    """

    @cached_property
    def by_name(self) -> dict[str, Unit]:
        """Every unit by its name."""
        return {unit.name: unit for unit in self}

    @cached_property
    def children(self) -> dict[str, tuple[Unit, ...]]:
        """For each unit those that it encloses directly."""
        found: dict[str, list[Unit]] = {unit.name: [] for unit in self}
        for unit in self:
            if unit.parent is not None:
                found[unit.parent].append(unit)
        return {name: tuple(units) for name, units in found.items()}

    @cached_property
    def experts(self) -> dict[str, tuple[Unit, ...]]:
        """For each MLP that is a mixture its experts, in order."""
        mixtures = {unit.name for unit in self if unit.active}
        return {
            name: tuple(child for child in self.children[name] if child.kind == "expert")
            for name in self.by_name
            if name in mixtures
        }

    def groups(self, name: str) -> tuple[tuple[Unit, ...], ...]:
        """The experts of a mixture in the groups that its router splits them into."""
        found: dict[int, list[Unit]] = {}
        for expert in self.experts[name]:
            found.setdefault(expert.group, []).append(expert)
        return tuple(map(tuple, found.values()))

    def below(self, name: str) -> tuple[Unit, ...]:
        """All that a unit encloses, at any depth, in the order of the tree."""
        inside = self.children[name]
        return tuple(unit for child in inside for unit in (child, *self.below(child.name)))

    def above(self, unit: Unit) -> tuple[Unit, ...]:
        """The units that enclose a unit, from the inside out."""
        if unit.parent is None:
            return ()
        parent = self.by_name[unit.parent]
        return (parent, *self.above(parent))

    def sublayer(self, unit: Unit) -> Unit:
        """The sub-layer that a matrix, cache or expert is in; of another unit the unit itself."""
        if unit.kind not in ("matrix", "cache", "expert"):
            return unit
        return self.sublayer(self.by_name[unit.owner])


def users_of(units: Iterable[Unit]) -> dict[int, list[int]]:
    """Which blocks run the matrices of one that others share, by the indices of both.

    Examples:
        >>> block = Unit("layers.0", "block", None, 0, "block")
        >>> own = Unit("layers.0.attention", "attention", "layers.0", 0, "", shares="layers.0")
        >>> users_of([block, own])
        {0: [0]}
    """
    every = list(units)
    indices = {unit.name: unit.block for unit in every if unit.kind == "block"}
    found: defaultdict[int, list[int]] = defaultdict(list)
    for unit in every:
        if unit.shares and unit.kind == "attention":
            found[indices[unit.shares]].append(unit.block)
    return dict(found)
