"""The loop: ask the searcher, answer from the journal or the executor, append, tell."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Protocol

from evocompress.errors import RunError
from evocompress.journal import Journal, Step
from evocompress.search.base import Incumbent, Searcher
from evocompress.types import Evaluate, Pool, Request, Result


class Executor(Protocol):
    """Evaluates requests, in this process or elsewhere."""

    def map(self, requests: Sequence[Evaluate]) -> Iterator[Result]:
        """The results, each as soon as it is there."""
        ...

    def close(self) -> None:
        """Frees what the executor holds."""
        ...


@dataclass(frozen=True)
class Progress:
    """What a listener is told while the search runs.

    Attributes:
        step: The last completed step, ``None`` before the first.
        done: Evaluations finished in the current step.
        total: Evaluations of the current step that the journal does not know.
    """

    step: Step | None
    done: int
    total: int


@dataclass(frozen=True)
class Outcome:
    """What a search found.

    Attributes:
        best: The best candidate and its value.
        fidelity: For each candidate's id, the tokens of its largest request; probes left out.
    """

    best: Incumbent
    fidelity: Mapping[str, int]


Listener = Callable[[Progress], None]


def search(
    searcher: Searcher,
    executor: Executor,
    journal: Journal,
    pool: Pool,
    *,
    tokens: int | None = None,
    listener: Listener = lambda progress: None,
) -> Outcome:
    """Runs a searcher to its end, or until the requested tokens are spent.

    Everything new is in the journal before the searcher is told, so the loop may be killed at
    any moment: the next one replays the journal and evaluates only what is missing.

    Args:
        searcher: Asks and is told.
        executor: Evaluates what the journal does not know.
        journal: The record of this run.
        pool: Sizes of the micro-batches.
        tokens: Stop before the next ask once this many tokens were requested.
        listener: Told about progress.

    Returns:
        The best candidate, and how closely each one was looked at.

    Raises:
        RunError: The search ended without any valid candidate.
    """
    account = _Account(pool)
    step: Step | None = None
    for number in _until_spent(account, tokens):
        requests = _evaluations(searcher.ask())
        if not requests:
            break
        for done, total in _answer(requests, executor, journal):
            listener(Progress(step, done, total))
        account.add(requests)
        searcher.tell([_recorded(journal, request) for request in requests])
        step = _step(number, account, searcher.incumbent())
        journal.step(step)
        listener(Progress(step, 0, 0))
    best = searcher.incumbent()
    if best is None:
        raise RunError(
            "the search ended without a valid candidate; the reasons are the 'failure' records "
            "of journal.jsonl, or search.tokens is too small for one comparison"
        )
    return Outcome(best, account.fidelity)


class _Account:
    """Counts requested and computed tokens the same way in a fresh and in a resumed run."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._seen: set[tuple[str, str, int]] = set()
        self.requested = 0
        self.computed = 0
        self.fidelity: dict[str, int] = {}

    def add(self, requests: Iterable[Evaluate]) -> None:
        for request in requests:
            tokens = self._pool.requested(request)
            self.requested += tokens
            if not request.probe:
                known = self.fidelity.get(request.candidate.id, 0)
                self.fidelity[request.candidate.id] = max(known, tokens)
            for index in request.micro_batches:
                key = (request.candidate.id, request.treatment, index)
                if key not in self._seen:
                    self._seen.add(key)
                    self.computed += self._pool.tokens[index]


def _until_spent(account: _Account, tokens: int | None) -> Iterator[int]:
    number = 0
    while tokens is None or account.requested < tokens:
        yield number
        number += 1


def _evaluations(requests: Sequence[Request]) -> list[Evaluate]:
    """The requests as evaluations; estimates are not part of any searcher yet."""
    evaluations = [request for request in requests if isinstance(request, Evaluate)]
    if len(evaluations) < len(requests):
        raise RunError("this version's executors answer only 'Evaluate' requests")
    return evaluations


def _answer(
    requests: Sequence[Evaluate], executor: Executor, journal: Journal
) -> Iterator[tuple[int, int]]:
    """Evaluates and records what the journal does not know, yielding (done, total)."""
    missing = journal.missing(requests)
    yield 0, len(missing)
    for done, result in enumerate(executor.map(missing), start=1):
        journal.record(result)
        yield done, len(missing)


def _recorded(journal: Journal, request: Evaluate) -> Result:
    result = journal.result(request)
    if result is None:
        raise RunError(f"the executor lost the request for candidate {request.candidate.id}")
    return result


def _step(number: int, account: _Account, best: Incumbent | None) -> Step:
    return Step(
        step=number,
        requested=account.requested,
        computed=account.computed,
        incumbent=best.candidate.id if best else None,
        value=best.value if best and isfinite(best.value) else None,
    )
