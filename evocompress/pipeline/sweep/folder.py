"""A sweep's folder: what lies where, how it is begun and how it is continued."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from evocompress.core.config_file import dump_config, validate
from evocompress.core.errors import RunError
from evocompress.core.files import (
    FolderFile,
    check_sealed,
    make_folder,
    naming_disk_errors,
    write_sealed,
)
from evocompress.core.strict_yaml import read_yaml
from evocompress.pipeline.run_folder import (
    LOCK,
    RESTORE,
    check_goes_on,
    check_unchanged,
    only_process,
)
from evocompress.pipeline.sweep.config import SweepConfig
from evocompress.pipeline.sweep.record import TrialRecords

MAY_DIFFER = ("ray.address", "ray.workers")
"""Settings that no trial depends on."""


@dataclass(frozen=True)
class SweepFolder:
    """Paths inside a sweep's folder.

    Attributes:
        path: The folder; trials lie in it under their names.
        config_file: The sweep with everything that it refers to, YAML.
        tune: Ray Tune's own state.
        log: What was said while the sweep was made.
        summary: The combined result, JSON.
        page: The combined report, HTML.

    Examples:
        >>> SweepFolder(Path("runs/seeds")).summary.name
        'sweep.json'
    """

    path: Path

    config_file = FolderFile("sweep.yaml")
    tune = FolderFile("tune")
    log = FolderFile("log.txt")
    summary = FolderFile("sweep.json")
    page = FolderFile("sweep.html")

    @property
    def records(self) -> TrialRecords:
        """What is kept of each trial that was begun."""
        return TrialRecords(self.path / "records")

    def config(self) -> SweepConfig:
        """The sweep.

        Raises:
            RunError: The folder is not a sweep's.
        """
        if not self.config_file.is_file():
            raise RunError(f"{self.path} is not a sweep's folder: it has no sweep.yaml")
        check_sealed(self.config_file, RESTORE)
        return validate(SweepConfig, read_yaml(self.config_file), str(self.config_file))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the folder, and keeps a second process from making the same sweep.

        Raises:
            RunError: Another process does, or the disk is full.
        """
        make_folder(self.path, "runs")
        with only_process(self.path):
            yield


def check_sweep(sweep: SweepConfig, resume: bool) -> SweepFolder:
    """Whether a sweep may begin or go on in its folder; nothing is written.

    Raises:
        RunError: The folder exists and `resume` is false, or it is of another sweep.
    """
    folder = SweepFolder(sweep.folder)
    if _begun(folder):
        check_goes_on(folder.path, resume)
        check_unchanged(folder.path, folder.config(), sweep, MAY_DIFFER)
    return folder


def begin_sweep(folder: SweepFolder, sweep: SweepConfig) -> None:
    """Makes the folder and writes the sweep into it, unless it is there already."""
    with naming_disk_errors(folder.path):
        folder.records.path.mkdir(parents=True, exist_ok=True)
    if not folder.config_file.exists():
        write_sealed(folder.config_file, dump_config(sweep))


def _begun(folder: SweepFolder) -> bool:
    """Whether the folder holds more than what a kill left before the first file."""
    if folder.config_file.exists() or not folder.path.exists():
        return folder.config_file.exists()
    leftovers = (LOCK, folder.records.path.name)
    return any(
        entry.name not in leftovers and not entry.name.endswith(".tmp")
        for entry in folder.path.iterdir()
    )
