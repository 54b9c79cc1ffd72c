"""The search space: which genomes there are, what they cost, and which meet the budget."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from evocompress.core.arrays import Booleans, Floats, Genome, Integers
from evocompress.core.types import Candidate, Level, Unit
from evocompress.space.costs import CostModel, CostTable
from evocompress.space.encoding import Encoding
from evocompress.space.latest import latest
from evocompress.space.part_genes import members_of

TOLERANCE = 1e-9
"""By how much, relatively, a bound may be exceeded: sums of floats are rounded."""


@dataclass(frozen=True, eq=False)
class SearchSpace:
    """Genomes, their costs and the budget. Build one with `evocompress.space.build.build_space`.

    Attributes:
        encoding: The units that are decided about, and the meaning of a genome.
        cost_model: The costs of any candidate of the model.
        table: The costs of the space's own levels.
        budget: Upper bounds on costs, absolute. Empty where nothing is bounded, which only a
            search over several objectives can use; see `evocompress.space.budget.require`.

    Examples:
        >>> from evocompress.testing.examples import space
        >>> small = space()
        >>> candidate = small.candidate(small.encoding.default)
        >>> small.genome(candidate).tolist() == small.encoding.default.tolist()
        True
    """

    encoding: Encoding
    cost_model: CostModel
    table: CostTable
    budget: dict[str, float] = field(default_factory=dict)

    @property
    def units(self) -> tuple[Unit, ...]:
        """For each of the U genes its (first) unit, in model order."""
        return self.encoding.units

    @property
    def levels(self) -> tuple[tuple[Level, ...], ...]:
        """For each gene its levels, from most to least parameters."""
        return self.encoding.levels

    @cached_property
    def typed(self) -> bool:
        """Whether matrices, or what is cached, have types."""
        return any(level.type for levels in self.levels for level in levels)

    @cached_property
    def bounds_bytes(self) -> bool:
        """Whether there is a budget, and types that units may have save some of each of its costs.

        Types of weights do not save what is cached, nor those of caches bytes of weights.
        """
        costs = [self.cost_model.costs[name] for name in self.budget]
        every = [level for levels in self.levels for level in levels]
        bits, cache = any(level.bits for level in every), any(level.cache for level in every)
        return bool(costs) and all(
            (bits and (cost.per_byte or cost.per_file_byte))
            or (cache and (cost.per_cached_byte or cost.per_served_byte))
            for cost in costs
        )

    def candidate(self, genome: Genome) -> Candidate:
        """The canonical candidate of a genome (U,)."""
        return self.encoding.candidate(genome)

    def genome(self, candidate: Candidate) -> Genome:
        """The genome (U,) of a canonical candidate.

        Raises:
            ConfigError: The candidate is not one of this space.
        """
        return self.encoding.genome(candidate)

    def deactivate(self, genomes: Genome) -> Genome:
        """The genomes (N, U) with inactive genes at their start: equal candidates, equal rows."""
        return self.encoding.deactivate(genomes)

    def costs(self, genomes: Genome) -> dict[str, Floats]:
        """For each cost of the cost model the values (N,) of genomes (N, U)."""
        return self.table.at(self.encoding.states(genomes), self._choices(genomes))

    @latest
    def budget_usage(self, genomes: Genome) -> Floats:
        """The budget's costs of genomes (N, U) as multiples of their bounds (N, bounds).

        At most 1 where a bound is met; the bounds are widened by a relative 1e-9.
        """
        costs = self._bounded.totals(self.encoding.states(genomes), self._choices(genomes))
        return costs / self._bounds

    def budget_usage_after(self, genome: Genome, genes: Integers, levels: Integers) -> Floats:
        """`budget_usage` (K, bounds) of a genome (U,) with one of its genes (K,) at levels (K,)."""
        change, matrix = members_of(genes, self._begins)
        costs = self._bounded.after(
            self.encoding.states(genome[None])[0],
            self._choices(genome[None])[0],
            len(genes),
            self.encoding.states_after(genome, genes, levels),
            (change, matrix, levels[change]),
        )
        return costs / self._bounds

    def budget_usage_by_part(self, genomes: Genome) -> Floats:
        """The shares (N, P, bounds) of `budget_usage` of each part of genomes (N, U).

        All parts together lack the base, which no candidate can save.
        """
        states = self.encoding.states(genomes)
        return self._bounded.by_part(states, self._choices(genomes)) / self._bounds

    def feasible(self, genomes: Genome) -> Booleans:
        """Which genomes (N, U) meet every bound, up to a relative 1e-9, and are admissible.

        See `evocompress.space.encoding.Encoding.admissible`.
        """
        feasible = self.encoding.admissible(genomes)
        feasible &= (self.budget_usage(genomes) <= 1).all(axis=1)
        return feasible

    @cached_property
    def moves(self) -> tuple[Integers, Integers]:
        """Every move of one gene: which gene, and the index of the new level (moves,).

        A matrix has but one, a step, whose level is -1.
        """
        genes, levels = self.encoding.options
        steps = self.encoding.ordinal[genes]
        first = ~steps | (levels == 0)
        return genes[first], np.where(steps, -1, levels)[first]

    def _choices(self, genomes: Genome) -> Integers:
        """The indices of the levels of the M matrices in genomes (N, U): (N, M)."""
        return genomes.take(self.encoding.stored[1], axis=1)

    @cached_property
    def _begins(self) -> Integers:
        """Where the matrices of each gene begin, and where the last one's end (U + 1,)."""
        return np.searchsorted(self.encoding.stored[1], np.arange(len(self.units) + 1))

    @cached_property
    def _bounds(self) -> Floats:
        """The bounds, widened by their tolerance (bounds,)."""
        return np.array(list(self.budget.values())) * (1 + TOLERANCE)

    @cached_property
    def _bounded(self) -> CostTable:
        """The costs that are bounded."""
        return self.table.only(tuple(self.budget))
