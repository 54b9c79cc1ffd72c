"""A start that is measured: what single changes do to the proxy, and the best sum of them.

A drop or a narrower sub-layer is no small change, so its effect is measured, one change at a time
(as Shortened-LLaMA ranks blocks, 2402.02834). Effects are taken to add up (as SPDY does,
2201.13096), and the changes that save most per harm are chosen by a Lagrange multiplier. Far from
where they were measured they do not add up: so the budget is approached in rounds, each of which
measures where the one before it ended.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from evocompress.core.arrays import Genome
from evocompress.core.requests import Result
from evocompress.search.generator_searcher import AskTell
from evocompress.space.space import SearchSpace

Measure = Callable[[Sequence[Genome]], AskTell[list[Result]]]
"""Evaluates genomes as probes, all on the same tokens."""

_BISECTIONS = 60
_LEAST_EFFECT = 1e-6
"""Floor of a measured effect: noise may make a change look free, or better than none."""


@dataclass(frozen=True)
class Change:
    """One gene at another level.

    Attributes:
        gene: Its index.
        level: The level's index.
        saving: By how much the budget's costs fall, each as a share of its bound, together.
    """

    gene: int
    level: int
    saving: float


def approach(
    space: SearchSpace, measure: Measure, *, rounds: int, per_gene: int
) -> AskTell[Genome]:
    """A genome (U,) that meets the budget, or nearly so, from the least compressed one on.

    Args:
        space: Its budget is approached in equal steps.
        measure: Evaluates what is tried.
        rounds: In how many steps.
        per_gene: How many levels of each gene are tried in a round.
    """
    genome = space.encoding.default
    used = space.budget_usage(genome[None])[0]
    for step in range(1, rounds + 1):
        # A bound that is met already may be used up to the whole of it.
        target = np.maximum(used + (1 - used) * step / rounds, 1.0)
        tries = changes(space, genome, per_gene)
        genomes = [genome, *(applied(genome, change) for change in tries)]
        results = yield from measure(genomes)
        now, *after = (result.mean for result in results)
        if not isfinite(now):
            break
        effects = [value - now for value in after]
        genome = best_sum(space, genome, list(zip(tries, effects, strict=True)), target)
    return genome


def changes(space: SearchSpace, genome: Genome, per_gene: int) -> list[Change]:
    """What to try: for each width and drop gene up to `per_gene` levels that save something.

    They are spread over what the gene can save; the largest saving is always among them.
    """
    found: list[Change] = []
    for gene in _sublayer_genes(space, genome):
        cheaper = _cheaper(space, genome, gene)
        wanted = (
            np.arange(1, per_gene + 1)
            / per_gene
            * max((change.saving for change in cheaper), default=0.0)
        )
        nearest = {
            min(cheaper, key=lambda change, goal=goal: abs(change.saving - goal))  # type: ignore[misc]
            for goal in (wanted if cheaper else ())
        }
        found += sorted(nearest, key=lambda change: change.saving)
    return found


def applied(genome: Genome, change: Change) -> Genome:
    """The genome (U,) with one change."""
    changed = genome.copy()
    changed[change.gene] = change.level
    return changed


def best_sum(
    space: SearchSpace,
    genome: Genome,
    measured: Sequence[tuple[Change, float]],
    target: NDArray[np.float64],
) -> Genome:
    """The genome (U,) of the least total effect that uses at most `target` of each bound.

    Args:
        space: The space.
        genome: Where the effects were measured.
        measured: Changes with their effects. What lies between two of a gene is interpolated
            over the saving, and what one saves less than another never harms more.
        target: For each bound the share of it to come down to; where all changes together
            miss it, the most that was measured is done.
    """
    tables = [
        (gene, *_curve(space, genome, gene, [pair for pair in measured if pair[0].gene == gene]))
        for gene in dict.fromkeys(change.gene for change, _ in measured)
    ]

    def chosen(price: float) -> Genome:
        picked = genome.copy()
        for gene, levels, savings, effects in tables:
            picked[gene] = levels[int(np.argmin(effects - price * savings))]
        settled: Genome = space.deactivate(space.encoding.with_experts(picked[None]))[0]
        return settled

    low, high = -9.0, 9.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if (space.budget_usage(chosen(10.0**middle)[None])[0] > target).any():
            low = middle
        else:
            high = middle
    return chosen(10.0**high)


def _sublayer_genes(space: SearchSpace, genome: Genome) -> list[int]:
    """The genes of widths and drops that are not void."""
    genes = np.union1d(space.encoding.widths, space.encoding.droppable)
    present = ~space.encoding.inactive(genome[None])[0]
    return [int(gene) for gene in genes if present[gene]]


def _cheaper(space: SearchSpace, genome: Genome, gene: int) -> list[Change]:
    """Every level of a gene that saves something."""
    levels = range(len(space.levels[gene]))
    rows = np.stack([applied(genome, Change(gene, level, 0.0)) for level in levels])
    before = space.budget_usage(genome[None]).sum()
    savings = before - space.budget_usage(space.deactivate(rows)).sum(axis=1)
    savings[~space.encoding.enough_experts(rows)] = 0
    return [
        Change(gene, level, float(saving))
        for level, saving in zip(levels, savings, strict=True)
        if saving > 0
    ]


def _curve(
    space: SearchSpace, genome: Genome, gene: int, measured: Sequence[tuple[Change, float]]
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Levels of one gene from the present one on, with their savings and effects.

    Levels that save more than the largest measured saving are left out.
    """
    points = sorted((change.saving, max(effect, _LEAST_EFFECT)) for change, effect in measured)
    savings = np.array([0.0, *(saving for saving, _ in points)])
    # From the right, so that a lucky measurement of a large change lowers the smaller ones.
    effects = np.minimum.accumulate(np.array([0.0, *(e for _, e in points)])[::-1])[::-1]
    options = [c for c in _cheaper(space, genome, gene) if c.saving <= savings[-1] * (1 + 1e-9)]
    options = [Change(gene, int(genome[gene]), 0.0), *options]
    own = np.array([option.saving for option in options])
    return (
        np.array([option.level for option in options], dtype=np.int64),
        own,
        np.interp(own, savings, effects),
    )
