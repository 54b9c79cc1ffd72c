"""A run's folder: what lies where, how it is begun and how it is continued."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from evocompress.config import RunConfig
from evocompress.config_file import dump_config, load_config
from evocompress.errors import RunError
from evocompress.files import naming_full_disk, write_text


@dataclass(frozen=True)
class RunFolder:
    """Paths inside a run's folder.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def config_file(self) -> Path:
        """The resolved configuration, YAML."""
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        """Versions, device and git commit, JSON."""
        return self.path / "environment.json"

    @property
    def units(self) -> Path:
        """The model's units and architecture, JSON."""
        return self.path / "units.json"

    @property
    def journal(self) -> Path:
        """The append-only record, JSON lines."""
        return self.path / "journal.jsonl"

    @property
    def winner(self) -> Path:
        """The best candidate with its costs, JSON."""
        return self.path / "winner.json"

    @property
    def front(self) -> Path:
        """The candidates measured at the last fidelity, JSON."""
        return self.path / "front.json"

    @property
    def evaluation(self) -> Path:
        """The final comparison, JSON."""
        return self.path / "evaluation.json"

    @property
    def library(self) -> Path:
        """The level library, where the configuration names no other place."""
        return self.path / "library"

    @property
    def checkpoint(self) -> Path:
        """The winner as a checkpoint."""
        return self.path / "checkpoint"

    @property
    def healing(self) -> Path:
        """Everything that healing writes."""
        return self.path / "heal"

    @property
    def healed_checkpoint(self) -> Path:
        """The healed winner as a checkpoint."""
        return self.healing / "checkpoint"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps a second process out of the folder.

        Raises:
            RunError: Another process works in it.
        """
        try:
            with FileLock(self.path / ".lock", timeout=0):
                yield
        except Timeout as error:
            raise RunError(f"{self.path} is in use by another process; wait for it") from error

    def config(self) -> RunConfig:
        """The resolved configuration of the run.

        Raises:
            RunError: The folder is not a run.
        """
        if not self.config_file.is_file():
            raise RunError(f"{self.path} is not a run folder: it has no config.yaml")
        return load_config(self.config_file)


def check(config: RunConfig, resume: bool) -> RunFolder:
    """Whether a run may begin or go on in its folder; nothing is written.

    Raises:
        RunError: The folder exists and `resume` is false, or its configuration differs.
    """
    folder = RunFolder(config.folder)
    if not folder.path.exists():
        return folder
    if not resume:
        raise RunError(
            f"{folder.path} exists already: continue it with --resume, or choose another name "
            "with name=..."
        )
    changed = _changed(folder.config().model_dump(mode="json"), config.model_dump(mode="json"))
    if changed:
        raise RunError(
            f"{folder.path} was begun with another configuration ({', '.join(changed)} differ): "
            "resume with the same one, or choose another name with name=..."
        )
    return folder


def begin(folder: RunFolder, config: RunConfig) -> None:
    """Makes the folder and writes the resolved configuration, unless it is there already."""
    with naming_full_disk(folder.path):
        folder.path.mkdir(parents=True, exist_ok=True)
    if not folder.config_file.exists():
        write_text(folder.config_file, dump_config(config))


def _changed(old: dict[str, object], new: dict[str, object], prefix: str = "") -> list[str]:
    changed: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            changed += _changed(before, after, f"{prefix}{key}.")
        elif before != after:
            changed.append(prefix + key)
    return changed
