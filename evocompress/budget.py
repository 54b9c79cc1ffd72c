"""Budgets: upper bounds on costs, and how a genome is brought below them.

Every level costs at most what the level before it costs. Hence the most compressed genome
meets every bound that any genome meets, and raising levels one by one ends at a feasible one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from evocompress.config_file import nearest
from evocompress.costs import COSTS, CostModel
from evocompress.errors import BudgetError, ConfigError

if TYPE_CHECKING:
    from evocompress.genes import Genome
    from evocompress.space import SearchSpace

TOLERANCE = 1e-9


def resolve(budget: Mapping[str, float], model: CostModel) -> dict[str, float]:
    """Absolute bounds; a bound of at most 1 is a fraction of the dense model's cost.

    Raises:
        ConfigError: A cost is unknown.
    """
    dense = model.dense()
    for name in budget:
        if name not in dense:
            raise ConfigError(f"space.budget: unknown cost '{name}'; {nearest(name, COSTS)}")
    return {
        name: bound * dense[name] if bound <= 1 else float(bound) for name, bound in budget.items()
    }


def check_reachable(space: SearchSpace) -> None:
    """Refuse a budget that even the most compressed genome exceeds.

    Raises:
        BudgetError: With the range of the cost that the space can reach.
    """
    ends = space.costs(np.stack([np.zeros_like(space.genes.sizes), space.genes.sizes - 1]))
    dense = space.cost_model.dense()
    for name, bound in space.budget.items():
        most, least = ends[name].tolist()
        if least > bound * (1 + TOLERANCE):
            raise BudgetError(
                f"space.budget.{name}: {_amount(bound, dense[name])} cannot be reached; this "
                f"space spans {_amount(least, dense[name])} to {_amount(most, dense[name])}: "
                "raise the bound or let the space compress more"
            )


def repair(space: SearchSpace, genome: Genome, rng: np.random.Generator) -> Genome:
    """A genome (U,) that meets the budget, by compressing random units that matter for it.

    Levels are raised by one in random order until the budget holds; the last of these moves
    is the one among all possible that overshoots least. A feasible genome is not changed.
    """
    genome = space.settle(genome[None])[0]
    while not space.feasible(genome[None])[0]:
        genome = space.settle(_meet_one_bound(space, genome, rng)[None])[0]
    return genome


def spend(space: SearchSpace, genome: Genome, rng: np.random.Generator) -> Genome:
    """A feasible genome (U,) with matrices relaxed in random order until a bound is reached.

    Where no bound depends on the matrices nothing is changed: there is nothing to spend.
    """
    matrices = space.genes.matrices
    path = _path(genome, _shuffled(matrices, genome[matrices], rng), step=-1)
    feasible = space.feasible(path)
    if feasible.all():
        return genome
    relaxed: Genome = space.settle(path[int(np.argmin(feasible)) - 1][None])[0]
    return relaxed


def _meet_one_bound(space: SearchSpace, genome: Genome, rng: np.random.Generator) -> Genome:
    """Raises levels until one of the exceeded bounds holds."""
    names = [name for name in space.budget if _relative(space, genome[None], [name])[0, 0] > 1]
    helpful = _helpful(space, genome, names)
    left = space.genes.sizes[helpful] - 1 - genome[helpful]
    path = _path(genome, _shuffled(helpful, left, rng), step=1)
    met = (_relative(space, path, names) <= 1).any(axis=1)
    before = path[int(np.argmax(met)) - 1]
    choices = before + np.eye(len(genome), dtype=np.int64)[_raisable(space, before)]
    choices = rng.permutation(choices)
    values = _relative(space, choices, names)
    slack = np.where(values <= 1, 1 - values, np.inf).min(axis=1)
    best: Genome = choices[int(np.argmin(slack))]
    return best


def _helpful(space: SearchSpace, genome: Genome, names: list[str]) -> NDArray[np.int64]:
    """The units whose next level lowers one of the named costs."""
    raisable = _raisable(space, genome)
    raised = genome + np.eye(len(genome), dtype=np.int64)[raisable]
    gain = _relative(space, genome[None], names) - _relative(space, raised, names)
    return raisable[(gain > 0).any(axis=1)]


def _raisable(space: SearchSpace, genome: Genome) -> NDArray[np.int64]:
    """The units that are not void and have a next level."""
    return np.flatnonzero(~space.genes.void(genome[None])[0] & (genome < space.genes.sizes - 1))


def _relative(space: SearchSpace, genomes: Genome, names: list[str]) -> NDArray[np.float64]:
    """Costs as multiples of their bounds with the tolerance included (N, names)."""
    costs = space.costs(genomes)
    bounds = [space.budget[name] * (1 + TOLERANCE) for name in names]
    return np.stack([costs[name] / bound for name, bound in zip(names, bounds, strict=True)], 1)


def _shuffled(
    units: NDArray[np.int64], times: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Each unit as often as its number of steps, in random order."""
    return rng.permutation(np.repeat(units, times))


def _path(genome: Genome, moves: NDArray[np.int64], step: int) -> Genome:
    """The genomes (moves + 1, U) from `genome` on, one move of one unit between two."""
    changes = np.zeros((len(moves) + 1, len(genome)), dtype=np.int64)
    changes[np.arange(1, len(moves) + 1), moves] = step
    path: Genome = genome + changes.cumsum(axis=0)
    return path


def _amount(value: float, dense: float) -> str:
    return f"{value:.5g} ({value / dense:.1%} of dense)" if dense else f"{value:.5g}"
