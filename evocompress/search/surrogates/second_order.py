"""Predictions for a candidate's neighbours by estimates at it, and the best feasible step.

Around a candidate the divergence of a neighbour is taken as ½·mean⟨score, change⟩², to which comes,
where the candidate is not dense, the slope ⟨∇KL, change⟩ (see
`evocompress.evaluation.estimates.linear`). Slopes of different genes add up. Of ½·mean over
sequences of (the sum of all changes' scores)² a knapsack adds up the diagonal; the rest says that
two changes do more harm together, or less, than apart. With fewer sequences than genes most of the
rest is noise, which a search for the lowest value would find: so only a share of it counts, as in
the shrinkage of covariances (Ledoit & Wolf 2004; Schäfer & Strimmer 2005), and the share is the one
that held-out sequences bear out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evocompress.core.arrays import Booleans, Floats, Genome
from evocompress.core.level_order import steps_between
from evocompress.core.requests import Estimation
from evocompress.search.allocation.knapsack import knapsack, own_costs, padded_tables, priced
from evocompress.space.space import SearchSpace

Tables = tuple[Floats, ...]
"""For each gene (levels, sequences)."""


@dataclass(frozen=True, eq=False)
class Expansion:
    """The divergence around a candidate, which need not be one of the space.

    Attributes:
        slopes: First-order terms of changing a gene to each level.
        scores: Inner products whose squares are the second-order terms.

    Examples:
        >>> found = Expansion((np.array([[0.0], [0.2]]),), (np.array([[0.0], [1.0]]),))
        >>> found.harms()[0].tolist()
        [0.0, 0.7]
    """

    slopes: Tables
    scores: Tables

    def harms(self) -> list[Floats]:
        """The predicted change of the divergence at each level (levels,) of each gene."""
        return [
            slope.mean(axis=1) + 0.5 * (score**2).mean(axis=1)
            for slope, score in zip(self.slopes, self.scores, strict=True)
        ]

    def scores_around(self, genome: Genome) -> Tables:
        """The scores of changes from a genome (U,) on, instead of from where they were made.

        They are linear in the change, and differ less from candidate to candidate than slopes.
        """
        rows = zip(self.scores, genome.tolist(), strict=True)
        return tuple(score - score[now] for score, now in rows)

    def with_scores(self, more: Tables) -> Expansion:
        """The expansion with the scores of other sequences as well."""
        pairs = zip(self.scores, more, strict=True)
        joined = tuple(np.concatenate(pair, axis=1) for pair in pairs)
        return Expansion(self.slopes, joined)

    def fold(self, number: int, *, held: bool) -> Expansion:
        """The expansion of the sequences of fold `number`, or, not `held`, of all others."""

        def part(tables: Tables) -> Tables:
            shown = (np.arange(tables[0].shape[1]) % _FOLDS == number) == held
            return tuple(table[:, shown] for table in tables)

        return Expansion(part(self.slopes), part(self.scores))


def expansion(space: SearchSpace, estimation: Estimation) -> Expansion:
    """The expansion that an estimate of kind ``curvature``, ``slope`` or ``linearised`` gives.

    The changes of all units that a gene governs are summed, sequence by sequence. What the
    estimate does not give is 0.
    """
    kind, rows = estimation.request.kind, estimation.by_unit
    parts = 2 if kind == "linearised" else 1
    slopes, scores = [], []
    for members, levels in zip(space.encoding.members, space.levels, strict=True):
        tables = [np.reshape(rows[unit.name], (parts, len(levels), -1)) for unit in members]
        table = np.sum(tables, axis=0)
        nothing = np.zeros_like(table[0])
        slopes.append(nothing if kind == "curvature" else table[0])
        scores.append(nothing if kind == "slope" else table[-1])
    return Expansion(tuple(slopes), tuple(scores))


def isotonic(harms: Sequence[Floats]) -> list[Floats]:
    """Harms where no level of a gene has less than a level that leaves more of it.

    The mean of a run of levels that are in the wrong order (isotonic regression, by pooling
    adjacent violators), which averages some of the noise. Levels are from most to least
    parameters.
    """
    # Loading it takes longer than everything else of the package.
    from scipy.optimize import isotonic_regression  # type: ignore[import-untyped]

    return [np.asarray(isotonic_regression(harm).x, dtype=np.float64) for harm in harms]


def within(
    space: SearchSpace, genome: Genome, harms: Sequence[Floats], radius: int
) -> list[Floats]:
    """The harms (levels,) of each gene, infinite more than `radius` levels from a genome (U,).

    A drop is forbidden, and a dropped unit stays dropped: neither is a small change.
    """
    allowed = []
    genes = space.encoding
    for harm, own, now, drop in zip(harms, genes.levels, genome, genes.drop_index, strict=True):
        levels = np.arange(len(harm))
        near = (steps_between(own, now) <= radius) & ((levels == drop) == (now == drop))
        allowed.append(np.where(near, harm, np.inf))
    return allowed


COUPLINGS = (0.0, 0.1, 0.25, 0.5)
"""Shares of the cross terms that are tried; all of them would fit the noise."""

_FOLDS = 4

_SWEEPS = 8
"""The most turns of all genes at one price: the next one begins where they ended."""

_NOTHING = 1e-12
"""Rounding: less than it is no gain."""


@dataclass(frozen=True, eq=False)
class Quadratic:
    """A quadratic function of genomes, zero where all scores and harms are.

    Attributes:
        harms: The harm of each level of each gene alone (U, L); infinity forbids one.
        scores: Inner products (U, L, S) whose sums over genes are squared.
        coupling: The share of the products of different genes that counts, from 0 to 1.

    Examples:
        >>> scores = np.array([[[0.0], [1.0]], [[0.0], [2.0]]])
        >>> function = Quadratic(np.array([[0.0, 0.5], [0.0, 2.0]]), scores, coupling=1.0)
        >>> function.values(np.array([[1, 0], [0, 1], [1, 1]])).tolist()
        [0.5, 2.0, 4.5]
    """

    harms: Floats
    scores: Floats
    coupling: float

    def values(self, genomes: Genome, inactive: Booleans | None = None) -> Floats:
        """The values (N,) of genomes (N, U), without the inactive genes (N, U)."""
        counts = np.ones(genomes.shape) if inactive is None else (~inactive).astype(np.float64)
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
        products = np.einsum("uls,us->ul", self.scores, others) / self.scores.shape[2]
        marginal = self.harms + self.coupling * products
        changes: Floats = marginal - marginal[genes, genome][:, None]
        return changes


def step(
    space: SearchSpace,
    genome: Genome,
    found: Expansion,
    coupling: float = 0.0,
    radius: int | None = None,
) -> Genome | None:
    """The feasible genome (U,) that an expansion around another one holds for the best.

    `coupling` is as of `Quadratic`. A gene may move up to `radius` levels; without one as many as
    it has.
    """
    if not coupling:
        return knapsack(space, _allowed(space, genome, found, radius), genome)
    return least(space, quadratic(space, genome, found, coupling, radius), genome)


def quadratic(
    space: SearchSpace, genome: Genome, found: Expansion, coupling: float, radius: int | None = None
) -> Quadratic:
    """The function of genomes near one (U,) that an expansion around it gives; see `step`."""
    harms = padded_tables(_allowed(space, genome, found, radius), np.inf)
    scores = padded_tables(found.scores, 0.0)
    inactive = space.encoding.inactive(genome[None])[0]
    harms[inactive] = np.where(np.isfinite(harms[inactive]), 0.0, np.inf)
    scores[inactive] = 0.0
    return Quadratic(harms, scores, coupling)


def least(space: SearchSpace, function: Quadratic, start: Genome) -> Genome | None:
    """The feasible genome (U,) of the least value, or nearly so; ``None`` where none was found.

    The bounds have prices; at each the genes are chosen in turn, given all others, until none
    changes; at the end single changes are made while they lower the value. The genome `start` (U,)
    of allowed levels is the first.
    """
    costs = own_costs(space, start)
    # Other prices are near by, and so is what they choose.
    last = [start]

    def cheapest(prices: Floats) -> Genome:
        priced_harms = function.harms + np.where(np.isfinite(costs), costs, 0.0) @ prices
        last[0] = _descended(function, priced_harms, last[0])
        return np.asarray(space.deactivate(last[0][None])[0])

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

    This is cross-validation: on those sequences the coupling is 1, as nothing was chosen by them.
    With too few sequences the result is 0. A gene may move up to `radius` levels, see `step`.
    """
    if min(found.slopes[0].shape[1], found.scores[0].shape[1]) < 2 * _FOLDS:
        return 0.0

    def loss(coupling: float) -> float:
        values = []
        for fold in range(_FOLDS):
            function = quadratic(space, genome, found.fold(fold, held=False), coupling, radius)
            if (pick := least(space, function, genome)) is not None:
                judge = quadratic(space, genome, found.fold(fold, held=True), 1.0)
                values.append(float(judge.values(pick[None])[0]))
        return float(np.mean(values)) if values else np.inf

    return min(COUPLINGS, key=loss)


def _allowed(
    space: SearchSpace, genome: Genome, found: Expansion, radius: int | None
) -> list[Floats]:
    """The harms of each gene's levels, infinite beyond the radius."""
    harms = found.harms()
    return harms if radius is None else within(space, genome, harms, radius)


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
