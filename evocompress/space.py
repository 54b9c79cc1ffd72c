"""The search space: which genomes there are, what they cost, and which meet the budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from evocompress import budget as budgets
from evocompress import start
from evocompress.admissible import drop_levels, sparsity_levels
from evocompress.config import SpaceConfig
from evocompress.costs import CostModel, cost_model
from evocompress.errors import ConfigError
from evocompress.genes import Genes, Genome, canonical
from evocompress.types import Architecture, Candidate, Level, Unit

__all__ = ["Genome", "SearchSpace", "build_space", "canonical"]


@dataclass(frozen=True, eq=False)
class SearchSpace:
    """Genomes, their costs and the budget. Build one with `build_space`.

    Attributes:
        genes: The units that are decided about, and the meaning of a genome.
        cost_model: The costs of any candidate of the model.
        budget: Upper bounds on costs, absolute.
    """

    genes: Genes
    cost_model: CostModel
    budget: dict[str, float] = field(default_factory=dict)

    @property
    def units(self) -> tuple[Unit, ...]:
        """The U units that have a gene, in model order."""
        return self.genes.units

    @property
    def levels(self) -> tuple[tuple[Level, ...], ...]:
        """For each gene its levels, from least to most compressed."""
        return self.genes.levels

    def candidate(self, genome: Genome) -> Candidate:
        """The canonical candidate of a genome (U,)."""
        return self.genes.candidate(genome)

    def genome(self, candidate: Candidate) -> Genome:
        """The genome (U,) of a canonical candidate.

        Raises:
            ConfigError: The candidate is not one of this space.
        """
        return self.genes.genome(candidate)

    def settle(self, genomes: Genome) -> Genome:
        """The genomes (N, U) with void genes at their start: equal candidates, equal rows."""
        return self.genes.settle(genomes)

    def costs(self, genomes: Genome) -> dict[str, NDArray[np.float64]]:
        """For each cost of `evocompress.costs.COSTS` the values (N,) of genomes (N, U)."""
        return self.cost_model.at(*self.genes.states(genomes))

    def feasible(self, genomes: Genome) -> NDArray[np.bool_]:
        """Which of the genomes (N, U) meet every bound, up to a relative 1e-9."""
        costs = self.costs(genomes)
        met = np.ones(len(genomes), dtype=bool)
        for name, bound in self.budget.items():
            met &= costs[name] <= bound * (1 + budgets.TOLERANCE)
        return met

    def uniform(self) -> Genome:
        """The even feasible genome (U,); see `evocompress.start.uniform`."""
        return start.uniform(self)

    def random(self, rng: np.random.Generator) -> Genome:
        """A random feasible genome (U,); see `evocompress.start.random`."""
        return start.random(self, rng)

    def repair(self, genome: Genome, rng: np.random.Generator) -> Genome:
        """The genome (U,) compressed further, at random, until it meets the budget."""
        return budgets.repair(self, genome, rng)


def build_space(
    units: Sequence[Unit],
    architecture: Architecture,
    config: SpaceConfig,
    *,
    length: int | None = None,
) -> SearchSpace:
    """The search space that a configuration describes for a model.

    Without a budget a space of sparsities is bounded by the non-zero weights of its uniform
    genome.

    Args:
        units: All units of the model, parents before their children.
        architecture: The model's dimensions.
        config: What may be compressed and within which budget.
        length: Tokens of the sequence that FLOPs and cache are counted for; see `cost_model`.

    Raises:
        ConfigError: A value of the configuration does not fit the model.
        BudgetError: No genome meets the budget.
    """
    genes = _genes(units, architecture, config)
    model = cost_model(units, architecture, length=length)
    if config.budget:
        space = SearchSpace(genes, model, budgets.resolve(config.budget, model))
        budgets.check_reachable(space)
        return space
    if config.drop:
        raise ConfigError(
            "space.budget is missing: a space with 'drop' needs one, e.g. {body_params: 0.75}"
        )
    nonzeros = model.at(*genes.states(genes.start[None]))["matrix_nonzeros"].item()
    return SearchSpace(genes, model, {"matrix_nonzeros": nonzeros})


def _genes(units: Sequence[Unit], architecture: Architecture, config: SpaceConfig) -> Genes:
    if config.sparsity is None and config.drop is None:
        raise ConfigError("space: nothing may be compressed; give 'sparsity', 'drop' or both")
    levels: dict[str, tuple[Level, ...]] = {}
    targets: dict[str, int] = {}
    if config.drop is not None:
        levels |= drop_levels(units, config.drop)
    if config.sparsity is not None:
        for name, (choice, target) in sparsity_levels(units, architecture, config.sparsity).items():
            levels[name], targets[name] = choice, target
    chosen = tuple(unit for unit in units if unit.name in levels)
    return Genes(
        tree=tuple(units),
        units=chosen,
        levels=tuple(levels[unit.name] for unit in chosen),
        start=np.array([targets.get(unit.name, 0) for unit in chosen], dtype=np.int64),
    )
