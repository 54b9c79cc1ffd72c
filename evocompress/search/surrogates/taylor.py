"""What estimates at one candidate predict of its neighbours.

Around a candidate the divergence of a neighbour is taken as ½·mean⟨score, change⟩², to which comes,
where the candidate is not dense, the slope ⟨∇KL, change⟩ (see
`evocompress.evaluation.estimates.linear`). The terms of different genes are taken to add up here:
exactly so for slopes, and see `evocompress.search.surrogates.second_order` for the rest of the
others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evocompress.core.arrays import Floats, Genome
from evocompress.core.requests import Estimation
from evocompress.space.space import SearchSpace

Tables = tuple[Floats, ...]
"""For each gene (levels, sequences)."""


@dataclass(frozen=True, eq=False)
class Expansion:
    """The divergence around a candidate, which need not be one of the space.

    Attributes:
        slopes: First-order terms of changing a gene to each level.
        scores: Inner products whose squares are the second-order terms.
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


def monotone(harms: Sequence[Floats]) -> list[Floats]:
    """Harms of which no level of a gene has less than one that leaves more.

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
    """The harms with every level forbidden that is more than `radius` levels away.

    A drop is forbidden, and what is dropped stays so: neither is a small change.
    """
    allowed = []
    for harm, now, drop in zip(harms, genome, space.encoding.drop_index, strict=True):
        levels = np.arange(len(harm))
        near = (np.abs(levels - now) <= radius) & ((levels == drop) == (now == drop))
        allowed.append(np.where(near, harm, np.inf))
    return allowed
