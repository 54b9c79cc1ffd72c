"""MOEA/D as pymoo has it, for objectives of unlike units and for candidates that fail.

Zhang & Li 2007, "MOEA/D: a multiobjective evolutionary algorithm based on decomposition".
Parents and weightings are pymoo's; but it compares the objectives as they are, and a parameter
count would outweigh any value. So they are scaled from the best value found to the worst of the
present front, as the paper advises. Importing this module loads pymoo.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymoo.algorithms.moo.moead import ParallelMOEAD
from pymoo.core.individual import Individual
from pymoo.core.population import Population

from evocompress.core.pareto import Points, non_dominated


class Decomposed(ParallelMOEAD):  # type: ignore[misc]
    """A population with one member for each direction, which a better child replaces.

    A point with an infinite coordinate failed: any other one is better.
    """

    pop: Population

    def _initialize_advance(self, infills: Population, **pymoo: Any) -> None:
        self.ideal = np.full(self.ref_dirs.shape[1], np.inf)
        points = infills.get("F")
        self._look(points)
        # Who comes first in the population stands for no direction yet.
        self.pop = infills[self._distances(points).argmin(axis=0)]

    def _advance(self, infills: Population, **pymoo: Any) -> None:
        self._look(np.concatenate([self.pop.get("F"), infills.get("F")]))
        for direction, child in zip(self.indices, infills, strict=True):
            self._replace(direction, child)

    def _replace(self, k: int, off: Individual) -> None:
        """The child takes the place of the neighbours of a direction that are worse."""
        near = self.neighbors[k]
        present = self._distances(self.pop[near].get("F"))[np.arange(len(near)), near]
        better = self._distances(off.F[None])[0, near] < present
        self.pop[near[better]] = off

    def _look(self, points: Points) -> None:
        """Notes the best of every coordinate, and how far the front of the points goes."""
        front = points[non_dominated(points)]
        if not len(front):
            return
        self.ideal = np.vstack([self.ideal, front]).min(axis=0)
        length = np.vstack([self.ideal, front]).max(axis=0) - self.ideal
        self._length = np.where(length > 0, length, 1.0)

    def _distances(self, points: Points) -> NDArray[np.float64]:
        """How far points (N, M) are from the ideal one, by the weighting of each direction (N, D).

        Infinitely far where they failed.
        """
        distances = np.full((len(points), len(self.ref_dirs)), np.inf)
        valid = np.isfinite(points).all(axis=1)
        if valid.any():
            scaled = (points[valid] - self.ideal) / self._length
            distances[valid] = self.decomposition.do(scaled, self.ref_dirs, _type="many_to_many")
        return distances
