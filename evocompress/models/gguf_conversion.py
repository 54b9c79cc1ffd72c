"""GGUF files and quantised checkpoints, converted once to a checkpoint in the cache folder.

Unpacking the weights and building the tokenizer anew takes most of a minute for a small model, and
every command would need it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Literal

import transformers

from evocompress.core.errors import ModelError, RunError, one_line
from evocompress.core.files import (
    cache_folder,
    checksum_of,
    naming_disk_errors,
    read_as,
    sync_folder,
    write_json,
)
from evocompress.core.leftovers import scratch_folder
from evocompress.models.checkpoint_files import CONFIG
from evocompress.models.checkpoints import (
    Checkpoint,
    local_checkpoint,
    quiet_transformers,
    read_model,
    read_tokenizer,
)
from evocompress.models.families import family_of

CHECKSUMS = "checksums.json"
READING = 2
"""To be raised when files are read otherwise, or others are refused: they are made anew."""


def converted(checkpoint: Checkpoint, dtype: Literal["auto", "bfloat16"] = "auto") -> Checkpoint:
    """The checkpoint in the cache that was made of a GGUF file or a quantised checkpoint.

    It is known by the content of the files and the version of transformers that unpacks it, and
    what it holds is verified; one that is damaged is made anew. ``auto`` is the dtype of unpacking.

    Raises:
        ModelError: The file cannot be read, or is of a model that no family serves.
        RunError: The cache cannot be written.
    """
    try:
        content = _content(checkpoint)
    except OSError as error:
        raise ModelError(f"{checkpoint} cannot be read: {one_line(error)}") from None
    name = f"{content}-{transformers.__version__}-{READING}"
    name += "" if dtype == "auto" else f"-{dtype}"
    folder = cache_folder() / "gguf" / name
    if not _whole(folder):
        with naming_disk_errors(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            _convert(checkpoint, folder, dtype)
    return local_checkpoint(folder)


def _convert(checkpoint: Checkpoint, folder: Path, dtype: Literal["auto", "bfloat16"]) -> None:
    """Writes the checkpoint; `folder` appears whole or not at all."""
    with scratch_folder(folder.parent, folder.name, wait=True) as scratch:
        if _whole(folder):
            return  # another process finished the same conversion meanwhile
        unfinished = scratch / folder.name
        with quiet_transformers():
            tokenizer, model = read_tokenizer(checkpoint), read_model(checkpoint, dtype)
            family_of(model)
            tokenizer.save_pretrained(unfinished)
            model.save_pretrained(unfinished)
            if checkpoint.packing:
                _copy_others(checkpoint.folder, unfinished)
        write_json(unfinished / CHECKSUMS, _checksums(unfinished))
        sync_folder(unfinished)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(unfinished, folder)


def _content(checkpoint: Checkpoint) -> str:
    """What tells a GGUF file, or the files of a checkpoint, from others."""
    if checkpoint.gguf:
        return checksum_of(Path(str(checkpoint)))
    files = json.dumps(_checksums(checkpoint.folder)).encode()
    return hashlib.blake2b(files, digest_size=16).hexdigest()


def _copy_others(source: Path, target: Path) -> None:
    """Copies what lies in a folder beside weights and config, such as a licence."""
    for path in source.iterdir():
        if path.is_file() and ".safetensors" not in path.name and path.name != CONFIG:
            shutil.copyfile(path, target / path.name)


def _whole(folder: Path) -> bool:
    """Whether a folder has every file as it was written."""
    try:
        return read_as(folder / CHECKSUMS, dict[str, str]) == _checksums(folder)
    except (RunError, OSError):
        return False


def _checksums(folder: Path) -> dict[str, str]:
    """Of every file but their own, by its path."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUMS)
    return {path.relative_to(folder).as_posix(): checksum_of(path) for path in sorted(files)}
