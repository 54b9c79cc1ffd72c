"""Which requests go to a worker next, and what becomes of those of workers that died.

Nothing here knows Ray: a worker is whoever takes a batch.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence

from evocompress.types import Answer, Estimate, Estimation, Request, Result

BATCH_SECONDS = 1.0
"""How long a batch should take: much longer than it is on its way, and not long to repeat."""

PER_WORKER = 4
"""Of what waits a batch is at most this part of a worker's share: the last ones are small, so that
all workers end together (Polychronopoulos & Kuck 1987)."""

DEATHS = 3
"""Workers that a request must have killed alone before it is given up."""

PATIENCE = 20.0
"""Times the expected duration after which a batch counts as lost."""

LEAST_PATIENCE = 120.0
"""Seconds that every batch has: a model is loaded, targets are made."""


class Pace:
    """How many tokens a worker does in a second, as far as is known."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0

    def add(self, tokens: int, seconds: float) -> None:
        """Notes a finished batch."""
        # Older batches count less and less: a search goes over to other candidates.
        self._tokens = 0.9 * self._tokens + tokens
        self._seconds = 0.9 * self._seconds + seconds

    @property
    def tokens_per_second(self) -> float | None:
        """``None`` before the first batch."""
        return self._tokens / self._seconds if self._seconds else None

    def patience(self, tokens: int) -> float:
        """Seconds after which a batch of so many tokens counts as lost."""
        rate = self.tokens_per_second
        return LEAST_PATIENCE + (PATIENCE * tokens / rate if rate else 10 * LEAST_PATIENCE)


class Queue:
    """The requests of one step, in an order in which neighbours share most.

    Args:
        requests: In that order.
        tokens: Of a request.
        workers: How many there are.
        pace: Of a worker.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        tokens: Callable[[Request], int],
        workers: int,
        pace: Pace,
    ) -> None:
        self._waiting = deque(requests)
        self._suspects: deque[Request] = deque()
        self._killed: Counter[Request] = Counter()
        self._tokens = tokens
        self._pace = pace
        self._parts = max(1, workers * PER_WORKER)
        self._left = sum(map(tokens, requests))

    def __bool__(self) -> bool:
        return bool(self._waiting or self._suspects)

    def take(self) -> tuple[Request, ...]:
        """The next batch; empty where nothing waits.

        A request that was with a worker that died goes alone, so that only itself is to blame.
        """
        if self._suspects:
            return (self._suspects.popleft(),)
        batch: list[Request] = []
        size, limit = 0, self._limit
        while self._waiting and (not batch or size + self._tokens(self._waiting[0]) <= limit):
            batch.append(self._waiting.popleft())
            size += self._tokens(batch[-1])
        self._left -= size
        return tuple(batch)

    def back(self, batch: Sequence[Request]) -> None:
        """A batch that no worker has begun waits again."""
        self._waiting.extendleft(reversed(batch))
        self._left += sum(map(self._tokens, batch))

    def lost(self, batch: Sequence[Request]) -> list[Answer]:
        """A worker died of a batch: its requests wait again, or are given up with a reason."""
        given_up: list[Answer] = []
        for request in batch:
            self._killed[request] += len(batch) == 1
            if self._killed[request] < DEATHS:
                self._suspects.append(request)
            else:
                given_up.append(failure(request, f"{DEATHS} workers died of it"))
        return given_up

    @property
    def _limit(self) -> float:
        """Tokens of a batch."""
        rate, share = self._pace.tokens_per_second, self._left / self._parts
        return share if rate is None else min(share, rate * BATCH_SECONDS)


def failure(request: Request, reason: str) -> Answer:
    """The answer to a request that cannot be answered."""
    if isinstance(request, Estimate):
        return Estimation(request, (), (), failed=reason)
    return Result(request, (), failed=reason)
