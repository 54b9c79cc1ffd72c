"""What can be seen of workers while they work, and read of them afterwards."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from evocompress.core.files import write_text

Who = Mapping[str, Any]
"""What `who` says."""

TAIL_BYTES = 2**20
"""The most that is kept of what one worker printed."""


class Telemetry:
    """A run's numbers on Ray's metrics endpoints, for Prometheus, and what its workers printed.

    Every number has the tag `run`. The folder `logs` is made when there is something to keep.
    """

    def __init__(self, run: str, logs: Path, say: Callable[[str], None]) -> None:
        from ray.util.metrics import Counter, Gauge

        whole, each = ("run",), ("run", "worker")
        self._run = run
        self._logs = logs
        self.say = say
        self._waiting = Gauge("evocompress_waiting", "Requests that wait.", whole)
        self._workers = Gauge("evocompress_workers", "Workers that there are.", whole)
        self._answers = Counter("evocompress_answers", "Requests answered.", each)
        self._tokens = Counter("evocompress_tokens", "Requested tokens answered.", each)
        self._busy = Counter("evocompress_busy_seconds", "Seconds at work.", each)

    def state(self, waiting: int, workers: int) -> None:
        """Sets the numbers of waiting requests and of workers."""
        self._waiting.set(waiting, {"run": self._run})
        self._workers.set(workers, {"run": self._run})

    def answered(self, who: Who, answers: int, tokens: int, seconds: float) -> None:
        """Counts a batch that a worker has answered in these seconds."""
        tags = {"run": self._run, "worker": worker_name(who)}
        for counter, value in (
            (self._answers, answers),
            (self._tokens, tokens),
            (self._busy, seconds),
        ):
            if value > 0:
                counter.inc(value, tags)

    def ended(self, who: Who, fetch: Callable[[], str | None]) -> None:
        """Keeps what a worker printed, as `fetch` tells, or where it lies if that fails."""
        text = tail(who["log"])
        if text is None:
            text = fetch()
        if text is None:
            text = f"{where(who)}\n"
        if text:
            self._logs.mkdir(parents=True, exist_ok=True)
            write_text(self._logs / f"{worker_name(who)}.log", text)


def who() -> dict[str, Any]:
    """What the worker that calls this says of itself: process, node, file of what it prints."""
    import ray

    return {"pid": os.getpid(), "node": ray.util.get_node_ip_address(), "log": _printed()}


def _printed() -> str:
    try:
        return os.readlink("/proc/self/fd/2")
    except OSError:
        return "worker-*.err in the logs of Ray's session"


def where(who: Who) -> str:
    """Where what a worker printed lies."""
    return f"{who['log']} on {who['node']}"


def worker_name(who: Who) -> str:
    """A worker's name: its node and process."""
    return f"{who['node']}-{who['pid']}".replace(":", "_")


def tail(file: str) -> str | None:
    """The end of a log file of this node, or ``None`` where there is no such file."""
    try:
        with open(file, "rb") as stream:
            stream.seek(max(0, Path(file).stat().st_size - TAIL_BYTES))
            return stream.read().decode(errors="replace")
    except OSError:
        return None
