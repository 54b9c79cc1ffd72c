"""Output-distortion curves and dynamic programming (Xu et al. 2023, 2308.10438).

What each unit alone does to the output is measured at several of its levels; the distortions of
all units are taken to add up, and their least sum within the budget is chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from evocompress.core.arrays import Genome
from evocompress.core.fields import Size, Tokens
from evocompress.core.requests import Evaluate, Result
from evocompress.core.types import DENSE, Candidate, Level
from evocompress.search.allocation.knapsack import Harms, knapsack
from evocompress.search.base import Problem, SearcherSettings
from evocompress.search.generator_searcher import AskTell, GeneratorSearcher
from evocompress.space.encoding import Encoding
from evocompress.space.space import SearchSpace

Points = dict[int, list[tuple[int, float]]]
"""For each gene levels with their measured distortions."""


class DistortionDPSettings(SearcherSettings):
    """Settings of `DistortionDP`.

    Attributes:
        rounds: In how many rounds the budget is approached, each measured where the one before
            ended. After t of them so much is left as a constant share of each round leaves;
            published: 1 - (1 - a)^t is gone. With 1, all is measured at the dense model.
        levels: How many levels of each unit are measured in a round, evenly spread; the others
            are interpolated.
        probe_tokens: Tokens on which one level is measured; `candidate_tokens` if left out.
        candidate_tokens: Tokens on which the result is measured; the whole pool if left out.
    """

    rounds: Size = 1
    levels: Size = 4
    probe_tokens: Tokens | None = None
    candidate_tokens: Tokens | None = None


class DistortionDP(GeneratorSearcher):
    """Measures curves one unit at a time, and the candidate of their least sum at the end.

    The distortion is the rise of the proxy's value. Trials are no members of the space, so they
    are probes.
    """

    Settings: ClassVar[type[SearcherSettings]] = DistortionDPSettings

    settings: DistortionDPSettings

    def __init__(
        self, problem: Problem, settings: DistortionDPSettings, rng: np.random.Generator
    ) -> None:
        super().__init__(problem, settings, rng)
        self._probe_batches = self.chosen(settings.probe_tokens, "search.probe_tokens")

    def search(self) -> AskTell[None]:
        """Round after round of curves and their least sum."""
        wide = WithDense.of(self.space)
        genome, now = self.space.encoding.default, wide.genes.default
        for target in targets(self.space, self.settings.rounds):
            points = yield from self._curves(wide, now)
            if points is None:
                break
            found = knapsack(target, harms(wide, now, points), genome)
            if found is not None:
                genome, now = found, found + wide.shift
        yield from self.conclude(genome)

    def _curves(self, wide: WithDense, now: Genome) -> AskTell[Points | None]:
        """The distortions of single changes; ``None`` where not even `now` can be measured."""
        tries = trials(wide, now, self.settings.levels)
        candidates = [wide.changed(now, gene, level) for gene, level in tries]
        dense = wide.genes.candidate(now)
        # Below a dropped unit different changes may give one candidate: it is asked for once.
        asked = list(dict.fromkeys([dense, *candidates]))
        answers = yield [Evaluate(one, self._probe_batches, probe=True) for one in asked]
        means = {a.request.candidate: a.mean for a in answers if isinstance(a, Result)}
        if not isfinite(means[dense]):
            return None
        points: Points = {}
        for (gene, level), candidate in zip(tries, candidates, strict=True):
            if isfinite(means[candidate]):
                points.setdefault(gene, []).append((level, means[candidate] - means[dense]))
        return points


@dataclass(frozen=True, eq=False)
class WithDense:
    """The genes of a space, whose levels begin with the dense one, whether it is allowed or not.

    Attributes:
        space: The space.
        genes: Its genes with that level, at which they start.
        shift: For each gene by how much indices of its levels are higher than in the space (U,).
    """

    space: SearchSpace
    genes: Encoding
    shift: Genome

    @classmethod
    def of(cls, space: SearchSpace) -> WithDense:
        """The genes of a space with dense levels."""
        shift = np.array([int(not levels[0].dense) for levels in space.levels], dtype=np.int64)
        levels = tuple(
            (DENSE, *own) if added else own for own, added in zip(space.levels, shift, strict=True)
        )
        return cls(
            space, replace(space.encoding, levels=levels, default=np.zeros_like(shift)), shift
        )

    def changed(self, genome: Genome, gene: int, level: int) -> Candidate:
        """The candidate of a genome (U,) with one gene at another level."""
        changed = genome.copy()
        changed[gene] = level
        return self.genes.candidate(changed)

    def removed(self, gene: int) -> NDArray[np.float64]:
        """The share of a unit's weights that each of its levels removes (levels,)."""
        unit = self.genes.units[gene]
        parts = {part.unit.name: part for part in self.space.cost_model.parts}

        def share(level: Level) -> float:
            if level.narrow:
                part = parts[unit.name]
                return 1 - part.left(level).used / part.left(DENSE).used
            return float(level.drop) or level.zeros / max(unit.numel, 1)

        return np.array([share(level) for level in self.genes.levels[gene]])


def targets(space: SearchSpace, rounds: int) -> list[SearchSpace]:
    """The space with the budget of each round: what is left of each cost falls geometrically."""
    dense = space.cost_model.dense()
    parts = {name: min(bound / dense[name], 1.0) for name, bound in space.budget.items()}
    return [
        replace(
            space,
            budget={
                name: max(bound, dense[name] * parts[name] ** (number / rounds))
                for name, bound in space.budget.items()
            },
        )
        for number in range(1, rounds + 1)
    ]


def trials(wide: WithDense, now: Genome, count: int) -> list[tuple[int, int]]:
    """Genes with the levels to measure: up to `count` each, evenly spread up to the last.

    Only levels behind those of a genome `now` (U,), of units that it has; and the last attention
    is not dropped.
    """
    genes = wide.genes
    found = []
    for gene in np.flatnonzero(~genes.inactive(now[None])[0]).tolist():
        left = int(genes.sizes[gene] - 1 - now[gene])
        places = np.linspace(left, 1, min(count, left)).round().astype(np.int64)
        found += [(gene, int(now[gene]) + place) for place in sorted(places.tolist())]
    rows = np.tile(now, (len(found), 1))
    for row, (gene, level) in zip(rows, found, strict=True):
        row[gene] = level
    kept = genes.admissible(rows)
    return [trial for trial, keeps in zip(found, kept, strict=True) if keeps]


def harms(wide: WithDense, now: Genome, points: Points) -> Harms:
    """The distortion of every level of the space, interpolated over what levels remove.

    Nothing is relaxed: levels before those of `now` (U,) are forbidden, and so is what removes
    more than was measured.
    """
    return [
        _curve(wide.removed(gene), int(now[gene]), points.get(gene, []))[shift:]
        for gene, shift in enumerate(wide.shift.tolist())
    ]


def _curve(
    removed: NDArray[np.float64], now: int, points: Sequence[tuple[int, float]]
) -> NDArray[np.float64]:
    """The distortion of each level of a gene (levels,), infinite where it is forbidden."""
    measured = sorted((float(removed[level]), max(value, 0.0)) for level, value in points)
    shares = np.array([removed[now], *(share for share, _ in measured)])
    values = np.array([0.0, *(value for _, value in measured)])
    # From the right: a larger change that was measured as harmless makes smaller ones harmless.
    values = np.minimum.accumulate(values[::-1])[::-1]
    curve: NDArray[np.float64] = np.interp(removed, shares, values)
    forbidden = (np.arange(len(removed)) < now) | (removed > shares[-1])
    return np.where(forbidden, np.inf, curve)
