"""``candidate.json``: what a checkpoint was made from, and what it costs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from evocompress.core.errors import ExportError
from evocompress.core.files import CHECKSUM, checksum_of, json_text, read_as
from evocompress.core.specifications import CandidateLevels
from evocompress.core.types import Candidate

CANDIDATE_FILE = "candidate.json"
ANEW = "write the checkpoint again"
READ_BACK = (".safetensors", ".gguf", ".json", ".jinja", ".model", ".txt", ".py", ".bin", ".parts")
"""What transformers, this package and other programs take for a part of a checkpoint."""

LOG = logging.getLogger("evocompress")


@dataclass(frozen=True)
class StoredTensor:
    """How a checkpoint's files store a tensor.

    Attributes:
        type: As ``q4_0``, ``w4g64`` or ``bf16``.
        bytes: What it takes, with scales.
        values: The coarser type whose values it has where the format has one type for all, or
            the types of all experts' matrices that are one tensor.

    Examples:
        >>> StoredTensor("bf16", 8192, values="q4_0").type
        'bf16'
    """

    type: str
    bytes: int
    values: str = ""


@dataclass(frozen=True)
class Record:
    """The content of ``candidate.json``.

    Attributes:
        id: The candidate's id.
        levels: {unit name: level specification}; names are those of the dense model.
        format: The checkpoint's format, a key of `evocompress.export.FORMATS`.
        source: The dense model, as the user named it.
        model_fingerprint: The dense model's fingerprint.
        library_fingerprint: The level library's, or ``None`` if the candidate needs none.
        predicted: Costs by the cost model.
        measured: Costs counted in the written files.
        files: Checksum of each file beside this one that is read back; none in checkpoints of
            older versions.
        tensors: How the files store each tensor, by its name there, where some matrix of the
            candidate has a coarser type; none in checkpoints of older versions.

    Examples:
        >>> Record("0f", {}, "stock", "tiny", "ab", None, predicted={}, measured={}).format
        'stock'
    """

    id: str
    levels: CandidateLevels
    format: str
    source: str
    model_fingerprint: str
    library_fingerprint: str | None
    predicted: Mapping[str, float]
    measured: Mapping[str, int]
    files: Mapping[str, str] = field(default_factory=dict)
    tensors: Mapping[str, StoredTensor] = field(default_factory=dict)


def write_record(folder: Path, record: Record) -> None:
    """Writes what is known of the checkpoint in a folder, whose other files are all there."""
    files = {path.name: checksum_of(path) for path in _read_back(folder)}
    text = json_text(asdict(replace(record, files=files)))
    (folder / CANDIDATE_FILE).write_text(text, encoding="utf-8")


def read_record(path: Path) -> Record:
    """What is known of the checkpoint in a folder.

    Raises:
        ExportError: The folder holds no checkpoint of this package, or a damaged record.
    """
    file = path / CANDIDATE_FILE
    if not file.is_file():
        raise ExportError(f"{path} has no {CANDIDATE_FILE}: give a folder that materialize wrote")
    return read_as(file, Record, kind=ExportError, remedy=ANEW)


def read_candidate(path: Path) -> Candidate:
    """The candidate that a checkpoint was made from.

    Raises:
        ExportError: As `read_record`.
    """
    return Candidate.from_json(read_record(path).levels)


def verify_checkpoint(path: Path) -> None:
    """Refuses a checkpoint that is not what was written; one without a record is not checked.

    Raises:
        ExportError: A file was changed, added or removed, or the record is damaged.
    """
    if not (path / CANDIDATE_FILE).is_file():
        return
    record = read_record(path)
    if not record.files:
        LOG.warning("%s was written without checksums: it is used as it is", path)
        return
    found = {file.name: file for file in _read_back(path)}
    changes = {
        "is not what was written": [n for n in found if n not in record.files],
        "was removed": [n for n in record.files if n not in found],
        "was changed since it was written": [
            n
            for n, file in found.items()
            if n in record.files and checksum_of(file) != record.files[n]
        ],
    }
    for what, names in changes.items():
        if names:
            raise ExportError(
                f"{path / min(names)} {what}: {ANEW}, or, if the change is meant, remove "
                f'"files" and "{CHECKSUM}" from {CANDIDATE_FILE}'
            )


def _read_back(folder: Path) -> list[Path]:
    """The files that say what a checkpoint computes, in the order of their names."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix in READ_BACK and path.name != CANDIDATE_FILE and path.is_file()
    )
