"""The search stage of a run: what it is made with, the loop, winner and front."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from typing import Any

from evocompress import run
from evocompress.apply import LiveModel
from evocompress.circumstances import Change, Facts, differences, read_environment
from evocompress.environment import environment
from evocompress.errors import RunError
from evocompress.files import json_text, write_json, write_text
from evocompress.journal import Journal
from evocompress.outcome import all_values, front_rows, winner_record
from evocompress.planning import preflight
from evocompress.profile import write_table
from evocompress.progress import Advance
from evocompress.search.base import Searcher
from evocompress.workbench import Workbench

CIRCUMSTANCES = ("device", "dtype", "kernel", "threads")
"""Of the journal's header what a run may be forced to have otherwise."""


def find(bench: Workbench, listener: run.Listener | None = None, *, force: bool = False) -> None:
    """Searches, and writes journal, winner and front into the run's folder.

    Args:
        bench: Of a run whose settings were checked and whose folder is locked.
        listener: Told about progress, beside the bench's reporter.
        force: Go on under other circumstances than before.

    Raises:
        EvoCompressError: Anything the user can mend.
    """
    model = bench.loaded.model
    now = environment(model.device, model.dtype, bench.config.executor)
    changed = _changed(bench, Facts.model_validate(now), force)
    if bench.folder.extend(bench.config):
        bench.reporter.say("search.tokens is another than before: begun anew, from known values")
    _describe(bench, now)
    for line in preflight(bench):
        bench.reporter.say(line)
    bench.library  # noqa: B018  (a stage of its own, before the search is timed)
    header = bench.header()
    may_differ = CIRCUMSTANCES if changed else ()
    earlier = bench.folder.earlier_journals
    with Journal(bench.folder.journal, header, may_differ=may_differ, earlier=earlier) as journal:
        _outline(bench)
        if changed:
            _mark(bench, journal, header, Facts.model_validate(now))
        _conclude(bench, journal, listener)


def _changed(bench: Workbench, now: Facts, force: bool) -> bool:
    """Whether a run goes on under other circumstances than those of its last values.

    Raises:
        RunError: It would, and is not forced to.
    """
    folder = bench.folder
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
        raise RunError(
            f"{what}; values of both are not to be compared: go on where it was begun, search "
            "again with name=..., or go on all the same with --force, which the journal and the "
            "report then say"
        )
    return True


def _mark(bench: Workbench, journal: Journal, header: dict[str, Any], now: Facts) -> None:
    """Writes down that the run goes on under other circumstances: journal, then environment."""
    facts = now.model_dump(mode="json")
    journal.mark({key: header[key] for key in CIRCUMSTANCES}, facts)
    path = bench.folder.environment
    known = read_environment(path)
    change = Change(**facts, step=len(journal.steps))
    if differences(known.last, now, threads=True) or not known.changes:
        told = known.model_copy(update={"changes": (*known.changes, change)})
        write_json(path, told.model_dump(mode="json"))


def _describe(bench: Workbench, now: dict[str, Any]) -> None:
    """Writes what the run was made with, once."""
    folder = bench.folder
    if not folder.environment.exists():
        write_json(folder.environment, now)
    if bench.latency_table is not None and not folder.latency.exists():
        write_table(folder.latency, bench.latency_table)


def _outline(bench: Workbench) -> None:
    """Writes the units of the model, once more where the file is another or damaged."""
    outline = {
        "units": [asdict(unit) for unit in bench.units],
        "architecture": asdict(bench.loaded.family.architecture(bench.loaded.model)),
        "opening": bench.calibration.opening,
    }
    path, text = bench.folder.units, json_text(outline)
    if not path.exists() or path.read_bytes() != text.encode():
        write_text(path, text)


def _conclude(bench: Workbench, journal: Journal, listener: run.Listener | None) -> None:
    """Runs the search, and writes the winner and the front."""
    searcher, folder = bench.searcher(), bench.folder
    outcome = _evolve(bench, searcher, journal, listener)
    rows = front_rows(
        bench.space,
        journal,
        outcome,
        objectives=searcher.objectives,
        origins=searcher.origins(),
    )
    winner = winner_record(
        bench.space,
        outcome.best,
        rows,
        objectives=searcher.objectives,
        measured=all_values(journal, outcome.best, len(bench.calibration.search)),
    )
    write_json(folder.winner, winner)
    write_json(folder.front, rows)


def _evolve(
    bench: Workbench, searcher: Searcher, journal: Journal, listener: run.Listener | None
) -> run.Outcome:
    tokens = bench.config.search.tokens
    with (
        LiveModel(bench.loaded, bench.library) as live,
        closing(bench.executor(live)) as executor,
        bench.reporter.stage(f"search: {bench.config.search.name}") as advance,
    ):
        said = ""

        def told(progress: run.Progress) -> None:
            nonlocal said
            if progress.phase != said:
                said = progress.phase
                bench.reporter.say(f"  {said}")
            _show(advance, progress, tokens)
            if listener:
                listener(progress)

        return run.search(
            searcher, executor, journal, bench.calibration.pool, tokens=tokens, listener=told
        )


def _show(advance: Advance, progress: run.Progress, tokens: int | None) -> None:
    step = progress.step
    if step is None:
        return
    most = f" of at most {tokens:,}" if tokens else ""
    best = "" if step.value is None else f", best {step.value:.4g}"
    asked = f"{progress.done} of {progress.total} evaluations of the next step"
    text = f"step {step.step + 1}, {step.requested:,}{most} tokens{best}; {asked}"
    # Only the searcher knows when it will end, so no time left is given.
    advance(step.requested, None, text)
