"""Resumable cells: a long comparison keeps each finished part as one JSON file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from evocompress.core.files import read_json, write_json


def cell(folder: Path, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result of `compute`, read from ``folder/name.json`` if an earlier run left it."""
    path = folder / f"{name}.json"
    if path.exists():
        found: dict[str, Any] = read_json(path)
        return found
    result = compute()
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, result)
    return result
