"""What a proxy is, and the part that all proxies share: candidates, micro-batches, failures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import isfinite
from typing import ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from evocompress.apply import LiveModel
from evocompress.proxies.head import logit_chunks
from evocompress.proxies.order import depth_first
from evocompress.proxies.prefix import PrefixStates
from evocompress.proxies.tuned import Treatments
from evocompress.types import UNTREATED, Evaluate, MicroBatchValue, Result

Target = TypeVar("Target")

ALLOCATION_FAILURES = ("out of memory", "can't allocate memory", "not enough memory")


class Proxy(Protocol):
    """How good candidates are, cheaply; lower is better."""

    def evaluate(self, requests: Sequence[Evaluate]) -> list[Result]:
        """The results, in the order of the requests."""
        ...

    def stream(self, requests: Sequence[Evaluate]) -> Iterator[Result]:
        """The results, each as soon as it is there, in whatever order is cheapest."""
        ...


class PositionProxy(ABC, Generic[Target]):
    """Runs candidates over micro-batches and values what they give at each position.

    Every position counts but the last of each sequence. Micro-batches are always run in their
    own shape, on which bfloat16 results depend, so a value does not depend on what else was
    asked. What a position is compared with, its target, is made the first time that its
    micro-batch is asked for, and kept.
    """

    name: ClassVar[str]

    def __init__(
        self, live: LiveModel, micro_batches: Sequence[Tensor], treatments: Treatments | None = None
    ) -> None:
        """Nothing is computed yet.

        Args:
            live: The model, which evaluations leave in the state of the last candidate.
            micro_batches: Token ids (b, S) of each, S at least 2.
            treatments: What may be done to a candidate before it is measured.
        """
        self._live = live
        self._family = live.loaded.family
        self._model = live.loaded.model
        self._ids = tuple(ids.to(self._model.device) for ids in micro_batches)
        self._prefixes = PrefixStates(live, self._ids)
        self._targets: dict[int, list[Target]] = {}
        self._treatments = treatments or {}

    def evaluate(self, requests: Sequence[Evaluate]) -> list[Result]:
        """The results in the order of the requests; see `stream`."""
        return list(self._results(requests, range(len(requests))))

    def stream(self, requests: Sequence[Evaluate]) -> Iterator[Result]:
        """Evaluate requests, those one after the other whose candidates begin alike.

        The live model is left with the last candidate applied; the caller restores it.

        Args:
            requests: Their treatments must be among those that the proxy has.

        Yields:
            One result per request, as soon as it is there. A candidate whose value is not
            finite, or that does not fit into memory, gives a failed result; one that cannot
            get below the request's `stop_above` any more is stopped and gives a censored one.

        Raises:
            ValueError: A request has another treatment.
            ModelError: The dense model's own logits are not finite.
        """
        candidates = [request.candidate for request in requests]
        yield from self._results(requests, depth_first(candidates, self._live.units))

    @abstractmethod
    def _chunks(self, micro_batch: int) -> Iterator[Tensor]:
        """What the model as it stands gives at the positions of a micro-batch, chunks (R, ...)."""

    @abstractmethod
    def _make_targets(self, micro_batch: int) -> list[Target]:
        """What each chunk of a micro-batch is compared with."""

    @abstractmethod
    def _row_values(self, chunk: Tensor, target: Target) -> Tensor:
        """Values (R,), none negative, of a chunk of the candidate's."""

    def _results(self, requests: Sequence[Evaluate], order: Iterable[int]) -> Iterator[Result]:
        """The results in some order."""
        for request in requests:
            if request.treatment not in (UNTREATED, *self._treatments):
                raise ValueError(f"proxy {self.name} knows no treatment {request.treatment!r}")
        self._prepare(index for request in requests for index in request.micro_batches)
        for index in order:
            yield self._result(requests[index])

    def _prepare(self, micro_batches: Iterable[int]) -> None:
        missing = sorted(set(micro_batches) - self._targets.keys())
        for index in missing:
            self._targets[index] = self._make_targets(index)

    def _result(self, request: Evaluate) -> Result:
        try:
            self._live.apply(request.candidate)
            with self._treated(request.treatment):
                return self._run(request)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        self._live.restore()
        self._prefixes.clear()
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()
        return Result(request, (), failed="out of memory")

    @contextmanager
    def _treated(self, treatment: str) -> Iterator[None]:
        """The applied candidate after a treatment: it shares no states with what it was."""
        if treatment == UNTREATED:
            yield
            return
        self._prefixes.clear()
        try:
            with self._treatments[treatment]():
                yield
        finally:
            self._prefixes.clear()

    def _run(self, request: Evaluate) -> Result:
        """Run the applied candidate until the last micro-batch, or until it cannot win."""
        values: list[MicroBatchValue] = []
        asked = sum(self._positions(index) for index in request.micro_batches)
        total = 0.0
        for index in request.micro_batches:
            values.append(self._value(index))
            total += sum(values[-1].sums)
            if not isfinite(total):
                return Result(request, (), failed=f"{self.name} of micro-batch {index} is {total}")
            # Values are never negative, so the rest can only raise the mean.
            hopeless = request.stop_above is not None and total / asked > request.stop_above
            if hopeless and len(values) < len(request.micro_batches):
                return Result(request, tuple(values), censored=True)
        return Result(request, tuple(values))

    @torch.inference_mode()
    def _value(self, index: int) -> MicroBatchValue:
        sequences, length = self._ids[index].shape
        chunks, targets = self._chunks(index), self._targets[index]
        rows = [self._row_values(*pair) for pair in zip(chunks, targets, strict=True)]
        sums = torch.cat(rows).view(sequences, length - 1).double().sum(1)
        return MicroBatchValue(index, tuple(sums.tolist()), (length - 1,) * sequences)

    def _positions(self, index: int) -> int:
        sequences, length = self._ids[index].shape
        return sequences * (length - 1)


class LogitsProxy(PositionProxy[Target]):
    """Values the logits (R, V) of candidates at each position."""

    def _chunks(self, micro_batch: int) -> Iterator[Tensor]:
        hidden = self._prefixes.hidden_states(micro_batch)
        return logit_chunks(self._family, self._model, hidden)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed; the CPU allocator has no exception of its own."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(text in str(error).lower() for text in ALLOCATION_FAILURES)
