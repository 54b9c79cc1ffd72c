"""What goes from the dense model's folder into a checkpoint as it is, byte for byte.

A tokenizer that is read and written again is another one for some programs: transformers names
other classes, freezes what a class adds into ``tokenizer.json``, and leaves files out.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_relative_import_files

from evocompress.export.transformers4 import make_tokenizer_readable
from evocompress.models.checkpoints import LEGAL, quiet_transformers
from evocompress.models.loading import LoadedModel

COMPANIONS = (
    *("*preprocessor_config.json", "processor_config.json"),
    *("modules.json", "config_sentence_transformers.json", "sentence_*_config.json"),
    *("*_Pooling/config.json", "*_Normalize/config.json"),
)
"""Files of a dense model that hold for a compressed one: of image processors, and of
sentence-transformers, whose folders may be empty and then are not needed."""

TOKENIZER = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*"),
    *("vocab.*", "merges.txt", "*.model", "*.tiktoken", "tekken.json"),
    "additional_chat_templates/*",
)
"""Files of tokenizers of any kind, with their chat templates."""

TERMS = re.compile(f".*({'|'.join(LEGAL)}).*", re.IGNORECASE)
"""Names of files with the terms under which a model may be used."""

NO_TERMS = {".py", ".json", ".jinja", ".safetensors", ".bin", ".pt", ".pth", ".gguf", ".model"}
"""Endings of files that are something else, whatever their names say."""

README = "README.md"
DENSE_README = "README.dense.md"
"""The dense model's README.md, whose place the compressed model's takes."""

CODED = ("config.json", "tokenizer_config.json", "preprocessor_config.json")
"""Files that may name code in ``auto_map``."""


def copy_companions(loaded: LoadedModel, folder: Path) -> None:
    """Copies what the dense model's folder says of preparing inputs and of pooling outputs."""
    if loaded.folder is not None:
        _copy(_matching(loaded.folder, COMPANIONS), loaded.folder, folder)


def copy_terms(loaded: LoadedModel, folder: Path) -> None:
    """Copies the dense model's licence and, as `DENSE_README`, its README.md."""
    if loaded.folder is None or _is_gguf(loaded):
        return
    own = (path for path in loaded.folder.iterdir() if path.is_file() and is_terms(path.name))
    _copy(own, loaded.folder, folder)
    if (loaded.folder / README).is_file():
        shutil.copyfile(loaded.folder / README, folder / DENSE_README)


def is_terms(name: str) -> bool:
    """Whether a file of this name says under which terms a model may be used."""
    return bool(TERMS.fullmatch(name)) and Path(name).suffix.lower() not in NO_TERMS


def add_tokenizer_files(loaded: LoadedModel, folder: Path) -> None:
    """Copies the tokenizer of the dense model's folder; one that lies in no file is written."""
    if loaded.tokenizer is None:
        return
    found: set[Path] = set()
    if loaded.folder is not None and not _is_gguf(loaded):
        own = getattr(type(loaded.tokenizer), "vocab_files_names", {}).values()
        found = set(_matching(loaded.folder, (*TOKENIZER, *own)))
        _copy(found, loaded.folder, folder)
    if not found:
        with quiet_transformers():
            loaded.tokenizer.save_pretrained(folder)
    make_tokenizer_readable(folder)


def settle_code(loaded: LoadedModel, folder: Path) -> None:
    """Has ``auto_map`` name only code that is in the folder.

    Code of the model itself is there where its class came with it: a class of transformers needs
    none. Code of tokenizers and image processors is copied from the dense model's folder; what
    they name in a repository of the hub, they go on naming.
    """
    for path in (folder / name for name in CODED):
        settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        named = settings.get("auto_map")
        if not isinstance(named, dict):
            continue
        of_model = path.name == CODED[0]
        if not of_model and loaded.folder is not None:
            _copy_code(named, loaded.folder, folder)
        there = {
            auto: name
            for auto, name in named.items()
            if all((folder / m).is_file() or ("--" in m and not of_model) for m in _modules(name))
        }
        if there != named:
            settings |= {"auto_map": there}
            settings = {k: v for k, v in settings.items() if k != "auto_map" or v}
            path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _is_gguf(loaded: LoadedModel) -> bool:
    """Whether a model came from one file, in whose folder anything may lie."""
    return loaded.source.endswith(".gguf")


def _matching(folder: Path, patterns: Iterable[str]) -> Iterator[Path]:
    return (path for pattern in patterns for path in folder.glob(pattern) if path.is_file())


def _copy(files: Iterable[Path], source: Path, folder: Path) -> None:
    for file in files:
        target = folder / file.relative_to(source)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, target)


def _modules(name: Any) -> list[str]:
    """The code files of an entry of ``auto_map``: of one class, or of a slow and a fast one."""
    names = name if isinstance(name, list) else [name]
    return [f"{one.rpartition('.')[0]}.py" for one in names if isinstance(one, str)]


def _copy_code(named: dict[str, Any], source: Path, folder: Path) -> None:
    """Copies the code that entries name, with what it imports from beside it."""
    for module in {module for name in named.values() for module in _modules(name)}:
        with suppress(FileNotFoundError):  # then the dense model's code is not whole either
            needed = map(Path, get_relative_import_files(source / module))
            _copy({source / module, *needed}, source, folder)
