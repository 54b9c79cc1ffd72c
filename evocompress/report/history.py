"""What the journal tells a reader: the search step by step, and how the uniform start did.

Read-only, so that a report can be made while the run is still going on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from evocompress.config import SparsitySpace
from evocompress.errors import RunError
from evocompress.journal import Step
from evocompress.types import Level, Unit

UNIFORM_TOLERANCE = 0.002  # of a matrix; whole zeros or whole rows do not meet a target exactly


@dataclass(frozen=True)
class UniformValue:
    """The proxy's value of the uniform allocation, and on how many sequences it was measured."""

    value: float
    sequences: int


@dataclass(frozen=True)
class History:
    """The journal in short.

    Attributes:
        steps: The state after every step.
        candidates: How many different candidates were looked at.
        failures: Why evaluations failed, one reason per failure.
        uniform: The uniform allocation, where it was evaluated.
    """

    steps: tuple[Step, ...] = ()
    candidates: int = 0
    failures: tuple[str, ...] = ()
    uniform: UniformValue | None = None


def read_records(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; a last line without line end is still being written.

    Raises:
        RunError: A line is not JSON.
    """
    records = []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise RunError(f"{path}, line {number}: not valid JSON; remove the line") from error
    return records


def read_history(path: Path, units: Sequence[Unit], sparsity: SparsitySpace | None) -> History:
    """Reads a journal.

    Args:
        path: ``journal.jsonl``.
        units: The units of the model, by which the uniform allocation is recognised.
        sparsity: The run's sparsity levels; without them nothing counts as uniform.

    Raises:
        RunError: A line is damaged.
    """
    by_type: dict[str, list[dict[str, Any]]] = {}
    for record in read_records(path):
        by_type.setdefault(record["type"], []).append(record)
    candidates = by_type.get("candidate", [])
    uniform = _uniform_id(candidates, units, sparsity) if sparsity else None
    return History(
        steps=tuple(_step(record) for record in by_type.get("step", [])),
        candidates=len(candidates),
        failures=tuple(record["reason"] for record in by_type.get("failure", [])),
        uniform=_mean_value(by_type.get("value", []), uniform) if uniform else None,
    )


def _step(record: Mapping[str, Any]) -> Step:
    fields = Step.__dataclass_fields__.keys() & record.keys()
    return Step(**{name: record[name] for name in fields})


def _uniform_id(
    candidates: Iterable[Mapping[str, Any]], units: Sequence[Unit], sparsity: SparsitySpace
) -> str | None:
    matrices = {
        unit.name: unit.numel
        for unit in units
        if unit.kind == "matrix" and any(fnmatchcase(unit.name, glob) for glob in sparsity.match)
    }
    for candidate in candidates:
        if _is_uniform(candidate["levels"], matrices, sparsity.target):
            return str(candidate["id"])
    return None


def _is_uniform(
    levels: Mapping[str, Mapping[str, Any]], sizes: Mapping[str, int], target: float
) -> bool:
    """Whether every matrix, and nothing else, has the target's fraction of zeros."""
    if not levels or levels.keys() != sizes.keys():
        return False
    known = ((name, Level.from_json(spec)) for name, spec in levels.items())
    return all(
        not level.drop and abs(level.zeros / sizes[name] - target) <= UNIFORM_TOLERANCE
        for name, level in known
    )


def _mean_value(values: Iterable[Mapping[str, Any]], candidate: str) -> UniformValue | None:
    own = [
        value
        for value in values
        if value["candidate"] == candidate and value["treatment"] == "none"
    ]
    if not own:
        return None
    total = sum(sum(value["sums"]) for value in own)
    counted = sum(sum(value["counts"]) for value in own)
    return UniformValue(total / counted, sum(len(value["sums"]) for value in own))
