"""What became of the trials of a sweep, read from their folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from evocompress.core.files import read_as, write_json
from evocompress.pipeline.journal import last_step
from evocompress.pipeline.run_folder import RunFolder
from evocompress.pipeline.sweep.config import SweepConfig
from evocompress.pipeline.sweep.folder import SweepFolder
from evocompress.pipeline.sweep.record import TrialRecord
from evocompress.pipeline.sweep.trials import group_of, planned
from evocompress.pipeline.winner import Winner

BatchSums = dict[tuple[str, int], tuple[float, int]]
"""{(treatment, micro-batch): (sum of the value, positions)} of a candidate."""

REPORT_AGAIN = "have it written anew by 'evocompress report'"

Status = Literal["finished", "failed", "stopped", "unfinished", "waiting"]


@dataclass(frozen=True)
class TrialOutcome:
    """One line of the combined result.

    Attributes:
        name: Folder of the trial within the sweep's.
        settings: What is special about it.
        status: ``stopped`` is early stopping; ``unfinished`` was interrupted, ``waiting`` is
            not begun.
        reason: Why it failed, where it did.
        value: The winner's value, or the best one so far, each on the tokens of its own search.
        compared: The winner's value on the micro-batches on which the winners of all finished
            trials that compare with this one were measured; ``None`` where they share none.
        positions: On how many positions these are.
        id: The winner's.
        costs, dense_costs: Of the winner and of the dense model.
        axes: The costs that were weighed against the value: those of the front, or bounded ones.
        is_front: Whether a front was searched.
        requested, computed: Tokens.
        seconds: All attempts together.

    Examples:
        >>> TrialOutcome("seed=0", {"seed": 0}, "waiting").value is None
        True
    """

    name: str
    settings: dict[str, Any]
    status: Status
    reason: str | None = None
    value: float | None = None
    compared: float | None = None
    positions: int | None = None
    id: str | None = None
    costs: dict[str, float] | None = None
    dense_costs: dict[str, float] | None = None
    axes: tuple[str, ...] = ()
    is_front: bool = False
    requested: int | None = None
    computed: int | None = None
    seconds: float | None = None


class Outcomes(BaseModel):
    """The content of sweep.json."""

    trials: tuple[TrialOutcome, ...]


def is_finished(run: RunFolder) -> bool:
    """Whether a run's search is over: its front is the last that it writes."""
    return run.winner.exists() and run.front.exists()


def outcomes(folder: SweepFolder, sweep: SweepConfig) -> list[TrialOutcome]:
    """What became of every trial: of a grid all, else those that were begun, in that order.

    Trials compare with each other that differ in seed, search or library only (`group_of`), and
    only on what their winners have in common: the same micro-batches after the same treatment.
    """
    records = folder.records.all()
    settings = {name: dict(found) for name, found in planned(sweep).items()}
    settings = settings or {name: record.settings for name, record in records.items()}
    found = [_outcome(folder, name, settings[name], records.get(name)) for name in settings]
    groups: dict[str, dict[str, BatchSums]] = {}
    for each in found:
        if each.status == "finished":
            winner = RunFolder(folder.path / each.name).read_winner()
            groups.setdefault(group_of(each.settings), {})[each.name] = _measured(winner)
    on_common = {name: value for group in groups.values() for name, value in _common(group).items()}
    return [replace(each, **on_common.get(each.name, {})) for each in found]


def _measured(winner: Winner) -> BatchSums:
    """Everything that a winner was measured on; nothing where an older version wrote it."""
    return {
        (winner.treatment, batch): (total, count) for batch, total, count in winner.measured or ()
    }


def _common(group: dict[str, BatchSums]) -> dict[str, dict[str, Any]]:
    """Fields of the winners of a group: their values where all of them were measured."""
    shared = set.intersection(*(set(measured) for measured in group.values()))
    found = {}
    for name, measured in group.items():
        parts = [measured[key] for key in sorted(shared)]
        positions = sum(count for _, count in parts)
        if positions:
            value = sum(total for total, _ in parts) / positions
            found[name] = {"compared": value, "positions": positions}
    return found


def write_outcomes(folder: SweepFolder, found: Sequence[TrialOutcome]) -> None:
    """Writes sweep.json."""
    write_json(folder.summary, {"trials": [asdict(outcome) for outcome in found]})


def read_outcomes(folder: SweepFolder) -> list[TrialOutcome]:
    """What is in sweep.json.

    Raises:
        RunError: There is none, or it is damaged.
    """
    return list(read_as(folder.summary, Outcomes, remedy=REPORT_AGAIN).trials)


def failures(path: Path) -> str:
    """How many of a sweep's trials failed, in words, and why the first did; empty if none.

    Raises:
        RunError: The folder has no sweep.json.
    """
    found = read_outcomes(SweepFolder(path))
    failed = [outcome for outcome in found if outcome.status == "failed"]
    if not failed:
        return ""
    count = f"{len(failed)} of {len(found)} trials failed"
    return f"{count} ({failed[0].name}: {failed[0].reason})"


def _outcome(
    folder: SweepFolder, name: str, settings: dict[str, Any], record: TrialRecord | None
) -> TrialOutcome:
    if record is None:
        return TrialOutcome(name, settings, "waiting")
    run = RunFolder(folder.path / name)
    step = last_step(run.journal) if run.journal.exists() else None
    found = TrialOutcome(
        name,
        settings,
        _status(record),
        record.failed,
        step.value if step else None,
        requested=step.requested if step else None,
        computed=step.computed if step else None,
        seconds=record.seconds,
    )
    return _finished(found, run.read_winner()) if is_finished(run) else found


def _finished(outcome: TrialOutcome, winner: Winner) -> TrialOutcome:
    front = winner.front
    return replace(
        outcome,
        status="finished",
        reason=None,
        value=winner.value,
        id=winner.id,
        costs=winner.costs,
        dense_costs=winner.dense_costs,
        axes=tuple(front.axes if front else winner.budget),
        is_front=_is_front(winner),
    )


def _is_front(winner: Winner) -> bool:
    """Whether a front was searched: older versions summed one up in any case."""
    if winner.front is None or winner.measured is not None:
        return winner.front is not None
    return set(winner.front.axes) != set(winner.budget)


def _status(record: TrialRecord) -> Status:
    if record.failed is not None:
        return "failed"
    return "stopped" if record.stopped else "unfinished"
