"""What is kept of a trial beside its run: what it is, how long it took and why it failed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from evocompress.core.files import read_as, write_json
from evocompress.pipeline.sweep.trials import Trial

PAUSE = 5.0
"""Seconds between two records of how long a trial has taken."""


@dataclass(frozen=True)
class TrialRecord:
    """What is kept of a trial beside its run.

    Attributes:
        settings: What is special about it.
        begun: When it was first begun, UTC.
        seconds: How long all attempts took together; a killed one to within some seconds.
        failed: Why it failed, where it did.
        session: The sweep's start in which it failed.
        stopped: Whether it was stopped early.
    """

    settings: dict[str, Any]
    begun: str
    seconds: float = 0.0
    failed: str | None = None
    session: str | None = None
    stopped: bool = False


def new_record(trial: Trial) -> TrialRecord:
    """Of a trial that is begun now."""
    return TrialRecord(dict(trial.settings), datetime.now(UTC).isoformat(timespec="microseconds"))


@dataclass(frozen=True)
class TrialRecords:
    """A folder with a record of each trial that was begun."""

    path: Path

    @contextmanager
    def turn(self, name: str) -> Iterator[None]:
        """Waits until no other process works on a trial."""
        with FileLock(self.path / f"{name}.lock"):
            yield

    def read(self, name: str) -> TrialRecord | None:
        """What is known of a trial; ``None`` where it was not begun.

        Raises:
            RunError: The record is damaged.
        """
        path = self._file(name)
        if not path.exists():
            return None
        return read_as(path, TrialRecord, remedy="delete it, and the trial goes on anew")

    def keep(self, name: str, record: TrialRecord) -> None:
        """Writes what is known of a trial."""
        write_json(self._file(name), asdict(record))

    def all(self) -> dict[str, TrialRecord]:
        """The records of all trials that were begun, in that order."""
        names = [path.stem for path in self.path.glob("*.json")]
        found = {name: record for name in names if (record := self.read(name))}
        return dict(sorted(found.items(), key=lambda pair: (pair[1].begun, pair[0])))

    def _file(self, name: str) -> Path:
        return self.path / f"{name}.json"


class Clock:
    """Keeps the time of an attempt in the trial's record."""

    def __init__(self, records: TrialRecords, trial: Trial) -> None:
        known = records.read(trial.name) or new_record(trial)
        self._records, self._name = records, trial.name
        self._before = replace(known, failed=None, session=None, stopped=False)
        self._started = self._kept = time.monotonic()
        self.keep()

    def tick(self) -> None:
        """Keeps the time, unless that was done a moment ago."""
        if time.monotonic() - self._kept > PAUSE:
            self.keep()

    def keep(self, *, failed: str | None = None, session: str | None = None) -> None:
        """Keeps the time, and, if it failed, why and in which start of the sweep, its session."""
        self._kept = time.monotonic()
        seconds = self._before.seconds + self._kept - self._started
        record = replace(self._before, seconds=seconds, failed=failed, session=session)
        self._records.keep(self._name, record)
