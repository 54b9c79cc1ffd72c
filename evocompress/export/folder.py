"""A checkpoint folder appears whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evocompress.core.errors import ExportError
from evocompress.core.files import make_folder, naming_disk_errors, sync, sync_folder
from evocompress.core.leftovers import only_writer, temporary_name
from evocompress.export.record import CANDIDATE_FILE

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
    """Whether the disk has room for the weights."""
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
        ExportError: The disk is full, or does not take it for another reason; nothing is left of
            the new folder.
        RunError: Another process writes `out`.
    """
    make_folder(out.parent, "out", ExportError)
    with naming_disk_errors(out, ExportError), only_writer(out):
        temporary = temporary_name(out)
        try:
            temporary.mkdir()
            yield temporary
            sync_folder(temporary)
            _replace(temporary, out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _replace(new: Path, out: Path) -> None:
    if not out.exists():
        new.rename(out)
        sync(out.parent)
        return
    old = temporary_name(out, "old")
    out.rename(old)
    new.rename(out)
    sync(out.parent)
    shutil.rmtree(old)


def _existing_parent(path: Path) -> Path:
    return next(parent for parent in path.absolute().parents if parent.exists())
