"""Searchers written as one procedure that yields requests and gets results."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence

import numpy as np

from evocompress.search.base import Incumbent, Problem
from evocompress.space import Genome
from evocompress.types import Evaluate, Request, Result

Procedure = Generator[list[Evaluate], list[Result], None]


class ProceduralSearcher(ABC):
    """Turns a generator of asks into the `Searcher` interface.

    The generator yields a non-empty list of requests, receives their results in order, and
    returns when the search has ended.
    """

    def __init__(self, problem: Problem, rng: np.random.Generator) -> None:
        self._space = problem.space
        self._pool = problem.pool
        self._rng = rng
        self._best: Incumbent | None = None
        self._procedure = self._search()
        self._asked: list[Evaluate] | None = None

    @abstractmethod
    def _search(self) -> Procedure:
        """The whole search."""

    def ask(self) -> list[Request]:
        """The next requests, the same until they are answered; empty at the end."""
        if self._asked is None:
            self._asked = next(self._procedure, [])
        return list(self._asked)

    def tell(self, results: list[Result]) -> None:
        """The results of the last `ask`, in its order.

        Raises:
            ValueError: They do not answer the last ask.
        """
        if [result.request for result in results] != self.ask():
            raise ValueError("the results do not answer the last ask, request by request")
        if results:
            self._asked = _advance(self._procedure, results)

    def incumbent(self) -> Incumbent | None:
        """The best candidate so far and its value in its last comparison."""
        return self._best

    def _requests(
        self, genomes: Sequence[Genome], micro_batches: tuple[int, ...], *, probe: bool = False
    ) -> list[Evaluate]:
        """One request per genome (U,), all on the same micro-batches."""
        return [
            Evaluate(self._space.candidate(genome), micro_batches, probe=probe)
            for genome in genomes
        ]


def _advance(procedure: Procedure, results: list[Result]) -> list[Evaluate]:
    try:
        return procedure.send(results)
    except StopIteration:
        return []


def ranked(genomes: Sequence[Genome], results: Sequence[Result]) -> list[tuple[Genome, Result]]:
    """Genomes with their results, best first; failed and censored ones are left out."""
    pairs = [pair for pair in zip(genomes, results, strict=True) if np.isfinite(pair[1].mean)]
    return sorted(pairs, key=lambda pair: pair[1].mean)
