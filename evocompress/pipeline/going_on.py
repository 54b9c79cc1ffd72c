"""Whether a run goes on under the circumstances of its values so far, and what is noted if not."""

from __future__ import annotations

from typing import Any

from evocompress.core.circumstances import (
    Admit,
    Change,
    Environment,
    Facts,
    Machine,
    differences,
    read_environment,
)
from evocompress.core.errors import RunError
from evocompress.core.files import write_json
from evocompress.pipeline.journal import Journal
from evocompress.pipeline.run_folder import RunFolder

CIRCUMSTANCES = ("device", "dtype", "kernel", "threads")
"""Of the journal's header what a run may be forced to have otherwise."""

REMEDY = (
    "values of both are not to be compared: {same}, search again with name=..., or go on all the "
    "same with --force, which the journal and the report then say"
)


def facts_changed(folder: RunFolder, now: Facts, force: bool) -> bool:
    """Whether a run goes on under other circumstances than those of its last values.

    Raises:
        RunError: It would, and is not forced to.
    """
    if not folder.environment.exists():
        if not folder.journal.exists():
            return False
        what = f"{folder.environment} is missing, which tells under what the run was begun"
    else:
        found = differences(read_environment(folder.environment).last, now, threads=True)
        if not found:
            return False
        what = f"{folder.path} was begun under other circumstances: {'; '.join(found)}"
    if not force:
        raise RunError(f"{what}; {REMEDY.format(same='go on where it was begun')}")
    return True


def mark(folder: RunFolder, journal: Journal, header: dict[str, Any], now: Facts) -> None:
    """Writes down that the run goes on under other circumstances: journal, then environment."""
    known = read_environment(folder.environment)
    if now.executor != "local" and not now.workers:
        # Which machines the workers are is not known before they begin: `workers_admitted`.
        now = now.model_copy(update={"workers": known.last.machines})
    facts = now.model_dump(mode="json")
    journal.mark({key: header[key] for key in CIRCUMSTANCES}, facts)
    change = Change(**facts, step=len(journal.steps))
    if differences(known.last, now, threads=True) or not known.changes:
        _write(folder, known.model_copy(update={"changes": (*known.changes, change)}))


def workers_admitted(
    folder: RunFolder, journal: Journal, header: dict[str, Any], now: Facts, force: bool
) -> Admit:
    """A test that admits workers only on machines like those of the run's values so far.

    The first worker of a run tells what these are. Where another one is forced, that is marked,
    and this process's workers are on all of those that it has admitted.
    """
    admitted: tuple[Machine, ...] = ()

    def admit(machine: Machine) -> None:
        nonlocal admitted
        known = read_environment(folder.environment)
        found = differences(known.last, now.model_copy(update={"workers": (machine,)}))
        if found and not force:
            raise RunError(
                f"a worker computes on another machine than the run so far: {'; '.join(found)}; "
                f"{REMEDY.format(same='give all workers the same kind of machine')}"
            )
        admitted = tuple(dict.fromkeys((*admitted, machine)))
        if found:
            mark(folder, journal, header, now.model_copy(update={"workers": admitted}))
        elif not known.last.machines:
            _write(folder, _with_workers(known, admitted))

    return admit


def _with_workers(known: Environment, workers: tuple[Machine, ...]) -> Environment:
    """An environment that says on what the workers compute that made its last values."""
    told = {"workers": workers}
    if not known.changes:
        return known.model_copy(update=told)
    *before, last = known.changes
    return known.model_copy(update={"changes": (*before, last.model_copy(update=told))})


def _write(folder: RunFolder, told: Environment) -> None:
    write_json(folder.environment, told.model_dump(mode="json"))
