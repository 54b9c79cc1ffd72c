"""Small file helpers: everything is written under a temporary name and then renamed."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evocompress.errors import RunError


def is_disk_full(error: Exception) -> bool:
    """Whether an error says that no space is left; safetensors has only a text for it."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return f"os error {errno.ENOSPC}" in str(error)


@contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """Turns "no space left" into an error that names the path and the free space."""
    try:
        yield
    except Exception as error:
        if not is_disk_full(error):
            raise
        existing = next(parent for parent in path.absolute().parents if parent.exists())
        free = shutil.disk_usage(existing).free / 2**20
        raise RunError(
            f"disk full while writing {path} ({free:.0f} MiB free): free some space and run "
            "the same command again, a search or healing with --resume"
        ) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder that takes the name `path` at the end, or vanishes."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a whole file or nothing; an existing one is replaced.

    Raises:
        RunError: The disk is full.
    """
    with naming_full_disk(path), replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Any) -> None:
    """Writes data as indented JSON, whole or not at all."""
    write_text(path, json.dumps(data, indent=1, sort_keys=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        RunError: The file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist") from error
    except json.JSONDecodeError as error:
        raise RunError(f"{path} is not valid JSON (line {error.lineno})") from error
