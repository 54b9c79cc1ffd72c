"""Evaluation on Ray actors that hold the model, one for each GPU or for some cores.

Requests go in batches of about a second, neighbours to the same actor. An actor that dies, or that
is given up because it does not answer, is replaced, and its requests are asked again one by one;
what three actors died of alone is a failed answer. Actors may come and go with the cluster's nodes.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from evocompress.core.errors import RunError, one_line
from evocompress.core.requests import Answer, Request
from evocompress.distributed.queue import Pace, Queue
from evocompress.distributed.request_split import SplitRequests
from evocompress.distributed.telemetry import Telemetry, Who, tail, where
from evocompress.distributed.worker import Refusal

ANSWER_SECONDS = 2.0
"""In which a worker on another node must say what it printed."""

LONG_SECONDS = 60.0
"""After which it is said that no worker is ready."""

POLL_SECONDS = 1.0
"""How often it is looked whether a worker takes too long, or nodes have come."""

IN_FLIGHT = 2
"""Batches that an actor has at a time: the second one is there when it has done the first."""

STARTS = 5
"""Workers in a row that may die before they are ready."""

Make = Callable[[], Any]
"""Makes an actor: `Worker` or whatever has its methods."""

AdmitWorker = Callable[[Who], None]
"""Told what a worker says of itself before it is asked anything; raises if it is not to be."""


@dataclass(eq=False)
class _Worker:
    """An actor.

    Attributes:
        actor: Its handle.
        starting: What tells that it is ready; ``None`` once it is.
        who: What it said of itself then.
        free_since: When it finished its last batch.
    """

    actor: Any
    starting: Any
    who: Who | None = None
    free_since: float = 0.0


@dataclass(frozen=True)
class _Job:
    """A batch that an actor has."""

    worker: _Worker
    batch: tuple[Request, ...]
    since: float


@dataclass(eq=False)
class RayExecutor:
    """Answers requests on actors.

    Attributes:
        make: Makes an actor, which may have to wait for its place in the cluster.
        wanted: How many there should be now.
        order: Sorts requests so that neighbours share most.
        tokens: Of a request.
        stop: Called at the end.
        telemetry: Told what workers do.
        admit: Told of every worker.
    """

    make: Make
    wanted: Callable[[], int]
    order: Callable[[Sequence[Request]], Sequence[Request]]
    tokens: Callable[[Request], int]
    stop: Callable[[], None]
    telemetry: Telemetry
    admit: AdmitWorker = lambda who: None

    def __post_init__(self) -> None:
        import ray

        self._ray = ray
        self._looked = 0.0
        self._idle_since: float | None = None
        self._warned = False
        self._places = 1
        self._pace = Pace()
        self._workers: list[_Worker] = []
        self._failed_starts = 0

    def map(self, requests: Sequence[Request]) -> Iterator[Answer]:
        """Yields each answer as soon as it is there.

        Raises:
            RunError: A worker says what the user can mend, or none can be started.
        """
        self._staff()
        pieces = SplitRequests(self.order(requests), len(self._workers))
        queue = Queue(pieces.requests, self.tokens, len(self._workers), self._pace)
        running: dict[Any, _Job] = {}
        try:
            while queue or running:
                self._look(queue)
                self._send(queue, running)
                for answer in self._collect(queue, running):
                    yield from pieces.joined(answer)
        finally:
            # Whoever stops listening does not want the rest.
            for job in running.values():
                self._dismiss(job.worker)

    def close(self) -> None:
        """Ends all actors."""
        away = [
            worker for worker in self._workers if worker.who and tail(worker.who["log"]) is None
        ]
        said = {worker: worker.actor.log.remote() for worker in away}
        try:
            if said:
                self._ray.wait([*said.values()], num_returns=len(said), timeout=ANSWER_SECONDS)
            for worker in list(self._workers):
                self._dismiss(worker, said.get(worker))
        finally:
            for worker in self._workers:
                self._ray.kill(worker.actor)
            self.stop()

    def _look(self, queue: Queue) -> None:
        """Starts actors for which there is room by now, and shows how many requests wait."""
        if time.monotonic() - self._looked < POLL_SECONDS:
            return
        self._looked = time.monotonic()
        self._staff()
        ready = sum(worker.who is not None for worker in self._workers)
        self.telemetry.state(queue.waiting, ready)
        if ready:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = self._looked
        elif self._looked - self._idle_since > LONG_SECONDS and not self._warned:
            self._warned = True
            self.telemetry.say(
                f"no worker is ready after {LONG_SECONDS:.0f} s: it loads the model, or the "
                "cluster has no room for it ('ray status' tells)"
            )

    def _staff(self) -> None:
        """Has as many actors as the cluster has room for."""
        # What the cluster does not answer while its head restarts is asked again later.
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._places = self.wanted()
        for _ in range(self._places - len(self._workers)):
            actor = self.make()
            self._workers.append(_Worker(actor, actor.ready.remote()))

    def _send(self, queue: Queue, running: dict[Any, _Job]) -> None:
        """Gives every actor a batch, and then another one that waits with it."""
        jobs = Counter(job.worker for job in running.values())
        alone = {job.worker for job in running.values() if queue.suspected(job.batch)}
        for place in range(IN_FLIGHT):
            for worker in self._workers:
                if worker.starting is None and jobs[worker] == place and worker not in alone:
                    batch = queue.take(worker, behind=place > 0)
                    if not batch:
                        continue
                    if queue.suspected(batch):
                        alone.add(worker)
                    reference = worker.actor.answer.remote(batch)
                    running[reference] = _Job(worker, batch, time.monotonic())
                    jobs[worker] += 1

    def _collect(self, queue: Queue, running: dict[Any, _Job]) -> Iterator[Answer]:
        """Waits until something happens, and yields what has been answered."""
        starting = {
            worker.starting: worker for worker in self._workers if worker.starting is not None
        }
        references = [*running, *starting]
        if not references:
            time.sleep(POLL_SECONDS)
            return
        done, _ = self._ray.wait(references, num_returns=1, timeout=POLL_SECONDS)
        if done:
            # Others may have come meanwhile: each look at thousands of them takes milliseconds.
            done, _ = self._ray.wait(references, num_returns=len(references), timeout=0)
        for reference in done:
            if reference in starting:
                self._begin(starting[reference])
            elif reference in running:
                yield from self._finish(queue, reference, running)
        for job in list(running.values()):
            patience = IN_FLIGHT * self._pace.patience(self._size(job.batch))
            if job.worker in self._workers and time.monotonic() - job.since > patience:
                yield from self._lose(queue, job.worker, running)

    def _begin(self, worker: _Worker) -> None:
        """An actor has loaded everything, or has died before."""
        try:
            worker.who = self._heard(self._ray.get(worker.starting))
        except self._ray.exceptions.RayError as error:
            self._raise_bug(error, worker)
            self._dismiss(worker)
            self._failed_starts += 1
            if self._failed_starts >= STARTS:
                raise RunError(
                    f"{STARTS} workers in a row died before they were ready, the last of "
                    f"'{one_line(error)}': {self._logs}"
                ) from None
            return
        self.admit(worker.who)
        worker.starting = None
        self._failed_starts = 0

    def _finish(self, queue: Queue, reference: Any, running: dict[Any, _Job]) -> Iterator[Answer]:
        """An actor has answered, or has died."""
        job = running[reference]
        try:
            answers = self._heard(self._ray.get(reference))
        except self._ray.exceptions.RayError as error:
            self._raise_bug(error, job.worker)
            yield from self._lose(queue, job.worker, running)
            return
        del running[reference]
        now, tokens = time.monotonic(), self._size(job.batch)
        seconds = now - max(job.since, job.worker.free_since)
        self._pace.add(tokens, seconds)
        assert job.worker.who is not None
        self.telemetry.answered(job.worker.who, len(answers), tokens, seconds)
        job.worker.free_since = now
        yield from answers

    def _lose(self, queue: Queue, worker: _Worker, running: dict[Any, _Job]) -> list[Answer]:
        """An actor is dead, or dismissed, with the first batch that it has not answered."""
        jobs = [(reference, job) for reference, job in running.items() if job.worker is worker]
        answers: list[Answer] = []
        lost: list[tuple[Request, ...]] = []
        for reference, job in jobs:
            del running[reference]
            arrived = None if lost else self._arrived(reference)
            if arrived is None:
                lost.append(job.batch)
            else:
                answers += arrived
        self._dismiss(worker)
        queue.leave(worker)
        for batch in reversed(lost[1:]):
            queue.back(batch)
        return answers + (queue.lost(lost[0], only=len(lost) == 1) if lost else [])

    def _arrived(self, reference: Any) -> list[Answer] | None:
        """The answers to a batch, if they are there."""
        done, _ = self._ray.wait([reference], timeout=0)
        if not done:
            return None
        try:
            found: list[Answer] = self._heard(self._ray.get(reference))
        except self._ray.exceptions.RayError:
            return None
        return found

    def _heard(self, said: Any) -> Any:
        """What an actor said, unless it refuses."""
        if isinstance(said, Refusal):
            raise RunError(said.reason)
        return said

    def _raise_bug(self, error: Exception, worker: _Worker) -> None:
        """Raises an error within a worker's own code; the others are deaths of some kind."""
        if isinstance(error, self._ray.exceptions.RayTaskError):
            cause = getattr(error, "cause", error)
            log = f"see {where(worker.who)}" if worker.who else self._logs
            raise RunError(f"a worker failed ({one_line(cause)}): {log}") from None

    @property
    def _logs(self) -> str:
        """Where to look."""
        node = getattr(self._ray._private.worker, "_global_node", None)
        folder = node.get_logs_dir_path() if node else "/tmp/ray/session_latest/logs"
        return f"see worker-*.err in {folder}"

    def _dismiss(self, worker: _Worker, said: Any = None) -> None:
        """Ends an actor and keeps what it printed, which it may have been asked for."""
        if worker not in self._workers:
            return
        self._workers.remove(worker)
        try:
            if worker.who:
                self.telemetry.ended(worker.who, lambda: self._printed(said))
        finally:
            self._ray.kill(worker.actor)

    def _printed(self, said: Any) -> str | None:
        """What an actor on another node printed, if it has said so."""
        if said is None:
            return None
        try:
            text: str | None = self._ray.get(said, timeout=0)
        except self._ray.exceptions.RayError:
            return None
        return text

    def _size(self, batch: Sequence[Request]) -> int:
        return sum(map(self.tokens, batch))
