"""Searchers written as one procedure that yields requests and gets answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import ClassVar, TypeVar

import numpy as np

from evocompress.core.arrays import Genome
from evocompress.core.types import Answer, Estimate, Estimation, Evaluate, Request, Result
from evocompress.search.base import Incumbent, Problem
from evocompress.space.repair import repair
from evocompress.space.space import SearchSpace

T = TypeVar("T")

AskTell = Generator[Sequence[Request], list[Answer], T]
"""A part of a procedure that asks, and in the end gives a T."""

GeneratorSearcher = AskTell[None]


class ProceduralSearcher(ABC):
    """Turns a generator of asks into the `Searcher` interface.

    The generator yields a non-empty list of requests, receives their answers in order, and
    returns when the search has ended.

    Attributes:
        checks_tokens: Whether making a searcher refuses tokens that are too few for a result.
    """

    checks_tokens: ClassVar[bool] = False
    _micro_batches: tuple[int, ...] = ()

    def __init__(self, problem: Problem, rng: np.random.Generator) -> None:
        self._space = problem.space
        self._pool = problem.pool
        self._rng = rng
        self._best: Incumbent | None = None
        self._procedure = self._search()
        self._asked: Sequence[Request] | None = None

    @abstractmethod
    def _search(self) -> GeneratorSearcher:
        """The whole search."""

    @property
    def objectives(self) -> tuple[str, ...]:
        """Costs beside those of the budget that span the front: none."""
        return ()

    @property
    def result_batches(self) -> tuple[int, ...]:
        """On which micro-batches the result is measured, if that is settled from the beginning."""
        return self._micro_batches

    def origins(self) -> Mapping[str, str]:
        """{candidate id: what it stands for}: nothing has a name."""
        return {}

    def phase(self) -> str:
        """What the last ask is for: nothing to be said."""
        return ""

    def ask(self) -> list[Request]:
        """The next requests, the same until they are answered; empty at the end."""
        if self._asked is None:
            self._asked = next(self._procedure, [])
        return list(self._asked)

    def tell(self, answers: list[Answer]) -> None:
        """The answers to the last `ask`, in its order.

        Raises:
            ValueError: They do not answer the last ask.
        """
        if [answer.request for answer in answers] != self.ask():
            raise ValueError("the results do not answer the last ask, request by request")
        if answers:
            self._asked = _advance(self._procedure, answers)

    def incumbent(self) -> Incumbent | None:
        """The best candidate so far and its value in its last comparison."""
        return self._best

    def _evaluate(
        self, genomes: Sequence[Genome], micro_batches: tuple[int, ...], *, probe: bool = False
    ) -> AskTell[list[Result]]:
        """The results of genomes (U,) on the same micro-batches, in order."""
        if not genomes:
            return []
        answers = yield self._requests(genomes, micro_batches, probe=probe)
        return [answer for answer in answers if isinstance(answer, Result)]

    def _estimate(
        self, genome: Genome, kind: str, micro_batches: tuple[int, ...], *, forwards: int = 1
    ) -> AskTell[Estimation]:
        """An estimate at a genome (U,); it may have failed.

        Args:
            genome: Where to estimate.
            kind: Which estimate.
            micro_batches: On which tokens.
            forwards: How many forward passes over them it counts as; a backward pass is two.
        """
        candidate = self._space.candidate(genome)
        [answer] = yield [Estimate(candidate, kind, micro_batches, forwards)]
        assert isinstance(answer, Estimation)
        return answer

    def _descend(
        self,
        genome: Genome,
        choices: Callable[[Genome], list[Genome]],
        target: SearchSpace,
        micro_batches: tuple[int, ...],
    ) -> AskTell[Genome]:
        """The genome (U,) where the best of the choices, taken again and again, is enough.

        All are tried as probes, but those that save nothing of what is still exceeded.

        Args:
            genome: Where to begin.
            choices: What may be made of a genome in one step.
            target: With the budget to meet; where no choice is left it is not met.
            micro_batches: On which they are compared.
        """
        while not target.feasible(genome[None])[0]:
            tries = _useful(target, genome, choices(genome))
            results = yield from self._evaluate(tries, micro_batches, probe=True)
            best = ranked(tries, results)
            if not best:
                break
            genome = best[0][0]
        return genome

    def _conclude(self, genome: Genome, micro_batches: tuple[int, ...]) -> GeneratorSearcher:
        """Makes a genome (U,), brought below the budget, the incumbent if it can be evaluated."""
        final = [repair(self._space, genome, self._rng)]
        results = yield from self._evaluate(final, micro_batches)
        for _, result in ranked(final, results):
            self._best = Incumbent.of(result)

    def _requests(
        self, genomes: Sequence[Genome], micro_batches: tuple[int, ...], *, probe: bool = False
    ) -> list[Evaluate]:
        """One request per genome (U,), all on the same micro-batches."""
        return [
            Evaluate(self._space.candidate(genome), micro_batches, probe=probe)
            for genome in genomes
        ]


def _advance(procedure: GeneratorSearcher, answers: list[Answer]) -> Sequence[Request]:
    try:
        return procedure.send(answers)
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


def ranked(genomes: Sequence[Genome], results: Sequence[Result]) -> list[tuple[Genome, Result]]:
    """Genomes with their results, best first; failed and censored ones are left out."""
    pairs = [pair for pair in zip(genomes, results, strict=True) if np.isfinite(pair[1].mean)]
    return sorted(pairs, key=lambda pair: pair[1].mean)
