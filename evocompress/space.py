"""The search space: which genomes there are, what they cost, and which meet the budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from evocompress import budget as budgets
from evocompress import repair as repairs
from evocompress import start
from evocompress.admissible import check_patterns, droppable, sparsity_levels, width_levels
from evocompress.canonical import SUBLAYERS, canonical, unlike_blocks
from evocompress.config import SpaceConfig
from evocompress.costs import CostModel, CostTable, LatencyTable, cost_model
from evocompress.errors import ConfigError
from evocompress.fitting import Obstacle, fitting
from evocompress.genes import Genes, Genome
from evocompress.types import DENSE, DROP, Architecture, Candidate, Level, Unit

__all__ = ["Genome", "SearchSpace", "build_space", "canonical"]


@dataclass(frozen=True, eq=False)
class SearchSpace:
    """Genomes, their costs and the budget. Build one with `build_space`.

    Attributes:
        genes: The units that are decided about, and the meaning of a genome.
        cost_model: The costs of any candidate of the model.
        table: The costs of the space's own levels.
        budget: Upper bounds on costs, absolute. Empty where nothing is bounded, which only a
            search over several objectives can use; see `evocompress.budget.require`.
    """

    genes: Genes
    cost_model: CostModel
    table: CostTable
    budget: dict[str, float] = field(default_factory=dict)

    @property
    def units(self) -> tuple[Unit, ...]:
        """For each of the U genes its (first) unit, in model order."""
        return self.genes.units

    @property
    def levels(self) -> tuple[tuple[Level, ...], ...]:
        """For each gene its levels, from most to least parameters."""
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
        """For each cost of the cost model the values (N,) of genomes (N, U)."""
        return self.table.at(self.genes.states(genomes), genomes.take(self.genes.matrices, axis=1))

    def used(self, genomes: Genome) -> NDArray[np.float64]:
        """The budget's costs of genomes (N, U) as multiples of their bounds (N, bounds).

        At most 1 where a bound is met; the bounds are widened by a relative 1e-9.
        """
        costs = self._bounded.totals(
            self.genes.states(genomes), genomes.take(self.genes.matrices, axis=1)
        )
        used: NDArray[np.float64] = costs / self._bounds
        return used

    def used_after(
        self, genome: Genome, genes: NDArray[np.int64], levels: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """`used` after each of K changes of one gene of a genome (U,): (K, bounds).

        Args:
            genome: Before each change.
            genes: Which gene each changes (K,).
            levels: The index of its new level (K,).
        """
        matrix = self._places[genes]
        costs = self._bounded.after(
            self.genes.states(genome[None])[0],
            genome[self.genes.matrices],
            self.genes.states_after(genome, genes, levels),
            matrix,
            np.where(matrix < 0, 0, levels),
        )
        used: NDArray[np.float64] = costs / self._bounds
        return used

    def used_by_part(self, genomes: Genome) -> NDArray[np.float64]:
        """What each part of genomes (N, U) adds to `used` (N, P, bounds).

        All parts together lack what no candidate can save.
        """
        choices = genomes.take(self.genes.matrices, axis=1)
        used: NDArray[np.float64] = (
            self._bounded.by_part(self.genes.states(genomes), choices) / self._bounds
        )
        return used

    def feasible(self, genomes: Genome) -> NDArray[np.bool_]:
        """Which genomes (N, U) meet every bound, up to a relative 1e-9, and are admissible.

        See `evocompress.genes.Genes.admissible`.
        """
        feasible = self.genes.admissible(genomes)
        feasible &= (self.used(genomes) <= 1).all(axis=1)
        return feasible

    def uniform(self) -> Genome:
        """The even feasible genome (U,); see `evocompress.start.uniform`."""
        return start.uniform(self)

    def random(self, rng: np.random.Generator) -> Genome:
        """A random feasible genome (U,); see `evocompress.start.random`."""
        return start.random(self, rng)

    def repair(self, genome: Genome, rng: np.random.Generator) -> Genome:
        """The genome (U,) compressed further, at random, until it meets the budget."""
        return repairs.repair(self, genome, rng)

    @cached_property
    def _places(self) -> NDArray[np.int64]:
        """For each gene its place among the matrices (U,), -1 for others."""
        places = np.full(len(self.units), -1, dtype=np.int64)
        places[self.genes.matrices] = np.arange(len(self.genes.matrices))
        return places

    @cached_property
    def _bounds(self) -> NDArray[np.float64]:
        """The bounds, widened by their tolerance (bounds,)."""
        return np.array(list(self.budget.values())) * (1 + budgets.TOLERANCE)

    @cached_property
    def _bounded(self) -> CostTable:
        """The costs that are bounded."""
        return self.table.only(tuple(self.budget))


def build_space(
    units: Sequence[Unit],
    architecture: Architecture,
    config: SpaceConfig,
    *,
    length: int | None = None,
    adds_bias: bool = False,
    latency: LatencyTable | None = None,
    obstacle: Obstacle | None = None,
) -> SearchSpace:
    """The search space that a configuration describes for a model.

    Without a budget a space of sparsities is bounded by the non-zero weights of its uniform
    genome, and another by nothing.

    Args:
        units: All units of the model, parents before their children.
        architecture: The model's dimensions.
        config: What may be compressed and within which budget.
        length: Tokens of the sequence that FLOPs and cache are counted for; see `cost_model`.
        adds_bias: Whether the width criterion gives the output of a narrowed sub-layer a bias
            (`evocompress.criteria.base.StructuredCriterion`). Levels say so where the output
            matrix has none of its own.
        latency: The table of the costs ``latency`` and ``decode_latency``.
        obstacle: What keeps the format that ``fits`` names from expressing a candidate, if
            something does. Levels for which there is such a thing are left out.

    Raises:
        ConfigError: A value of the configuration does not fit the model.
        BudgetError: No genome meets the budget.
    """
    if config.drop and config.drop.merge and any(unit.positions for unit in units):
        raise ConfigError(
            "space.drop.merge: blocks of convolutions cannot be merged, because their batch norms "
            "would not fit the merged matrices; leave merge out"
        )
    if config.drop and config.drop.merge and (other := unlike_blocks(units)):
        raise ConfigError(f"space.drop.merge: {other}; leave merge out")
    genes = _genes(units, architecture, config, adds_bias)
    if obstacle is not None:
        genes = fitting(genes, obstacle, f"space.fits: format '{config.fits}'")
    model = cost_model(units, architecture, length=length, latency=latency)
    matrices = {genes.units[index].name: genes.levels[index] for index in genes.matrices}
    table = model.table(genes.part_levels, matrices)
    space = SearchSpace(genes, model, table, budgets.resolve(config.budget, model))
    if config.budget:
        budgets.check_reachable(space)
    elif config.sparsity and not (config.width or config.drop):
        nonzeros = space.costs(genes.start[None])["matrix_nonzeros"].item()
        return replace(space, budget={"matrix_nonzeros": nonzeros})
    return space


def _genes(
    units: Sequence[Unit], architecture: Architecture, config: SpaceConfig, adds_bias: bool
) -> Genes:
    _check_combination(config)
    removable: frozenset[str] = frozenset()
    narrow: dict[str, tuple[Level, ...]] = {}
    levels: dict[str, tuple[Level, ...]] = {}
    targets: dict[str, int] = {}
    if config.drop:
        removable = droppable(units, config.drop)
    if config.width:
        narrow = width_levels(units, architecture, config.width, adds_bias=adds_bias)
    for unit in units:
        smaller = (*narrow.get(unit.name, ()), *((DROP,) if unit.name in removable else ()))
        if smaller:
            levels[unit.name] = (DENSE, *smaller)
    if config.sparsity:
        for name, (choice, target) in sparsity_levels(units, architecture, config.sparsity).items():
            levels[name], targets[name] = choice, target
        check_patterns(units, narrow, levels, architecture.head_dim)
    members = _members([unit for unit in units if unit.name in levels], config)
    return Genes(
        tree=tuple(units),
        members=members,
        levels=tuple(levels[first.name] for first, *_ in members),
        start=np.array([targets.get(first.name, 0) for first, *_ in members], dtype=np.int64),
        merges=bool(config.drop and config.drop.merge),
    )


def _members(units: Sequence[Unit], config: SpaceConfig) -> tuple[tuple[Unit, ...], ...]:
    """Which units share a gene: each has its own, but for the sub-layers of a uniform width."""
    uniform = config.width is not None and config.width.uniform
    tied: dict[str, list[Unit]] = {}
    for unit in units:
        shared = uniform and unit.kind in SUBLAYERS
        tied.setdefault(unit.kind if shared else unit.name, []).append(unit)
    return tuple(tuple(members) for members in tied.values())


def _check_combination(config: SpaceConfig) -> None:
    """Refuse parts of a space that contradict each other."""
    if not (config.sparsity or config.width or config.drop):
        raise ConfigError(
            "space: nothing may be compressed; give 'sparsity', 'width', 'drop' or several"
        )
    if config.drop and config.drop.merge and (config.width or config.sparsity):
        raise ConfigError(
            "space.drop.merge: merged blocks can be neither narrowed nor given zeros; leave out "
            "'width' and 'sparsity'"
        )
    if config.width and config.width.uniform and config.drop and config.drop.units != ("block",):
        raise ConfigError(
            "space.width.uniform makes all layers alike, so only whole blocks can be dropped: "
            "give space.drop.units [block]"
        )
