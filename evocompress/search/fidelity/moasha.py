"""MO-ASHA (Schmucker et al. 2021, 2106.12639): few tokens for all, more for the best third."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from evocompress.core.arrays import Genome
from evocompress.core.errors import ConfigError
from evocompress.core.fields import Many, Size, Tokens, Whole
from evocompress.core.pareto import Points, layers
from evocompress.core.requests import Evaluate, Pool, Result
from evocompress.search.base import SearcherSettings
from evocompress.search.fidelity import batches
from evocompress.search.fidelity.front_search import Share
from evocompress.search.fidelity.rungs import Fidelity, Rung
from evocompress.search.generator_searcher import AskTell, GeneratorSearcher
from evocompress.search.objectives import Measured, choose_any
from evocompress.search.operators.cost_sampling import at_any_cost, span
from evocompress.search.operators.mutation import distinct
from evocompress.space import sampling


def halving(
    pool: Pool,
    rng: np.random.Generator,
    *,
    eta: int,
    grace: int | None = None,
    most: int | None = None,
    tokens: int | float = inf,
    configurations: int | None = None,
) -> Fidelity:
    """Nested rungs: each has `eta` times the tokens of the one before.

    Survivors are counted for the fewest candidates of whom one comes to the last rung.

    Args:
        pool: The calibration pool.
        rng: Source of randomness.
        eta: One of this number of candidates goes on.
        grace: Tokens of the first rung; about 2048 if left out.
        most: Tokens of the last one; as many as pool and limits allow if left out.
        tokens: Tokens of the whole search.
        configurations: Candidates of the first rung, if they are limited.

    Raises:
        ConfigError: The pool cannot give the tokens, or the search is too short for anyone to
            come to the last rung.
    """
    first = grace or batches.few(pool)
    sizes = [batches.checked_tokens(pool, first, "search.grace_tokens")]
    last = most or batches.rounded_up(pool, sum(pool.tokens))
    batches.checked_tokens(pool, last, "search.max_tokens")
    if last < first:
        raise ConfigError(f"search.max_tokens: {last} is less than the {first} of the first rung")
    while sizes[-1] * eta <= last:
        sizes.append(sizes[-1] * eta)
    if most is None:
        while len(sizes) > 1 and _too_short(sizes, eta, tokens, configurations):
            sizes.pop()
    elif sizes[-1] < most:
        sizes.append(most)
    if reason := _too_short(sizes, eta, tokens, configurations):
        raise ConfigError(reason)
    order = batches.draw(pool, sizes[-1], rng)
    return _with_survivors(sizes, eta, order, pool.tokens[order[0]])


def _with_survivors(
    sizes: Sequence[int], eta: int, order: Sequence[int] = (), length: int = 1
) -> Fidelity:
    """Rungs of some sizes, on the first micro-batches of an order that have one length each."""
    kept = [eta**later for later in reversed(range(len(sizes) - 1))] + [1]
    return Fidelity(
        tuple(
            Rung(size, survivors, tuple(sorted(order[: size // length])))
            for size, survivors in zip(sizes, kept, strict=True)
        )
    )


def _too_short(
    sizes: Sequence[int], eta: int, tokens: int | float, configurations: int | None
) -> str:
    """Why nobody can come to the last of the rungs; empty where somebody can."""
    first = eta ** (len(sizes) - 1)
    needed = _with_survivors(sizes, eta).cost(first)
    if configurations is not None and configurations < first:
        return (
            f"search.configurations: of {configurations} none comes to a rung of "
            f"{sizes[-1]} tokens; give at least {first}, or lower max_tokens"
        )
    if tokens < needed:
        return (
            f"search.tokens: {tokens} is less than the {needed} that bring one of {first} "
            f"candidates to a rung of {sizes[-1]} tokens; raise it or lower max_tokens"
        )
    return ""


def priority(points: Points, count: int) -> list[int]:
    """Indices of the `count` best of the points (N, M), the best one first.

    Layer after layer of non-dominated points; within one the order of an epsilon-net: first the
    point of the least first coordinate, then always the one that is farthest from those before
    (Clarkson 2006, "Nearest-neighbor searching and metric space dimensions"), every coordinate
    being scaled to the layer's range. Points that failed have no priority.
    """
    if points.shape[1] == 1:
        best = np.argsort(points[:, 0], kind="stable")[:count]
        return [int(index) for index in best if np.isfinite(points[index, 0])]
    order: list[int] = []
    found = layers(points)
    for number in range(int(found.max(initial=-1)) + 1):
        if len(order) >= count:
            break
        layer = np.flatnonzero(found == number)
        order += layer[epsilon_net(points[layer])].tolist()
    return order[:count]


def epsilon_net(points: Points) -> list[int]:
    """All of the points (N, M), each one far from those before; see `priority`."""
    length = points.max(axis=0) - points.min(axis=0)
    scaled = points / np.where(length > 0, length, 1.0)
    order = [int(points[:, 0].argmin())]
    nearest = np.full(len(points), np.inf)
    while len(order) < len(points):
        away = np.linalg.norm(scaled - scaled[order[-1]], axis=1)
        nearest = np.minimum(nearest, away)
        nearest[order] = -1.0
        order.append(int(nearest.argmax()))
    return order


@dataclass(frozen=True)
class _Stand:
    """Who was measured on a rung, and the ids of those who have gone on to the next one."""

    rung: Rung
    measured: list[Measured] = field(default_factory=list)
    promoted: set[str] = field(default_factory=set)


class MOASHA(GeneratorSearcher):
    """Random candidates: ever fewer of them are measured on ever more tokens.

    The paper's rule for a free worker, applied for all places of a batch at once: whoever is in
    the best part of a rung goes on to the next, those of the highest rung first; places that are
    left get new candidates. So the best of a rung are chosen anew whenever it grows, and nobody
    waits for a rung to be complete. The incumbent is the knee of the highest rung.

    ```yaml
    space: {drop: {}, budget: {body_params: 0.7}}
    search: {name: moasha, configurations: 27, grace_tokens: 1024, max_tokens: 9216}
    ```

    Examples:
        >>> from evocompress.testing.examples import winner
        >>> winner(MOASHA)
        {'1.attention': 'drop', '2.attention': 'drop', '3.mlp': 'drop'}
    """

    class Settings(SearcherSettings):
        """Settings of `MOASHA`.

        Attributes:
            objectives: Costs that span the front with the proxy's value. Where neither they nor a
                range are given, only the value counts, and the budget is used up.
            range: {objective: (lowest, highest)} that matters, as in `front_search.FrontSettings`.
            configurations: How many random candidates there are at most; without it the tokens set
                the end.
            batch: How many candidates are asked for at once.
            eta: One of so many candidates of a rung comes to the next one, which has so many times
                the tokens.
            grace_tokens: Tokens of the first rung; about 2048 if left out.
            max_tokens: Tokens of the last rung; if left out there are as many rungs as the pool and
                the limits of the search allow.
        """

        objectives: tuple[str, ...] = ()
        range: dict[str, tuple[Share, Share]] = {}
        configurations: Many | None = None
        batch: Size = 27
        eta: Annotated[Whole, Field(ge=2, le=10_000)] = 3
        grace_tokens: Tokens | None = None
        max_tokens: Tokens | None = None

    settings: Settings
    needs_budget: ClassVar[bool] = False
    checks_tokens: ClassVar[bool] = True

    def check(self) -> None:
        """Refuses a search that nothing ends."""
        self.ledger.check_ends("moasha", "configurations", self.settings.configurations)

    def prepare(self) -> None:
        """Narrows the space to the range, and makes empty rungs."""
        settings, limit = self.settings, self.ledger.limit
        self.space, self._objectives = choose_any(self.space, settings.objectives, settings.range)
        fidelity = halving(
            self.pool,
            self.rng,
            eta=settings.eta,
            grace=settings.grace_tokens,
            most=settings.max_tokens,
            tokens=limit,
            configurations=settings.configurations,
        )
        self._stands = [_Stand(rung) for rung in fidelity.rungs]
        first = settings.eta ** (len(self._stands) - 1)
        self._planned = 0 if limit == inf else int(limit) * first // fidelity.cost(first)
        self._drawn: set[bytes] = set()
        self._spans = {
            name: span(self.space, name, floor)
            for name, floor in zip(self._objectives.costs, self._objectives.floors, strict=True)
        }

    @property
    def objectives(self) -> tuple[str, ...]:
        """The costs that span the front with the proxy's value."""
        return self._objectives.costs

    def search(self) -> AskTell[None]:
        """Batches of promotions and new candidates."""
        while jobs := self._jobs():
            answers = yield [
                Evaluate(self.space.candidate(genome), stand.rung.micro_batches)
                for stand, genome in jobs
            ]
            for (stand, genome), result in zip(jobs, answers, strict=True):
                assert isinstance(result, Result)
                stand.measured.append(Measured(genome, result))
            self._crown()

    def _jobs(self) -> list[tuple[_Stand, Genome]]:
        """What to measure next, and where: promotions from above, and new candidates."""
        jobs: list[tuple[_Stand, Genome]] = []
        left = self.ledger.left
        for lower, upper in reversed(list(zip(self._stands, self._stands[1:], strict=False))):
            for entry in self._promotable(lower):
                if len(jobs) < self.settings.batch and upper.rung.tokens <= left:
                    lower.promoted.add(entry.candidate.id)
                    jobs.append((upper, entry.genome))
                    left -= upper.rung.tokens
        first = self._stands[0]
        for genome in distinct(self._new, self._places(len(jobs), left)):
            self._drawn.add(genome.tobytes())
            jobs.append((first, genome))
        return jobs

    def _promotable(self, stand: _Stand) -> list[Measured]:
        """The best part of a rung, the best ones first, without who has gone on."""
        count = len(stand.measured) // self.settings.eta
        if not count:
            return []
        order = priority(self._objectives.of(self.space, stand.measured), count)
        best = [stand.measured[index] for index in order]
        return [entry for entry in best if entry.candidate.id not in stand.promoted]

    def _places(self, taken: int, left: int | float) -> int:
        """How many new candidates there may be in a batch.

        Tokens pay for as many as leave enough for the best ones to go on, and when all of these
        have gone on, for more.
        """
        limits = [self.settings.batch - taken]
        if left < inf:
            spare = int(left // self._stands[0].rung.tokens)
            planned = self._planned - len(self._drawn)
            limits.append(min(planned, spare) if taken or planned > 0 else spare)
        if self.settings.configurations is not None:
            limits.append(self.settings.configurations - len(self._drawn))
        return min(limits)

    def _new(self) -> Genome | None:
        """A random feasible genome (U,), ``None`` where it is not new."""
        if self._spans:
            cost = self._objectives.costs[int(self.rng.integers(len(self._spans)))]
            genome = at_any_cost(self.space, cost, self._spans[cost], self.rng)
        else:
            genome = sampling.random(self.space, self.rng)
        return None if genome.tobytes() in self._drawn else genome

    def _crown(self) -> None:
        """Makes the knee of the highest rung where anything could be measured the incumbent."""
        bests = (self._objectives.balanced(self.space, s.measured) for s in self._stands[::-1])
        self._best = next((best for best in bests if best is not None), self._best)
