"""Temporary names, and what dead processes left under them.

Whoever writes under a temporary name holds a lock meanwhile, on the file itself or, for a folder,
on a file beside it. Process numbers tell nothing: in containers the same ones come again. A lock
ends with its process, however that ends.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout, lock_descriptor

from evocompress.core.errors import RunError

LEFTOVER = re.compile(r"\.(?P<name>.+?)\.\d+(\.[0-9a-f]{8})?\.(?P<kind>tmp|old)")
"""How temporary names and those of folders about to be replaced look; older ones lack the hex."""


def temporary_name(path: Path, kind: str = "tmp") -> Path:
    """A new name beside `path` that `clear_leftovers` knows."""
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.{kind}")


@contextmanager
def temporary_file(path: Path) -> Iterator[Path]:
    """A new empty file beside `path`, locked, which vanishes at the end if it is still there.

    It is to be written in place: another file that took its name would not be locked.
    """
    temporary = temporary_name(path)
    handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with suppress(OSError):  # without locks nobody takes it for left behind either
            lock_descriptor(handle, blocking=False)
        yield temporary
    finally:
        os.close(handle)
        temporary.unlink(missing_ok=True)


@contextmanager
def only_writer(out: Path, *, wait: bool = False) -> Iterator[None]:
    """Keeps other processes from writing the folder `out`, and clears what dead ones left of it.

    With `wait` it waits for another process that writes it.

    Raises:
        RunError: Another process writes it now.
    """
    lock = out.with_name(f".{out.name}.lock")
    try:
        with FileLock(lock, timeout=-1 if wait else 0):
            try:
                for path in _leftovers(out.parent):
                    if _parts(path)[0] == out.name:
                        _clear_folder(path, out)
                yield
            finally:
                lock.unlink(missing_ok=True)  # while it is held: who waits for it looks again
    except Timeout:
        raise RunError(f"{out} is being written by another process; wait for it") from None


@contextmanager
def scratch_folder(parent: Path, name: str, *, wait: bool = False) -> Iterator[Path]:
    """A new folder that vanishes at the end, or after a kill with `clear_leftovers`.

    Nobody else has one of this name meanwhile; see `only_writer`.
    """
    out = parent / name
    with only_writer(out, wait=wait):
        folder = temporary_name(out)
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def clear_leftovers(*folders: Path) -> None:
    """Deletes what dead processes left under temporary names in folders that may be missing.

    A finished folder that had been moved away to be replaced comes back.
    """
    for path in (path for folder in folders if folder.is_dir() for path in _leftovers(folder)):
        if path.is_dir():
            with suppress(RunError), only_writer(path.parent / _parts(path)[0]):
                pass
        else:
            _clear_file(path)


def clear_written(*paths: Path) -> None:
    """Deletes what dead processes left that were writing these files; no folder need be locked."""
    for path in paths:
        for left in _leftovers(path.parent):
            if _parts(left)[0] == path.name and not left.is_dir():
                _clear_file(left)


def _leftovers(folder: Path) -> list[Path]:
    # Moved away ones first: what was to replace them is not finished.
    found = [path for path in folder.iterdir() if LEFTOVER.fullmatch(path.name)]
    return sorted(found, key=lambda path: path.suffix != ".old")


def _parts(path: Path) -> tuple[str, str]:
    """Name of what was to be written, and ``tmp`` or ``old``."""
    match = LEFTOVER.fullmatch(path.name)
    assert match is not None
    return match["name"], match["kind"]


def _clear_folder(path: Path, out: Path) -> None:
    """Of a folder's temporary, which no process works on."""
    if not path.is_dir():
        _clear_file(path)
    elif _parts(path)[1] == "old" and not out.exists():
        path.rename(out)
    else:
        shutil.rmtree(path)


def _clear_file(path: Path) -> None:
    """Deletes a temporary file, unless a process writes it or there are no locks to tell."""
    with suppress(OSError):
        handle = os.open(path, os.O_RDWR)
        try:
            if lock_descriptor(handle, blocking=False):
                path.unlink()
        finally:
            os.close(handle)
