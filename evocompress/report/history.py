"""What the journal tells a reader: the search step by step, and how the uniform start did.

Read-only, so that a report can be made while the run is still going on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from evocompress.core.config import SparsitySpace
from evocompress.core.requests import UNTREATED, MicroBatchValue
from evocompress.core.types import Candidate, Level, Unit
from evocompress.pipeline.journal_memory import Memory, Step

UNIFORM_TOLERANCE = 0.002  # of a matrix; whole zeros or whole rows do not meet a target exactly


@dataclass(frozen=True)
class ComparedValue:
    """The proxy's value of a candidate, and on how many sequences it was compared."""

    value: float
    sequences: int


@dataclass(frozen=True)
class History:
    """The journal in short.

    All values are comparable: each is that of the last incumbent, in its last comparison, plus the
    mean difference to it over the micro-batches on which both were measured.

    Attributes:
        steps: The state after every step; without a value where there is no such micro-batch.
        candidates: How many different candidates were looked at.
        failures: Why evaluations failed, one reason per failure.
        uniform: The uniform allocation, where it was evaluated on such micro-batches.
        apart: How many steps lost their value, as there are none.
    """

    steps: tuple[Step, ...] = ()
    candidates: int = 0
    failures: tuple[str, ...] = ()
    uniform: ComparedValue | None = None
    apart: int = 0


def read_history(
    memory: Memory,
    units: Sequence[Unit],
    sparsity: SparsitySpace | None,
    treatment: str = UNTREATED,
) -> History:
    """The history in a journal; values are compared after `treatment`.

    The uniform allocation is recognised by the run's sparsity levels, of all `units` of the model.

    Raises:
        RunError: A line is damaged.
    """
    uniform = _uniform_id(memory.candidates, units, sparsity) if sparsity else None
    last = next((step for step in reversed(memory.steps) if step.value is not None), None)
    if last is None or last.incumbent is None:
        found = memory.values.of(uniform, UNTREATED) if uniform else []
        compared, against = None, _alone(found)
    else:
        compared = _Compared(memory, last.incumbent, last.value or 0.0, treatment)
        against = compared.with_last(uniform) if uniform else None
    steps = tuple(compared.step(step) if compared else step for step in memory.steps)
    return History(
        steps=steps,
        candidates=len(memory.candidates),
        failures=tuple(memory.failures.values()),
        uniform=against,
        apart=sum(
            old.value is not None and new.value is None
            for old, new in zip(memory.steps, steps, strict=True)
        ),
    )


class _Compared:
    """Values of candidates, each by its difference to one of them on what both have in common."""

    def __init__(self, memory: Memory, reference: str, value: float, treatment: str) -> None:
        self._values, self._treatment = memory.values, treatment
        self._reference = memory.values.of(reference, treatment)
        self._value = value
        self._known: dict[str, ComparedValue | None] = {}

    def step(self, step: Step) -> Step:
        """A step with its incumbent's value compared."""
        if step.incumbent is None or step.value is None:
            return step
        if step.incumbent not in self._known:
            self._known[step.incumbent] = self.with_last(step.incumbent)
        found = self._known[step.incumbent]
        return replace(step, value=found.value if found else None)

    def with_last(self, candidate: str) -> ComparedValue | None:
        """A candidate's value; ``None`` where nothing is common."""
        pairs = [
            (own, other)
            for other in self._reference
            if (own := self._values.get(candidate, self._treatment, other.micro_batch))
        ]
        if not pairs:
            return None
        gap = _mean([own for own, _ in pairs]) - _mean([other for _, other in pairs])
        return ComparedValue(self._value + gap, sum(len(own.sums) for own, _ in pairs))


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
    """Whether every matrix, and nothing else, has the target's fraction of zeros, and one type."""
    one_type = len({level.bits for level in levels.values()}) == 1
    if levels.keys() != sizes.keys() or not one_type:
        return False
    return all(
        not level.drop and abs(level.zeros / sizes[name] - target) <= UNIFORM_TOLERANCE
        for name, level in levels.items()
    )


def _alone(values: Sequence[MicroBatchValue]) -> ComparedValue | None:
    """A value that there is nothing yet to compare with."""
    if not values:
        return None
    return ComparedValue(_mean(values), sum(len(value.sums) for value in values))


def _mean(values: Sequence[MicroBatchValue]) -> float:
    """Over all positions."""
    return sum(sum(v.sums) for v in values) / sum(sum(v.counts) for v in values)
