"""Genomes: candidates of one search space as arrays of level indices."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from evocompress.core.arrays import Booleans, Floats, Genome, Integers
from evocompress.core.canonical import ATTENTIVE, COSTED, TYPED, canonical, level_in, merge_levels
from evocompress.core.errors import ConfigError
from evocompress.core.level_order import in_one_order
from evocompress.core.types import DENSE, DROP, Candidate, Level, Unit
from evocompress.core.units import UnitTree
from evocompress.space.candidate_table import CandidateTable, candidate_table
from evocompress.space.latest import latest
from evocompress.space.part_genes import (
    ExpertGenes,
    drop_indices,
    expert_genes,
    inactive_columns,
    members_of,
    parts_of_genes,
)

_KNOWN = 4096
"""Latest candidates that are remembered by the bytes of their genomes."""


@dataclass(frozen=True, eq=False)
class Encoding:
    """What a space decides about, and what a genome says of it.

    A genome is an array (U,) of indices into each gene's levels; several are an array (N, U).
    A gene is about one unit, or about several that are tied and have the same level. A gene
    below a dropped unit is inactive: its value says nothing.

    Attributes:
        tree: All units of the model, parents before their children.
        members: For each of the U genes its units: matrices with levels of sparsity or types,
            sub-layers with widths or a drop, or experts and blocks that may be dropped, in order.
        levels: For each gene its levels, from most to least parameters. Those of a sub-layer
            are (dense, narrower ones, drop), as far as it has them: indices of its narrow
            levels, as of matrices with zeros and types, are no order for other costs.
        default: For each gene the level (U,) it has before any search, and again when a unit
            above it is restored: a matrix its target, another unit dense.
        merges: Whether dropped blocks are merged into the last kept one before them.
    """

    tree: UnitTree
    members: tuple[tuple[Unit, ...], ...]
    levels: tuple[tuple[Level, ...], ...]
    default: Genome
    merges: bool = False

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        """For each gene its first unit."""
        return tuple(members[0] for members in self.members)

    @cached_property
    def sizes(self) -> Genome:
        """Number of levels of each gene (U,)."""
        return np.array([len(levels) for levels in self.levels], dtype=np.int64)

    @cached_property
    def by_kind(self) -> dict[str, Integers]:
        """For each kind of unit that has genes, their indices; matrices are all that has types."""
        kinds = ["matrix" if unit.kind in TYPED else unit.kind for unit in self.units]
        return {kind: np.flatnonzero([kind == k for k in kinds]) for kind in dict.fromkeys(kinds)}

    @cached_property
    def matrices(self) -> Integers:
        """Indices of the genes that are matrices, or caches."""
        return self.by_kind.get("matrix", np.empty(0, dtype=np.int64))

    @cached_property
    def stored(self) -> tuple[tuple[Unit, ...], Integers]:
        """The M matrices and caches that genes are about, in their order, and the genes (M,)."""
        pairs = [(unit, gene) for gene in self.matrices.tolist() for unit in self.members[gene]]
        return tuple(u for u, _ in pairs), np.array([gene for _, gene in pairs], dtype=np.int64)

    @cached_property
    def ordinal(self) -> Booleans:
        """Which genes are moved level by level (U,): matrices with zeros, or with types, alone."""
        ordered = np.zeros(len(self.units), dtype=bool)
        ordered[[gene for gene in self.matrices if in_one_order(self.levels[gene])]] = True
        return ordered

    @cached_property
    def options(self) -> tuple[Integers, Integers]:
        """Every level of every gene: which gene, and the level's index (all levels,)."""
        genes = np.repeat(np.arange(len(self.units)), self.sizes)
        return genes, np.concatenate([np.arange(size) for size in self.sizes])

    @cached_property
    def drop_index(self) -> Genome:
        """For each gene the index of the level that drops it (U,), -1 where there is none."""
        return drop_indices(self.levels)

    @cached_property
    def droppable(self) -> Integers:
        """Indices of the genes that can be dropped."""
        return np.flatnonzero(self.drop_index >= 0)

    @cached_property
    def widths(self) -> Integers:
        """Indices of the genes that can be narrowed."""
        return np.flatnonzero([any(level.narrow for level in levels) for levels in self.levels])

    @cached_property
    def alike_blocks(self) -> tuple[Integers, ...]:
        """The genes (B, G) of each group of B blocks with the same choices, G genes each."""
        inside = np.flatnonzero([unit.kind != "outer" for unit in self.units])
        blocks = np.array([self.units[gene].block for gene in inside])
        alike: dict[tuple[tuple[str, int, tuple[Level, ...]], ...], list[Integers]] = {}
        for block in np.unique(blocks):
            genes = inside[blocks == block]
            choices = tuple(
                (self.units[gene].role, self.units[gene].numel, self.levels[gene]) for gene in genes
            )
            alike.setdefault(choices, []).append(genes)
        return tuple(np.stack(group) for group in alike.values())

    @cached_property
    def parts(self) -> tuple[Unit, ...]:
        """The P sub-layers of the model and the experts in them, in model order."""
        return tuple(unit for unit in self.tree if unit.kind in COSTED)

    @cached_property
    def part_levels(self) -> tuple[tuple[Level, ...], ...]:
        """For each part the levels that genomes give it: its gene's, and a drop.

        Those of an expert are the widths of its MLP.
        """
        dense = ((DENSE,), *self.levels)
        own = [dense[gene + 1] for gene in self._part_genes]
        removable = (self._block_genes >= 0) | (self._expert_genes >= 0)
        return tuple(
            (*levels, DROP) if lost and DROP not in levels else levels
            for levels, lost in zip(own, removable.tolist(), strict=True)
        )

    def dropped(self, genomes: Genome) -> Booleans:
        """Which genes of genomes (N, U) are dropped (N, U)."""
        return np.asarray(genomes == self.drop_index)

    @latest
    def states(self, genomes: Genome) -> Integers:
        """For each part of genomes (N, U) the index of its level in `part_levels` (N, P)."""
        genes = self._part_genes
        own: Integers = genomes.take(np.maximum(genes, 0), axis=1)
        own[:, genes < 0] = 0
        for kind, owners in (("block", self._block_genes), ("expert", self._expert_genes)):
            if kind in self.by_kind:
                own = np.where(self._dropped_by(genomes, owners), self._drop_states, own)
        return own

    def states_after(
        self, genome: Genome, genes: Integers, levels: Integers
    ) -> tuple[Integers, Integers, Integers]:
        """`states` after each of K changes of one gene, for the parts that the gene is about.

        The genome is (U,), `genes` and `levels` are (K,). Three arrays (J,): the index of the
        change, the part and its state.
        """
        parts, begins = self._parts_of_genes
        if not parts.size:
            return parts, parts, parts
        change, place = members_of(genes, begins)
        part = parts[place]

        def after(owner: Integers) -> Integers:
            found: Integers = genome[np.maximum(owner, 0)]
            return np.where(owner == genes[change], levels[change], found)

        own = self._part_genes[part]
        state = np.where(own < 0, 0, after(own))
        for owners in (self._block_genes, self._expert_genes):
            owner = owners[part]
            lost = (owner >= 0) & (after(owner) == self.drop_index[np.maximum(owner, 0)])
            state = np.where(lost, self._drop_states[part], state)
        return change, part, state

    @latest
    def inactive(self, genomes: Genome) -> Booleans:
        """Which genes of genomes (N, U) lie below dropped units, with all members (N, U)."""
        if not self.droppable.size:
            return np.zeros(genomes.shape, dtype=bool)
        never = np.zeros((len(genomes), 1), dtype=bool)
        lost = self.states(genomes) == self._drop_states
        below = self._dropped_by(genomes, self._block_genes)
        columns = np.concatenate([lost, below, never], axis=1)
        homes, begins = self._inactive_columns
        return np.logical_and.reduceat(columns[:, homes], begins, axis=1)

    def deactivate(self, genomes: Genome) -> Genome:
        """The genomes (N, U) with inactive genes at their start: equal candidates, equal rows."""
        return np.where(self.inactive(genomes), self.default, genomes)

    def keep_attention(self, genomes: Genome) -> Booleans:
        """Which genomes (N, U) keep at least one attention: others cannot be written.

        All do of a model that never had any.
        """
        if self._attention_stays:
            return np.ones(len(genomes), dtype=bool)
        return np.asarray(np.logical_or.reduce(self.attention_left(genomes), axis=1))

    @cached_property
    def attentive(self) -> list[int]:
        """The droppable genes without any of which a model has no attention."""
        attending = {unit.block for unit in self.parts if unit.kind == "attention" and unit.attends}
        return [
            gene
            for gene in self.droppable
            if self.units[gene].kind in ATTENTIVE and self.units[gene].block in attending
        ]

    def attention_left(self, genomes: Genome) -> Booleans:
        """Which parts (N, P) are attentions that genomes (N, U) have; all where some must stay."""
        if self._attention_stays:
            return np.ones((len(genomes), len(self.parts)), dtype=bool)
        return np.asarray((self.states(genomes) != self._drop_states) & self._attention)

    def enough_experts(self, genomes: Genome) -> Booleans:
        """Which genomes (N, U) keep as many experts of each mixture as a token uses."""
        return np.asarray(~np.logical_or.reduce(self.short_mixtures(genomes), axis=1))

    def short_mixtures(self, genomes: Genome) -> Booleans:
        """Which parts (N, P) of genomes (N, U) are mixtures with too few experts for a token."""
        short = np.zeros((len(genomes), len(self.parts)), dtype=bool)
        for mixture in self.mixtures:
            missing = mixture.short(genomes, self._lost(genomes, mixture.part))
            short[:, mixture.part] |= missing > 0
        return short

    def admissible(self, genomes: Genome) -> Booleans:
        """Which genomes (N, U) keep an attention, and enough experts of each mixture."""
        admissible = self.keep_attention(genomes)
        if self.mixtures:
            admissible &= self.enough_experts(genomes)
        return admissible

    def with_experts(self, genomes: Genome, worth: Floats | None = None) -> Genome:
        """The genomes (N, U) with the dropped experts that are needed, of most worth (U,)."""
        restored = genomes
        for mixture in self.mixtures:
            short = mixture.short(genomes, self._lost(genomes, mixture.part))
            if (short > 0).any():
                restored = restored.copy() if restored is genomes else restored
                mixture.restore(restored, short, worth)
        return restored

    @cached_property
    def mixtures(self) -> tuple[ExpertGenes, ...]:
        """The MLPs whose experts can be dropped, one for each group."""
        return expert_genes(self.parts, self.tree, self._indices, self.drop_index)

    def _lost(self, genomes: Genome, part: int) -> Booleans:
        """Which genomes (N, U) drop a sub-layer, or its block."""
        drop = self._drop_states[part]
        if drop < 0:
            return np.zeros(len(genomes), dtype=bool)
        genes = [g for g in (self._part_genes[part], self._block_genes[part]) if g >= 0]
        return np.asarray((genomes[:, genes] == self.drop_index[genes]).any(axis=1))

    def candidate(self, genome: Genome) -> Candidate:
        """The canonical candidate of one genome (U,)."""
        content, known = genome.tobytes(), self._known
        found = known.get(content)
        if found is None:
            found = known[content] = self._candidate(genome)
            if len(known) > _KNOWN:
                del known[next(iter(known))]
        return found

    def _candidate(self, genome: Genome) -> Candidate:
        if not self.merges and self.enough_experts(genome[None])[0]:
            return self._table.candidate(self.states(genome[None])[0], genome)
        choices = zip(self.members, self.levels, genome.tolist(), strict=True)
        named = {unit.name: levels[index] for units, levels, index in choices for unit in units}
        if self.merges:
            named |= merge_levels(self.tree, {n for n, level in named.items() if level.drop})
        return canonical(named, self.tree)

    def genome(self, candidate: Candidate) -> Genome:
        """The genome (U,) of a canonical candidate, inactive genes at their start.

        Raises:
            ConfigError: The candidate names a unit or a level that the space does not have,
                or leaves a unit dense that the space always compresses.
        """
        genome = self.default.copy()
        # Parents first: what is dropped says which genes are inactive.
        for kind in ("block", *COSTED, "matrix"):
            live = ~self.inactive(genome[None])[0]
            for gene in self.by_kind.get(kind, ()):
                if live[gene]:
                    genome[gene] = self._read(gene, candidate)
        self._check_read(candidate, self.candidate(genome))
        return genome

    def _read(self, gene: int, candidate: Candidate) -> int:
        """The index of a gene's level in a candidate."""
        unit, levels = self.units[gene], self.levels[gene]
        named = candidate.by_name
        if unit.kind == "block":
            lost = [named.get(part.name) == DROP for part in self.tree.children[unit.name]]
            return levels.index(DROP if all(lost) else DENSE)
        found = [level_in(named, member, self.tree) for member in self.members[gene]]
        # What is above may have dropped some of the tied members, never all of them.
        level = next((level for level in found if level != DROP), DROP)
        index = self._level_indices[gene].get(level)
        if index is None:
            known = ", ".join(known.key for known in levels)
            raise ConfigError(f"unit '{unit.name}' has no level '{level.key}' here; it has {known}")
        return index

    @cached_property
    def _level_indices(self) -> tuple[dict[Level, int], ...]:
        return tuple({level: i for i, level in enumerate(levels)} for levels in self.levels)

    def _check_read(self, candidate: Candidate, read: Candidate) -> None:
        asked, got = candidate.by_name, read.by_name
        strays = sorted(asked.keys() - got.keys())
        if strays:
            raise ConfigError(f"unit '{strays[0]}' is not one that this search space compresses")
        other = sorted(name for name in got if asked.get(name) != got[name])
        if other:
            raise ConfigError(
                f"unit '{other[0]}' cannot be '{asked.get(other[0], DENSE).key}' in this search "
                f"space, where it goes with other units and would be '{got[other[0]].key}'"
            )

    def _dropped_by(self, genomes: Genome, genes: Integers) -> Booleans:
        """Which parts (N, P) are dropped by a gene of each (P,), where it has one."""
        return self.dropped(genomes)[:, np.maximum(genes, 0)] & (genes >= 0)

    @cached_property
    def _known(self) -> dict[bytes, Candidate]:
        return {}

    @cached_property
    def _table(self) -> CandidateTable:
        parts = zip(self.parts, self.part_levels, strict=True)
        return candidate_table(parts, self._drop_states, self.members, self.levels)

    @cached_property
    def _drop_states(self) -> Integers:
        """For each part the index of its drop in `part_levels`, -1 for none (P,)."""
        return drop_indices(self.part_levels)

    @cached_property
    def _attention(self) -> Booleans:
        """Which parts are attentions (P,)."""
        return np.array([unit.kind == "attention" and unit.attends for unit in self.parts])

    @cached_property
    def _attention_stays(self) -> bool:
        """Whether there is no attention, or one that cannot be dropped."""
        attention = self._attention
        return not attention.any() or bool((self._drop_states[attention] < 0).any())

    @cached_property
    def _part_genes(self) -> Integers:
        """For each sub-layer its gene, for an expert its MLP's, -1 for none (P,)."""
        names = [self.tree.sublayer(part).name for part in self.parts]
        return np.array([self._indices.get(name, -1) for name in names], dtype=np.int64)

    @cached_property
    def _expert_genes(self) -> Integers:
        """For each expert its own gene; -1 for none, and for other parts (P,)."""
        genes = [
            self._indices.get(part.name, -1) if part.kind == "expert" else -1 for part in self.parts
        ]
        return np.array(genes, dtype=np.int64)

    @cached_property
    def _block_genes(self) -> Integers:
        """For each part the gene of its block, -1 for none (P,)."""
        blocks = {unit.block: unit.name for unit in self.tree if unit.kind == "block"}
        genes = [self._indices.get(blocks.get(part.block, ""), -1) for part in self.parts]
        return np.array(genes, dtype=np.int64)

    @cached_property
    def _parts_of_genes(self) -> tuple[Integers, Integers]:
        """The parts that each gene is about, one gene's after the other, and where they begin."""
        owners = (self._part_genes, self._block_genes, self._expert_genes)
        return parts_of_genes(owners, len(self.units))

    @cached_property
    def _inactive_columns(self) -> tuple[Integers, Integers]:
        return inactive_columns(self.parts, self.members)

    @cached_property
    def _indices(self) -> dict[str, int]:
        return {unit.name: index for index, members in enumerate(self.members) for unit in members}
