"""NSGA-II as pymoo has it, asked for genomes and told their points.

Deb et al. 2002, "A fast and elitist multiobjective genetic algorithm: NSGA-II". Selection,
non-dominated sorting and crowding are pymoo's; crossover, mutation and repair are of this
project, because its genomes are levels and not numbers. All randomness comes from one seed:
pymoo 0.6.2 hands a generator of its own to every operator.

Importing this module loads pymoo, so only a running search does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.crossover import Crossover
from pymoo.core.duplicate import DuplicateElimination
from pymoo.core.mutation import Mutation
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.core.repair import Repair
from pymoo.core.termination import NoTermination

from evocompress.pareto import Points
from evocompress.space import Genome, SearchSpace

Move = Callable[[Genome, np.random.Generator], Genome]
"""Makes of one genome (U,) another one."""

CROSSOVER, MUTATION = 0.9, 0.9
"""Shares of the pairs that exchange genes and of the children that mutate (Deb et al. 2002)."""


class Evolution:
    """A population that is asked for new genomes and told how good they are.

    No genome is given out twice: pymoo does not evaluate survivors again, and neither need
    the search, as all are measured on the same tokens.
    """

    def __init__(
        self,
        space: SearchSpace,
        seeds: Genome,
        mutate: Move,
        *,
        objectives: int,
        population: int,
        offspring: int,
        rng: np.random.Generator,
    ) -> None:
        """Prepares the first population.

        Args:
            space: Gives the levels, and repairs what exceeds the budget.
            seeds: The first population (N, U).
            mutate: The mutation of one genome.
            objectives: Coordinates of a point.
            population: How many survive a generation.
            offspring: How many are new in one.
            rng: Gives pymoo's seed.
        """
        self._unseen = _NeverTwice()
        self._algorithm = NSGA2(
            pop_size=population,
            n_offsprings=offspring,
            sampling=seeds,
            crossover=_BlockExchange(_blocks(space)),
            mutation=_Move(mutate),
            repair=_Feasible(space),
            eliminate_duplicates=self._unseen,
        )
        self._algorithm.setup(
            Problem(
                n_var=len(space.units),
                n_obj=objectives,
                n_ieq_constr=1,
                xl=np.zeros_like(space.genes.sizes),
                xu=space.genes.sizes - 1,
                vtype=int,
            ),
            termination=NoTermination(),
            seed=int(rng.integers(2**32)),
        )
        self._asked: Any = None

    def ask(self) -> list[Genome]:
        """New feasible genomes (U,); none where the space has no more within reach."""
        asked = self._algorithm.ask()
        self._asked = Population.create() if asked is None else asked
        self._unseen.given.update(_keys(self._asked))
        return [individual.X.astype(np.int64) for individual in self._asked]

    def tell(self, points: Points) -> None:
        """The points (N, M) of the first N genomes of the last `ask`, to be small everywhere.

        One with an infinite coordinate failed: it is worse than every other one.
        """
        valid = np.isfinite(points).all(axis=1, keepdims=True)
        measured = self._asked[: len(points)]
        measured.set("F", np.where(valid, points, 0.0))
        measured.set("G", np.where(valid, -1.0, 1.0))
        self._algorithm.tell(infills=measured)


def _blocks(space: SearchSpace) -> NDArray[np.int64]:
    """For each gene the group (U,) with which it is inherited: its block of the model.

    Where the genes of all layers are tied there is one block, and each gene goes alone.
    """
    blocks = np.unique([unit.block for unit in space.units], return_inverse=True)[1]
    return blocks if blocks.any() else np.arange(len(blocks))


class _BlockExchange(Crossover):  # type: ignore[misc]
    """Two children of two parents, who exchange each block with a chance of one half."""

    def __init__(self, blocks: NDArray[np.int64]) -> None:
        super().__init__(n_parents=2, n_offsprings=2, prob=CROSSOVER)
        self._blocks = blocks

    def _do(
        self, problem: Problem, x: Genome, random_state: np.random.Generator, **pymoo: Any
    ) -> Genome:
        first, second = x
        groups = int(self._blocks.max()) + 1
        swapped = (random_state.random((len(first), groups)) < 0.5)[:, self._blocks]
        children: Genome = np.stack(
            [np.where(swapped, second, first), np.where(swapped, first, second)]
        )
        return children


class _Move(Mutation):  # type: ignore[misc]
    def __init__(self, mutate: Move) -> None:
        super().__init__(prob=MUTATION)
        self._mutate = mutate

    def _do(
        self, problem: Problem, x: Genome, random_state: np.random.Generator, **pymoo: Any
    ) -> Genome:
        return np.stack([self._mutate(genome, random_state) for genome in x])


class _Feasible(Repair):  # type: ignore[misc]
    """Void genes at their start, an attention kept, and the budget met where there is one."""

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        self._space = space

    def _do(
        self, problem: Problem, x: Genome, random_state: np.random.Generator, **pymoo: Any
    ) -> Genome:
        genomes = x.astype(np.int64)
        return np.stack([self._space.repair(genome, random_state) for genome in genomes])


class _NeverTwice(DuplicateElimination):  # type: ignore[misc]
    """Removes equal genomes, and those that were given out in any generation before."""

    def __init__(self) -> None:
        super().__init__()
        self.given: set[bytes] = set()

    def do(self, pop: Population, *others: Population, **pymoo: Any) -> Population:
        known = self.given.union(*(_keys(other) for other in others))
        fresh = []
        for index, key in enumerate(_keys(pop)):
            if key not in known:
                known.add(key)
                fresh.append(index)
        return pop[fresh]


def _keys(population: Population) -> list[bytes]:
    return [individual.X.tobytes() for individual in population]
