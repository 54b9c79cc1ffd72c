"""Greedy compression: always the step that harms least for what it saves, in any space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush
from math import ceil, inf, isfinite

from evocompress.core.arrays import Genome
from evocompress.core.errors import ConfigError
from evocompress.core.fields import Size, Tokens
from evocompress.core.requests import Pool
from evocompress.search.base import SearcherSettings
from evocompress.search.baselines.steps import (
    least_compressed,
    moved,
    next_levels,
    rates,
    savings,
    steps,
)
from evocompress.search.fidelity import batches
from evocompress.search.generator_searcher import AskTell, GeneratorSearcher
from evocompress.space.space import SearchSpace

_ROUNDS = 16
"""How many rounds are to suffice where no number of tokens says it."""


@dataclass(frozen=True, order=True)
class _Priced:
    """A step of a gene from one level to another, the cheapest by harm per saving first.

    `turn` tells which step of the gene in this round it is, from 1.
    """

    rate: float
    gene: int
    level: int
    origin: int
    turn: int = 1


class Greedy(GeneratorSearcher):
    """From the least compressed candidate down to the budget, step by step.

    Each round measures every step of a single gene as a probe: a matrix one level up, a
    sub-layer at a next narrower width or dropped. It takes those with the least harm per saving.

    ```yaml
    space: {drop: {}, width: {units: [mlp], multiple_of: 16}, budget: {params: 0.8}}
    search: {name: greedy, take: 2, candidate_tokens: 16384}
    ```

    Examples:
        >>> from evocompress.testing.examples import winner
        >>> winner(Greedy)
        {'0.mlp': 'channels=16', '1.attention': 'drop', '3.mlp': 'channels=16'}
    """

    class Settings(SearcherSettings):
        """Settings of `Greedy`.

        Attributes:
            take: How many steps a round takes; if left out, so many that as many rounds as
                `search.tokens` pays for suffice, without that number 16.
            candidate_tokens: Tokens on which steps are compared, and the result is measured, the
                same ones throughout; about 2048 if left out.
        """

        take: Size | None = None
        candidate_tokens: Tokens | None = None

        def tokens_of_comparison(self, pool: Pool) -> int:
            """Few, if nothing is said."""
            return self.candidate_tokens or batches.few(pool)

    settings: Settings

    checks_tokens = True

    def prepare(self) -> None:
        """Divides the tokens among rounds."""
        self._tokens = self.ledger.size(self.micro_batches)
        self._round = _largest_round(self.space) * self._tokens
        if not self._pays_a_round:
            raise ConfigError(
                f"search.tokens: {self.ledger.limit} is less than the {self._round + self._tokens} "
                f"that a round and the result take on {self._tokens} tokens for each candidate; "
                "raise it or lower search.candidate_tokens"
            )
        left = self.ledger.left - self._tokens
        rounds = _ROUNDS if left == inf else int(left // self._round)
        self._take = self.settings.take or ceil(_even_steps(self.space) / rounds)

    @property
    def _pays_a_round(self) -> bool:
        """Whether there are tokens left for a round and the result."""
        return self.ledger.left >= self._round + self._tokens

    def search(self) -> AskTell[None]:
        """Rounds of steps, down to the budget."""
        genome = least_compressed(self.space)
        while not self.space.feasible(genome[None])[0]:
            priced = yield from self._price(genome)
            if not priced:
                break
            # After the last round that is paid for the rest of the way is gone at once.
            count = self._take if self._pays_a_round else None
            genome = taken(self.space, genome, priced, count)
        yield from self.conclude(genome)

    def _price(self, genome: Genome) -> AskTell[list[_Priced]]:
        """Every step from a genome (U,) that could be measured."""
        found = steps(self.space, genome)
        tries = [moved(self.space, genome, *step) for step in found]
        results = yield from self.evaluate([genome, *tries], self.micro_batches, probe=True)
        now, *values = (result.mean for result in results)
        prices = rates(values, now, savings(self.space, genome, tries)).tolist()
        return [
            _Priced(price, gene, level, int(genome[gene]))
            for price, (gene, level) in zip(prices, found, strict=True)
            if isfinite(price)
        ]


def taken(
    space: SearchSpace, genome: Genome, priced: Sequence[_Priced], count: int | None
) -> Genome:
    """The genome (U,) after the `count` cheapest steps, as if they did not touch each other.

    Without a count all steps are taken that it takes to meet the budget. A gene may be taken again
    where only one step can follow, or where that must be the end: harms grow like a square, so its
    second step is taken to cost three times the first, the third five times.
    """
    queue, ends = list(priced), count is None
    count = int(space.encoding.sizes.sum()) if count is None else count
    heapify(queue)
    while queue and count and not space.feasible(genome[None])[0]:
        step = heappop(queue)
        changed = moved(space, genome, step.gene, step.level)
        if genome[step.gene] != step.origin or not savings(space, genome, [changed])[0] > 0:
            continue
        genome, count = changed, count - 1
        for following in _again(space, step, ends=ends):
            heappush(queue, following)
    return genome


def _again(space: SearchSpace, step: _Priced, *, ends: bool) -> list[_Priced]:
    """The same step of the gene once more, if there is one.

    Of two the next round chooses, or where that `ends` the way the first is taken.
    """
    levels = space.levels[step.gene]
    later = [
        level
        for level in next_levels(levels, step.level, space.encoding.ordinal[step.gene])
        if not levels[level].drop
    ]
    if not later or (len(later) > 1 and not ends):
        return []
    rate = step.rate * (2 * step.turn + 1) / (2 * step.turn - 1)
    return [replace(step, rate=rate, level=later[0], origin=step.level, turn=step.turn + 1)]


def _even_steps(space: SearchSpace) -> int:
    """How many steps it takes to the budget if all genes move in turn."""
    genome, count = least_compressed(space), 0
    while not space.feasible(genome[None])[0]:
        # A gene's first step, where it has several.
        turn = dict(reversed(steps(space, genome)))
        if not turn:
            break
        for gene, level in turn.items():
            further = moved(space, genome, gene, level)
            if not space.encoding.enough_experts(further[None])[0]:
                continue
            genome, count = further, count + 1
            if space.feasible(genome[None])[0]:
                break
    return max(count, 1)


def _largest_round(space: SearchSpace) -> int:
    """The most candidates of a round."""
    choices = (
        max(len(next_levels(levels, index, stepped)) for index in range(len(levels)))
        for levels, stepped in zip(space.levels, space.encoding.ordinal.tolist(), strict=True)
    )
    return 1 + sum(choices)
