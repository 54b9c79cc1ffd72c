"""Which requests go to a worker next, and what becomes of those of workers that died.

Nothing here knows Ray: a worker is whoever takes a batch.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from evocompress.core.requests import Answer, Estimate, Estimation, Request, Result

BATCH_SECONDS = 1.0
"""How long a batch should take: much longer than it is on its way, and not long to repeat."""

BATCHES_LEFT = 4
"""At least as many batches are made of the requests that wait for a worker: the last ones are
small, so that all workers end together (Polychronopoulos & Kuck 1987)."""

DEATHS = 3
"""Workers that a request must have killed alone before it is given up."""

PATIENCE = 20.0
"""Times the expected duration after which a batch counts as lost."""

LEAST_PATIENCE = 120.0
"""Seconds that every batch has: targets are made."""

FIRST_PATIENCE = 4 * 3600.0
"""Seconds that a batch has as long as nothing is known of the pace: it may be a slow machine."""


class Pace:
    """How many tokens a worker does in a second, as far as is known."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0

    def add(self, tokens: int, seconds: float) -> None:
        """Notes the tokens of a finished batch and the seconds it took."""
        # Older batches count less and less: a search goes over to other candidates.
        self._tokens = 0.9 * self._tokens + tokens
        self._seconds = 0.9 * self._seconds + seconds

    @property
    def tokens_per_second(self) -> float | None:
        """``None`` before the first batch."""
        return self._tokens / self._seconds if self._seconds else None

    def patience(self, tokens: int) -> float:
        """Seconds after which a batch of these tokens counts as lost."""
        rate = self.tokens_per_second
        return LEAST_PATIENCE + PATIENCE * tokens / rate if rate else FIRST_PATIENCE


@dataclass(eq=False)
class _Stretch:
    """Neighbours in the order of a step, which wait together."""

    requests: deque[Request]
    tokens: int


class Queue:
    """The requests of one step, in an order in which neighbours share most.

    Every worker goes through a stretch of its own, in which it shares with itself; one that has
    done its own takes the far half of the longest one left (Hendler & Shavit 2002).
    """

    def __init__(
        self,
        requests: Sequence[Request],
        tokens: Callable[[Request], int],
        workers: int,
        pace: Pace,
    ) -> None:
        self._suspects: deque[Request] = deque()
        self._killed: Counter[Request] = Counter()
        self._tokens = tokens
        self._pace = pace
        count = max(1, min(workers, len(requests)))
        borders = [part * len(requests) // count for part in range(count + 1)]
        parts = (requests[begin:end] for begin, end in pairwise(borders))
        self._free = deque(self._stretch(part) for part in parts if part)
        self._owned: dict[Hashable, _Stretch] = {}

    def __bool__(self) -> bool:
        return bool(self._free or self._owned or self._suspects)

    @property
    def waiting(self) -> int:
        """How many no worker has."""
        stretches = (*self._free, *self._owned.values())
        return len(self._suspects) + sum(len(stretch.requests) for stretch in stretches)

    def take(self, taker: Hashable, behind: bool = False) -> tuple[Request, ...]:
        """The next batch for a worker; empty where nothing waits for it.

        A request that was with a worker that died goes to one that has nothing `behind`, no other
        batch that it has not answered, so that only itself is to blame.
        """
        if self._suspects and not behind:
            return (self._suspects.popleft(),)
        if taker not in self._owned:
            found = self._free.popleft() if self._free else self._far_half()
            if found is None:
                return ()
            self._owned[taker] = found
        return self._batch(taker)

    def back(self, batch: Sequence[Request]) -> None:
        """A batch that no worker has begun waits for whoever comes first."""
        self._free.appendleft(self._stretch(batch))

    def leave(self, taker: Hashable) -> None:
        """A worker is gone: what waited for it waits for whoever comes first."""
        if taker in self._owned:
            self._free.appendleft(self._owned.pop(taker))

    def suspected(self, batch: Sequence[Request]) -> bool:
        """Whether a batch is a request that was with a worker that died."""
        return any(request in self._killed for request in batch)

    def lost(self, batch: Sequence[Request], only: bool) -> list[Answer]:
        """A worker died with a batch: its requests wait again, or are given up with a reason.

        Only a batch that was the `only` one is to blame: with another behind it the answer to the
        first may have been on its way when the second killed.
        """
        given_up: list[Answer] = []
        for request in batch:
            self._killed[request] += only and len(batch) == 1
            if self._killed[request] < DEATHS:
                self._suspects.append(request)
            else:
                given_up.append(failure(request, f"{DEATHS} workers died of it"))
        return given_up

    def _batch(self, taker: Hashable) -> tuple[Request, ...]:
        """The next requests of a worker's own stretch."""
        stretch = self._owned[taker]
        waiting, limit, size = stretch.requests, self._limit(stretch), 0
        batch: list[Request] = []
        while waiting and (not batch or size + self._tokens(waiting[0]) <= limit):
            batch.append(waiting.popleft())
            size += self._tokens(batch[-1])
        stretch.tokens -= size
        if not waiting:
            del self._owned[taker]
        return tuple(batch)

    def _far_half(self) -> _Stretch | None:
        """The far half of the longest stretch, or all of it if that is one request."""
        if not self._owned:
            return None
        owner, longest = max(self._owned.items(), key=lambda item: item[1].tokens)
        if len(longest.requests) == 1:
            return self._owned.pop(owner)
        half = [longest.requests.pop() for _ in range(len(longest.requests) // 2)]
        far = self._stretch(half[::-1])
        longest.tokens -= far.tokens
        return far

    def _stretch(self, requests: Sequence[Request]) -> _Stretch:
        return _Stretch(deque(requests), sum(map(self._tokens, requests)))

    def _limit(self, stretch: _Stretch) -> float:
        """Tokens of the next batch out of a stretch; one request until the pace is known."""
        rate = self._pace.tokens_per_second
        return min(stretch.tokens / BATCHES_LEFT, rate * BATCH_SECONDS) if rate else 0.0


def failure(request: Request, reason: str) -> Answer:
    """The answer to a request that cannot be answered."""
    if isinstance(request, Estimate):
        return Estimation(request, (), (), failed=reason)
    return Result(request, (), failed=reason)
