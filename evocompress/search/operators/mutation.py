"""Random changes of a genome that keep what its budget counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from evocompress.core.arrays import Genome
from evocompress.space.repair import fill_budget, repair, restore
from evocompress.space.space import SearchSpace

_TRIES = 100


def flips(rng: np.random.Generator) -> int:
    """How many elementary moves a mutation makes: 1, 2, 3 with probability 5/9, 3/9, 1/9."""
    return int(rng.integers(1, 4, size=2).min())


def mutate(
    space: SearchSpace,
    genome: Genome,
    rng: np.random.Generator,
    max_level: int | None = None,
    fixed: Sequence[int] = (),
) -> Genome:
    """A copy of a genome (U,), changed by swaps (EvoPress, 2410.14649).

    Made for levels of equal steps: elsewhere the budget need not hold afterwards. Each
    elementary move first chooses, with equal chances, a kind of unit that can move. A matrix is
    relaxed by a level and another one raised; or a removed sub-layer (block) is restored and a
    present one of its kind removed.

    No matrix gets further than `max_level` levels from its target, and no `fixed` gene moves.
    """
    child = genome.copy()
    for _ in range(flips(rng)):
        moves = _possible(space, child, max_level, fixed)
        if not moves:
            break
        down, up = moves[int(rng.integers(len(moves)))]
        # Both are drawn before either moves: the same matrix drawn twice stays as it is.
        relaxed, raised = rng.choice(down), rng.choice(up)
        child[relaxed] -= 1
        child[raised] += 1
    return np.asarray(space.deactivate(child[None])[0])


def exchange(
    space: SearchSpace, genome: Genome, rng: np.random.Generator, fixed: Sequence[int] = ()
) -> Genome:
    """A changed copy of a feasible genome (U,), in which cost has moved between any genes.

    As many genes as a mutation has moves get another level: a matrix the next one up or down,
    another gene with equal chances a neighbouring level or any (so what is dropped may return
    at any width). Then random other genes are compressed until the budget is met again, and
    what is left of it is spent, in half of the cases on a dropped unit first, if one fits. Genes
    of any kind and of unequal costs so exchange theirs; without a budget nothing has to be made
    good.

    Genes that are `fixed` do not move where the others can meet the budget.
    """
    child = genome.copy()
    changed: list[int] = []
    for _ in range(flips(rng)):
        movable = _movable(space, child, fixed)
        if not movable:
            break
        gene = int(rng.choice(movable[int(rng.integers(len(movable)))]))
        child[gene] = _another_level(space, child, gene, rng)
        changed.append(gene)
    kept = [*changed, *fixed]
    child = repair(space, child, rng, keep=kept)
    # Matrices would take in small steps what a dropped unit could return for.
    if space.encoding.matrices.size and space.encoding.droppable.size and rng.random() < 0.5:
        child = restore(space, child, rng, keep=kept)
    child = fill_budget(space, child, rng, keep=kept)
    # What the others could not use: a change may have to be taken back in part.
    return fill_budget(space, child, rng, keep=fixed)


def vary(
    space: SearchSpace, costs: Sequence[str], genome: Genome, rng: np.random.Generator
) -> Genome:
    """A changed copy of a genome (U,), changed by the moves of `exchange`.

    Half of the time without a budget, so that the cost changes: a step along the front.
    Otherwise the parent's own costs are the budget: a step towards the front. Neither knows
    the space's budget.

    The parent may be a crossing of two others.
    """
    free = replace(space, budget={})
    # Parents that keep different attentions may have a child without any.
    genome = repair(free, genome, rng)
    own: dict[str, float] = {}
    if rng.random() < 0.5:
        spent = space.costs(genome[None])
        own = {name: spent[name].item() for name in costs}
    return exchange(replace(space, budget=own), genome, rng)


def transpose(space: SearchSpace, genome: Genome, rng: np.random.Generator) -> Genome:
    """A copy of a genome (U,) in which two blocks have each other's levels.

    Only blocks whose genes have the same choices can, so the budget stays as it was. The blocks
    are random ones that differ; where there are none the genome stays as it is.
    """
    found = []
    for blocks in space.encoding.alike_blocks:
        levels = genome[blocks]
        differ = np.triu((levels[:, None] != levels[None]).any(axis=2))
        found += [(blocks[one], blocks[other]) for one, other in np.argwhere(differ)]
    if not found:
        return genome
    one, other = found[int(rng.integers(len(found)))]
    child = genome.copy()
    child[one], child[other] = genome[other], genome[one]
    return child


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


def different(genomes: Iterable[Genome]) -> list[Genome]:
    """The genomes (U,) without those that equal one before."""
    return list({genome.tobytes(): genome for genome in genomes}.values())


def _movable(space: SearchSpace, genome: Genome, fixed: Sequence[int]) -> list[NDArray[np.int64]]:
    """For each kind of unit that can move, its active genes that have a choice."""
    genes = space.encoding
    free = ~genes.inactive(genome[None])[0] & (genes.sizes > 1)
    free[list(fixed)] = False
    kinds = [units[free[units]] for units in genes.by_kind.values()]
    return [units for units in kinds if units.size]


def _another_level(space: SearchSpace, genome: Genome, gene: int, rng: np.random.Generator) -> int:
    """A level that a gene does not have now."""
    now, count = int(genome[gene]), int(space.encoding.sizes[gene])
    if space.encoding.ordinal[gene] or rng.random() < 0.5:
        return int(rng.choice([level for level in (now - 1, now + 1) if 0 <= level < count]))
    return int((now + rng.integers(1, count)) % count)


def _possible(
    space: SearchSpace, genome: Genome, max_level: int | None, fixed: Sequence[int]
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """For each kind of unit that can move: the units that can go down, and those that can go up."""
    genes = space.encoding
    reach = int(genes.sizes.max()) if max_level is None else max_level
    present = ~genes.inactive(genome[None])[0]
    present[list(fixed)] = False
    down = present & (genome > np.maximum(genes.default - reach, 0))
    up = present & (genome < np.minimum(genes.default + reach, genes.sizes - 1))
    moves = [(units[down[units]], units[up[units]]) for units in genes.by_kind.values()]
    return [(lower, upper) for lower, upper in moves if len(lower) and len(upper)]
