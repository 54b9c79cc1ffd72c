"""A journal as it is found: whether it is a run's own, whole, and what it says."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from evocompress.core.checked_lines import JournalRecord, lines, resealed, sealed
from evocompress.core.errors import RunError
from evocompress.core.files import naming_disk_errors, replacing
from evocompress.pipeline.journal_memory import Memory, StoredCandidates


def read_candidates(path: Path) -> StoredCandidates:
    """The candidates of a journal by id; the file is only read.

    Raises:
        RunError: A record is damaged.
    """
    return Memory(path).candidates


def read_header(path: Path) -> JournalRecord:
    """The first record of a journal, which says what its values depend on.

    Raises:
        RunError: There is none, or it is damaged.
    """
    if not path.is_file():
        raise RunError(f"{path} is missing, which says what the run was made with: restore it")
    for line in lines(path):
        return line.record()
    raise RunError(f"{path} is empty: restore it, or search again with name=...")


def check_own(path: Path) -> None:
    """Refuses a journal that is, or may be, another file as well: a run appends to it."""
    if path.is_symlink():
        raise RunError(
            f"{path} is a link to {os.readlink(path)}, which a run would write into: put a copy "
            "in its place"
        )
    if path.exists() and not path.is_file():
        raise RunError(f"{path} is no regular file: remove it")
    if path.exists() and path.stat().st_nlink > 1:
        raise RunError(
            f"{path} has a second name (a hard link), and a run would write into that file: put "
            "a copy in its place"
        )


def read_own(path: Path, opening: JournalRecord, may_differ: Sequence[str]) -> Memory:
    """The contents of a journal to go on with, whose lines get checksums; see `read_known`.

    Raises:
        RunError: It belongs to another run, or is damaged.
    """
    memory = read_known(path, opening, may_differ)
    if not memory.count and path.exists() and not sealed(opening).startswith(path.read_bytes()):
        raise RunError(f"{path} is no journal: remove it, or search with name=...")
    if not memory.sealed:
        _seal_lines(path)
        return Memory(path)
    if path.exists() and path.stat().st_size > memory.end:
        os.truncate(path, memory.end)
    return memory


def read_known(path: Path, opening: JournalRecord, may_differ: Sequence[str]) -> Memory:
    """The contents of a journal whose header, but for `may_differ`, is `opening`; only read.

    Raises:
        RunError: It belongs to another run, or is damaged.
    """
    memory = Memory(path)
    found = dict(memory.header)
    for forced in memory.forced:
        found |= forced["circumstances"]
    if memory.count and _without(found, may_differ) != _without(opening, may_differ):
        raise RunError(f"{path} belongs to another run: {_difference(found, opening)}")
    return memory


def _seal_lines(path: Path) -> None:
    """Gives every whole line a checksum, in one step."""
    with naming_disk_errors(path), replacing(path) as temporary, temporary.open("wb") as file:
        file.writelines(resealed(line) for line in lines(path))


def _without(header: JournalRecord, keys: Sequence[str]) -> JournalRecord:
    return {key: value for key, value in header.items() if key not in keys}


def _difference(found: JournalRecord, header: JournalRecord) -> str:
    keys = sorted(key for key in header.keys() | found if found.get(key) != header.get(key))
    return "; ".join(f"{key} was {found.get(key)}, is {header.get(key)}" for key in keys)
