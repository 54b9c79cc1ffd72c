"""A checkpoint folder appears whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from evocompress.errors import ExportError
from evocompress.export.record import CANDIDATE_FILE
from evocompress.files import is_disk_full

SPARE_BYTES = 64 * 2**20
"""Room for tokenizer and small files, on top of the weights."""


def check_target(out: Path, overwrite: bool) -> None:
    """Whether a checkpoint may be written to `out`.

    Raises:
        ExportError: It exists and may not be overwritten, or is not ours to overwrite.
    """
    if not out.exists():
        return
    if not overwrite:
        raise ExportError(f"{out} exists: choose another folder or remove it")
    if not (out / CANDIDATE_FILE).is_file():
        raise ExportError(f"{out} is not a checkpoint of this program: remove it yourself")


def check_room(out: Path, weight_bytes: int) -> None:
    """Whether the disk has room for the weights.

    Raises:
        ExportError: It has not.
    """
    free = shutil.disk_usage(_existing_parent(out)).free
    if free < weight_bytes + SPARE_BYTES:
        needed = (weight_bytes + SPARE_BYTES) / 2**20
        raise ExportError(
            f"{out} needs {needed:.0f} MiB and {free / 2**20:.0f} MiB are free: free some space "
            "or choose another disk"
        )


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Yields a new folder beside `out` that takes its place if nothing goes wrong.

    Raises:
        ExportError: The disk is full; nothing is left of the new folder.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    _clear_leftovers(out)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir()
        yield temporary
        _replace(temporary, out)
    except (OSError, SafetensorError) as error:
        if not is_disk_full(error):
            raise
        raise ExportError(
            f"the disk became full while writing {out}: free some space or choose another disk"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _clear_leftovers(out: Path) -> None:
    """Undoes what a killed process left half done for `out`.

    Its number cannot be trusted to differ from ours: in containers the same ones come again.
    """
    leftover = re.compile(rf"\.{re.escape(out.name)}\.\d+\.(tmp|old)")
    for path in list(out.parent.iterdir()):
        match = leftover.fullmatch(path.name)
        if match is None:
            continue
        if match[1] == "old" and not out.exists():
            path.rename(out)
        else:
            shutil.rmtree(path)


def _replace(new: Path, out: Path) -> None:
    if not out.exists():
        new.rename(out)
        return
    old = out.with_name(f".{out.name}.{os.getpid()}.old")
    out.rename(old)
    new.rename(out)
    shutil.rmtree(old)


def _existing_parent(path: Path) -> Path:
    return next(parent for parent in path.absolute().parents if parent.exists())
