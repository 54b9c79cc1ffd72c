"""The folder of rounds: what lies where, how it is begun and how it is continued."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from evocompress.core.config import RunConfig
from evocompress.core.config_file import dump_config
from evocompress.core.errors import RunError
from evocompress.core.files import FolderFile, make_folder, write_sealed
from evocompress.pipeline.run_folder import (
    MAY_DIFFER,
    check_goes_on,
    check_unchanged,
    sealed_config,
)


@dataclass(frozen=True)
class RoundsFolder:
    """Paths inside the folder of rounds.

    Attributes:
        path: The folder; the rounds are runs in it, ``round-1`` and so on.
        config_file: The resolved configuration of all rounds, YAML.
        log: What was said while they were made.
        evaluation: The models of all rounds on held-out text, JSON.

    Examples:
        >>> RoundsFolder(Path("runs/twice")).config_file.name
        'rounds.yaml'
    """

    path: Path

    config_file = FolderFile("rounds.yaml")
    log = FolderFile("log.txt")
    evaluation = FolderFile("evaluation.json")

    def config(self) -> RunConfig:
        """The resolved configuration of all rounds.

        Raises:
            RunError: The folder is of something else.
        """
        return sealed_config(self.config_file, f"{self.path} is no folder of rounds")


def check_rounds(config: RunConfig, resume: bool) -> RoundsFolder:
    """Whether rounds may begin or go on in their folder; nothing is written.

    Raises:
        RunError: The folder exists and `resume` is false, or it is of something else.
    """
    folder = RoundsFolder(config.folder)
    if folder.config_file.exists():
        check_goes_on(folder.path, resume)
        check_unchanged(folder.path, folder.config(), config, (*MAY_DIFFER, "threads"))
    elif folder.path.exists() and any(folder.path.iterdir()):
        raise RunError(f"{folder.path} is of something else: choose another name with name=...")
    return folder


def begin_rounds(folder: RoundsFolder, config: RunConfig) -> None:
    """Makes the folder and writes the configuration, unless it is there already."""
    make_folder(folder.path, "runs")
    if not folder.config_file.exists():
        write_sealed(folder.config_file, dump_config(config))
