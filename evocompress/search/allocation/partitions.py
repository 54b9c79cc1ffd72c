"""Ranges of consecutive blocks, each compressed alone to trade distortion for costs."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isqrt

import numpy as np
from numpy.typing import NDArray

from evocompress.core.arrays import Genome
from evocompress.core.errors import ConfigError
from evocompress.core.pareto import non_dominated, spread
from evocompress.search.baselines.steps import least_compressed
from evocompress.search.operators.mutation import distinct, flips
from evocompress.space.space import SearchSpace

Front = list[tuple[Genome, float]]
"""Genomes (U,) with their values, ever more compressed."""


@dataclass(frozen=True, eq=False)
class Range:
    """A range of blocks and what was measured of it.

    Attributes:
        space: The space of its genomes, which are least compressed outside the range.
        genes: Its genes that have a choice.
        known: By its bytes each genome (U,) that was measured, with the proxy's value: the
            distortion that the range alone makes.
    """

    space: SearchSpace
    genes: NDArray[np.int64]
    known: dict[bytes, tuple[Genome, float]] = field(default_factory=dict)

    def learn(self, genome: Genome, value: float) -> None:
        """Notes what was measured."""
        self.known[genome.tobytes()] = (genome, value)

    def front(self, count: int) -> Front:
        """Up to `count` that no other surpasses in costs and distortion, evenly spread."""
        entries = list(self.known.values())
        used = self.space.budget_usage(np.stack([genome for genome, _ in entries]))
        points = np.column_stack([used, [value for _, value in entries]])
        best = np.flatnonzero(non_dominated(points))
        chosen = best[spread(points[best], count)] if best.size else best
        return [entries[index] for index in chosen[np.argsort(-used[chosen].sum(axis=1))]]

    def way_down(self, count: int, rng: np.random.Generator) -> list[Genome]:
        """Up to `count` genomes (U,) at even distances on a way to the most compressed range.

        Each gene makes its steps at even distances, in random order with those of others.
        """
        left = self.space.encoding.sizes[self.genes] - 1
        movers = np.repeat(self.genes, left)
        turn = np.concatenate([(np.arange(steps) + rng.random()) / steps for steps in left])
        moves = movers[np.argsort(turn, kind="stable")]
        changes = np.zeros((len(moves) + 1, len(self.space.units)), dtype=np.int64)
        changes[np.arange(1, len(moves) + 1), moves] = 1
        way = self.space.deactivate(least_compressed(self.space) + changes.cumsum(axis=0))
        way = way[self.space.encoding.admissible(way)]
        places = np.linspace(0, len(way) - 1, count + 1)[1:].round().astype(np.int64)
        stops = {genome.tobytes(): genome for genome in way[places]}
        return [genome for key, genome in stops.items() if key not in self.known]

    def offspring(self, count: int, parents: Front, rng: np.random.Generator) -> list[Genome]:
        """Up to `count` new genomes (U,), each a mutation of one of the parents.

        Some genes are compressed or relaxed; for each one, half of the time, another one does the
        opposite, so that the costs stay about the same.
        """

        def child() -> Genome | None:
            genome = parents[int(rng.integers(len(parents)))][0].copy()
            for _ in range(flips(rng)):
                direction = int(rng.choice((-1, 1)))
                self._move(genome, direction, rng)
                if rng.random() < 0.5:
                    self._move(genome, -direction, rng)
            genome = self.space.deactivate(genome[None])[0]
            fit = self.space.encoding.admissible(genome[None])[0]
            return genome if fit and genome.tobytes() not in self.known else None

        return distinct(child, count) if parents else []

    def put_into(self, genome: Genome, other: Genome) -> Genome:
        """A genome (U,) with this range as in another one."""
        changed = genome.copy()
        changed[self.genes] = other[self.genes]
        settled: Genome = self.space.deactivate(changed[None])[0]
        return settled

    def _move(self, genome: Genome, direction: int, rng: np.random.Generator) -> None:
        """Compresses (1) or relaxes (-1) a random gene of a genome (U,): a matrix by a level."""
        last = self.space.encoding.sizes - 1
        able = self.genes[(genome != (last if direction > 0 else 0))[self.genes]]
        if not able.size:
            return
        gene = int(rng.choice(able))
        farthest = last[gene] - genome[gene] if direction > 0 else genome[gene]
        by = 1 if self.space.encoding.ordinal[gene] else int(rng.integers(1, farthest + 1))
        genome[gene] += direction * by


def split(space: SearchSpace, count: int | None) -> list[Range]:
    """The ranges of a space, with about as many blocks each.

    A gene that is about several blocks belongs to the first one's.

    Args:
        space: What is split.
        count: How many ranges; the root of the number of blocks if left out.

    Raises:
        ConfigError: There are fewer blocks with a choice.
    """
    genes = space.encoding
    free = np.flatnonzero(genes.sizes > 1)
    blocks = np.array([genes.units[gene].block for gene in free])
    found = np.unique(blocks)
    if count is not None and count > len(found):
        raise ConfigError(
            f"search.ranges: {count}, but only {len(found)} blocks have anything to choose"
        )
    parts = np.array_split(found, count or max(isqrt(len(found)), 1))
    return [Range(space, free[np.isin(blocks, part)]) for part in parts]
