"""Searchers written as one generator that yields requests and gets answers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator, Sequence
from functools import cached_property
from typing import TypeVar

import numpy as np

from evocompress.core.arrays import Genome
from evocompress.core.requests import Answer, Estimate, Estimation, Evaluate, Request, Result
from evocompress.search.base import Incumbent, Searcher
from evocompress.search.operators.mutation import different
from evocompress.space.repair import repair
from evocompress.space.space import SearchSpace

T = TypeVar("T")

AskTell = Generator[Sequence[Request], list[Answer], T]
"""A part of a search: it yields requests, is sent their answers, and returns a T."""

Probe = Callable[[Sequence[Genome]], AskTell[list[Result]]]
"""Evaluates genomes outside the budget, all on the same tokens, which may be others each time."""

Ranking = list[tuple[Genome, Result]]
"""Genomes (U,) with their results, best first."""


class GeneratorSearcher(Searcher):
    """Turns a generator of asks into a `Searcher`.

    `search` yields non-empty lists of requests, receives their answers in order, and returns
    when the search has ended. Mostly it does so by ``yield from self.select(genomes)``. Tokens
    are counted in `ledger` as answers come in.

    Examples:
        >>> from evocompress.space.sampling import uniform
        >>> class Even(GeneratorSearcher):
        ...     def search(self):
        ...         yield from self.select([uniform(self.space)])
        >>> from evocompress.testing.examples import searcher
        >>> len(searcher(Even, tokens=200_000).ask())
        1
    """

    _asked: Sequence[Request] | None = None

    @abstractmethod
    def search(self) -> AskTell[None]:
        """The whole search."""

    @cached_property
    def _generator(self) -> AskTell[None]:
        return self.search()

    def ask(self) -> list[Request]:
        """The next requests, the same until they are answered; empty at the end."""
        if self._asked is None:
            self._asked = next(self._generator, [])
        return list(self._asked)

    def tell(self, answers: list[Answer]) -> None:
        """The answers to the last `ask`, in its order.

        Raises:
            ValueError: They do not answer the last ask.
        """
        if [answer.request for answer in answers] != self.ask():
            raise ValueError("the results do not answer the last ask, request by request")
        if answers:
            self.ledger.charge(self.ask())
            self._asked = _advance(self._generator, answers)

    def select(
        self, genomes: Sequence[Genome], micro_batches: tuple[int, ...] | None = None
    ) -> AskTell[Genome]:
        """The best of feasible genomes (U,), which becomes the incumbent.

        All are measured on the same micro-batches. Those that cannot be measured are dropped;
        where all fail, the first one is returned and the incumbent stays.

        Args:
            genomes: At least one; of equal ones one is measured.
            micro_batches: On which they are compared; `micro_batches` if left out.
        """
        tries = different(genomes)
        chosen = self.micro_batches if micro_batches is None else micro_batches
        results = yield from self.evaluate(tries, chosen)
        best = self.crown(ranked(tries, results))
        return genomes[0] if best is None else best

    def crown(self, ranking: Ranking) -> Genome | None:
        """The first of a ranking, which becomes the incumbent; ``None`` where it is empty."""
        if not ranking:
            return None
        genome, result = ranking[0]
        self._best = Incumbent.of(result)
        return genome

    def evaluate(
        self, genomes: Sequence[Genome], micro_batches: tuple[int, ...], *, probe: bool = False
    ) -> AskTell[list[Result]]:
        """The results of genomes (U,), in order; the mean of a failed one is infinite.

        All run on the same `micro_batches`, indices in the pool. A `probe` may break the budget,
        and can never win.
        """
        if not genomes:
            return []
        answers = yield self._requests(genomes, micro_batches, probe=probe)
        return [answer for answer in answers if isinstance(answer, Result)]

    def estimate(
        self, genome: Genome, kind: str, micro_batches: tuple[int, ...], *, forwards: int = 1
    ) -> AskTell[Estimation]:
        """An estimate, `kind` is its name, at a genome (U,); it may have failed.

        It is charged as `forwards` forward passes over `micro_batches`, indices in the pool; a
        backward pass is two.
        """
        candidate = self.space.candidate(genome)
        return (yield from estimated(Estimate(candidate, kind, micro_batches, forwards)))

    def descend(
        self,
        genome: Genome,
        choices: Callable[[Genome], list[Genome]],
        target: SearchSpace,
        micro_batches: tuple[int, ...],
    ) -> AskTell[Genome]:
        """The genome (U,) after the best of the choices, again and again, until it is feasible.

        Args:
            genome: Where it begins.
            choices: Gives the genomes (U,) to choose from after another one. All are measured as
                probes, but those that lower no cost which is above its bound.
            target: The space whose budget is to be met; where no choice is left, it is not.
            micro_batches: On which the choices are compared, as indices in the pool.
        """
        while not target.feasible(genome[None])[0]:
            tries = _useful(target, genome, choices(genome))
            results = yield from self.evaluate(tries, micro_batches, probe=True)
            best = ranked(tries, results)
            if not best:
                break
            genome = best[0][0]
        return genome

    def conclude(self, genome: Genome) -> AskTell[None]:
        """Makes a genome (U,), brought below the budget, the incumbent if it can be evaluated."""
        yield from self.select([repair(self.space, genome, self.rng)])

    def _requests(
        self, genomes: Sequence[Genome], micro_batches: tuple[int, ...], *, probe: bool = False
    ) -> list[Evaluate]:
        """One request per genome (U,), all on the same micro-batches."""
        return [
            Evaluate(self.space.candidate(genome), micro_batches, probe=probe) for genome in genomes
        ]


def estimated(request: Estimate) -> AskTell[Estimation]:
    """The answer to one request for an estimate; it may have failed."""
    [answer] = yield [request]
    assert isinstance(answer, Estimation)
    return answer


def _advance(generator: AskTell[None], answers: list[Answer]) -> Sequence[Request]:
    try:
        return generator.send(answers)
    except StopIteration:
        return []


def _useful(space: SearchSpace, genome: Genome, tries: Sequence[Genome]) -> list[Genome]:
    """Those of the tries that lower a cost above its bound and are admissible."""
    if not tries:
        return []
    before, after = space.budget_usage(genome[None]), space.budget_usage(np.stack(tries))
    lower = ((after < before) & (before > 1)).any(axis=1)
    useful = lower & space.encoding.admissible(np.stack(tries))
    return [tried for tried, wanted in zip(tries, useful, strict=True) if wanted]


def first_feasible(space: SearchSpace, path: Genome) -> Genome:
    """The first genome (U,) of a path (N, U) that meets the budget.

    Where none does, the last one that is admissible.
    """
    met = np.flatnonzero(space.feasible(path))
    last = np.flatnonzero(space.encoding.admissible(path))[-1]
    first: Genome = path[met[0] if met.size else last]
    return first


def ranked(genomes: Sequence[Genome], results: Sequence[Result]) -> Ranking:
    """Genomes with their results, best first; failed and censored ones are left out."""
    pairs = [pair for pair in zip(genomes, results, strict=True) if np.isfinite(pair[1].mean)]
    return sorted(pairs, key=lambda pair: pair[1].mean)
