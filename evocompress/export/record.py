"""``candidate.json``: what a checkpoint was made from, and what it costs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from evocompress.errors import ExportError
from evocompress.types import Candidate

CANDIDATE_FILE = "candidate.json"


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
    """

    id: str
    levels: Mapping[str, Any]
    format: str
    source: str
    model_fingerprint: str
    library_fingerprint: str | None
    predicted: Mapping[str, float]
    measured: Mapping[str, int]

    def text(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self), indent=1) + "\n"


def read_record(path: Path) -> Record:
    """What is known of the checkpoint in a folder.

    Raises:
        ExportError: The folder holds no checkpoint of this package, or a damaged record.
    """
    file = path / CANDIDATE_FILE
    try:
        return Record(**json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise ExportError(
            f"{path} has no {CANDIDATE_FILE}: give a folder that materialize wrote"
        ) from error
    except (json.JSONDecodeError, TypeError) as error:
        raise ExportError(f"{file} is damaged: write the checkpoint again") from error


def read_candidate(path: Path) -> Candidate:
    """The candidate that a checkpoint was made from.

    Raises:
        ExportError: As `read_record`.
    """
    return Candidate.from_json(read_record(path).levels)
