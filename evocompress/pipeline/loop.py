"""The loop: ask the searcher, answer from the journal or the executor, append, tell."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from math import isfinite
from typing import Protocol

from evocompress.core.errors import RunError
from evocompress.core.requests import Answer, Estimate, Evaluate, Pool, Request
from evocompress.pipeline.journal import Journal, Step
from evocompress.search.base import Incumbent, Searcher
from evocompress.search.ledger import TokenLedger


class Executor(Protocol):
    """Answers requests, in this process or elsewhere."""

    def map(self, requests: Sequence[Request]) -> Iterator[Answer]:
        """The answers, each as soon as it is there."""
        ...

    def close(self) -> None:
        """Frees what the executor holds."""
        ...


@dataclass(frozen=True)
class Progress:
    """What a listener is told while the search runs.

    Attributes:
        step: The last completed step, ``None`` before the first.
        done: Requests answered in the current step.
        total: Requests of the current step that the journal does not know.
        phase: What the searcher says that the current step is for.
    """

    step: Step | None
    done: int
    total: int
    phase: str = ""


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        best: The best candidate, its value, and the micro-batches that it is of.
        compared: Ids of the candidates that could have won, in the order in which they were asked
            for: probes are left out.
    """

    best: Incumbent
    compared: tuple[str, ...]


Listener = Callable[[Progress], None]


def search(
    searcher: Searcher,
    executor: Executor,
    journal: Journal,
    pool: Pool,
    *,
    tokens: int | None = None,
    listener: Listener = lambda progress: None,
) -> SearchResult:
    """Runs a searcher to its end, or until the requested tokens are spent.

    Everything new is in the journal before the searcher is told, so the loop may be killed at any
    moment: the next one replays the journal and evaluates only what is missing. The search ends
    before an ask that would bring the sum of requested tokens above `tokens`. The result is the
    best candidate, and which others could have been it.

    Raises:
        RunError: The search ended without any valid candidate.
    """
    ledger, account = TokenLedger(pool, tokens), _Account(pool)
    step: Step | None = None
    for number in count():
        requests = searcher.ask()
        if not requests or not ledger.affords(requests):
            break
        for done, total in _answer(requests, executor, journal):
            listener(Progress(step, done, total, searcher.phase()))
        ledger.charge(requests)
        account.add(requests)
        phase = searcher.phase()
        searcher.tell([_recorded(journal, request) for request in requests])
        step = _step(number, phase, ledger.requested, account.computed, searcher.incumbent())
        journal.step(step)
        listener(Progress(step, 0, 0, phase))
    if requests and searcher.incumbent() is None:
        raise RunError(
            f"search.tokens: {tokens} end the search without a valid candidate, as its next step "
            f"brings them to {ledger.after(requests)}: raise it, and go on with --resume"
        )
    return SearchResult(_winner(searcher), tuple(account.compared))


def replay(searcher: Searcher, journal: Journal) -> Incumbent:
    """What a searcher finds where only the journal answers; nothing is evaluated or recorded.

    A greedy search with a tight budget passes through the states of one with a looser budget, so
    the journal of the tightest answers new searchers of all the looser spaces.

    Raises:
        RunError: The journal lacks an answer, or the search ends without a valid candidate.
    """
    while requests := searcher.ask():
        if journal.missing(requests):
            raise RunError("the journal does not answer this searcher: it is no record of its path")
        searcher.tell([_recorded(journal, request) for request in requests])
    return _winner(searcher)


def _winner(searcher: Searcher) -> Incumbent:
    best = searcher.incumbent()
    if best is None:
        raise RunError(
            "the search ended without a valid candidate; the reasons are the records of failures "
            "in journal.jsonl"
        )
    return best


class _Account:
    """Counts computed tokens the same way in a fresh and in a resumed run."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._seen: set[tuple[Hashable, ...]] = set()
        self.computed = 0
        self.compared: dict[str, None] = {}

    def add(self, requests: Iterable[Request]) -> None:
        for request in requests:
            if isinstance(request, Estimate):
                self._compute((request,), self._pool.requested(request))
                continue
            self._evaluate(request)
            if not request.probe:
                self.compared[request.candidate.id] = None

    def _evaluate(self, request: Evaluate) -> None:
        """Counts what is new of an evaluation; where anything is, the treatment was given."""
        before = self.computed
        for index in request.micro_batches:
            key = (request.candidate.id, request.treatment, index)
            self._compute(key, self._pool.tokens[index])
        if self.computed > before:
            self.computed += request.training

    def _compute(self, key: tuple[Hashable, ...], tokens: int) -> None:
        """Counts the tokens of what the journal cannot know yet."""
        if key not in self._seen:
            self._seen.add(key)
            self.computed += tokens


def _answer(
    requests: Sequence[Request], executor: Executor, journal: Journal
) -> Iterator[tuple[int, int]]:
    """Has answered and records what the journal does not know, yielding (done, total)."""
    journal.recall(requests)
    missing = journal.missing(requests)
    yield 0, len(missing)
    for done, answer in enumerate(executor.map(missing), start=1):
        journal.record(answer)
        yield done, len(missing)


def _recorded(journal: Journal, request: Request) -> Answer:
    answer = journal.answer(request)
    if answer is None:
        raise RunError(f"the executor lost the request for candidate {request.candidate.id}")
    return answer


def _step(number: int, phase: str, requested: int, computed: int, best: Incumbent | None) -> Step:
    return Step(
        step=number,
        requested=requested,
        computed=computed,
        incumbent=best.candidate.id if best else None,
        value=best.value if best and isfinite(best.value) else None,
        phase=phase,
    )
