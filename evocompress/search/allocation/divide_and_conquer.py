"""Divide and conquer over ranges of blocks (after EMO-PMS, Shang et al. 2023, 2303.16212).

EMO-PMS cuts a network into sequential parts, finds the non-dominated configurations of each part
between what they save and how they distort its features, and combines them: again and again
the choice of one part is applied that impairs the whole network least for what it saves. Here the
parts are ranges of consecutive blocks, and a distortion is the proxy's value with this range alone
compressed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf, isfinite, isqrt
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from evocompress.core.arrays import Genome, Integers
from evocompress.core.errors import ConfigError
from evocompress.core.fields import Size, Tokens, Whole
from evocompress.core.pareto import non_dominated, spread
from evocompress.core.requests import Pool
from evocompress.search.base import SearcherSettings
from evocompress.search.baselines.steps import least_compressed, rates, savings
from evocompress.search.fidelity import batches
from evocompress.search.generator_searcher import AskTell, GeneratorSearcher
from evocompress.search.operators.mutation import different, distinct, flips
from evocompress.space.repair import fill_budget, repair
from evocompress.space.space import SearchSpace

Front = list[tuple[Genome, float]]
"""Genomes (U,) with their values, ever more compressed."""


@dataclass(frozen=True, eq=False)
class Partition:
    """A range of blocks and the values that were measured with changes in it.

    Attributes:
        space: The space of its genomes, which are least compressed outside the range.
        genes: Its genes that have a choice.
        known: By its bytes each genome (U,) that was measured, with the proxy's value: the
            distortion that the range alone makes.

    Examples:
        >>> from evocompress.testing.examples import space
        >>> first, second = partitions(space(body_params=0.5), 2)
        >>> first.genes.tolist(), second.put_into(np.zeros(5, int), np.ones(5, int)).tolist()
        ([0, 1, 2], [0, 0, 0, 1, 1])
    """

    space: SearchSpace
    genes: Integers
    known: dict[bytes, tuple[Genome, float]] = field(default_factory=dict)

    def learn(self, genome: Genome, value: float) -> None:
        """Notes the proxy's value that was measured of a genome (U,)."""
        self.known[genome.tobytes()] = (genome, value)

    def front(self, count: int) -> Front:
        """Up to `count` that no other surpasses in costs and distortion, evenly spread."""
        entries = list(self.known.values())
        used = self.space.budget_usage(np.stack([genome for genome, _ in entries]))
        points = np.column_stack([used, [value for _, value in entries]])
        best = np.flatnonzero(non_dominated(points))
        chosen = best[spread(points[best], count)] if best.size else best
        return [entries[index] for index in chosen[np.argsort(-used[chosen].sum(axis=1))]]

    def way_down(self, count: int, rng: np.random.Generator) -> list[Genome]:
        """Up to `count` genomes (U,) at even distances on a way to the most compressed range.

        Each gene makes its steps at even distances, in random order with those of others.
        """
        left = self.space.encoding.sizes[self.genes] - 1
        movers = np.repeat(self.genes, left)
        turn = np.concatenate([(np.arange(steps) + rng.random()) / steps for steps in left])
        moves = movers[np.argsort(turn, kind="stable")]
        changes = np.zeros((len(moves) + 1, len(self.space.units)), dtype=np.int64)
        changes[np.arange(1, len(moves) + 1), moves] = 1
        way = self.space.deactivate(least_compressed(self.space) + changes.cumsum(axis=0))
        way = way[self.space.encoding.admissible(way)]
        places = np.linspace(0, len(way) - 1, count + 1)[1:].round().astype(np.int64)
        return [stop for stop in different(way[places]) if stop.tobytes() not in self.known]

    def offspring(self, count: int, parents: Front, rng: np.random.Generator) -> list[Genome]:
        """Up to `count` new genomes (U,), each a mutation of one of the parents.

        Some genes are compressed or relaxed; for each one, half of the time, another one does the
        opposite, so that the costs stay about the same.
        """

        def child() -> Genome | None:
            genome = parents[int(rng.integers(len(parents)))][0].copy()
            for _ in range(flips(rng)):
                direction = int(rng.choice((-1, 1)))
                self._move(genome, direction, rng)
                if rng.random() < 0.5:
                    self._move(genome, -direction, rng)
            genome = self.space.deactivate(genome[None])[0]
            fit = self.space.encoding.admissible(genome[None])[0]
            return genome if fit and genome.tobytes() not in self.known else None

        return distinct(child, count) if parents else []

    def put_into(self, genome: Genome, other: Genome) -> Genome:
        """A genome (U,) with the genes of this range as in the `other` one (U,)."""
        changed = genome.copy()
        changed[self.genes] = other[self.genes]
        return np.asarray(self.space.deactivate(changed[None])[0])

    def _move(self, genome: Genome, direction: int, rng: np.random.Generator) -> None:
        """Compresses (1) or relaxes (-1) a random gene of a genome (U,): a matrix by a level."""
        last = self.space.encoding.sizes - 1
        able = self.genes[(genome != (last if direction > 0 else 0))[self.genes]]
        if not able.size:
            return
        gene = int(rng.choice(able))
        farthest = last[gene] - genome[gene] if direction > 0 else genome[gene]
        by = 1 if self.space.encoding.ordinal[gene] else int(rng.integers(1, farthest + 1))
        genome[gene] += direction * by


def partitions(space: SearchSpace, count: int | None) -> list[Partition]:
    """The ranges of a space, with about as many blocks each.

    A gene that is about several blocks belongs to the first one's. Without a count there are as
    many ranges as the root of the number of blocks.

    Raises:
        ConfigError: There are fewer blocks with a choice.
    """
    genes = space.encoding
    free = np.flatnonzero(genes.sizes > 1)
    blocks = np.array([genes.units[gene].block for gene in free])
    found = np.unique(blocks)
    if count is not None and count > len(found):
        raise ConfigError(
            f"search.ranges: {count}, but only {len(found)} blocks have anything to choose"
        )
    parts = np.array_split(found, count or max(isqrt(len(found)), 1))
    return [Partition(space, free[np.isin(blocks, part)]) for part in parts]


@dataclass(frozen=True, eq=False)
class _Option:
    """The next configuration of one range in a combination.

    Attributes:
        index: Of the range.
        place: Of the configuration on the range's front.
        genome: The combination with it (U,).
        harm: By how much more the range alone distorts.
    """

    index: int
    place: int
    genome: Genome
    harm: float


class DivideAndConquer(GeneratorSearcher):
    """Searches range by range, then combines what was found.

    Where the tokens do not last, ranges are combined by their own distortions.

    ```yaml
    space: {drop: {}, budget: {body_params: 0.7}}
    search: {name: divide_and_conquer, ranges: 2, kept: 4, generations: 1}
    ```

    Examples:
        >>> from evocompress.testing.examples import winner
        >>> winner(DivideAndConquer)
        {'0.mlp': 'drop', '1.attention': 'drop', '3.attention': 'drop'}
    """

    class Settings(SearcherSettings):
        """Settings of `DivideAndConquer`.

        Attributes:
            ranges: Into how many ranges the blocks are split; the root of their number if left out.
            kept: How many configurations of each range make the first generation, and how many of
                the non-dominated ones are kept.
            offspring: New configurations of each range in a later generation.
            generations: How many of these there are; fewer where they would take more than half of
                `search.tokens`.
            finalists: How many combinations are measured at the end.
            candidate_tokens: Tokens on which configurations and combinations are compared, always
                the same ones; about 2048 if left out.
            final_tokens: Tokens of the measurement at the end; the whole pool if left out, or as
                many as a quarter of `search.tokens` pays for.
        """

        ranges: Size | None = None
        kept: Annotated[Whole, Field(ge=2, le=10_000)] = 8
        offspring: Size = 8
        generations: Annotated[Whole, Field(ge=0, le=10_000)] = 3
        finalists: Size = 4
        candidate_tokens: Tokens | None = None
        final_tokens: Tokens | None = None

        def tokens_of_comparison(self, pool: Pool) -> int:
            """Few, if nothing is said."""
            return self.candidate_tokens or batches.few(pool)

    checks_tokens: ClassVar[bool] = True

    settings: Settings

    def prepare(self) -> None:
        """Splits the blocks, and refuses tokens that do not last for start and end."""
        settings, limit = self.settings, self.ledger.limit
        self._tokens = self.ledger.size(self.micro_batches)
        final = settings.final_tokens or _final_tokens(self.pool, limit, settings.finalists)
        self._final = self.chosen(final, "search.final_tokens")
        self._partitions = partitions(self.space, settings.ranges)
        self._reserved = settings.finalists * final
        first = 1 + len(self._partitions) * settings.kept
        needed = first * self._tokens + self._reserved
        if needed > limit:
            raise ConfigError(
                f"search.tokens: {limit} is less than the {needed} that the first "
                f"{first} candidates and the last {settings.finalists} take; raise it or "
                "lower ranges, kept, finalists, candidate_tokens or final_tokens"
            )

    def search(self) -> AskTell[None]:
        """The fronts of the ranges, then their combinations."""
        fronts = yield from self._fronts()
        combined = yield from self._combine(fronts)
        yield from self._rescore(combined)

    def _fronts(self) -> AskTell[list[Front]]:
        """For each range the least compressed genome and the best that were found beside it."""
        kept = self.settings.kept
        base = least_compressed(self.space)
        [value] = yield from self._probe([base])
        for part in self._partitions:
            part.learn(base, value)
        yield from self._learn([part.way_down(kept, self.rng) for part in self._partitions])
        limit = min(self.ledger.limit / 2, self.ledger.limit - self._reserved)
        for _ in range(self.settings.generations):
            offspring = [
                part.offspring(self.settings.offspring, part.front(kept), self.rng)
                for part in self._partitions
            ]
            if not self._affords(sum(map(len, offspring)), limit):
                break
            yield from self._learn(offspring)
        return [[(base, value), *part.front(kept)] for part in self._partitions]

    def _learn(self, genomes: Sequence[Sequence[Genome]]) -> AskTell[None]:
        """Measures some genomes (U,) of each range."""
        owners = [part for part, own in zip(self._partitions, genomes, strict=True) for _ in own]
        tries = [genome for own in genomes for genome in own]
        values = yield from self._probe(tries)
        for part, genome, value in zip(owners, tries, values, strict=True):
            part.learn(genome, value)

    def _combine(self, fronts: Sequence[Front]) -> AskTell[list[Genome]]:
        """Combinations (U,) that meet the budget, best first; or one that comes nearest to it.

        Each round tries the next configuration of each range and takes that which harms least for
        what it saves.
        """
        chosen, places = least_compressed(self.space), [0] * len(fronts)
        tries = [chosen]
        while not self.space.feasible(chosen[None])[0]:
            options = self._options(chosen, fronts, places)
            prices = yield from self._price(chosen, options)
            ranking = [options[i] for i in np.argsort(prices, kind="stable") if isfinite(prices[i])]
            if not ranking:
                break
            tries = [option.genome for option in ranking]
            chosen, places[ranking[0].index] = ranking[0].genome, ranking[0].place
        return [genome for genome in tries if self.space.feasible(genome[None])[0]] or [chosen]

    def _options(
        self, chosen: Genome, fronts: Sequence[Front], places: Sequence[int]
    ) -> list[_Option]:
        """For each range the first configuration that saves anything in what is chosen."""
        found = []
        for index, (part, front, place) in enumerate(
            zip(self._partitions, fronts, places, strict=True)
        ):
            later = range(place + 1, len(front))
            genomes = [part.put_into(chosen, front[i][0]) for i in later]
            useful = np.flatnonzero(savings(self.space, chosen, genomes) > 0)
            if useful.size:
                first = int(useful[0])
                harm = front[later[first]][1] - front[place][1]
                found.append(_Option(index, later[first], genomes[first], harm))
        return found

    def _price(self, chosen: Genome, options: Sequence[_Option]) -> AskTell[list[float]]:
        """The harm per saving of each option, the whole model being measured if possible."""
        genomes = [option.genome for option in options]
        now, harms = 0.0, [option.harm for option in options]
        if options and self._affords(1 + len(genomes), self.ledger.limit - self._reserved):
            now, *harms = yield from self._probe([chosen, *genomes])
        saved = savings(self.space, chosen, genomes)
        return list(rates(harms, now, saved).tolist())

    def _rescore(self, genomes: Sequence[Genome]) -> AskTell[None]:
        """Makes the best of the genomes (U,) the incumbent, by more tokens."""
        filled = [
            fill_budget(self.space, repair(self.space, genome, self.rng), self.rng)
            for genome in genomes[: self.settings.finalists]
        ]
        yield from self.select(filled, self._final)

    def _probe(self, genomes: Sequence[Genome]) -> AskTell[list[float]]:
        """The values of genomes (U,), infinite for those that could not be measured."""
        results = yield from self.evaluate(genomes, self.micro_batches, probe=True)
        return [result.mean for result in results]

    def _affords(self, count: int, limit: float) -> bool:
        """Whether a number of further probes stays within a number of tokens."""
        return self.ledger.requested + count * self._tokens <= limit


def _final_tokens(pool: Pool, limit: float, finalists: int) -> int:
    """The whole pool, or what a quarter of the search's tokens pays for, upwards."""
    whole = batches.rounded_up(pool, sum(pool.tokens))
    share = whole if limit == inf else int(limit) // (4 * finalists)
    return min(whole, batches.rounded_up(pool, share))
