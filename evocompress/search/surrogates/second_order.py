"""Harms that do not quite add up: the best feasible step where changes also touch each other.

A second-order estimate is ½·mean over sequences of (the sum of all changes' scores)². Its diagonal
is what a knapsack adds up; the rest says that two changes do more harm together, or less, than
apart. With fewer sequences than genes most of that rest is noise, which a search for the lowest
value would find: so only a share of it counts, as in the shrinkage of covariances (Ledoit & Wolf
2004; Schäfer & Strimmer 2005), and the share is the one that held-out sequences bear out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evocompress.core.arrays import Floats, Genome
from evocompress.search.allocation.knapsack import knapsack, padded
from evocompress.search.allocation.lagrangian import own_costs, priced
from evocompress.search.surrogates.taylor import Expansion, within
from evocompress.space.space import SearchSpace

COUPLINGS = (0.0, 0.1, 0.25, 0.5)
"""Shares of the cross terms that are tried; all of them would fit the noise."""

_FOLDS = 4
_SWEEPS = 8

_NOTHING = 1e-12
"""Rounding: less than it is no gain."""


@dataclass(frozen=True, eq=False)
class Quadratic:
    """A quadratic function of genomes, zero where all scores and harms are.

    Attributes:
        harms: What each level of each gene does alone (U, L); infinity forbids one.
        scores: Inner products (U, L, S) whose sums over genes are squared.
        coupling: The share of the products of different genes that counts, from 0 to 1.
    """

    harms: Floats
    scores: Floats
    coupling: float

    def values(self, genomes: Genome, void: NDArray[np.bool_] | None = None) -> Floats:
        """The values (N,) of genomes (N, U), without the genes that are void (N, U)."""
        counts = np.ones(genomes.shape) if void is None else (~void).astype(np.float64)
        alone, squares = np.zeros((2, len(genomes)))
        total = np.zeros((len(genomes), self.scores.shape[2]))
        rows = zip(self.harms, self.scores, genomes.T, counts.T, strict=True)
        for harm, score, levels, count in rows:
            alone += np.where(count > 0, harm[levels], 0.0)
            squares += (score**2).mean(axis=1)[levels] * count
            total += score[levels] * count[:, None]
        together: Floats = (total**2).mean(axis=1) - squares
        return alone + 0.5 * self.coupling * together

    def changes(self, genome: Genome) -> Floats:
        """By how much the value changes with each level of each gene (U, L) of a genome (U,)."""
        genes = np.arange(len(genome))
        now = self.scores[genes, genome]
        # Of each gene the products with all others: with itself is in the harms.
        others = now.sum(axis=0) - now
        marginal = self.harms + self.coupling * _products(self.scores, others)
        changes: Floats = marginal - marginal[genes, genome][:, None]
        return changes


def step(
    space: SearchSpace,
    genome: Genome,
    found: Expansion,
    coupling: float = 0.0,
    radius: int | None = None,
) -> Genome | None:
    """The best feasible genome (U,) within some levels of another one, as predicted.

    Args:
        space: With at least one bound.
        genome: Where the expansion was made.
        found: The expansion.
        coupling: See `Quadratic`.
        radius: How many levels a gene may move at most; ``None``: as many as it has.
    """
    if not coupling:
        return knapsack(space, _allowed(space, genome, found, radius), genome)
    return least(space, quadratic(space, genome, found, coupling, radius), genome)


def quadratic(
    space: SearchSpace, genome: Genome, found: Expansion, coupling: float, radius: int | None = None
) -> Quadratic:
    """What an expansion around a genome (U,) says of the genomes near it.

    Args:
        space: The space.
        genome: Where the expansion was made.
        found: The expansion.
        coupling: See `Quadratic`.
        radius: How many levels a gene may move at most; ``None``: as many as it has.
    """
    harms = padded(_allowed(space, genome, found, radius), np.inf)
    scores = padded(found.scores, 0.0)
    void = space.encoding.inactive(genome[None])[0]
    harms[void] = np.where(np.isfinite(harms[void]), 0.0, np.inf)
    scores[void] = 0.0
    return Quadratic(harms, scores, coupling)


def least(space: SearchSpace, function: Quadratic, start: Genome) -> Genome | None:
    """The feasible genome (U,) of the least value, or nearly so; ``None`` where none was found.

    Prices for the bounds; at each the genes are chosen in turn, given all others, until none
    changes; at the end single changes while they lower the value.

    Args:
        space: With at least one bound.
        function: What is to be least.
        start: A genome (U,) of allowed levels at which to begin.
    """
    costs = own_costs(space, start)
    # Other prices are near by, and so is what they choose.
    last = [start]

    def cheapest(prices: Floats) -> Genome:
        priced_harms = function.harms + np.where(np.isfinite(costs), costs, 0.0) @ prices
        last[0] = _descended(function, priced_harms, last[0])
        settled: Genome = space.deactivate(last[0][None])[0]
        return settled

    def value(genome: Genome) -> float:
        return float(function.values(genome[None])[0])

    # Prices leave some of the budget unused where genes are few; the knapsack does not.
    starts = [priced(space, cheapest, value), knapsack(space, list(function.harms), start)]
    ends = [_polished(space, function, found) for found in starts if found is not None]
    return min(ends, key=value, default=None)


def best_coupling(
    space: SearchSpace, genome: Genome, found: Expansion, radius: int | None = None
) -> float:
    """The coupling whose best genome has the least value on sequences that it was not shown.

    Cross-validation: there everything counts, as nothing was chosen by these sequences. With too
    few of them it is 0.
    """
    if min(found.slopes[0].shape[1], found.scores[0].shape[1]) < 2 * _FOLDS:
        return 0.0
    losses: list[float] = []
    for coupling in COUPLINGS:
        values = []
        for fold in range(_FOLDS):
            shown, held = _split(found, fold)
            function = quadratic(space, genome, shown, coupling, radius)
            pick = least(space, function, genome)
            if pick is not None:
                judge = quadratic(space, genome, held, 1.0)
                values.append(float(judge.values(pick[None])[0]))
        losses.append(float(np.mean(values)) if values else np.inf)
    return COUPLINGS[int(np.argmin(losses))]


def _allowed(
    space: SearchSpace, genome: Genome, found: Expansion, radius: int | None
) -> list[Floats]:
    """The harms of each gene's levels, infinite beyond the radius."""
    harms = found.harms()
    return harms if radius is None else within(space, genome, harms, radius)


def _split(found: Expansion, fold: int) -> tuple[Expansion, Expansion]:
    """An expansion without, and with only, every `_FOLDS`-th of its sequences."""

    def part(tables: Sequence[Floats], inside: bool) -> tuple[Floats, ...]:
        held = np.arange(tables[0].shape[1]) % _FOLDS == fold
        return tuple(table[:, held == inside] for table in tables)

    shown, held = (
        Expansion(part(found.slopes, inside), part(found.scores, inside))
        for inside in (False, True)
    )
    return shown, held


def _descended(function: Quadratic, harms: Floats, genome: Genome) -> Genome:
    """The genome (U,) after each gene in turn took its best level, until none changes."""
    genome, scores = genome.copy(), function.scores
    share = function.coupling / scores.shape[2]
    total = scores[np.arange(len(genome)), genome].sum(axis=0)
    for _ in range(_SWEEPS):
        moved = False
        for gene, (harm, score) in enumerate(zip(harms, scores, strict=True)):
            others = total - score[genome[gene]]
            level = int((harm + share * (score @ others)).argmin())
            moved |= level != genome[gene]
            genome[gene], total = level, others + score[level]
        if not moved:
            break
    return genome


def _polished(space: SearchSpace, function: Quadratic, genome: Genome) -> Genome:
    """A feasible genome (U,) after single changes that lower the value, best first."""
    genes, levels = space.encoding.options
    while True:
        changed = np.tile(genome, (len(genes), 1))
        changed[np.arange(len(genes)), genes] = levels
        gains = function.changes(genome)[genes, levels]
        gains[~space.feasible(changed)] = np.inf
        best = int(np.argmin(gains))
        if not gains[best] < -_NOTHING:
            return genome
        genome = changed[best]


def _products(scores: Floats, others: Floats) -> Floats:
    """The mean over sequences of scores (U, L, S) times those (U, S) of each gene's others."""
    products: Floats = np.einsum("uls,us->ul", scores, others) / scores.shape[2]
    return products
