"""Evaluation in this process, one request after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from evocompress.types import Evaluate, Result


class Proxy(Protocol):
    """What an executor needs of a proxy."""

    def evaluate(self, requests: Sequence[Evaluate]) -> list[Result]:
        """The results, in the order of the requests."""
        ...


class LocalExecutor:
    """Evaluates requests in order with one proxy."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy

    def map(self, requests: Sequence[Evaluate]) -> Iterator[Result]:
        """Yields each result as soon as it is there, in the order of the requests."""
        for request in requests:
            yield from self._proxy.evaluate([request])

    def close(self) -> None:
        """Nothing to free: the proxy belongs to the caller."""
