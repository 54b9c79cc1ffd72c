"""What became of the trials of a sweep, read from their folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from evocompress.files import read_json, write_json
from evocompress.journal import last_step
from evocompress.run_folder import RunFolder
from evocompress.sweep.config import SweepConfig
from evocompress.sweep.folder import SweepFolder
from evocompress.sweep.record import Record
from evocompress.sweep.trials import planned

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
        value: The winner's value, or the best one so far.
        id: The winner's.
        costs, dense_costs: Of the winner and of the dense model.
        axes: The costs that were weighed against the value: those of the front, or bounded ones.
        is_front: Whether a front was searched.
        requested, computed: Tokens.
        seconds: All attempts together.
    """

    name: str
    settings: dict[str, Any]
    status: Status
    reason: str | None = None
    value: float | None = None
    id: str | None = None
    costs: dict[str, float] | None = None
    dense_costs: dict[str, float] | None = None
    axes: tuple[str, ...] = ()
    is_front: bool = False
    requested: int | None = None
    computed: int | None = None
    seconds: float | None = None


def is_finished(run: RunFolder) -> bool:
    """Whether a run's search is over: its front is the last that it writes."""
    return run.winner.exists() and run.front.exists()


def outcomes(folder: SweepFolder, sweep: SweepConfig) -> list[TrialOutcome]:
    """What became of every trial: of a grid all, else those that were begun, in that order."""
    records = folder.records.all()
    settings = {name: dict(found) for name, found in planned(sweep).items()}
    settings = settings or {name: record.settings for name, record in records.items()}
    return [_outcome(folder, name, settings[name], records.get(name)) for name in settings]


def write_outcomes(folder: SweepFolder, found: Sequence[TrialOutcome]) -> None:
    """Writes sweep.json."""
    write_json(folder.summary, {"trials": [asdict(outcome) for outcome in found]})


def read_outcomes(folder: SweepFolder) -> list[TrialOutcome]:
    """What is in sweep.json.

    Raises:
        RunError: There is none.
    """
    found = read_json(folder.summary)["trials"]
    return [TrialOutcome(**fields | {"axes": tuple(fields["axes"])}) for fields in found]


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
    folder: SweepFolder, name: str, settings: dict[str, Any], record: Record | None
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
    return _finished(found, read_json(run.winner)) if is_finished(run) else found


def _finished(outcome: TrialOutcome, winner: dict[str, Any]) -> TrialOutcome:
    front = winner["front"]
    return replace(
        outcome,
        status="finished",
        reason=None,
        value=winner["value"],
        id=winner["id"],
        costs=winner["costs"],
        dense_costs=winner["dense_costs"],
        axes=tuple(front["axes"] if front else winner["budget"]),
        is_front=bool(front) and set(front["axes"]) != set(winner["budget"]),
    )


def _status(record: Record) -> Status:
    if record.failed is not None:
        return "failed"
    return "stopped" if record.stopped else "unfinished"
