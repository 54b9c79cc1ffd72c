"""Requests cut by micro-batches, where there are fewer of them than workers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

from evocompress.core.requests import UNTREATED, Answer, Evaluate, Request, Result


class SplitRequests:
    """Requests, cut by micro-batches where there are fewer of them than workers.

    Attributes:
        requests: Instead of them.
    """

    def __init__(self, requests: Sequence[Request], workers: int) -> None:
        self._whole: dict[Request, Evaluate] = {}
        self._found: defaultdict[Evaluate, list[Result]] = defaultdict(list)
        self._count: dict[Evaluate, int] = {}
        self.requests: list[Request] = []
        parts = max(1, workers // max(1, len(requests)))
        for request in requests:
            self.requests += self._cut(request, parts)

    def joined(self, answer: Answer) -> Iterator[Answer]:
        """The answer, once all its pieces are there."""
        if not isinstance(answer, Result) or answer.request not in self._whole:
            yield answer
            return
        whole = self._whole[answer.request]
        found = self._found[whole]
        found.append(answer)
        if len(found) == self._count[whole]:
            yield _joined(whole, found)

    def _cut(self, request: Request, parts: int) -> list[Request]:
        # Where it may stop early, or is tuned before, it has to be in one place.
        if (
            not isinstance(request, Evaluate)
            or request.stop_above is not None
            or request.treatment != UNTREATED
            or min(parts, len(request.micro_batches)) < 2
        ):
            return [request]
        count = min(parts, len(request.micro_batches))
        pieces: list[Request] = [
            replace(request, micro_batches=request.micro_batches[part::count])
            for part in range(count)
        ]
        self._whole |= dict.fromkeys(pieces, request)
        self._count[request] = count
        return pieces


def _joined(request: Evaluate, found: Sequence[Result]) -> Result:
    """The result of a request from those of its pieces."""
    failed = [result for result in found if result.failed is not None]
    if failed:
        return replace(failed[0], request=request)
    by_place = {value.micro_batch: value for result in found for value in result.values}
    return Result(request, tuple(by_place[index] for index in request.micro_batches))
