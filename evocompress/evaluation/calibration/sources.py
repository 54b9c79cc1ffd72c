"""Where calibration tokens come from: text files, token files and data sets.

Each function yields streams of token ids (1-D, int64); sequences are cut within a stream and
never run over its end.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from evocompress.core.errors import DataError, one_line
from evocompress.core.regular import check_regular
from evocompress.evaluation.calibration.documents import (
    BETWEEN_TEXTS,
    FORMATS,
    file_rows,
    format_of,
    read_text,
    texts,
)

SELF = "self"
DATASETS = "datasets:"
INTEGERS = {
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint16, torch.uint32, torch.uint64),
}
"""The dtypes that token ids may have."""

TOKEN_KEYS = ("tokens", "input_ids")
DOCUMENTS_AT_ONCE = 256


def token_streams(
    source: str, tokenizer: PreTrainedTokenizerBase, field: str | None = None
) -> Iterator[Tensor]:
    """The token streams of a source, in a fixed order, read as far as they are asked for.

    The source is a text file, a file of rows with fields
    (`evocompress.evaluation.calibration.documents`), a folder of token safetensors, or
    ``datasets:NAME[:CONFIG[:SPLIT]]``; text becomes ids without special tokens. Without a `field`
    the text of a row is in a usual one.

    Raises:
        DataError: The source is missing or cannot be read.
    """
    path = Path(source).expanduser()
    check_regular(path, DataError)
    if source.startswith(DATASETS):
        rows = _data_set(source.removeprefix(DATASETS))
        return _grouped(texts(rows, source, field, tokenizer), tokenizer)
    if path.is_dir():
        return _token_folder(path)
    if format_of(path) in FORMATS and path.is_file():
        return _grouped(texts(file_rows(path), source, field, tokenizer), tokenizer)
    return _text_file(path, tokenizer)


def check_present(source: str, key: str) -> None:
    """Whether there is what a source names by the setting `key`, as far as this takes no time.

    Raises:
        DataError: There is no such file or folder, it is a pipe, socket or device, or a package is
            not installed.
    """
    if source.startswith(DATASETS):
        _check_datasets(source)
    elif source != SELF:
        path = Path(source).expanduser()
        if not path.exists():
            raise _absent(f"{key}: {source}")
        files = list(path.glob("*.safetensors")) if path.is_dir() else [path]
        if not files:
            raise DataError(f"{key}: the folder {source} holds no .safetensors files")
        for file in files:
            check_regular(file, DataError)


def has_fields(source: str) -> bool:
    """Whether a source consists of rows with fields, one of them the text."""
    return source.startswith(DATASETS) or format_of(Path(source).expanduser()) in FORMATS


def _check_datasets(source: str) -> None:
    """Refuses a data set where the package is missing that reads it."""
    if find_spec("datasets") is None:
        raise DataError(
            f"{source} needs a package that is not installed: pip install 'evocompress[data]'"
        )


def _absent(source: str) -> DataError:
    return DataError(
        f"{source} does not exist: give a text file, a folder of token safetensors, "
        "datasets:NAME, or self"
    )


def _tokenize(text: str, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    ids: Any = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.int64)


def _text_file(path: Path, tokenizer: PreTrainedTokenizerBase) -> Iterator[Tensor]:
    try:
        text = read_text(path)
    except FileNotFoundError:
        raise _absent(f"calibration source {path}") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"calibration text {path} cannot be read: {one_line(error)}") from None
    yield _tokenize(text, tokenizer)


def _token_folder(folder: Path) -> Iterator[Tensor]:
    """Each 1-D tensor, and each row of the 2-D ones, file by file in the order of names."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise DataError(f"calibration folder {folder} holds no .safetensors files")
    for file in files:
        yield from _token_file(file)


def _token_file(file: Path) -> Tensor:
    """Streams (N, S) of a file; a 1-D tensor is one stream."""
    check_regular(file, DataError)
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise DataError(f"token file {file} cannot be read: {one_line(error)}") from None
    key = next((key for key in TOKEN_KEYS if key in tensors), None)
    if key is None:
        raise DataError(f"token file {file} has no tensor named {' or '.join(TOKEN_KEYS)}")
    tokens = tensors[key]
    if tokens.ndim not in (1, 2) or tokens.dtype not in INTEGERS:
        raise DataError(
            f"token file {file}: {key} must hold integers in one or two dimensions, not "
            f"{tokens.dtype} in {tokens.ndim}"
        )
    # An unsigned id that is too large becomes a negative one, which no model has either.
    return tokens.long() if tokens.ndim == 2 else tokens.long()[None]


def _grouped(found: Iterator[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[Tensor]:
    """Groups of documents, each group one stream, so that a large set is read only in part."""
    while group := "".join(islice(found, DOCUMENTS_AT_ONCE)):
        yield _tokenize(group.removesuffix(BETWEEN_TEXTS), tokenizer)


def _data_set(name: str) -> Iterator[Mapping[str, Any]]:
    """The rows of a data set, streamed."""
    path, config, split = (*name.split(":"), "", "")[:3]
    _check_datasets(f"{DATASETS}{name}")
    from datasets import load_dataset

    empty = True
    try:
        rows = load_dataset(path, config or None, split=split or "train", streaming=True)
        for row in rows:
            empty = False
            yield row
    except Exception as error:  # parsers of a damaged file fail with any type of error
        raise DataError(
            f"{DATASETS}{name} cannot be read (no network, or no such data set): {one_line(error)}"
        ) from None
    if empty:
        raise DataError(f"{DATASETS}{name} is empty")
