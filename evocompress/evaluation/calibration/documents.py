"""Documents of a source with fields: JSON, CSV and Parquet files, data sets, conversations."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from evocompress.core.errors import DataError, one_line
from evocompress.evaluation.calibration.special import special_tokens

DocumentRow = Mapping[str, Any]

ZIPPED = ".gz"
TEXT_FIELDS = ("text", "content", "document")
CHAT_FIELDS = ("messages", "conversations")
BETWEEN_TEXTS = "\n\n"

SPEAKERS = {"human": "user", "gpt": "assistant"}
"""Roles that ShareGPT's conversations call otherwise; the others keep their names."""

LONGEST_CELL = 2**31 - 1


def format_of(path: Path) -> str:
    """The ending that tells a file's format, without that of its compression."""
    name = path.name.lower().removesuffix(ZIPPED)
    return Path(name).suffix


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """A whole text file, unpacked where its name ends in ``.gz``."""
    with _opened(path, encoding) as file:
        return file.read()


def file_rows(path: Path) -> Iterator[DocumentRow]:
    """The rows of a file of one of `FORMATS`, in their order.

    Raises:
        DataError: It cannot be read, or is not what its name says.
    """
    number = 0
    try:
        for number, row in enumerate(FORMATS[format_of(path)](path), 1):
            if not isinstance(row, Mapping):
                raise DataError(f"{path}: row {number} is no object with fields")
            yield row
    except DataError:
        raise
    except ImportError:
        raise DataError(
            f"{path} needs a package that is not installed: pip install 'evocompress[data]'"
        ) from None
    except Exception as error:  # parsers of a damaged file fail with any type of error
        raise DataError(f"{path} cannot be read after row {number}: {one_line(error)}") from None


def _opened(path: Path, encoding: str) -> TextIO:
    if path.name.lower().endswith(ZIPPED):
        return gzip.open(path, "rt", encoding=encoding)
    return path.open(encoding=encoding)


def _json_lines(path: Path) -> Iterator[Any]:
    with _opened(path, "utf-8-sig") as file:
        yield from (json.loads(line) for line in file if line.strip())


def _json(path: Path) -> Iterator[Any]:
    """A list of objects, or one; or, as is common under this name, one to a line."""
    try:
        content = json.loads(read_text(path, "utf-8-sig"))
    except json.JSONDecodeError as error:
        if not error.msg.startswith("Extra data"):
            raise
        return _json_lines(path)
    return iter(content if isinstance(content, list) else [content])


def _csv(path: Path) -> Iterator[DocumentRow]:
    csv.field_size_limit(LONGEST_CELL)
    with _opened(path, "utf-8-sig") as file:
        yield from csv.DictReader(file, strict=True)


def _parquet(path: Path) -> Iterator[DocumentRow]:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        for batch in file.iter_batches():
            yield from batch.to_pylist()


FORMATS: dict[str, Callable[[Path], Iterator[Any]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
"""How files are read whose rows have fields, by their endings."""


def texts(
    rows: Iterable[DocumentRow], source: str, field: str | None, tokenizer: PreTrainedTokenizerBase
) -> Iterator[str]:
    """What the rows say, each with what comes between it and the next.

    Rows without a value are left out. An empty text is a text: the rows of WikiText, joined as for
    its usual perplexity, have such. Without a `field` it is the first of `TEXT_FIELDS` and
    `CHAT_FIELDS` that has a value in the first row that has one in any. The tokenizer's template
    makes a text of a conversation.

    Raises:
        DataError: A row has no such field, or neither text nor a conversation in it, or half a
            letter; or the tokenizer has no template, or one that does not take the conversation.
    """
    for number, row in enumerate(rows, 1):
        where = f"{source}: row {number}"
        name = field or _usual_field(row, source)
        if name not in row:
            raise DataError(
                f"{where} has no field {name!r}, only {', '.join(map(str, row))}: "
                "name another by calibration.field"
            )
        value = row[name]
        if value is None or value == []:
            continue
        field = name
        if isinstance(value, str):
            yield _whole(value, where) + BETWEEN_TEXTS
        elif isinstance(value, list) and all(isinstance(m, Mapping) for m in value):
            yield _whole(_conversation(value, where, tokenizer), where)
        else:
            raise DataError(
                f"{where} has neither text nor a conversation in {name!r}, but "
                f"{type(value).__name__}: name another by calibration.field"
            )


def _whole(text: str, where: str) -> str:
    """A text whose letters are all whole; JSON can write half a one, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where} has half a letter (a lone surrogate, {text[error.start]!a}) at character "
            f"{error.start + 1}: mend or leave out the row"
        ) from None
    return text


def _usual_field(row: DocumentRow, source: str) -> str:
    there = [name for name in (*TEXT_FIELDS, *CHAT_FIELDS) if name in row]
    if not there:
        raise DataError(
            f"{source} has none of the text columns {', '.join(TEXT_FIELDS)}, nor "
            f"{' or '.join(CHAT_FIELDS)}; it has {', '.join(map(str, row))}: name one by "
            "calibration.field"
        )
    return next((name for name in there if row[name]), there[0])


def _conversation(
    messages: list[Mapping[str, Any]], where: str, tokenizer: PreTrainedTokenizerBase
) -> str:
    """A conversation as the tokenizer's template writes it, without a beginning-of-text token.

    Sequences have that at their own beginning, where the tokenizer puts one before a text.
    """
    if not tokenizer.chat_template:
        raise DataError(
            f"{where} is a conversation, but the model's tokenizer has no chat template: name a "
            "field of plain text by calibration.field, or give other text"
        )
    try:
        text = tokenizer.apply_chat_template(list(map(_message, messages)), tokenize=False)
    except (TemplateError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{where}: the tokenizer's chat template does not take the conversation: "
            f"{one_line(error)}"
        ) from None
    opening = tokenizer.bos_token if special_tokens(tokenizer)[0] else None
    return str(text).removeprefix(opening or "")


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message with the names that templates know: role and content."""
    if "from" not in message or "role" in message:
        return dict(message)
    speaker = message["from"]
    return {"role": SPEAKERS.get(speaker, speaker), "content": message["value"]}
