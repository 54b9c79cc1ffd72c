"""Greedy removal that tries again only what may be the best now.

What a removal harms grows with what else is removed, mostly. So what harmed much once need not be
tried again as long as there is something better (lazy evaluation: Minoux 1978). What lies next to
the last removal may have become cheaper, and is tried in any case. The two sub-layers of a block
may harm less together than the sum of both, so whole blocks are tried beside them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from evocompress.core.arrays import Genome
from evocompress.search.baselines.removal import present, without, without_each
from evocompress.search.baselines.steps import rates, savings
from evocompress.search.generator_searcher import AskTell, Probe
from evocompress.space.space import SearchSpace

Removed = tuple[int, ...]
"""Genes that are dropped together."""


def lazily_removed(space: SearchSpace, probe: Probe, *, tries: int, take: int) -> AskTell[Genome]:
    """A genome (U,) that meets the budget by dropping unit after unit, or nearly so.

    In each round after the first the `tries` most promising removals are tried; `take` are made.
    """
    genome = space.encoding.default
    fresh = _removals(space, genome)
    harms = yield from _measured(space, genome, fresh, probe)
    while not space.feasible(genome[None])[0]:
        taken = _together(space, genome, _disjoint(_cheapest(space, genome, fresh, harms)), take)
        if not taken:
            break
        genome = without(space, genome, np.concatenate(taken))
        left = _removals(space, genome)
        if space.feasible(genome[None])[0] or not left:
            break
        promising = _cheapest(space, genome, left, harms)[:tries]
        near = [removal for removal in left if _is_near(space, removal, taken)]
        fresh = list(dict.fromkeys([*promising, *near]))
        harms |= yield from _measured(space, genome, fresh, probe)
    return genome


def _removals(space: SearchSpace, genome: Genome) -> list[Removed]:
    """Every unit that can be dropped from a genome (U,), and both sub-layers of each block."""
    left = present(space, genome)
    by_block: defaultdict[int, list[int]] = defaultdict(list)
    for gene in left.tolist():
        if space.units[gene].kind != "expert":
            by_block[space.units[gene].block].append(gene)
    both = [tuple(members) for members in by_block.values() if len(members) > 1]
    each = zip(left.tolist(), without_each(space, genome, left), strict=True)
    enough = space.encoding.enough_experts
    return [*((gene,) for gene, shorter in each if enough(shorter[None])[0]), *both]


def _together(
    space: SearchSpace, genome: Genome, removals: Sequence[Removed], count: int
) -> list[Removed]:
    """The first `count` removals that leave a genome (U,) enough experts together."""
    taken: list[Removed] = []
    for removal in removals[: count if not space.encoding.mixtures else None]:
        if len(taken) == count:
            break
        shorter = without(space, genome, np.concatenate([*taken, removal]))
        if space.encoding.enough_experts(shorter[None])[0]:
            taken.append(removal)
    return taken


def _measured(
    space: SearchSpace, genome: Genome, removals: Sequence[Removed], probe: Probe
) -> AskTell[dict[Removed, float]]:
    """By how much each removal makes a genome (U,) worse."""
    tried = [without(space, genome, np.array(removal)) for removal in removals]
    now, *after = yield from probe([genome, *tried])
    return {
        removal: result.mean - now.mean if np.isfinite(now.mean) else np.inf
        for removal, result in zip(removals, after, strict=True)
    }


def _cheapest(
    space: SearchSpace,
    genome: Genome,
    removals: Sequence[Removed],
    harms: Mapping[Removed, float],
) -> list[Removed]:
    """Those of the removals that save something, the least harm per saving first."""
    left = [removal for removal in removals if np.isfinite(harms.get(removal, np.inf))]
    saved = savings(space, genome, [without(space, genome, np.array(r)) for r in left])
    costs = rates([harms[removal] for removal in left], 0.0, saved)
    order = np.argsort(costs, kind="stable").tolist()
    return [left[place] for place in order if np.isfinite(costs[place])]


def _disjoint(removals: Sequence[Removed]) -> list[Removed]:
    """Removals none of which has a unit of one before it."""
    found: list[Removed] = []
    for removal in removals:
        if not {gene for other in found for gene in other} & set(removal):
            found.append(removal)
    return found


def _is_near(space: SearchSpace, removal: Removed, taken: Sequence[Removed]) -> bool:
    """Whether a removal is in a block of one of others."""
    blocks = {space.units[gene].block for other in taken for gene in other}
    return space.units[removal[0]].block in blocks
