"""A level library on shared storage, from where every node takes its own copy, once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from evocompress.core.errors import ConfigError, LibraryError, one_line
from evocompress.core.files import sync_folder

MANIFEST = "manifest.json"
"""The file without which a library is not complete."""


def publish(library: Path, name: str, storage: str) -> str:
    """Puts a library into shared storage under the name of its content, unless it is there.

    `storage` is a folder as fsspec writes it: ``s3://bucket/folder``, ``/shared/folder``.

    Raises:
        ConfigError: It cannot be written there.
    """
    local = "://" not in storage
    folder = str(Path(storage).expanduser().absolute()) if local else storage.rstrip("/")
    url = f"{folder}/{name}"
    try:
        files, root = _open(url)
        if files.exists(f"{root}/{MANIFEST}"):
            return url
        files.makedirs(root, exist_ok=True)
        # The manifest comes last.
        for file in sorted(_parts(library), key=lambda file: file.name == MANIFEST):
            files.put_file(str(file), f"{root}/{file.name}")
    except Exception as error:  # whatever the file system's own library raises
        raise _problem(url, error) from None
    return url


def fetched(url: str, cache: Path) -> Path:
    """This node's copy, in the folder `cache`, of a library that `publish` put at `url`.

    Several processes of a node may ask at the same time: one of them copies.

    Raises:
        ConfigError: It cannot be read.
    """
    return _copy_unless(Path.exists, url, cache)


def mended(url: str, cache: Path) -> Path:
    """`fetched`, where a copy that is damaged is made anew."""
    return _copy_unless(_is_whole, url, cache)


def _is_whole(library: Path) -> bool:
    from evocompress.compression.library.manifest import read_manifest
    from evocompress.compression.library.store import verify_files

    try:
        verify_files(library, read_manifest(library))
    except LibraryError:
        return False
    return True


def _copy_unless(serves: Callable[[Path], bool], url: str, cache: Path) -> Path:
    """This node's copy, copied unless the one that there is serves."""
    target = cache / url.rsplit("/", 1)[1]
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not serves(target):
            shutil.rmtree(target, ignore_errors=True)
            _copy(url, target)
    return target


def _copy(url: str, target: Path) -> None:
    """Takes its name when it is whole."""
    for left in target.parent.glob(f".{target.name}.*.tmp"):  # of a process that was killed
        shutil.rmtree(left)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        files, root = _open(url)
        temporary.mkdir()
        for file in files.ls(root, detail=False):
            files.get_file(file, str(temporary / file.rsplit("/", 1)[1]))
        if not (temporary / MANIFEST).exists():
            raise FileNotFoundError(f"there is no {MANIFEST}")
        sync_folder(temporary)
        os.replace(temporary, target)
    except Exception as error:  # whatever the file system's own library raises
        raise _problem(url, error) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _open(url: str) -> tuple[Any, str]:
    """The file system and the path in it."""
    import fsspec

    files, root = fsspec.core.url_to_fs(url)
    return files, root.rstrip("/")


def _parts(library: Path) -> list[Path]:
    return [file for file in library.iterdir() if file.suffix in (".safetensors", ".json")]


def _problem(url: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"ray.storage: {url} cannot be used ({one_line(error) or type(error).__name__}); give a "
        "folder that all nodes reach, as fsspec writes it, and install the package of its protocol"
    )
