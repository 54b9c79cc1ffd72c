"""Small file helpers: everything is written under a temporary name and then renamed.

What is written reaches the disk before it takes its name, so that a power cut loses no more than
a kill does. JSON that is read back carries a checksum.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

from platformdirs import user_cache_path
from pydantic import TypeAdapter, ValidationError
from xxhash import xxh3_64_hexdigest, xxh3_128

from evocompress.core.errors import EvoCompressError, RunError
from evocompress.core.leftovers import temporary_file
from evocompress.core.regular import check_regular

T = TypeVar("T")

CHECKSUM = "xxh3"
"""Key of the checksum of a JSON file: of the object, or in each object of the list."""

SEAL = re.compile(rb"(.*\n)# xxh3: ([0-9a-f]{16})\n", re.DOTALL)
"""Text with its checksum in the last line."""

PROBLEMS = {
    errno.ENOSPC: ("disk full", "free some space"),
    errno.EDQUOT: ("disk quota exceeded", "free some space or have the quota raised"),
    errno.EFBIG: ("file larger than allowed", "raise the limit, see `ulimit -f`"),
    errno.EIO: ("the disk does not work (input/output error)", "use another disk"),
    errno.EROFS: ("the disk is read-only", "make it writable or use another one"),
    errno.EACCES: ("permission denied", "have the permissions changed or use another folder"),
    errno.ENOTDIR: ("a file is in the place of a folder", "name another folder"),
    errno.EEXIST: ("a file is in the place of a folder", "name another folder"),
    errno.EPERM: ("not permitted", "have the permissions changed or use another folder"),
}
"""Errors of writing that the user can mend: what is wrong, and what to do."""


class InFolder(Protocol):
    """What describes a folder."""

    @property
    def path(self) -> Path:
        """The folder."""


class FolderFile:
    """A path inside a folder, as an attribute of what describes the folder."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, folder: InFolder, owner: object = None) -> Path:
        return folder.path / self.name


def cache_folder() -> Path:
    """Where this program keeps what it can make again; ``EVOCOMPRESS_CACHE`` names another."""
    chosen = os.environ.get("EVOCOMPRESS_CACHE")
    return Path(chosen).expanduser() if chosen else user_cache_path("evocompress")


def errno_of(error: BaseException) -> int | None:
    """The system's number of an error; safetensors has only a text with it."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


def disk_problem(error: BaseException, path: Path) -> str | None:
    """Why `path` could not be written and what to do, where that is the disk's fault."""
    known = PROBLEMS.get(errno_of(error) or 0)
    if known is None:
        return None
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    with suppress(OSError):
        free = f" ({shutil.disk_usage(existing).free / 2**20:.0f} MiB free)"
        return f"{known[0]} while writing {path}{free}: {known[1]}"
    return f"{known[0]} while writing {path}: {known[1]}"


@contextmanager
def naming_disk_errors(path: Path, kind: type[EvoCompressError] = RunError) -> Iterator[None]:
    """Turns errors such as "no space left" into one that names the path and what to do."""
    try:
        yield
    except Exception as error:
        problem = disk_problem(error, path)
        if problem is None:
            raise
        raise kind(
            f"{problem}, and run the same command again, a search or healing with --resume"
        ) from error


def make_folder(path: Path, what: str = "", kind: type[EvoCompressError] = RunError) -> None:
    """Makes a folder with those above it, unless it is there; errors name the setting `what`.

    Raises:
        EvoCompressError: It cannot be made; of class `kind`.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        known = PROBLEMS.get(error.errno or 0, (error.strerror or "", "name another folder"))
        named = f"{what}: " if what else ""
        raise kind(f"{named}the folder {path} cannot be made ({known[0]}): {known[1]}") from error


def sync(path: Path) -> None:
    """Has a file, or the names in a folder, reach the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems sync no folders
            raise
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Has a folder and everything in it reach the disk."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file in the same folder that takes the name `path` at the end, or vanishes.

    It exists and is to be written in place.
    """
    with temporary_file(path) as temporary:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Writes a whole file or nothing; an existing one is replaced.

    Raises:
        RunError: The disk is full, or does not take it for another reason.
    """
    with naming_disk_errors(path), replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Any) -> None:
    """Writes data as indented JSON with a checksum, whole or not at all."""
    write_text(path, json_text(data))


def json_text(data: Any) -> str:
    """Data as indented JSON with a checksum, which `read_json` verifies and leaves out."""
    return json.dumps(_sealed(data), indent=1, allow_nan=False) + "\n"


def write_sealed(path: Path, text: str) -> None:
    """Writes text whose comments begin with a hash sign, and its checksum as the last of them."""
    write_text(path, f"{text}# {CHECKSUM}: {xxh3_64_hexdigest(text.encode())}\n")


def check_sealed(path: Path, remedy: str) -> None:
    """Verifies what `write_sealed` wrote, if it has a checksum; the error names the `remedy`.

    Raises:
        RunError: It was changed since.
    """
    check_regular(path)
    found = SEAL.fullmatch(path.read_bytes())
    if found and xxh3_64_hexdigest(found[1]) != found[2].decode():
        raise RunError(
            f"{path} was changed since it was written, its checksum differs: {remedy}, or remove "
            "its last line if the change is meant"
        )


def read_json(
    path: Path,
    *,
    kind: type[EvoCompressError] = RunError,
    remedy: str = "write the file anew",
) -> Any:
    """Reads a JSON file, and verifies its checksum where it has one.

    Raises:
        EvoCompressError: The file is missing, no regular one, not JSON or was changed; of class
            `kind`. Where it is damaged, the `remedy` says what the user can do.
    """
    check_regular(path, kind)
    try:
        data = _parsed(path.read_bytes().decode("utf-8"))
        plain = _unsealed(data)
        whole = plain is data or _sealed(plain) == data
    except FileNotFoundError as error:
        raise kind(f"{path} does not exist") from error
    except OSError as error:
        raise kind(f"{path} cannot be read: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise kind(f"{path} is damaged (no JSON from line {error.lineno}): {remedy}") from error
    except UnicodeError as error:
        raise kind(f"{path} is damaged (it is not UTF-8): {remedy}") from error
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else "a number is too long"
        raise kind(f"{path} is damaged ({why}): {remedy}") from error
    if not whole:
        raise kind(
            f"{path} was changed since it was written, its checksum differs: {remedy}, or remove "
            f'each "{CHECKSUM}" from it if the change is meant'
        )
    return plain


def read_as(
    path: Path,
    shape: type[T],
    *,
    kind: type[EvoCompressError] = RunError,
    remedy: str = "write the file anew",
) -> T:
    """Reads a JSON file as a pydantic model, dataclass or other type; arguments as of `validated`.

    Raises:
        EvoCompressError: As `read_json`, or the file holds something else.
    """
    return validated(read_json(path, kind=kind, remedy=remedy), shape, path, kind, remedy)


def validated(
    data: Any,
    shape: type[T],
    where: object,
    kind: type[EvoCompressError] = RunError,
    remedy: str = "write the file anew",
) -> T:
    """Data as a pydantic model, dataclass or other type.

    Args:
        data: What was read.
        shape: What it is to be.
        where: Its file, for the message.
        kind: The error's class.
        remedy: What the user can do where it is something else.

    Raises:
        EvoCompressError: It is something else; of class `kind`.
    """
    try:
        return TypeAdapter(shape).validate_python(data)
    except ValidationError as error:
        what = first_problem(error, quoted=True)
        raise kind(f"{where} is damaged or of another kind ({what}): {remedy}") from error


def first_problem(error: ValidationError, *, quoted: bool = False) -> str:
    """The first thing that is wrong with data, after its place, which may stand in quotes."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    named = f"'{place}'" if quoted else place
    return f"{named}: {first['msg']}" if place else str(first["msg"])


def checksum_of(path: Path) -> str:
    """Checksum of a file's content (xxh3, 128 bits): against damage, not against forgers."""
    check_regular(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxh3_128).hexdigest()


def _parsed(text: str) -> Any:
    """The data of JSON, whose letters are all whole."""
    data = json.loads(text)
    if "\\ud" in text.lower():  # half a letter cannot be printed
        json.dumps(data, ensure_ascii=False).encode()
    return data


def _sealed(data: Any) -> Any:
    """Data with its checksum: in an object, or in each object of a list."""
    if isinstance(data, Mapping):
        return {**data, CHECKSUM: _digest(data)}
    if isinstance(data, (list, tuple)) and data and all(isinstance(x, Mapping) for x in data):
        digest = _digest(data)
        return [{**item, CHECKSUM: digest} for item in data]
    return data


def _unsealed(data: Any) -> Any:
    """Data without checksums; the same object where there are none."""
    if isinstance(data, dict) and CHECKSUM in data:
        return {key: value for key, value in data.items() if key != CHECKSUM}
    if isinstance(data, list) and any(isinstance(x, dict) and CHECKSUM in x for x in data):
        return [_unsealed(item) if isinstance(item, dict) else item for item in data]
    return data


def _digest(data: Any) -> str:
    """Checksum of the compact JSON of data, whose spaces do not matter so."""
    return xxh3_64_hexdigest(json.dumps(data, separators=(",", ":")).encode())
