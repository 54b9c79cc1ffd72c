"""A request under way: what is known of it so far, and when that decides it."""

from __future__ import annotations

from math import isfinite

from evocompress.core.requests import Evaluate, MicroBatchValue, Result


class PartialResult:
    """What is known of a request so far."""

    def __init__(self, request: Evaluate, asked: int) -> None:
        self.request = request
        self._asked = asked
        self._values: list[MicroBatchValue] = []
        self._total = 0.0

    @property
    def rest(self) -> tuple[int, ...]:
        """The micro-batches that it has not been run on."""
        return self.request.micro_batches[len(self._values) :]

    def add(self, value: MicroBatchValue, name: str) -> Result | None:
        """The result, once it is decided: by the last value, one of no use, or a hopeless sum."""
        self._values.append(value)
        self._total += sum(value.sums)
        if not isfinite(self._total):
            reason = f"{name} of micro-batch {value.micro_batch} is {self._total}"
            return Result(self.request, (), failed=reason)
        if not self.rest:
            return Result(self.request, tuple(self._values))
        # Values are never negative, so the rest can only raise the mean.
        limit = self.request.stop_above
        if limit is not None and self._total / self._asked > limit:
            return Result(self.request, tuple(self._values), censored=True)
        return None
