"""Random changes of a genome that keep what its budget counts (EvoPress, 2410.14649)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from evocompress.space import Genome, SearchSpace

_TRIES = 100


def flips(rng: np.random.Generator) -> int:
    """How many elementary moves a mutation makes: 1, 2, 3 with probability 5/9, 3/9, 1/9."""
    return int(rng.integers(1, 4, size=2).min())


def mutate(
    space: SearchSpace, genome: Genome, rng: np.random.Generator, max_level: int | None = None
) -> Genome:
    """A changed copy of a genome (U,).

    Each elementary move first chooses, with equal chances, a kind of unit that can move. A
    matrix is relaxed by a level and another one raised; or a removed sub-layer (block) is
    restored and a present one of its kind removed.

    Args:
        space: The space of the genome.
        genome: The parent; not changed.
        rng: Source of randomness.
        max_level: Largest distance of a matrix from its target, in levels.
    """
    child = genome.copy()
    for _ in range(flips(rng)):
        moves = _possible(space, child, max_level)
        if not moves:
            break
        down, up = moves[int(rng.integers(len(moves)))]
        # Both are drawn before either moves: the same matrix drawn twice stays as it is.
        relaxed, raised = rng.choice(down), rng.choice(up)
        child[relaxed] -= 1
        child[raised] += 1
    settled: Genome = space.settle(child[None])[0]
    return settled


def distinct(
    make: Callable[[], Genome | None], count: int, excluded: Genome | None = None
) -> list[Genome]:
    """Up to `count` different genomes made by `make`, none equal to `excluded`.

    Gives up after 100 attempts in a row that brought nothing new: a tiny space has fewer.
    """
    seen = set() if excluded is None else {excluded.tobytes()}
    found: list[Genome] = []
    misses = 0
    while len(found) < count and misses < _TRIES:
        genome = make()
        if genome is None or genome.tobytes() in seen:
            misses += 1
            continue
        seen.add(genome.tobytes())
        found.append(genome)
        misses = 0
    return found


def _possible(
    space: SearchSpace, genome: Genome, max_level: int | None
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """For each kind of unit that can move: the units that can go down, and those that can go up."""
    genes = space.genes
    reach = int(genes.sizes.max()) if max_level is None else max_level
    present = ~genes.void(genome[None])[0]
    down = present & (genome > np.maximum(genes.start - reach, 0))
    up = present & (genome < np.minimum(genes.start + reach, genes.sizes - 1))
    moves = [(units[down[units]], units[up[units]]) for units in genes.by_kind.values()]
    return [(lower, upper) for lower, upper in moves if len(lower) and len(upper)]
