"""The search stage of a run: what it is made with, the loop, winner and front."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict

from evocompress import run
from evocompress.apply import LiveModel
from evocompress.environment import environment
from evocompress.files import write_json
from evocompress.journal import Journal
from evocompress.outcome import all_values, front_rows, winner_record
from evocompress.planning import preflight
from evocompress.profile import write_table
from evocompress.progress import Advance
from evocompress.search.base import Searcher
from evocompress.workbench import Workbench


def find(bench: Workbench, listener: run.Listener | None = None) -> None:
    """Searches, and writes journal, winner and front into the run's folder.

    Args:
        bench: Of a run whose settings were checked and whose folder is locked.
        listener: Told about progress, beside the bench's reporter.

    Raises:
        EvoCompressError: Anything the user can mend.
    """
    _describe(bench)
    for line in preflight(bench):
        bench.reporter.say(line)
    bench.library  # noqa: B018  (a stage of its own, before the search is timed)
    with Journal(bench.folder.journal, bench.header()) as journal:
        _conclude(bench, journal, listener)


def _describe(bench: Workbench) -> None:
    """Writes what the run was made with, once."""
    folder = bench.folder
    if not folder.environment.exists():
        model = bench.loaded.model
        write_json(folder.environment, environment(model.device, model.dtype))
    if not folder.units.exists():
        architecture = bench.loaded.family.architecture(bench.loaded.model)
        outline = {
            "units": [asdict(unit) for unit in bench.units],
            "architecture": asdict(architecture),
            "opening": bench.calibration.opening,
        }
        write_json(folder.units, outline)
    if bench.latency_table is not None and not folder.latency.exists():
        write_table(folder.latency, bench.latency_table)


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
