"""A start that is measured: what single changes do to the proxy, and the best sum of them.

A drop or a narrower sub-layer is no small change, so its effect is measured, one change at a time
(as Shortened-LLaMA ranks blocks, 2402.02834). Effects are taken to add up (as SPDY does,
2201.13096), and the changes that save most per harm are chosen by a Lagrange multiplier. Far from
where they were measured they do not add up: so the budget is approached in rounds, each of which
measures where the one before it ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np

from evocompress.core.arrays import Floats, Genome, Integers
from evocompress.search.allocation.knapsack import rising
from evocompress.search.bisection import bisected, mean
from evocompress.search.generator_searcher import AskTell, Probe
from evocompress.space.space import SearchSpace

_EXPONENTS = (-9.0, 9.0)
"""Of ten, for prices: measured effects lie between `_LEAST_EFFECT` and about 20, and a change may
save a hundred-thousandth of a bound."""

_BISECTIONS = 60
"""More than the 53 binary digits of a number: the price is as exact as it can be."""

_LEAST_EFFECT = 1e-6
"""Floor of a measured effect: noise may make a change look free, or better than none."""


@dataclass(frozen=True)
class LevelChange:
    """One gene at another level.

    Attributes:
        gene: Its index.
        level: The level's index.
        saving: By how much the budget's costs fall, each as a share of its bound, together.

    Example:
        >>> applied(np.array([0, 0]), LevelChange(gene=1, level=3, saving=0.1)).tolist()
        [0, 3]
    """

    gene: int
    level: int
    saving: float


Sensitivities = Sequence[tuple[LevelChange, float]]
"""Changes with their effects on the proxy's value."""


def approach(space: SearchSpace, probe: Probe, *, rounds: int, per_gene: int) -> AskTell[Genome]:
    """A genome (U,) that meets the budget, or nearly so, from the least compressed one on.

    In each of the `rounds` up to `per_gene` levels of each gene are tried by `probe`, and an equal
    step of the way is taken.
    """
    genome = space.encoding.default
    used = space.budget_usage(genome[None])[0]
    for step in range(1, rounds + 1):
        # A bound that is met already may be used up to the whole of it.
        target = np.maximum(used + (1 - used) * step / rounds, 1.0)
        measured = yield from sensitivities(space, genome, probe, per_gene)
        if measured is None:
            break
        genome = best_sum(space, genome, measured, target)
    return genome


def sensitivities(
    space: SearchSpace, genome: Genome, probe: Probe, per_gene: int
) -> AskTell[Sensitivities | None]:
    """The effects of up to `per_gene` changes of each gene of a genome (U,), alone.

    They are ``None`` where the genome itself cannot be measured.
    """
    tries = changes(space, genome, per_gene)
    results = yield from probe([genome, *(applied(genome, change) for change in tries)])
    now, *after = (result.mean for result in results)
    if not isfinite(now):
        return None
    return [(change, value - now) for change, value in zip(tries, after, strict=True)]


def changes(space: SearchSpace, genome: Genome, per_gene: int) -> list[LevelChange]:
    """The changes of a genome (U,) to try: up to `per_gene` that save something, of each gene.

    Only widths and drops are changed. The changes of a gene are spread over the savings that it
    has; the largest one is always among them.
    """
    found: list[LevelChange] = []
    for gene in _sublayer_genes(space, genome):
        cheaper = _cheaper(space, genome, gene)
        most = max((change.saving for change in cheaper), default=0.0)
        nearest = set[LevelChange]()
        for share in np.arange(1, per_gene + 1) / per_gene if cheaper else ():
            distances = [abs(change.saving - share * most) for change in cheaper]
            nearest.add(cheaper[int(np.argmin(distances))])
        found += sorted(nearest, key=lambda change: change.saving)
    return found


def applied(genome: Genome, change: LevelChange) -> Genome:
    """The genome (U,) with one change."""
    changed = genome.copy()
    changed[change.gene] = change.level
    return changed


def best_sum(space: SearchSpace, genome: Genome, measured: Sensitivities, target: Floats) -> Genome:
    """The genome (U,) of the least total effect that uses at most `target` of each bound.

    A knapsack has no answer where the target is missed; here the changes that save most are made
    then, because later rounds and repairs go on from there.

    Between two measured changes of a gene the effect is interpolated over the saving, and a change
    that saves less than another never harms more. The target is in shares of the bounds (bounds,).
    """
    curves = effect_curves(space, genome, measured)

    def chosen(exponent: float) -> Genome:
        picked = genome.copy()
        for gene, (levels, savings, harms) in curves.items():
            picked[gene] = levels[int(np.argmin(harms - 10.0**exponent * savings))]
        return np.asarray(space.deactivate(space.encoding.with_experts(picked[None]))[0])

    def enough(exponent: float) -> bool:
        return bool((space.budget_usage(chosen(exponent)[None])[0] <= target).all())

    return chosen(bisected(enough, *_EXPONENTS, _BISECTIONS, mean)[1])


def effect_curves(
    space: SearchSpace, genome: Genome, measured: Sensitivities
) -> dict[int, tuple[Integers, Floats, Floats]]:
    """For each measured gene levels that save something, their savings and their effects (L,).

    The present level is the first; between measured ones effects are interpolated over the saving.
    """
    return {
        gene: _curve(space, genome, gene, [pair for pair in measured if pair[0].gene == gene])
        for gene in dict.fromkeys(change.gene for change, _ in measured)
    }


def _sublayer_genes(space: SearchSpace, genome: Genome) -> list[int]:
    """The active genes of widths and drops."""
    genes = np.union1d(space.encoding.widths, space.encoding.droppable)
    present = ~space.encoding.inactive(genome[None])[0]
    return [int(gene) for gene in genes if present[gene]]


def _cheaper(space: SearchSpace, genome: Genome, gene: int) -> list[LevelChange]:
    """Every level of a gene that saves something."""
    levels = range(len(space.levels[gene]))
    rows = np.stack([applied(genome, LevelChange(gene, level, 0.0)) for level in levels])
    before = space.budget_usage(genome[None]).sum()
    savings = before - space.budget_usage(space.deactivate(rows)).sum(axis=1)
    savings[~space.encoding.enough_experts(rows)] = 0
    return [
        LevelChange(gene, level, float(saving))
        for level, saving in zip(levels, savings, strict=True)
        if saving > 0
    ]


def _curve(
    space: SearchSpace, genome: Genome, gene: int, measured: Sensitivities
) -> tuple[Integers, Floats, Floats]:
    """Levels of one gene from the present one on, with their savings and effects.

    Levels that save more than the largest measured saving are left out.
    """
    points = [(change.saving, max(effect, _LEAST_EFFECT)) for change, effect in measured]
    savings, harms = rising([(0.0, 0.0), *points])
    options = [c for c in _cheaper(space, genome, gene) if c.saving <= savings[-1] * (1 + 1e-9)]
    options = [LevelChange(gene, int(genome[gene]), 0.0), *options]
    own = np.array([option.saving for option in options])
    return np.array([option.level for option in options]), own, np.interp(own, savings, harms)
