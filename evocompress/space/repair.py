"""How a genome is brought below its budget, and how what is left of a budget is used.

Every change is tried on the whole genome, so bounds on several costs and levels in no order make
no difference. Order and partners are random: whoever repairs twice gets two genomes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from evocompress.core.arrays import Booleans, Genome, Integers
from evocompress.space.budget import minimal_genomes
from evocompress.space.single_changes import Changes, single_changes
from evocompress.space.space import SearchSpace

_MOST_PARTNERS = 4
"""Genes among which the last move of a repair is chosen: few, so that all get their turn."""

_ROWS = 32
"""Genomes of a path that are looked at first."""


def repair(
    space: SearchSpace, genome: Genome, rng: np.random.Generator, keep: Sequence[int] = ()
) -> Genome:
    """A genome (U,) that meets the budget, by compressing random genes that matter for it.

    In random order matrices are raised by a level, and sub-layers given a random level that
    costs more of nothing, until a bound holds; the last of these moves is the one among a few
    that overshoots least. So for bound after bound. A feasible genome is not changed.

    The genes of `keep` are left as they are if the budget can be met so.
    """
    genome = _with_experts(space, _with_attention(space, genome, rng), rng)
    genome = space.deactivate(genome[None])[0]
    while not space.feasible(genome[None])[0]:
        shorter = _meet_one_bound(space, genome, rng, keep)
        if shorter is not None:
            genome = space.deactivate(shorter[None])[0]
        elif keep:
            keep = ()
        else:
            lowest = minimal_genomes(space)
            return fill_budget(space, rng.choice(lowest[space.feasible(lowest)]), rng)
    return genome


def fill_budget(
    space: SearchSpace, genome: Genome, rng: np.random.Generator, keep: Sequence[int] = ()
) -> Genome:
    """A feasible genome (U,) relaxed in random order until nothing more fits the budget.

    Matrices are relaxed level by level and sub-layers to a random wider level. What can only be
    dropped is restored at last, where what is left is enough for it. Nothing is relaxed that no
    bound depends on: there is nothing to spend.

    The genes of `keep` are left as they are.
    """
    lost = space.encoding.dropped(genome[None])[0]
    lost[space.encoding.widths] = False
    relaxed = _relaxed(space, genome, rng, [*keep, *np.flatnonzero(lost)])
    return _relaxed(space, relaxed, rng, keep) if lost.any() else relaxed


def restore(
    space: SearchSpace, genome: Genome, rng: np.random.Generator, keep: Sequence[int] = ()
) -> Genome:
    """A feasible genome (U,) with a random one of its dropped units restored, if one fits.

    The genes of `keep` are left as they are.
    """
    present = ~space.encoding.dropped(genome[None])[0]
    changes = single_changes(space, genome, [*keep, *np.flatnonzero(present)], step=-1)
    fits = np.flatnonzero((changes.usage <= 1).all(axis=1))
    if not fits.size:
        return genome
    return np.asarray(space.deactivate(changes.changed(int(rng.choice(fits)))[None])[0])


def _relaxed(
    space: SearchSpace, genome: Genome, rng: np.random.Generator, keep: Sequence[int]
) -> Genome:
    """The feasible genome (U,) with all genes but some relaxed until nothing more fits."""
    while True:
        now = space.budget_usage(genome[None])[0]
        changes = single_changes(space, genome, keep, step=-1)
        used = changes.usage
        fits = (used >= now).all(1) & (used > now).any(1) & (used <= 1).all(1)
        if not fits.any():
            return genome
        path = _path(changes.those(fits), rng)
        last = path.first(lambda rows: ~space.feasible(rows))
        genome = space.deactivate(path.row(last - 1)[None])[0]


def _with_attention(space: SearchSpace, genome: Genome, rng: np.random.Generator) -> Genome:
    """The genome, if it keeps an attention, or with a random one restored."""
    genes = space.encoding
    if genes.keep_attention(genome[None])[0]:
        return genome
    restored = genome.copy()
    gene = rng.choice(genes.attentive)
    restored[gene] = rng.integers(genes.drop_index[gene])
    return restored


def _with_experts(space: SearchSpace, genome: Genome, rng: np.random.Generator) -> Genome:
    """The genome, if its mixtures have enough experts, or with random ones restored."""
    genes = space.encoding
    if not genes.mixtures or genes.enough_experts(genome[None])[0]:
        return genome
    return np.asarray(genes.with_experts(genome[None], rng.random(len(genome)))[0])


def _meet_one_bound(
    space: SearchSpace, genome: Genome, rng: np.random.Generator, keep: Sequence[int]
) -> Genome | None:
    """The genome compressed towards one more bound that holds; ``None`` if nothing helps."""
    over = space.budget_usage(genome[None])[0] > 1
    changes = single_changes(space, genome, keep, step=1)
    helpful = _helpful(changes, over)
    if not helpful.any():
        return None
    path = _path(changes.those(helpful), rng)

    def met(rows: Genome) -> Booleans:
        return np.asarray(np.logical_or.reduce(space.budget_usage(rows)[:, over] <= 1, axis=1))

    end = path.first(lambda rows: ~space.encoding.admissible(rows) | met(rows))
    before = path.row(end - 1)
    if end == len(path) or not space.encoding.admissible(path.row(end)[None])[0]:
        return before
    return _least_overshoot(space, before, path.row(end), rng, keep)


def _least_overshoot(
    space: SearchSpace,
    before: Genome,
    after: Genome,
    rng: np.random.Generator,
    keep: Sequence[int],
) -> Genome:
    """In place of the move from `before` to `after` that of a few that saves least too much."""
    over = space.budget_usage(before[None])[0] > 1
    changes = single_changes(space, before, keep, step=1)
    used = changes.usage[:, over]
    enough = _helpful(changes, over) & (used <= 1).any(axis=1)
    if not enough.any():
        return after
    able = np.unique(changes.genes[enough])
    few = rng.permutation(able)[: rng.integers(1, _MOST_PARTNERS + 1)]
    choices = rng.permutation(np.flatnonzero(enough & np.isin(changes.genes, few)))
    slack = np.where(used[choices] <= 1, 1 - used[choices], np.inf).min(axis=1)
    return changes.changed(int(choices[int(np.argmin(slack))]))


def _helpful(changes: Changes, over: Booleans) -> Booleans:
    """Which of the changes (K,) save of a bound that is exceeded, and add to none."""
    now, used = changes.space.budget_usage(changes.genome[None])[0], changes.usage
    helpful: Booleans = (used <= now).all(axis=1)
    helpful &= (used[:, over] < now[over]).any(axis=1)
    return helpful & changes.admissible()


@dataclass(frozen=True, eq=False)
class _Path:
    """Genomes from one on, one move of one gene between two; made when they are looked at.

    Attributes:
        start: The first genome (U,).
        genes: Which gene each move changes (moves,).
        by: By how many levels (moves,).
    """

    start: Genome
    genes: Integers
    by: Integers

    def __len__(self) -> int:
        return len(self.genes) + 1

    def row(self, index: int) -> Genome:
        """The genome (U,) after a number of moves."""
        genome = self.start.copy()
        np.add.at(genome, self.genes[:index], self.by[:index])
        return genome

    def first(self, found: Callable[[Genome], Booleans]) -> int:
        """The first move after which genomes (N, U) are found; the path's length for none.

        Most are found soon, so ever more rows are tried at a time. The start is none of them.
        """
        begin, genome = 0, self.start.copy()
        while begin < len(self.genes):
            moves = slice(begin, begin + max(_ROWS, begin // 2))
            changes = list(zip(self.genes[moves].tolist(), self.by[moves].tolist(), strict=True))
            rows = np.empty((len(changes), len(genome)), dtype=np.int64)
            for row, (gene, by) in zip(rows, changes, strict=True):
                genome[gene] += by
                row[:] = genome
            hits = found(rows)
            if hits.any():
                return begin + 1 + int(np.argmax(hits))
            begin += len(rows)
        return len(self)


def _path(changes: Changes, rng: np.random.Generator) -> _Path:
    """The changes one after the other.

    Matrices make steps, the same on and on to their last level; other genes are moved once, to
    a random one of their changes. The order is random.
    """
    space, genome = changes.space, changes.genome
    shuffled = rng.permutation(len(changes.genes))
    movers, first = np.unique(changes.genes[shuffled], return_index=True)
    by = changes.levels[shuffled][first] - genome[movers]
    left = np.where(by > 0, space.encoding.sizes[movers] - 1 - genome[movers], genome[movers])
    times = np.where(space.encoding.ordinal[movers], left, 1)
    moves = rng.permutation(np.repeat(np.arange(len(movers)), times))
    return _Path(genome, movers[moves], by[moves])
