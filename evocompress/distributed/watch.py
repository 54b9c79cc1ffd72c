"""Says how a sweep goes on, from what its trials write; no trial knows that it is watched."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from evocompress.core.errors import RunError
from evocompress.core.progress import Reporter
from evocompress.pipeline.sweep.config import SweepConfig
from evocompress.pipeline.sweep.folder import SweepFolder
from evocompress.pipeline.sweep.outcome import TrialOutcome, outcomes
from evocompress.pipeline.sweep.trials import size_of

EVERY = 2.0
"""Seconds between two looks."""


@contextmanager
def watching(sweep: SweepConfig, folder: SweepFolder, reporter: Reporter) -> Iterator[None]:
    """Tells the reporter about the trials while the body runs."""
    total = size_of(sweep)
    over = threading.Event()
    with reporter.stage(f"sweep of {total} trials") as advance:
        known: set[str] = set()

        def look() -> None:
            found = outcomes(folder, sweep)
            for outcome in found:
                if outcome.status == "failed" and outcome.name not in known:
                    known.add(outcome.name)
                    reporter.say(f"  {outcome.name} failed: {outcome.reason}")
            done = sum(outcome.status not in ("unfinished", "waiting") for outcome in found)
            advance(done, total, _text(found, total))

        def watch() -> None:
            while not over.wait(EVERY):
                # A trial may be writing, or somebody deleting; the next look will do.
                with suppress(OSError, RunError):
                    look()

        watcher = threading.Thread(target=watch, name="sweep-watcher", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()
        look()


def _text(found: Sequence[TrialOutcome], total: int) -> str:
    """How many trials are over and in work, and what the latter have asked for."""
    over = sum(outcome.status not in ("unfinished", "waiting") for outcome in found)
    busy = [outcome for outcome in found if outcome.status == "unfinished"]
    tokens = sum(outcome.requested or 0 for outcome in found)
    return f"{over} of {total} over, {len(busy)} begun, {tokens:,} tokens requested"
