"""What this project hands to pymoo: how genomes are crossed, mutated, repaired and compared.

Importing this module loads pymoo, so only a running search does.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymoo.core.crossover import Crossover
from pymoo.core.duplicate import DuplicateElimination
from pymoo.core.mutation import Mutation
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.core.repair import Repair

from evocompress.core.arrays import Genome
from evocompress.space.repair import repair
from evocompress.space.space import SearchSpace

Move = Callable[[Genome, np.random.Generator], Genome]
"""Makes of one genome (U,) another one."""

CROSSOVER, MUTATION = 0.9, 0.9
"""Shares of the pairs that exchange genes and of the children that mutate (Deb et al. 2002)."""


class BlockExchange(Crossover):  # type: ignore[misc]
    """Children of two parents, who exchange each block with a chance of one half.

    A block of the model is inherited as a whole. Where the genes of all layers are tied there
    is one block, and each gene goes alone.
    """

    def __init__(self, space: SearchSpace, children: int = 2) -> None:
        """Takes the blocks of a space."""
        super().__init__(n_parents=2, n_offsprings=children, prob=CROSSOVER)
        blocks = np.unique([unit.block for unit in space.units], return_inverse=True)[1]
        self._blocks = blocks if blocks.any() else np.arange(len(blocks))

    def _do(
        self, problem: Problem, x: Genome, random_state: np.random.Generator, **pymoo: Any
    ) -> Genome:
        first, second = x
        groups = int(self._blocks.max()) + 1
        swapped = (random_state.random((len(first), groups)) < 0.5)[:, self._blocks]
        children: Genome = np.stack(
            [np.where(swapped, second, first), np.where(swapped, first, second)]
        )
        return children[: self.n_offsprings]


class Moves(Mutation):  # type: ignore[misc]
    """A move of one genome, made with each of them."""

    def __init__(self, mutate: Move) -> None:
        super().__init__(prob=MUTATION)
        self._mutate = mutate

    def _do(
        self, problem: Problem, x: Genome, random_state: np.random.Generator, **pymoo: Any
    ) -> Genome:
        return np.stack([self._mutate(genome, random_state) for genome in x])


class Feasible(Repair):  # type: ignore[misc]
    """Void genes at their start, an attention kept, and the budget met where there is one."""

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        self._space = space

    def _do(
        self, problem: Problem, x: Genome, random_state: np.random.Generator, **pymoo: Any
    ) -> Genome:
        genomes = x.astype(np.int64)
        return np.stack([repair(self._space, genome, random_state) for genome in genomes])


class NeverTwice(DuplicateElimination):  # type: ignore[misc]
    """Removes equal genomes, and those that are known from any generation before."""

    def __init__(self, known: Container[bytes]) -> None:
        super().__init__()
        self._known = known

    def do(self, pop: Population, *others: Population, **pymoo: Any) -> Population:
        """Those of the population that are neither known nor among the others."""
        seen = {key for other in others for key in keys(other)}
        fresh = []
        for index, key in enumerate(keys(pop)):
            if key not in seen and key not in self._known:
                seen.add(key)
                fresh.append(index)
        return pop[fresh]


def feasible_first(
    pop: Population, pairs: NDArray[np.int64], random_state: np.random.Generator, **pymoo: Any
) -> NDArray[np.int64]:
    """One (K, 1) of each pair (K, 2) of indices in `pop`, drawn from those that did not fail.

    In place of pymoo's for NSGA-III, which draws among two failed ones without a seed.
    """
    failed = pop.get("CV")[:, 0][pairs] > 0
    second = np.where(
        failed[:, 0] == failed[:, 1], random_state.random(len(pairs)) < 0.5, failed[:, 0]
    )
    return np.where(second, pairs[:, 1], pairs[:, 0])[:, None]


def keys(population: Population) -> list[bytes]:
    """What tells the genomes of a population apart."""
    return [individual.X.tobytes() for individual in population]
