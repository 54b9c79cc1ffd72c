"""How a genome is brought below its budget, and how what is left of a budget is used.

Every change is tried on the whole genome, so bounds on several costs and levels in no order make
no difference. Order and partners are random: whoever repairs twice gets two genomes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from evocompress.budget import ATTENTIVE, floors

if TYPE_CHECKING:
    from evocompress.genes import Genome
    from evocompress.space import SearchSpace

_MOST_PARTNERS = 4
"""Genes among which the last move of a repair is chosen: few, so that all get their turn."""


def repair(
    space: SearchSpace, genome: Genome, rng: np.random.Generator, keep: Sequence[int] = ()
) -> Genome:
    """A genome (U,) that meets the budget, by compressing random genes that matter for it.

    In random order matrices are raised by a level, and sub-layers given a random level that
    costs more of nothing, until a bound holds; the last of these moves is the one among a few
    that overshoots least. So for bound after bound. A feasible genome is not changed.

    Args:
        space: The space of the genome.
        genome: What to repair.
        rng: Source of randomness.
        keep: Genes that are left as they are if the budget can be met so.
    """
    genome = _with_experts(space, _with_attention(space, genome, rng), rng)
    genome = space.settle(genome[None])[0]
    while not space.feasible(genome[None])[0]:
        shorter = _meet_one_bound(space, genome, rng, keep)
        if shorter is not None:
            genome = space.settle(shorter[None])[0]
        elif keep:
            keep = ()
        else:
            lowest = floors(space)
            return spend(space, rng.choice(lowest[space.feasible(lowest)]), rng)
    return genome


def spend(
    space: SearchSpace, genome: Genome, rng: np.random.Generator, keep: Sequence[int] = ()
) -> Genome:
    """A feasible genome (U,) relaxed in random order until nothing more fits the budget.

    Matrices are relaxed level by level and sub-layers to a random wider level. What can only be
    dropped stays so, and nothing is relaxed that no bound depends on: there is nothing to spend.

    Args:
        space: The space of the genome.
        genome: What to relax.
        rng: Source of randomness.
        keep: Genes that are left as they are.
    """
    dropped = space.genes.dropped(genome[None])[0]
    dropped[space.genes.widths] = False
    while True:
        now = space.used(genome[None])[0]
        genes, levels = _changes(space, genome, [*keep, *np.flatnonzero(dropped)], step=-1)
        used = space.used(_changed(genome, genes, levels))
        fits = (used >= now).all(1) & (used > now).any(1) & (used <= 1).all(1)
        if not fits.any():
            return genome
        path = _path(space, genome, genes[fits], levels[fits], rng)
        feasible = space.feasible(path)
        last = len(path) if feasible.all() else int(np.argmin(feasible))
        genome = space.settle(path[last - 1][None])[0]


def _with_attention(space: SearchSpace, genome: Genome, rng: np.random.Generator) -> Genome:
    """The genome, if it keeps an attention, or with a random one restored."""
    genes = space.genes
    if genes.keep_attention(genome[None])[0]:
        return genome
    restored = genome.copy()
    gene = rng.choice([g for g in genes.droppable if genes.units[g].kind in ATTENTIVE])
    restored[gene] = rng.integers(genes.drop_index[gene])
    return restored


def _with_experts(space: SearchSpace, genome: Genome, rng: np.random.Generator) -> Genome:
    """The genome, if its mixtures have enough experts, or with random ones restored."""
    genes = space.genes
    if not genes.mixtures or genes.enough_experts(genome[None])[0]:
        return genome
    restored: Genome = genes.with_experts(genome[None], rng.random(len(genome)))[0]
    return restored


def _meet_one_bound(
    space: SearchSpace, genome: Genome, rng: np.random.Generator, keep: Sequence[int]
) -> Genome | None:
    """The genome compressed towards one more bound that holds; ``None`` if nothing helps."""
    over = space.used(genome[None])[0] > 1
    genes, levels = _changes(space, genome, keep, step=1)
    helpful = _helpful(space, genome, _changed(genome, genes, levels), over)
    if not helpful.any():
        return None
    path = _path(space, genome, genes[helpful], levels[helpful], rng)
    kept = space.genes.admissible(path)
    path = path if kept.all() else path[: int(np.argmin(kept))]
    met = (space.used(path)[:, over] <= 1).any(axis=1)
    if not met.any():
        lowest: Genome = path[-1]
        return lowest
    end = int(np.argmax(met))
    return _least_overshoot(space, path[end - 1], path[end], rng, keep)


def _least_overshoot(
    space: SearchSpace,
    before: Genome,
    after: Genome,
    rng: np.random.Generator,
    keep: Sequence[int],
) -> Genome:
    """In place of the move from `before` to `after` that of a few that saves least too much."""
    over = space.used(before[None])[0] > 1
    genes, levels = _changes(space, before, keep, step=1)
    tried = _changed(before, genes, levels)
    used = space.used(tried)[:, over]
    enough = _helpful(space, before, tried, over) & (used <= 1).any(axis=1)
    if not enough.any():
        return after
    able = np.unique(genes[enough])
    few = rng.permutation(able)[: rng.integers(1, _MOST_PARTNERS + 1)]
    choices = rng.permutation(np.flatnonzero(enough & np.isin(genes, few)))
    slack = np.where(used[choices] <= 1, 1 - used[choices], np.inf).min(axis=1)
    best: Genome = tried[choices[int(np.argmin(slack))]]
    return best


def _helpful(
    space: SearchSpace, genome: Genome, changed: Genome, over: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Which of the changed genomes (K, U) save of a bound that is exceeded, and add to none."""
    now, used = space.used(genome[None])[0], space.used(changed)
    helpful: NDArray[np.bool_] = (used <= now).all(axis=1)
    helpful &= (used[:, over] < now[over]).any(axis=1)
    return helpful & space.genes.admissible(changed)


def _changes(
    space: SearchSpace, genome: Genome, keep: Sequence[int], step: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All changes of one gene: matrices by a step, others to any other level.

    Args:
        space: The space of the genome.
        genome: From where (U,).
        keep: Genes that are not changed; void ones are not, either.
        step: 1 or -1.

    Returns:
        Which gene (K,), and the index of its new level (K,).
    """
    genes, levels = space.genes.options
    free = ~space.genes.void(genome[None])[0]
    free[list(keep)] = False
    by = levels - genome[genes]
    chosen = free[genes] & np.where(space.genes.stepped[genes], by == step, by != 0)
    return genes[chosen], levels[chosen]


def _changed(genome: Genome, genes: NDArray[np.int64], levels: NDArray[np.int64]) -> Genome:
    """One genome for each change (K, U)."""
    changed = np.tile(genome, (len(genes), 1))
    changed[np.arange(len(genes)), genes] = levels
    return changed


def _path(
    space: SearchSpace,
    genome: Genome,
    genes: NDArray[np.int64],
    levels: NDArray[np.int64],
    rng: np.random.Generator,
) -> Genome:
    """The genomes (moves + 1, U) from `genome` on, one move of one gene between two.

    Matrices make steps, the same on and on to their last level; other genes are moved once, to
    a random one of their changes. The order is random.
    """
    shuffled = rng.permutation(len(genes))
    movers, first = np.unique(genes[shuffled], return_index=True)
    by = levels[shuffled][first] - genome[movers]
    left = np.where(by > 0, space.genes.sizes[movers] - 1 - genome[movers], genome[movers])
    times = np.where(space.genes.stepped[movers], left, 1)
    moves = rng.permutation(np.repeat(np.arange(len(movers)), times))
    changes = np.zeros((len(moves) + 1, len(genome)), dtype=np.int64)
    changes[np.arange(1, len(moves) + 1), movers[moves]] = by[moves]
    path: Genome = genome + changes.cumsum(axis=0)
    return path
