"""A sweep's folder: what lies where, how it is begun and continued, and what is kept of a trial."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from evocompress.config_file import dump_config, read_yaml, validate
from evocompress.errors import RunError
from evocompress.files import naming_full_disk, read_json, write_json, write_text
from evocompress.run_folder import changed_keys
from evocompress.sweep.config import SweepConfig
from evocompress.sweep.trials import Trial

MAY_DIFFER = "ray.address"
"""The one setting that no trial depends on."""

PAUSE = 5.0
"""Seconds between two records of how long a trial has taken."""


@dataclass(frozen=True)
class Record:
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


@dataclass(frozen=True)
class SweepFolder:
    """Paths inside a sweep's folder.

    Attributes:
        path: The folder; trials lie in it under their names.
        config_file: The sweep with everything that it refers to, YAML.
        records: A `Record` of each trial that was begun.
        tune: Ray Tune's own state.
        log: What was said while the sweep was made.
        summary: The combined result, JSON.
        page: The combined report, HTML.
    """

    path: Path
    config_file: Path = field(init=False)
    records: Path = field(init=False)
    tune: Path = field(init=False)
    log: Path = field(init=False)
    summary: Path = field(init=False)
    page: Path = field(init=False)

    def __post_init__(self) -> None:
        places = {
            "config_file": "sweep.yaml",
            "records": "records",
            "tune": "tune",
            "log": "log.txt",
            "summary": "sweep.json",
            "page": "sweep.html",
        }
        for name, place in places.items():
            object.__setattr__(self, name, self.path / place)

    def config(self) -> SweepConfig:
        """The sweep.

        Raises:
            RunError: The folder is not a sweep's.
        """
        if not self.config_file.is_file():
            raise RunError(f"{self.path} is not a sweep's folder: it has no sweep.yaml")
        return validate(SweepConfig, read_yaml(self.config_file), str(self.config_file))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps a second process from making the same sweep.

        Raises:
            RunError: Another process does.
        """
        try:
            with FileLock(self.path / ".lock", timeout=0):
                yield
        except Timeout as error:
            raise RunError(f"{self.path} is in use by another process; wait for it") from error

    @contextmanager
    def turn(self, name: str) -> Iterator[None]:
        """Waits until no other process works on a trial."""
        with FileLock(self.records / f"{name}.lock"):
            yield

    def record(self, name: str) -> Record | None:
        """What is known of a trial that was begun."""
        path = self._record(name)
        return Record(**read_json(path)) if path.exists() else None

    def keep(self, name: str, record: Record) -> None:
        """Writes what is known of a trial."""
        write_json(self._record(name), asdict(record))

    def begun(self) -> dict[str, Record]:
        """The records of all trials that were begun, in that order."""
        names = [path.stem for path in self.records.glob("*.json")]
        found = {name: record for name in names if (record := self.record(name))}
        return dict(sorted(found.items(), key=lambda pair: (pair[1].begun, pair[0])))

    def _record(self, name: str) -> Path:
        return self.records / f"{name}.json"


class Clock:
    """Keeps the time of an attempt in the trial's record.

    Args:
        folder: The sweep's.
        trial: Of which an attempt begins now.
    """

    def __init__(self, folder: SweepFolder, trial: Trial) -> None:
        now = datetime.now(UTC).isoformat(timespec="microseconds")
        known = folder.record(trial.name) or Record(dict(trial.settings), now)
        self._folder, self._name = folder, trial.name
        self._before = replace(known, failed=None, session=None, stopped=False)
        self._started = self._kept = time.monotonic()
        self.keep()

    def tick(self) -> None:
        """Keeps the time, unless that was done a moment ago."""
        if time.monotonic() - self._kept > PAUSE:
            self.keep()

    def keep(self, *, failed: str | None = None, session: str | None = None) -> None:
        """Keeps the time, and how the attempt ended."""
        self._kept = time.monotonic()
        seconds = self._before.seconds + self._kept - self._started
        record = replace(self._before, seconds=seconds, failed=failed, session=session)
        self._folder.keep(self._name, record)


def check(sweep: SweepConfig, resume: bool) -> SweepFolder:
    """Whether a sweep may begin or go on in its folder; nothing is written.

    Raises:
        RunError: The folder exists and `resume` is false, or it is of another sweep.
    """
    folder = SweepFolder(sweep.folder)
    if not _begun(folder):
        return folder
    if not resume:
        raise RunError(
            f"{folder.path} exists already: continue it with --resume, or choose another name "
            "with name=..."
        )
    before, after = (each.model_dump(mode="json") for each in (folder.config(), sweep))
    changed = [key for key in changed_keys(before, after) if key != MAY_DIFFER]
    if changed:
        raise RunError(
            f"{folder.path} was begun as another sweep ({', '.join(changed)} differ): resume "
            "with the same one, or choose another name with name=..."
        )
    return folder


def begin(folder: SweepFolder, sweep: SweepConfig) -> None:
    """Makes the folder and writes the sweep into it, unless it is there already."""
    with naming_full_disk(folder.path):
        folder.records.mkdir(parents=True, exist_ok=True)
    if not folder.config_file.exists():
        write_text(folder.config_file, dump_config(sweep))


def _begun(folder: SweepFolder) -> bool:
    """Whether the folder holds more than what a kill left before the first file."""
    if folder.config_file.exists() or not folder.path.exists():
        return folder.config_file.exists()
    leftovers = (".lock", folder.records.name)
    return any(
        entry.name not in leftovers and not entry.name.endswith(".tmp")
        for entry in folder.path.iterdir()
    )
