"""Evaluation on Ray actors, one for each GPU or for so many cores, which hold the model.

Requests go in batches of about a second to whoever is free. An actor that dies, or that is given up
because it does not answer, is replaced, and its requests are asked again one by one; what three
actors died of alone is a failed answer. Actors may come and go with the cluster's nodes.
"""

from __future__ import annotations

import socket
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from evocompress.config import RayConfig
from evocompress.distributed.queue import Pace, Queue
from evocompress.distributed.worker import Refusal
from evocompress.errors import ConfigError, RunError, one_line
from evocompress.types import UNTREATED, Answer, Evaluate, Request, Result

POLL_SECONDS = 1.0
"""How often it is looked whether a worker takes too long, or nodes have come."""

CONNECT_SECONDS = 10.0
"""In which a cluster must answer."""

STARTS = 5
"""Workers in a row that may die before they are ready."""

NOT_INSTALLED = "executor=ray needs a package that is not installed: pip install 'evocompress[ray]'"

Make = Callable[[], Any]
"""Makes an actor: `Worker` or whatever has its methods."""


@dataclass(eq=False)
class _Hand:
    """An actor.

    Attributes:
        actor: Its handle.
        starting: What tells that it is ready; ``None`` once it is.
    """

    actor: Any
    starting: Any


@dataclass(frozen=True)
class _Job:
    """A batch that an actor has.

    Attributes:
        hand: The actor.
        batch: Its requests.
        since: When it was sent.
    """

    hand: _Hand
    batch: tuple[Request, ...]
    since: float


class RayExecutor:
    """Answers requests on actors.

    Args:
        make: Makes an actor, which may have to wait for its place in the cluster.
        wanted: How many there should be now.
        order: Sorts requests so that neighbours share most.
        tokens: Of a request.
        stop: Called at the end.
    """

    def __init__(
        self,
        make: Make,
        wanted: Callable[[], int],
        order: Callable[[Sequence[Request]], Sequence[Request]],
        tokens: Callable[[Request], int],
        stop: Callable[[], None],
    ) -> None:
        import ray

        self._ray = ray
        self._make = make
        self._wanted = wanted
        self._order = order
        self._tokens = tokens
        self._stop = stop
        self._pace = Pace()
        self._hands: list[_Hand] = []
        self._failed_starts = 0

    def map(self, requests: Sequence[Request]) -> Iterator[Answer]:
        """Yields each answer as soon as it is there.

        Raises:
            RunError: A worker says what the user can mend, or none can be started.
        """
        self._staff()
        pieces = _Pieces(self._order(requests), len(self._hands))
        queue = Queue(pieces.requests, self._tokens, len(self._hands), self._pace)
        running: dict[Any, _Job] = {}
        try:
            while queue or running:
                self._staff()
                self._send(queue, running)
                for answer in self._collect(queue, running):
                    yield from pieces.joined(answer)
        finally:
            # Whoever stops listening does not want the rest.
            for job in running.values():
                self._dismiss(job.hand)

    def close(self) -> None:
        """Ends all actors."""
        for hand in list(self._hands):
            self._dismiss(hand)
        self._stop()

    def _staff(self) -> None:
        """Has as many actors as the cluster has room for."""
        for _ in range(self._wanted() - len(self._hands)):
            actor = self._make()
            self._hands.append(_Hand(actor, actor.ready.remote()))

    def _send(self, queue: Queue, running: dict[Any, _Job]) -> None:
        """Gives every idle actor a batch."""
        busy = {job.hand for job in running.values()}
        for hand in self._hands:
            if queue and hand.starting is None and hand not in busy:
                batch = queue.take()
                reference = hand.actor.answer.remote(batch)
                running[reference] = _Job(hand, batch, time.monotonic())

    def _collect(self, queue: Queue, running: dict[Any, _Job]) -> Iterator[Answer]:
        """Waits until something happens, and yields what has been answered."""
        starting = {hand.starting: hand for hand in self._hands if hand.starting is not None}
        references = [*running, *starting]
        if not references:
            time.sleep(POLL_SECONDS)
            return
        done, _ = self._ray.wait(references, num_returns=1, timeout=POLL_SECONDS)
        for reference in done:
            if reference in starting:
                self._begin(starting[reference])
            else:
                yield from self._finish(queue, reference, running.pop(reference))
        for reference, job in list(running.items()):
            if time.monotonic() - job.since > self._pace.patience(self._size(job.batch)):
                del running[reference]
                yield from self._lose(queue, job)

    def _begin(self, hand: _Hand) -> None:
        """An actor has loaded everything, or has died before."""
        try:
            self._heard(self._ray.get(hand.starting))
        except self._ray.exceptions.RayError as error:
            self._raise_bug(error)
            self._dismiss(hand)
            self._failed_starts += 1
            if self._failed_starts >= STARTS:
                raise RunError(
                    f"{STARTS} workers in a row died before they were ready, the last of "
                    f"'{one_line(error)}': {self._logs}"
                ) from None
            return
        hand.starting = None
        self._failed_starts = 0

    def _finish(self, queue: Queue, reference: Any, job: _Job) -> Iterator[Answer]:
        """An actor has answered, or has died."""
        try:
            answers = self._heard(self._ray.get(reference))
        except self._ray.exceptions.RayError as error:
            self._raise_bug(error)
            yield from self._lose(queue, job)
            return
        self._pace.add(self._size(job.batch), time.monotonic() - job.since)
        yield from answers

    def _lose(self, queue: Queue, job: _Job) -> list[Answer]:
        self._dismiss(job.hand)
        return queue.lost(job.batch)

    def _heard(self, said: Any) -> Any:
        """What an actor said, unless it refuses.

        Raises:
            RunError: It does.
        """
        if isinstance(said, Refusal):
            raise RunError(said.reason)
        return said

    def _raise_bug(self, error: Exception) -> None:
        """Raises an error within a worker's own code; the others are deaths of some kind."""
        if isinstance(error, self._ray.exceptions.RayTaskError):
            cause = getattr(error, "cause", error)
            raise RunError(f"a worker failed ({one_line(cause)}): {self._logs}") from None

    @property
    def _logs(self) -> str:
        """Where to look."""
        node = getattr(self._ray._private.worker, "_global_node", None)
        folder = node.get_logs_dir_path() if node else "/tmp/ray/session_latest/logs"
        return f"see worker-*.err in {folder}"

    def _dismiss(self, hand: _Hand) -> None:
        if hand in self._hands:
            self._hands.remove(hand)
            self._ray.kill(hand.actor)

    def _size(self, batch: Sequence[Request]) -> int:
        return sum(map(self._tokens, batch))


class _Pieces:
    """Requests, cut by micro-batches where there are fewer of them than workers.

    Args:
        requests: What is asked.
        workers: How many there are.

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


def start(config: RayConfig, name: str = "evocompress") -> Callable[[], None]:
    """Joins a cluster, or starts one on this machine that only this machine can reach.

    Returns:
        What leaves or ends it.

    Raises:
        ConfigError: Ray is not installed, or there is no such cluster.
    """
    try:
        import ray
    except ImportError:
        raise ConfigError(NOT_INSTALLED) from None
    if ray.is_initialized():
        return lambda: None
    _check_address(config.address)
    options: dict[str, Any] = {"namespace": name, "log_to_driver": False, "logging_level": "error"}
    if config.address is None:
        options |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    try:
        ray.init(address=config.address or "local", **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"ray.address={config.address}: no cluster can be joined there ({one_line(error)})"
        ) from None
    return lambda: ray.shutdown()


def _check_address(address: str | None) -> None:
    """Refuses an address at which nobody listens: Ray itself tries for minutes.

    Raises:
        ConfigError: It is such a one.
    """
    if address in (None, "auto", "local"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"ray.address={address}: no cluster answers there ({one_line(error)}); give auto, or "
            "HOST:PORT as 'ray start --head' prints it"
        ) from None


def places(config: RayConfig) -> int:
    """How many workers there should be now."""
    import ray

    if config.workers != "auto":
        return config.workers
    there = ray.cluster_resources()
    by_cpu = int(there.get("CPU", 0) / config.cpus)
    gpus = gpus_each(config)
    return max(1, min(by_cpu, int(there.get("GPU", 0) / gpus)) if gpus else by_cpu)


def gpus_each(config: RayConfig) -> float:
    """GPUs of each worker: one, where there are any, unless the configuration says otherwise."""
    import ray

    if config.gpus is not None:
        return config.gpus
    return 1.0 if ray.cluster_resources().get("GPU", 0) else 0.0
