"""What a proxy is, and the part that all proxies share: candidates, micro-batches, failures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from math import isfinite
from typing import ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from evocompress.apply import LiveModel
from evocompress.proxies.head import logit_chunks
from evocompress.proxies.layered import LayeredStates
from evocompress.proxies.order import depth_first
from evocompress.proxies.prefix import PrefixStates
from evocompress.proxies.tuned import Treatments
from evocompress.types import UNTREATED, Candidate, Evaluate, MicroBatchValue, Result

Target = TypeVar("Target")

States = Callable[[int], Tensor]
"""The final hidden states (b, S, H) of a candidate on a micro-batch."""

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
        # Where blocks come and go, candidates are run together, block after block.
        self._layers = LayeredStates(live, self._ids) if live.loaded.cache else None
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
    def _chunks(self, hidden: Tensor) -> Iterator[Tensor]:
        """What final hidden states (b, S, H) give at the positions of a micro-batch, (R, ...)."""

    @abstractmethod
    def _make_targets(self, micro_batch: int, dense: States) -> list[Target]:
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
        ordered = [requests[index] for index in order]
        if self._layers is None:
            yield from map(self._result, ordered)
            return
        for group in self._layers.groups([_ask(request) for request in ordered]):
            yield from self._together(self._layers, [ordered[index] for index in group])

    def _prepare(self, micro_batches: Iterable[int]) -> None:
        missing = sorted(set(micro_batches) - self._targets.keys())
        if not missing:
            return
        self._live.restore()
        dense = self._prefixes.hidden_states
        if self._layers is not None:
            dense = _Together(self._layers, missing)
        for index in missing:
            self._targets[index] = self._make_targets(index, dense)

    def _result(self, request: Evaluate) -> Result:
        """The result of one request, block by block from where it differs from the one before."""
        try:
            self._live.apply(request.candidate)
            with self._treated(request.treatment):
                return self._run(request, self._prefixes.hidden_states)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        return self._out_of_memory(request)

    def _together(self, layers: LayeredStates, requests: Sequence[Evaluate]) -> Iterator[Result]:
        """The results of several requests, or, where memory does not suffice, of each alone."""
        try:
            found = layers.hidden_states([_ask(request) for request in requests])
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            found = None
        if found is not None:
            for request, states in zip(requests, found, strict=True):
                yield self._run(request, states.__getitem__)
        elif len(requests) == 1:
            yield self._out_of_memory(requests[0])
        else:
            for request in requests:
                yield from self._together(layers, [request])

    def _out_of_memory(self, request: Evaluate) -> Result:
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

    def _run(self, request: Evaluate, states: States) -> Result:
        """Run a candidate until the last micro-batch, or until it cannot win."""
        values: list[MicroBatchValue] = []
        asked = sum(self._positions(index) for index in request.micro_batches)
        total = 0.0
        for index in request.micro_batches:
            values.append(self._value(index, states))
            total += sum(values[-1].sums)
            if not isfinite(total):
                return Result(request, (), failed=f"{self.name} of micro-batch {index} is {total}")
            # Values are never negative, so the rest can only raise the mean.
            hopeless = request.stop_above is not None and total / asked > request.stop_above
            if hopeless and len(values) < len(request.micro_batches):
                return Result(request, tuple(values), censored=True)
        return Result(request, tuple(values))

    @torch.inference_mode()
    def _value(self, index: int, states: States) -> MicroBatchValue:
        sequences, length = self._ids[index].shape
        hidden = states(index).to(self._model.device)
        chunks, targets = self._chunks(hidden), self._targets[index]
        rows = [self._row_values(*pair) for pair in zip(chunks, targets, strict=True)]
        sums = torch.cat(rows).view(sequences, length - 1).double().sum(1)
        return MicroBatchValue(index, tuple(sums.tolist()), (length - 1,) * sequences)

    def _positions(self, index: int) -> int:
        sequences, length = self._ids[index].shape
        return sequences * (length - 1)


class LogitsProxy(PositionProxy[Target]):
    """Values the logits (R, V) of candidates at each position."""

    def _chunks(self, hidden: Tensor) -> Iterator[Tensor]:
        return logit_chunks(self._family, self._model, hidden)


class _Together:
    """The dense model's states on some micro-batches, all of them made when one is asked for."""

    def __init__(self, layers: LayeredStates, micro_batches: Sequence[int]) -> None:
        self._layers = layers
        self._micro_batches = micro_batches

    def __call__(self, micro_batch: int) -> Tensor:
        return self._states[micro_batch]

    @cached_property
    def _states(self) -> Mapping[int, Tensor]:
        return self._layers.hidden_states([(Candidate(), self._micro_batches)])[0]


def _ask(request: Evaluate) -> tuple[Candidate, Sequence[int]]:
    return request.candidate, request.micro_batches


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed; the CPU allocator has no exception of its own."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(text in str(error).lower() for text in ALLOCATION_FAILURES)
