"""What the journal tells a reader: the search step by step, and how the uniform start did.

Read-only, so that a report can be made while the run is still going on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from evocompress.config import SparsitySpace
from evocompress.errors import RunError
from evocompress.journal_memory import Memory, Step
from evocompress.types import UNTREATED, Candidate, Level, MicroBatchValue, Unit

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
        RunError: A line is no JSON object.
    """
    records = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.endswith(b"\n"):
                records.append(_object(path, number, line))
    return records


def _object(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path}, line {number}: not valid JSON; remove the line") from error
    if not isinstance(found, dict):
        raise RunError(f"{path}, line {number}: no JSON object; remove the line")
    return found


def read_history(memory: Memory, units: Sequence[Unit], sparsity: SparsitySpace | None) -> History:
    """What a journal says, in short.

    Args:
        memory: Of the journal.
        units: The units of the model, by which the uniform allocation is recognised.
        sparsity: The run's sparsity levels; without them nothing counts as uniform.

    Raises:
        RunError: A line is damaged.
    """
    uniform = _uniform_id(memory.candidates, units, sparsity) if sparsity else None
    return History(
        steps=tuple(memory.steps),
        candidates=len(memory.candidates),
        failures=tuple(memory.failures.values()),
        uniform=_mean_value(memory.values.of(uniform, UNTREATED)) if uniform else None,
    )


def _uniform_id(
    candidates: Mapping[str, Candidate], units: Sequence[Unit], sparsity: SparsitySpace
) -> str | None:
    matrices = {
        unit.name: unit.numel
        for unit in units
        if unit.kind == "matrix" and any(fnmatchcase(unit.name, glob) for glob in sparsity.match)
    }
    for name, candidate in candidates.items():
        if _is_uniform(candidate.by_name, matrices, sparsity.target):
            return name
    return None


def _is_uniform(levels: Mapping[str, Level], sizes: Mapping[str, int], target: float) -> bool:
    """Whether every matrix, and nothing else, has the target's fraction of zeros."""
    if not levels or levels.keys() != sizes.keys():
        return False
    return all(
        not level.drop and abs(level.zeros / sizes[name] - target) <= UNIFORM_TOLERANCE
        for name, level in levels.items()
    )


def _mean_value(values: Sequence[MicroBatchValue]) -> UniformValue | None:
    if not values:
        return None
    total = sum(sum(value.sums) for value in values)
    counted = sum(sum(value.counts) for value in values)
    return UniformValue(total / counted, sum(len(value.sums) for value in values))
