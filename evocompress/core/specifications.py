"""Levels and candidates in files that are read back: what of a JSON object is checked."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, TypeAdapter, ValidationError

from evocompress.core.files import first_problem
from evocompress.core.types import Candidate, Level

_LEVELS = TypeAdapter(dict[str, Level], config=ConfigDict(extra="forbid", strict=True))


def _checked(levels: dict[str, Any]) -> dict[str, Any]:
    try:
        _LEVELS.validate_json(json.dumps(levels))  # strictly, an object is a level as JSON only
    except ValidationError as error:
        raise ValueError(first_problem(error)) from None
    Candidate.from_json(levels)
    return levels


CandidateLevels = Annotated[dict[str, Any], AfterValidator(_checked)]
"""The levels of a candidate, which `Candidate.from_json` is sure to read."""
