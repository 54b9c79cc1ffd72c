"""Evaluation in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from evocompress.core.requests import Answer, Estimate, Estimation, Evaluate, Request
from evocompress.evaluation.proxies.base import Proxy


class Estimates(Protocol):
    """What an executor needs to answer estimates."""

    def estimate(self, request: Estimate) -> Estimation:
        """The answer to a request."""
        ...


class LocalExecutor:
    """Answers requests with one proxy and one source of estimates."""

    def __init__(self, proxy: Proxy, estimates: Estimates) -> None:
        self._proxy = proxy
        self._estimates = estimates

    def map(self, requests: Sequence[Request]) -> Iterator[Answer]:
        """Yields each answer as soon as it is there: estimates first, the rest in any order."""
        for request in requests:
            if isinstance(request, Estimate):
                yield self._estimates.estimate(request)
        yield from self._proxy.stream([r for r in requests if isinstance(r, Evaluate)])

    def close(self) -> None:
        """Nothing to free: proxy and estimates belong to the caller."""
