"""What all proxies share: candidates, micro-batches, what they wait for, failures of memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from evocompress.compression.live_model import LiveModel
from evocompress.core.requests import UNTREATED, Evaluate, MicroBatchValue, Result
from evocompress.core.types import Candidate, Unit
from evocompress.evaluation.proxies.base import Metric
from evocompress.evaluation.proxies.layered import LayeredStates
from evocompress.evaluation.proxies.order import depth_first
from evocompress.evaluation.proxies.prefix import PrefixStates
from evocompress.evaluation.proxies.running import PartialResult
from evocompress.healing.tuned import Treatments
from evocompress.models.device_copy import to_device

States = Callable[[int], Tensor]
"""The final hidden states (b, S, H) of a candidate on a micro-batch."""

Read = Callable[[], Result | None]
"""Waits for the values of a candidate; its result, where they decide it."""

Placed = tuple[int, Evaluate]
"""A request with its number, as the same one may be asked twice."""

ALLOCATION_FAILURES = ("out of memory", "can't allocate memory", "not enough memory")


class MetricProxy:
    """Runs candidates over micro-batches and sums what a metric says of each position.

    Micro-batches are always run in their own shape, on which bfloat16 results depend, so a value
    does not depend on what else was asked. What a position is compared with, its target, is made
    the first time that its micro-batch is asked for, and kept.
    """

    def __init__(
        self,
        live: LiveModel,
        micro_batches: Sequence[Tensor],
        metric: Metric,
        treatments: Treatments | None = None,
    ) -> None:
        """Nothing is computed yet.

        Evaluations leave the model in the state of the last candidate. Micro-batches are token ids
        (b, S) with S at least 2, or what else the model takes.
        """
        self._live = live
        self._metric = metric
        self._model = live.loaded.model
        self._ids = tuple(ids.to(self._model.device) for ids in micro_batches)
        self._prefixes = PrefixStates(live, self._ids)
        # Where blocks come and go, candidates are run together, block after block.
        self._layers = LayeredStates(live, self._ids) if live.loaded.cache else None
        self._targets: dict[int, list[Any]] = {}
        self._treatments = treatments or {}

    def evaluate(self, requests: Sequence[Evaluate]) -> list[Result]:
        """The results in the order of the requests; see `stream`."""
        found = dict(self._results(list(enumerate(requests))))
        return [found[place] for place in range(len(requests))]

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
        order = depth_first([request.candidate for request in requests], self._live.units)
        for _, result in self._results([(place, requests[place]) for place in order]):
            yield result

    def _results(self, asked: Sequence[Placed]) -> Iterator[tuple[int, Result]]:
        """The result of each request beside its number, in any order."""
        # Where blocks come and go there is no whole model that could be treated.
        known = (UNTREATED,) if self._layers else (UNTREATED, *self._treatments)
        for _, request in asked:
            if request.treatment not in known:
                raise ValueError(
                    f"proxy {self._metric.name} knows no treatment {request.treatment!r}"
                )
        self._prepare(index for _, request in asked for index in request.micro_batches)
        if self._layers is None:
            yield from self._one_by_one(asked)
            return
        for group in self._layers.groups([_ask(request) for _, request in asked]):
            yield from self._together(self._layers, [asked[index] for index in group])

    @torch.inference_mode()
    def _prepare(self, micro_batches: Iterable[int]) -> None:
        """Make the targets of micro-batches that have none yet."""
        missing = sorted(set(micro_batches) - self._targets.keys())
        if not missing:
            return
        self._live.restore()
        states: States = self._prefixes.hidden_states
        if self._layers is not None:
            states = _dense_states(self._layers, missing)
        for index in missing:
            dense = partial(self._on_device, states, index)
            self._targets[index] = self._metric.targets(self._ids[index], dense)

    def _on_device(self, states: States, micro_batch: int) -> Tensor:
        return to_device(states(micro_batch), self._model.device)

    def _one_by_one(self, asked: Sequence[Placed]) -> Iterator[tuple[int, Result]]:
        """The results of requests, each block by block from where it differs from the last one.

        All are run on some micro-batches before any is run on the next ones: as many as states
        can be kept of. Each goes through its own in the order that it names, which decides
        where it stops.
        """
        pending = []
        for place, request in asked:
            if request.treatment == UNTREATED:
                pending.append((place, PartialResult(request, self._asked(request))))
            else:
                yield place, self._treated(request)
        indices = [index for _, running in pending for index in running.rest]
        while pending:
            for chunk in self._prefixes.chunks(list(dict.fromkeys(indices))):
                waiting = []
                for place, running, result in self._read_behind(pending, chunk):
                    if result is None:
                        waiting.append((place, running))
                    else:
                        yield place, result
                pending = waiting

    def _read_behind(
        self, pending: Iterable[tuple[int, PartialResult]], chunk: Collection[int]
    ) -> Iterator[tuple[int, PartialResult, Result | None]]:
        """Each candidate after a chunk of micro-batches, with its result where there is one.

        A GPU is given the next candidate before the values of the last are waited for.
        """
        ahead = ahead_on(self._model.device)
        begun: deque[tuple[int, PartialResult, Read]] = deque()
        for place, running in pending:
            begun.append((place, running, self._advance(running, chunk)))
            if len(begun) > ahead:
                place, running, read = begun.popleft()
                yield place, running, read()
        for place, running, read in begun:
            yield place, running, read()

    def _advance(self, running: PartialResult, chunk: Collection[int]) -> Read:
        """Run a candidate on as many of its next micro-batches as there are."""
        part = list(takewhile(chunk.__contains__, running.rest))
        result = None
        if part:
            try:
                self._live.apply(running.request.candidate)
                return self._run(running, part, self._prefixes.hidden_states)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            result = self._out_of_memory(running.request)
        return lambda: result

    def _treated(self, request: Evaluate) -> Result:
        """The result after a treatment: the candidate shares no states with what it was."""
        running = PartialResult(request, self._asked(request))
        self._prefixes.clear()
        try:
            self._live.apply(request.candidate)
            with self._treatments[request.treatment]():
                return self._whole(running, self._prefixes.hidden_states)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        finally:
            self._prefixes.clear()
        return self._out_of_memory(request)

    def _together(
        self, layers: LayeredStates, asked: Sequence[Placed]
    ) -> Iterator[tuple[int, Result]]:
        """The results of several requests, or, where memory does not suffice, of each alone."""
        try:
            found = layers.hidden_states([_ask(request) for _, request in asked])
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            found = None
        if found is not None:
            for (place, request), states in zip(asked, found, strict=True):
                running = PartialResult(request, self._asked(request))
                self._live.apply(outside(request.candidate, self._live.units))
                yield place, self._whole(running, states.__getitem__)
        elif len(asked) == 1:
            yield asked[0][0], self._out_of_memory(asked[0][1])
        else:
            for one in asked:
                yield from self._together(layers, [one])

    def _out_of_memory(self, request: Evaluate) -> Result:
        self._live.restore()
        self._prefixes.clear()
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()
        return Result(request, (), failed="out of memory")

    def _whole(self, running: PartialResult, states: States) -> Result:
        """The result of a candidate, run on all of its micro-batches."""
        result = self._run(running, running.rest, states)()
        assert result is not None
        return result

    def _run(self, running: PartialResult, micro_batches: Iterable[int], states: States) -> Read:
        """Run a candidate on its next micro-batches, unless it is decided before."""
        sums = ((index, self._sums(index, states)) for index in micro_batches)
        if running.request.stop_above is None:
            # Reading a value waits for a GPU: no pass depends on it, so all are begun before.
            return partial(self._read, running, list(sums))
        result = self._read(running, sums)
        return lambda: result

    def _read(self, running: PartialResult, sums: Iterable[tuple[int, Tensor]]) -> Result | None:
        """The result of a candidate, if these values of its next micro-batches decide it."""
        for index, found in sums:
            counts = (self._counted(index),) * len(found)
            value = MicroBatchValue(index, tuple(found.tolist()), counts)
            result = running.add(value, self._metric.name)
            if result is not None:
                return result
        return None

    @torch.inference_mode()
    def _sums(self, index: int, states: States) -> Tensor:
        """The sum over the positions of each sequence (b,) of a micro-batch, float64."""
        hidden = self._on_device(states, index)
        chunks, targets = self._metric.chunks(hidden), self._targets[index]
        rows = [self._metric.values(*pair) for pair in zip(chunks, targets, strict=True)]
        return torch.cat(rows).view(-1, self._counted(index)).double().sum(1)

    def _asked(self, request: Evaluate) -> int:
        """Positions of all its micro-batches."""
        return sum(len(self._ids[i]) * self._counted(i) for i in request.micro_batches)

    def _counted(self, micro_batch: int) -> int:
        """Positions of each sequence of a micro-batch."""
        return self._live.loaded.family.task.counted(
            self._live.loaded.length(self._ids[micro_batch])
        )


def _dense_states(layers: LayeredStates, micro_batches: Sequence[int]) -> States:
    """The dense model's states on some micro-batches, all of them made when one is asked for."""
    made = cache(partial(layers.hidden_states, [(Candidate(), micro_batches)]))
    return lambda micro_batch: made()[0][micro_batch]


def outside(candidate: Candidate, units: Mapping[str, Unit]) -> Candidate:
    """What a candidate says of the embedding and the head."""
    return Candidate(tuple(one for one in candidate.levels if units[one[0]].kind == "outer"))


def _ask(request: Evaluate) -> tuple[Candidate, Sequence[int]]:
    return request.candidate, request.micro_batches


def ahead_on(device: torch.device) -> int:
    """How many candidates are begun before the values of one are read."""
    return 1 if device.type == "cuda" else 0


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed; the CPU allocator has no exception of its own."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(text in str(error).lower() for text in ALLOCATION_FAILURES)
