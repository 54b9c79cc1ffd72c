"""The feasible genome of the least sum of harms, where harms of genes add up.

Each level of each gene has a harm, and harms are taken to add up (as SPDY does, Frantar & Alistarh
2022, 2201.13096). With one bound and genes whose costs add up as well this is a knapsack, solved by
dynamic programming: exactly where costs are multiples of one step, else on costs rounded up to
buckets. Several bounds, or genes that change each other's costs, get Lagrange multipliers and
single changes for the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import sqrt

import numpy as np

from evocompress.core.arrays import Floats, Genome, Integers
from evocompress.search.bisection import bisected
from evocompress.search.operators.neighborhood import Neighbourhood
from evocompress.space.space import SearchSpace

Harms = Sequence[Floats]
"""For each gene the harm of each of its levels (levels,); infinity forbids one."""

BUCKETS = 20_000
"""The most steps of a bound that dynamic programming tells apart."""

_SWEEPS = 3
"""The most turns of all kinds at one price: the second mostly changes nothing."""

_INSIDE_OUT = (("matrix",), ("expert",), ("attention", "mlp"), ("block",))

_SAME = 1e-12
"""Difference of costs, as shares of a bound, that is rounding."""

_ROUNDING = 1e-4
"""How far from a multiple of a step, in steps, a cost may be."""

Cheapest = Callable[[Floats], Genome]
"""The genome (U,) of least harm and priced cost, for the bounds' prices (bounds,)."""

_PRICES = (1e-9, 1e12)
"""At the one costs decide nothing, at the other everything: harms are divergences, mostly from 1e-6
to 10, and costs are shares of a bound, of which a single expert may be a millionth."""

_BISECTIONS = 30
"""Each halves the logarithm of the range: 21 decades become 2e-8 of one."""

_TURNS = 5
"""How many times the weights of several bounds are shifted."""

_SHARPNESS = 4
"""Power of a bound's usage by which its weight grows in a turn: a half counts a sixteenth."""


def own_costs(space: SearchSpace, start: Genome) -> Floats:
    """The bounds' shares used at each level of each gene (U, L, bounds), all others at the start.

    Infinite where a gene has fewer than L levels.
    """
    genes, levels = space.encoding.options
    rows = np.tile(start, (len(genes), 1))
    rows[np.arange(len(genes)), genes] = levels
    costs = np.full((len(start), int(space.encoding.sizes.max()), len(space.budget)), np.inf)
    costs[genes, levels] = space.budget_usage(rows)
    return costs


def priced(
    space: SearchSpace, cheapest: Cheapest, value: Callable[[Genome], float]
) -> Genome | None:
    """The genome (U,) of the least value among feasible ones that prices of the bounds choose.

    The weights of several bounds against each other are shifted, turn by turn, to those that
    are used most. ``None`` where no feasible genome was found.
    """
    weights = np.ones(len(space.budget))
    best: Genome | None = None
    for _ in range(_TURNS if len(weights) > 1 else 1):
        genome = _at_lowest_price(space, cheapest, weights)
        if genome is None:
            break
        if best is None or value(genome) < value(best):
            best = genome
        weights = weights * space.budget_usage(genome[None])[0] ** _SHARPNESS
    return best


def _at_lowest_price(space: SearchSpace, cheapest: Cheapest, weights: Floats) -> Genome | None:
    """The genome at the lowest price that meets the budget."""
    found: list[Genome] = []

    def enough(price: float) -> bool:
        genome = cheapest(price * weights)
        feasible = bool(space.feasible(genome[None])[0])
        found.extend([genome] if feasible else [])
        return feasible

    bisected(enough, *_PRICES, _BISECTIONS, lambda low, high: sqrt(low * high))
    return found[-1] if found else None


@dataclass(frozen=True, eq=False)
class _Task:
    """The problem: harms of every level (U, L), and the genome (U,) where changes begin."""

    space: SearchSpace
    harms: Floats
    start: Genome

    def total(self, genomes: Genome) -> Floats:
        """The sums of harms (N,) of genomes (N, U); inactive genes have none."""
        each = self.harms[np.arange(len(self.start)), genomes]
        return np.asarray(np.where(self.space.encoding.inactive(genomes), 0.0, each).sum(axis=1))

    def value(self, genome: Genome) -> float:
        """The sum of harms of one genome (U,)."""
        return float(self.total(genome[None])[0])

    @cached_property
    def near(self) -> Neighbourhood:
        """What single changes do."""
        return Neighbourhood(self.space, self.harms)

    @cached_property
    def own_costs(self) -> Floats:
        """The costs of each level of each gene (U, L, bounds); see `own_costs`."""
        return own_costs(self.space, self.start)


def knapsack(space: SearchSpace, harms: Harms, start: Genome) -> Genome | None:
    """The feasible genome (U,) of the least sum of harms, or nearly so.

    Inactive genes do not count. Where genes change each other's costs, the search begins at the
    genome `start` (U,) of allowed levels.

    Returns:
        ``None`` where no allowed genome that was found meets the budget.
    """
    task = _Task(space, padded_tables(harms, np.inf), start)
    apart = separable(space)
    if apart and len(space.budget) == 1:
        best = _dynamic(task)
    else:
        cheapest = _cheapest_apart if apart else _cheapest_in_turn
        best = priced(space, lambda prices: cheapest(task, prices), task.value)
    return None if best is None else _polished(task, best)


def separable(space: SearchSpace) -> bool:
    """Whether no gene changes what another one costs or means."""
    genes = space.encoding
    kinds = genes.by_kind.keys()
    layers = ({"block"}, {"attention", "mlp"}, {"expert"}, {"matrix"})
    nested = sum(bool(kinds & layer) for layer in layers) > 1
    return not nested and bool(genes.admissible((genes.sizes - 1)[None])[0])


def padded_tables(tables: Sequence[Floats], fill: float) -> Floats:
    """Tables of genes (levels, ...) as one array (U, L, ...), `fill` where levels are fewer."""
    longest = max(len(table) for table in tables)
    found = np.full((len(tables), longest, *tables[0].shape[1:]), fill)
    for row, table in zip(found, tables, strict=True):
        row[: len(table)] = table
    return found


def _polished(task: _Task, genome: Genome) -> Genome:
    """A feasible genome (U,) after single changes that lower the sum of harms, best first."""
    genes, levels = task.space.encoding.options
    value = task.value(genome)
    while True:
        near = task.near.around(genome, genes, levels)
        best = int(np.argmin(np.where(near.feasible, near.harms, np.inf)))
        changed = genome.copy()
        changed[genes[best]] = levels[best]
        changed = task.space.deactivate(changed[None])[0]
        # Sums in another order may differ in their last digits, which decides nothing.
        if not (task.space.feasible(changed[None])[0] and task.value(changed) < value):
            return genome
        genome, value = changed, task.value(changed)


def _dynamic(task: _Task) -> Genome | None:
    """The optimum on costs in buckets: exact where one step divides all costs."""
    costs = task.own_costs[:, :, 0]
    own = costs[np.arange(len(costs)), task.start]
    floor = costs.min(axis=1)
    room = 1 - task.space.budget_usage(task.start[None])[0, 0] + float((own - floor).sum())
    if room < 0:
        return None
    sizes, capacity = _buckets(costs - floor[:, None], room)
    least = np.zeros(capacity + 1)
    picks = np.zeros((len(costs), capacity + 1), dtype=np.int64)
    for gene, (size, harm) in enumerate(zip(sizes, task.harms, strict=True)):
        least, picks[gene] = _with_gene(least, size, harm)
    if not np.isfinite(least[-1]):
        return None
    genome = np.zeros_like(task.start)
    for gene in reversed(range(len(costs))):
        genome[gene] = picks[gene, capacity]
        capacity -= int(sizes[gene, genome[gene]])
    return genome


def _with_gene(least: Floats, size: Integers, harm: Floats) -> tuple[Floats, Integers]:
    """Least harm within each capacity (C,) with one gene more, and the level it then has (C,)."""
    found = np.full((len(harm), len(least)), np.inf)
    for row, own, extra in zip(found, size.tolist(), harm.tolist(), strict=True):
        if own < len(least):
            row[own:] = least[: len(least) - own] + extra
    picks = found.argmin(axis=0)
    return found[picks, np.arange(len(least))], picks


def _buckets(costs: Floats, room: float) -> tuple[Integers, int]:
    """Costs in whole buckets, more than there is room for where infinite; and the room."""
    known = np.isfinite(costs)
    step = _common_step(costs[known])
    exact = bool(step) and room / step <= BUCKETS
    capacity = int(room / step + _ROUNDING) if exact else BUCKETS
    scaled = np.where(known, costs, 0.0) / (step if exact else room / BUCKETS or 1.0)
    whole = np.rint(scaled) if exact else np.ceil(scaled - _ROUNDING)
    return np.where(known, whole, capacity + 1).astype(np.int64), capacity


def _common_step(costs: Floats) -> float:
    """The smallest difference of costs, if all costs are multiples of it; else 0."""
    differences = np.diff(np.unique(np.append(costs, 0.0)))
    apart = differences[differences > _SAME]
    if not apart.size:
        return 0.0
    multiples = costs / apart.min()
    return float(apart.min()) if np.abs(multiples - np.rint(multiples)).max() < _ROUNDING else 0.0


def _cheapest_apart(task: _Task, prices: Floats) -> Genome:
    """The genome (U,) of least harm and priced cost, where genes do not touch each other."""
    genome: Genome = (task.harms + task.own_costs @ prices).argmin(axis=1)
    return genome


def _cheapest_in_turn(task: _Task, prices: Floats) -> Genome:
    """The same kind after kind of genes, given the others, until none changes.

    Genes of one kind do not touch each other. What lies in a unit is chosen before the unit,
    which is so dropped for its best form.
    """
    space, genome = task.space, task.start
    by_kind = space.encoding.by_kind
    turns = [[by_kind[kind] for kind in kinds if kind in by_kind] for kinds in _INSIDE_OUT]
    for _ in range(_SWEEPS):
        before = genome
        for kinds in turns:
            if kinds:
                genome = _cheapest_of(task, genome, np.concatenate(kinds), prices)
        if (genome == before).all():
            break
    return genome


def _cheapest_of(task: _Task, genome: Genome, genes: Integers, prices: Floats) -> Genome:
    """The genome with the cheapest level of each of some genes, given all others."""
    space = task.space
    every, levels = space.encoding.options
    chosen = np.isin(every, genes)
    every, levels = every[chosen], levels[chosen]

    near = task.near.around(genome, every, levels)
    values = near.harms + near.used @ prices
    # By gene, then by value: the first row of each gene is its best.
    order = np.lexsort((values, every))
    first = order[np.unique(every[order], return_index=True)[1]]
    best = genome.copy()
    best[every[first]] = levels[first]
    best = _enough_experts(space, best, every, levels, values)
    if not space.encoding.admissible(best[None])[0]:
        near = task.near.around(best, every, levels)
        values = np.where(near.admissible, near.harms + near.used @ prices, np.inf)
        choice = int(np.argmin(values))
        best[every[choice]] = levels[choice]
    return np.asarray(space.deactivate(best[None])[0])


def _enough_experts(
    space: SearchSpace,
    genome: Genome,
    genes: Integers,
    levels: Integers,
    values: Floats,
) -> Genome:
    """The genome (U,) with the experts restored that are needed, those first whose drop costs most.

    Each option (K,) is a gene, a level and what the whole then costs.
    """
    worth = np.zeros(len(genome))
    for kept, sign in ((levels == 0, -1.0), (levels == space.encoding.drop_index[genes], 1.0)):
        finite = kept & np.isfinite(values)
        worth[genes[finite]] += sign * values[finite]
    whole: Genome = space.encoding.with_experts(genome[None], worth)[0]
    return whole


def rising(points: Sequence[tuple[float, float]]) -> tuple[Floats, Floats]:
    """The sizes (N,) and harms (N,) of ever larger changes, from pairs (size, harm) of each.

    The first pair is that of no change. The harms never fall: a larger change that was measured as
    harmless makes smaller ones harmless, so a lucky measurement of a large change lowers the
    smaller ones, instead of being lost.
    """
    first, *others = points
    sizes, harms = np.array([first, *sorted(others)]).T
    return sizes, np.minimum.accumulate(harms[::-1])[::-1]
