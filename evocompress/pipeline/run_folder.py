"""A run's folder: what lies where, how it is begun and how it is continued."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import BaseModel

from evocompress.core.config import RunConfig
from evocompress.core.config_file import dump_config, load_config
from evocompress.core.errors import RunError
from evocompress.core.files import FolderFile, check_sealed, make_folder, write_sealed
from evocompress.core.leftovers import clear_leftovers
from evocompress.pipeline.winner import Winner, read_winner

LOCK = ".lock"
RESTORE = "restore the file"

MAY_DIFFER = ("model.device_memory", "proxy.targets", "executor", "ray.")
"""Settings that no result depends on, so that a run may go on with others."""

COMPARED_LATER = ("search.tokens", "threads")
"""Settings whose difference is judged apart: threads with the other circumstances."""


@dataclass(frozen=True)
class RunFolder:
    """Paths inside a run's folder.

    Attributes:
        path: The folder.
        config_file: The resolved configuration, YAML.
        environment: Versions, device and git commit, JSON.
        units: The model's units, JSON.
        latency: The latency table of a search that needs one, JSON.
        journal: The append-only record, JSON lines.
        last_candidates: Checkpoints of the last candidates while they are healed.
        log: What was said while the run was made.
        workers: What workers on Ray printed, one file each.
        winner: The best candidate with its costs, JSON.
        front: The candidates measured at the last fidelity, JSON.
        evaluation: The final comparison, JSON.
        library: The level library, where the configuration names no other place.
        checkpoint: The winner as a checkpoint.
        healing: Everything that healing writes.
        heal_report: Summary of a finished healing, JSON.
        healed_checkpoint: The healed winner as a checkpoint.
    """

    path: Path

    config_file = FolderFile("config.yaml")
    environment = FolderFile("environment.json")
    units = FolderFile("units.json")
    latency = FolderFile("latency.json")
    journal = FolderFile("journal.jsonl")
    last_candidates = FolderFile("last_candidates")
    log = FolderFile("log.txt")
    workers = FolderFile("workers")
    winner = FolderFile("winner.json")
    front = FolderFile("front.json")
    evaluation = FolderFile("evaluation.json")
    library = FolderFile("library")
    checkpoint = FolderFile("checkpoint")
    healing = FolderFile("heal")
    heal_report = FolderFile("heal/heal.json")
    healed_checkpoint = FolderFile("heal/checkpoint")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps a second process out of the folder."""
        with only_process(self.path):
            clear_leftovers(self.path / "estimates", self.healing, self.healing / "state")
            yield

    def read_winner(self) -> Winner:
        """The best candidate with its costs.

        Raises:
            RunError: winner.json is missing or damaged.
        """
        return read_winner(self.winner)

    @property
    def earlier_journals(self) -> list[Path]:
        """The journals of searches with fewer tokens, which this run was before."""
        return sorted(self.path.glob("journal.before-*.jsonl"))

    def extend(self, config: RunConfig) -> bool:
        """Lays the journal aside, and says so, where the search is to have more tokens than before.

        A searcher may plan with its tokens from the start, so it begins anew, and the values that
        are known already are taken from the journal laid aside.
        """
        if self.config().search.tokens == config.search.tokens:
            return False
        if self.journal.exists():
            number = len(self.earlier_journals) + 1
            self.journal.rename(self.path / f"journal.before-{number:03}.jsonl")
        write_sealed(self.config_file, dump_config(config))
        return True

    @property
    def writable(self) -> bool:
        """Whether anything can be written in the folder."""
        return os.access(self.path, os.W_OK)

    def config(self) -> RunConfig:
        """The resolved configuration of the run.

        Raises:
            RunError: The folder is not a run.
        """
        return sealed_config(self.config_file, f"{self.path} is not a run folder")


def sealed_config(file: Path, otherwise: str) -> RunConfig:
    """The resolved configuration in a file.

    Raises:
        RunError: There is none, which `otherwise` says the meaning of, or it was changed.
    """
    if not file.is_file():
        raise RunError(f"{otherwise}: it has no {file.name}")
    check_sealed(file, RESTORE)
    return load_config(file)


def check_run(config: RunConfig, resume: bool) -> RunFolder:
    """Whether a run may begin or go on in its folder; nothing is written.

    Raises:
        RunError: The folder exists and `resume` is false, or its configuration differs.
    """
    folder = RunFolder(config.folder)
    existing = next(p for p in (folder.path, *folder.path.absolute().parents) if p.exists())
    if not existing.is_dir() or not shutil.disk_usage(existing).total:
        raise RunError(f"runs: no folder can be made in {existing}: name another one with runs=...")
    if _begun(folder):
        check_goes_on(folder.path, resume)
        before = folder.config()
        check_unchanged(folder.path, before, config, (*MAY_DIFFER, *COMPARED_LATER))
        _check_tokens(folder.path, before.search.tokens, config.search.tokens)
    return folder


def _check_tokens(path: Path, before: int | None, now: int | None) -> None:
    """Refuses fewer tokens than a search was begun with; ``None`` is without end."""
    if now is not None and (before is None or now < before):
        raise RunError(
            f"{path} was begun with search.tokens={before}, and can go on with more, but not with "
            f"{now}: choose another name with name=..."
        )


def check_goes_on(path: Path, resume: bool) -> None:
    """Refuses a folder in which something was begun, unless it is to go on."""
    if not resume:
        raise RunError(
            f"{path} exists already: continue it with --resume, or choose another name with "
            "name=..."
        )


def check_unchanged(
    path: Path, before: BaseModel, after: BaseModel, may_differ: tuple[str, ...]
) -> None:
    """Refuses to go on with another configuration than before.

    No result depends on settings whose names begin as `may_differ` says.
    """
    old, new = (each.model_dump(mode="json") for each in (before, after))
    changed = [key for key in changed_keys(old, new) if not key.startswith(may_differ)]
    if changed:
        raise RunError(
            f"{path} was begun with another configuration ({', '.join(changed)} differ): resume "
            "with the same one, or choose another name with name=..."
        )


@contextmanager
def only_process(path: Path) -> Iterator[None]:
    """Keeps a second process out of a folder that exists, and clears what dead ones left.

    Raises:
        RunError: Another process works in it.
    """
    try:
        with FileLock(path / LOCK, timeout=0):
            clear_leftovers(path)
            yield
    except Timeout as error:
        raise RunError(f"{path} is in use by another process; wait for it") from error


def _begun(folder: RunFolder) -> bool:
    """Whether the folder holds more than a library, or what a kill left before the first file."""
    if not folder.path.exists():
        return False
    ignored = (folder.library.name, LOCK)
    return any(
        entry.name not in ignored and not entry.name.endswith(".tmp")
        for entry in folder.path.iterdir()
    )


def begin_run(folder: RunFolder, config: RunConfig) -> None:
    """Makes the folder and writes the resolved configuration, unless it is there already."""
    make_folder(folder.path, "runs")
    if not folder.config_file.exists():
        write_sealed(folder.config_file, dump_config(config))


def changed_keys(old: dict[str, object], new: dict[str, object], prefix: str = "") -> list[str]:
    """Dotted keys that differ between two nested mappings."""
    changed: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            changed += changed_keys(before, after, f"{prefix}{key}.")
        elif before != after:
            changed.append(prefix + key)
    return changed
