"""Evolutions of pymoo, asked for genomes and told their points.

Selection and survival are pymoo's; crossover, mutation and repair are of this project, because
its genomes are levels and not numbers. All randomness comes from one seed: pymoo 0.6.2 hands a
generator of its own to every operator.

Importing this module loads pymoo, so only a running search does.
"""

from __future__ import annotations

from collections.abc import Callable
from math import comb
from typing import Any

import numpy as np
from pymoo.algorithms.base.genetic import GeneticAlgorithm
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.algorithms.moo.nsga3 import NSGA3
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.core.termination import NoTermination
from pymoo.operators.selection.tournament import TournamentSelection
from pymoo.util.ref_dirs import get_reference_directions

from evocompress.core.arrays import Genome
from evocompress.core.pareto import Points
from evocompress.search.evolution.decomposition import Decomposed
from evocompress.search.operators.pymoo_operators import (
    BlockExchange,
    Feasible,
    Move,
    Moves,
    NeverTwice,
    feasible_first,
    keys,
)
from evocompress.space.space import SearchSpace

_TRIES = 100


def _nsga2(objectives: int, space: SearchSpace, **parts: Any) -> GeneticAlgorithm:
    """Deb et al. 2002: non-dominated sorting and crowding."""
    return NSGA2(crossover=BlockExchange(space), **parts)


def _nsga3(objectives: int, space: SearchSpace, **parts: Any) -> GeneticAlgorithm:
    """Deb & Jain 2014: non-dominated sorting and reference directions."""
    directions = reference_directions(objectives, parts["pop_size"])
    parts["pop_size"] = max(parts["pop_size"], len(directions))
    selection = TournamentSelection(func_comp=feasible_first)
    return NSGA3(directions, selection=selection, crossover=BlockExchange(space), **parts)


def _moead(objectives: int, space: SearchSpace, **parts: Any) -> GeneticAlgorithm:
    """Zhang & Li 2007: one candidate for each direction, neighbours a fifth of the others."""
    seeds = parts["sampling"]
    directions = reference_directions(objectives, len(seeds))
    return Decomposed(
        directions,
        n_neighbors=max(2, len(directions) // 5),
        n_offsprings=min(parts["n_offsprings"], len(directions)),
        # A space that is too small for as many candidates has some of them twice.
        sampling=np.resize(seeds, (len(directions), seeds.shape[1])),
        crossover=BlockExchange(space, children=1),
        mutation=parts["mutation"],
        repair=parts["repair"],
    )


ALGORITHMS: dict[str, Callable[..., GeneticAlgorithm]] = {
    "nsga2": _nsga2,
    "nsga3": _nsga3,
    "moead": _moead,
}


class Evolution:
    """A population that is asked for new genomes and told how good they are.

    No genome is given out twice: pymoo does not evaluate survivors again, and neither need
    the search, as all are measured on the same tokens. An algorithm that makes a child again
    is told its point from memory.
    """

    def __init__(
        self,
        algorithm: str,
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

        `seeds` (N, U) are its genomes. Each genome has this number of `objectives`, a `population`
        survives each generation, which has `offspring` new genomes.
        """
        self._known: dict[bytes, Points] = {}
        self._algorithm = ALGORITHMS[algorithm](
            objectives,
            space,
            pop_size=population,
            n_offsprings=offspring,
            sampling=seeds,
            mutation=Moves(mutate),
            repair=Feasible(space),
            eliminate_duplicates=NeverTwice(self._known),
        )
        self._algorithm.setup(
            Problem(
                n_var=len(space.units),
                n_obj=objectives,
                n_ieq_constr=0 if algorithm == "moead" else 1,
                xl=np.zeros_like(space.encoding.sizes),
                xu=space.encoding.sizes - 1,
                vtype=int,
            ),
            termination=NoTermination(),
            seed=int(rng.integers(2**32)),
        )
        self._failed = np.full(objectives, np.inf)
        self._asked: Any = Population.create()
        self._new: dict[bytes, Genome] = {}

    def ask(self) -> list[Genome]:
        """New feasible genomes (U,); none where the space has no more within reach."""
        for _ in range(_TRIES):
            asked = self._algorithm.ask()
            self._asked = Population.create() if asked is None else asked
            self._new = {
                key: individual.X.astype(np.int64)
                for key, individual in zip(keys(self._asked), self._asked, strict=True)
                if key not in self._known
            }
            if self._new or not len(self._asked):
                break
            self._advance()
        return list(self._new.values())

    def tell(self, points: Points) -> None:
        """The points (N, M) of the first N genomes of the last `ask`, to be small everywhere.

        One with an infinite coordinate failed: it is worse than every other one. So does a
        genome whose point is not told.
        """
        told = dict(zip(self._new, points, strict=False))
        self._known.update({key: told.get(key, self._failed) for key in self._new})
        self._advance()

    def _advance(self) -> None:
        """Lets the algorithm choose, all that it asked for being known."""
        points = np.stack([self._known[key] for key in keys(self._asked)])
        valid = np.isfinite(points).all(axis=1, keepdims=True)
        self._asked.set("F", np.where(valid, points, np.inf))
        self._asked.set("G", np.where(valid, -1.0, 1.0))
        self._algorithm.tell(infills=self._asked)


def reference_directions(objectives: int, most: int) -> Points:
    """Up to `most` weightings (D, M) that lie evenly, but never fewer than objectives.

    Das & Dennis 1998: all whose weights are multiples of a fraction 1/p and sum to 1.
    """
    parts = 1
    while comb(objectives + parts, parts + 1) <= most:
        parts += 1
    return np.asarray(get_reference_directions("das-dennis", objectives, n_partitions=parts))
