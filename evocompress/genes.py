"""Genomes: candidates of one search space as arrays of level indices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from evocompress.errors import ConfigError
from evocompress.types import DENSE, DROP, Candidate, Level, Unit, UnitKind

Genome = NDArray[np.int64]

SUBLAYERS: tuple[UnitKind, ...] = ("attention", "mlp")


def canonical(levels: Mapping[str, Level], units: Sequence[Unit]) -> Candidate:
    """The candidate in canonical form.

    Dense levels and the void descendants of dropped units are left out, and a dropped block
    is written as its two dropped sub-layers.

    Args:
        levels: {unit name: level}; a unit that is not named is dense.
        units: All units of the model, parents before their children.

    Raises:
        ConfigError: A name is not that of a unit, or a matrix alone is dropped.
    """
    unknown = levels.keys() - {unit.name for unit in units}
    if unknown:
        raise ConfigError(
            f"unit '{min(unknown)}' is not in this model; its units look like '{units[-1].name}'"
        )
    removed: set[str] = set()
    kept: dict[str, Level] = {}
    for unit in units:
        level = levels.get(unit.name, DENSE)
        void = unit.parent in removed
        if level.drop and not void and unit.kind == "matrix":
            raise ConfigError(f"matrix '{unit.name}' cannot be dropped alone: drop '{unit.parent}'")
        if void or level.drop:
            removed.add(unit.name)
        if unit.kind in SUBLAYERS and unit.name in removed:
            kept[unit.name] = DROP
        elif unit.name not in removed and not level.dense:
            kept[unit.name] = level
    return Candidate(tuple(sorted(kept.items())))


@dataclass(frozen=True, eq=False)
class Genes:
    """The units that a space decides about, and what a genome says of them.

    A genome is an array (U,) of indices into each unit's levels; several are an array (N, U).
    A gene below a dropped unit is void: its value says nothing.

    Attributes:
        tree: All units of the model, parents before their children.
        units: The U genes, in model order: matrices with levels of sparsity, and droppable
            units with the levels (dense, drop).
        levels: For each gene its levels, from least to most compressed.
        start: For each gene the level (U,) it has before any search, and again when a unit
            above it is restored: a matrix its target, a droppable unit dense.
    """

    tree: tuple[Unit, ...]
    units: tuple[Unit, ...]
    levels: tuple[tuple[Level, ...], ...]
    start: Genome

    @cached_property
    def sizes(self) -> Genome:
        """Number of levels of each gene (U,)."""
        return np.array([len(levels) for levels in self.levels], dtype=np.int64)

    @cached_property
    def by_kind(self) -> dict[str, NDArray[np.int64]]:
        """For each kind of unit that has genes, their indices."""
        kinds = [unit.kind for unit in self.units]
        return {kind: np.flatnonzero([kind == k for k in kinds]) for kind in dict.fromkeys(kinds)}

    @cached_property
    def matrices(self) -> NDArray[np.int64]:
        """Indices of the genes that are matrices."""
        return np.flatnonzero([unit.kind == "matrix" for unit in self.units])

    @cached_property
    def droppable(self) -> NDArray[np.int64]:
        """Indices of the genes that can be dropped."""
        return np.flatnonzero([unit.kind != "matrix" for unit in self.units])

    def void(self, genomes: Genome) -> NDArray[np.bool_]:
        """Which genes (N, U) lie below a dropped unit."""
        return self._dropped(genomes)[:, self._dropper]

    def settle(self, genomes: Genome) -> Genome:
        """The genomes (N, U) with void genes at their start: equal candidates, equal rows."""
        settled: Genome = np.where(self.void(genomes), self.start, genomes)
        return settled

    def states(self, genomes: Genome) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """What the cost model asks for: kept sub-layers (N, P) and zeros in them (N,)."""
        dropped = self._dropped(genomes)
        zeros = self._zeros.ravel()[genomes + self._rows]
        if dropped.any():
            zeros *= ~dropped[:, self._dropper]
        return ~dropped[:, self._part_dropper], zeros.sum(axis=1)

    def candidate(self, genome: Genome) -> Candidate:
        """The canonical candidate of one genome (U,)."""
        named = {
            unit.name: levels[index]
            for unit, levels, index in zip(self.units, self.levels, genome.tolist(), strict=True)
        }
        return canonical(named, self.tree)

    def genome(self, candidate: Candidate) -> Genome:
        """The genome (U,) of a canonical candidate, void genes at their start.

        Raises:
            ConfigError: The candidate names a unit or a level that the space does not have,
                or leaves a unit dense that the space always compresses.
        """
        genome = self.start.copy()
        # Droppable units first: what they drop says which matrices are void.
        for genes in (self.droppable, self.matrices):
            for index in genes[~self.void(genome[None])[0, genes]]:
                unit = self.units[index]
                genome[index] = _index(self.levels[index], self._level(unit, candidate), unit)
        strays = candidate.by_name.keys() - self.candidate(genome).by_name.keys()
        if strays:
            raise ConfigError(f"unit '{min(strays)}' is not one that this search space compresses")
        return genome

    def _level(self, unit: Unit, candidate: Candidate) -> Level:
        if unit.kind != "block":
            return candidate.by_name.get(unit.name, DENSE)
        below = [child.name for child in self.tree if child.parent == unit.name]
        return DROP if all(candidate.by_name.get(name) == DROP for name in below) else DENSE

    def _dropped(self, genomes: Genome) -> NDArray[np.bool_]:
        """Which genes are dropped (N, U + 1); the last column stands for "no such gene"."""
        columns = np.zeros((len(genomes), len(self.units) + 1), dtype=bool)
        columns[:, self.droppable] = genomes[:, self.droppable] == 1
        return columns

    @cached_property
    def _rows(self) -> NDArray[np.int64]:
        return np.arange(0, self._zeros.size, self._zeros.shape[1], dtype=np.int64)

    @cached_property
    def _zeros(self) -> NDArray[np.int64]:
        """Zeros of each gene at each level (U, largest number of levels)."""
        table = np.zeros((len(self.units), int(self.sizes.max())), dtype=np.int64)
        for row, levels in zip(table, self.levels, strict=True):
            row[: len(levels)] = [level.zeros for level in levels]
        return table

    @cached_property
    def _dropper(self) -> NDArray[np.int64]:
        """For each gene the gene above it that can void it, -1 for none (U,)."""
        return np.array([self._gene_above(unit.parent) for unit in self.units], dtype=np.int64)

    @cached_property
    def _part_dropper(self) -> NDArray[np.int64]:
        """For each sub-layer the gene that drops it, -1 for none (P,)."""
        parts = [unit.name for unit in self.tree if unit.kind in SUBLAYERS]
        return np.array([self._gene_above(name) for name in parts], dtype=np.int64)

    def _gene_above(self, name: str | None) -> int:
        """Index of the gene of the named unit or of its nearest ancestor, or -1."""
        while name is not None:
            if name in self._indices:
                return self._indices[name]
            name = self._parents[name]
        return -1

    @cached_property
    def _indices(self) -> dict[str, int]:
        return {unit.name: index for index, unit in enumerate(self.units)}

    @cached_property
    def _parents(self) -> dict[str, str | None]:
        return {unit.name: unit.parent for unit in self.tree}


def _index(levels: tuple[Level, ...], level: Level, unit: Unit) -> int:
    if level not in levels:
        known = ", ".join(known.key for known in levels)
        raise ConfigError(f"unit '{unit.name}' has no level '{level.key}' here; it has {known}")
    return levels.index(level)
