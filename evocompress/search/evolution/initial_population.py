"""Good starts for a front: ladders of candidates from the dense model to the smallest one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from evocompress.core.arrays import Genome
from evocompress.core.requests import Estimation
from evocompress.search.allocation.flap import thresholds, trajectory
from evocompress.search.auto.sensitivity import best_sum, sensitivities
from evocompress.search.generator_searcher import AskTell, Probe
from evocompress.search.objectives import Objectives
from evocompress.space import sampling
from evocompress.space.space import SearchSpace

_FINER = 8
"""How many times as many steps are tried as are taken; their costs are not evenly spaced."""


def even_ladder(space: SearchSpace, objectives: Objectives, count: int) -> list[Genome]:
    """Up to `count` genomes (U,) with the same fraction kept everywhere; see `sampling.ladder`."""
    return rungs(space, objectives, sampling.ladder(space, _FINER * count), count)


def rungs(
    space: SearchSpace, objectives: Objectives, genomes: Sequence[Genome], count: int
) -> list[Genome]:
    """Up to `count` of the genomes (U,), spaced evenly over the first cost.

    Only feasible ones that do not cost less than the objectives' range.
    """
    stacked = space.deactivate(np.stack(genomes))
    costs = space.costs(stacked)
    inside = space.feasible(stacked)
    for name, floor in zip(objectives.costs, objectives.floors, strict=True):
        inside &= costs[name] >= floor
    kept = stacked[inside]
    if not len(kept):
        return []
    cost = costs[objectives.costs[0]][inside]
    wanted = np.linspace(cost.max(), cost.min(), count)
    nearest = np.abs(cost - wanted[:, None]).argmin(axis=1)
    return list(kept[list(dict.fromkeys(nearest.tolist()))])


def flap_ladder(
    space: SearchSpace, objectives: Objectives, scores: Estimation, count: int
) -> list[Genome]:
    """Up to `count` genomes (U,) on the way of FLAP's global ranking; none without scores."""
    if scores.failed is not None:
        return []
    path = trajectory(space, thresholds(space, scores.by_unit))
    return rungs(space, objectives, list(path), count)


def measured_ladder(
    space: SearchSpace,
    objectives: Objectives,
    probe: Probe,
    lowest: Genome,
    count: int,
    *,
    rounds: int,
    per_gene: int,
) -> AskTell[list[Genome]]:
    """Up to `count` genomes (U,) of the least harm, from the default one down to a cost.

    The effects of single changes are measured and added up, see
    `evocompress.search.auto.sensitivity`; in the next round the same is done from the last genome
    that was found.

    Args:
        space: What is searched.
        objectives: Their first cost is the one that falls in equal steps.
        probe: Measures genomes that cannot win.
        lowest: The genome (U,) that has the last of these costs.
        count: Steps, each with one genome; they end early where nothing can be measured.
        rounds: How often effects are measured, each time for its share of the steps.
        per_gene: Levels of each gene whose effects a round measures.
    """
    cost, genome = objectives.costs[0], space.encoding.default
    bounded = replace(space, budget={cost: space.costs(genome[None])[cost].item()})
    shares = np.linspace(1.0, bounded.budget_usage(lowest[None])[0], count + 1)[1:]
    found: list[Genome] = []
    for targets in np.array_split(shares, rounds):
        measured = yield from sensitivities(bounded, genome, probe, per_gene)
        if measured is None:
            break
        found += [best_sum(bounded, genome, measured, target) for target in targets]
        genome = found[-1] if found else genome
    return found
