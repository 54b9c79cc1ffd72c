"""Output-distortion curves and dynamic programming (Xu et al. 2023, 2308.10438).

What each unit alone does to the output is measured at several of its levels; the distortions of
all units are taken to add up, and their least sum within the budget is chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite

import numpy as np

from evocompress.core.arrays import Floats, Genome
from evocompress.core.errors import ConfigError
from evocompress.core.fields import Size, Tokens
from evocompress.core.requests import Evaluate, Result
from evocompress.core.storage import stored_bits
from evocompress.core.types import DENSE, Level
from evocompress.search.allocation.knapsack import Harms, knapsack, rising
from evocompress.search.base import SearcherSettings
from evocompress.search.generator_searcher import AskTell, GeneratorSearcher
from evocompress.space.encoding import Encoding
from evocompress.space.space import SearchSpace

WIDEST = 64
"""Bits of a weight, at most."""

Distortions = dict[int, list[tuple[int, float]]]
"""For each gene levels with their measured distortions."""


class DistortionDP(GeneratorSearcher):
    """Measures curves one unit at a time, and the candidate of their least sum at the end.

    The distortion is the rise of the proxy's value. Trials are no members of the space, so they
    are probes.

    ```yaml
    space: {drop: {}, budget: {body_params: 0.7}}
    search: {name: distortion_dp, rounds: 2, probe_tokens: 1024}
    ```

    Examples:
        >>> from evocompress.testing.examples import winner
        >>> winner(DistortionDP)
        {'1.attention': 'drop', '2.attention': 'drop', '3.mlp': 'drop'}
    """

    class Settings(SearcherSettings):
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

    settings: Settings

    def prepare(self) -> None:
        """Draws the tokens of the probes."""
        genes = self.space.encoding
        if not genes.ordinal[genes.matrices].all():
            raise ConfigError(
                "search.name: distortion_dp draws one curve for each matrix, so its levels must be "
                "zeros alone, or types of which no two take the same bits"
            )
        self._probe_batches = self.chosen(self.settings.probe_tokens, "search.probe_tokens")

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

    def _curves(self, wide: WithDense, now: Genome) -> AskTell[Distortions | None]:
        """The distortions of single changes; ``None`` where not even `now` can be measured."""
        tries = trials(wide, now, self.settings.levels)
        candidates = [wide.genes.candidate(changed) for changed in tries.values()]
        dense = wide.genes.candidate(now)
        # Below a dropped unit different changes may give one candidate: it is asked for once.
        asked = list(dict.fromkeys([dense, *candidates]))
        answers = yield [Evaluate(one, self._probe_batches, probe=True) for one in asked]
        means = {a.request.candidate: a.mean for a in answers if isinstance(a, Result)}
        if not isfinite(means[dense]):
            return None
        points: Distortions = {}
        for (gene, level), candidate in zip(tries, candidates, strict=True):
            if isfinite(means[candidate]):
                points.setdefault(gene, []).append((level, means[candidate] - means[dense]))
        return points


@dataclass(frozen=True, eq=False)
class WithDense:
    """A space's encoding with levels that begin with the dense one, whether it is allowed or not.

    Attributes:
        space: The space.
        genes: Its encoding with that level, which is the default of all genes.
        shift: For each gene by how much indices of its levels are higher than in the space (U,).

    Examples:
        >>> from evocompress.testing.examples import space
        >>> wide = WithDense.of(space(body_params=0.9))
        >>> wide.shift.tolist(), wide.removed(0).tolist()
        ([0, 0, 0, 0, 0], [0.0, 1.0])
    """

    space: SearchSpace
    genes: Encoding
    shift: Genome

    @classmethod
    def of(cls, space: SearchSpace) -> WithDense:
        """The encoding of a space with dense levels."""
        shift = np.array([int(not levels[0].dense) for levels in space.levels], dtype=np.int64)
        levels = tuple(
            (DENSE, *own) if added else own for own, added in zip(space.levels, shift, strict=True)
        )
        genes = replace(space.encoding, levels=levels, default=np.zeros_like(shift))
        return cls(space, genes, shift)

    def removed(self, gene: int) -> Floats:
        """The share of the weights, or of their bits, that each of a gene's levels removes."""
        unit = self.genes.units[gene]
        parts = {part.unit.name: part for part in self.space.cost_model.parts}

        def share(level: Level) -> float:
            if level.narrow:
                part = parts[unit.name]
                return 1 - part.left(level).used / part.left(DENSE).used
            if level.type:
                return 1 - stored_bits(level.type) / WIDEST
            return float(level.drop) or level.zeros / max(unit.numel, 1)

        return np.array([share(level) for level in self.genes.levels[gene]])


def targets(space: SearchSpace, rounds: int) -> list[SearchSpace]:
    """The space with the budget of each of the `rounds`: the costs left fall geometrically."""
    dense = space.cost_model.dense()

    def bounds(share: float) -> dict[str, float]:
        return {
            name: max(bound, dense[name] * min(bound / dense[name], 1.0) ** share)
            for name, bound in space.budget.items()
        }

    return [replace(space, budget=bounds(number / rounds)) for number in range(1, rounds + 1)]


def trials(wide: WithDense, now: Genome, count: int) -> dict[tuple[int, int], Genome]:
    """By gene and level what to measure: up to `count` levels a gene, evenly spread to the last.

    Only levels behind those of a genome `now` (U,), of units that it has; and the last attention
    is not dropped.
    """
    genes = wide.genes
    found: dict[tuple[int, int], Genome] = {}
    for gene in np.flatnonzero(~genes.inactive(now[None])[0]).tolist():
        left = int(genes.sizes[gene] - 1 - now[gene])
        places = np.linspace(left, 1, min(count, left)).round().astype(np.int64)
        for level in sorted((now[gene] + places).tolist()):
            found[gene, level] = now.copy()
            found[gene, level][gene] = level
    kept = genes.admissible(np.reshape(list(found.values()), (-1, len(now))))
    return {trial: found[trial] for trial, keeps in zip(list(found), kept, strict=True) if keeps}


def harms(wide: WithDense, now: Genome, points: Distortions) -> Harms:
    """The distortion of every level of the space, interpolated over what levels remove.

    Nothing is relaxed: levels before those of `now` (U,) are forbidden, and so is what removes
    more than was measured.
    """
    return [
        _curve(wide.removed(gene), int(now[gene]), points.get(gene, []))[shift:]
        for gene, shift in enumerate(wide.shift.tolist())
    ]


def _curve(removed: Floats, now: int, points: Sequence[tuple[int, float]]) -> Floats:
    """The distortion of each level of a gene (levels,), infinite where it is forbidden."""
    measured = ((float(removed[level]), max(value, 0.0)) for level, value in points)
    shares, values = rising([(float(removed[now]), 0.0), *measured])
    forbidden = (np.arange(len(removed)) < now) | (removed > shares[-1])
    return np.where(forbidden, np.inf, np.interp(removed, shares, values))
