"""The search stage of a run: what it is made with, the loop, winner and front."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from typing import Any

from evocompress.compression.live_model import LiveModel
from evocompress.core.circumstances import Admit, Facts
from evocompress.core.environment import environment
from evocompress.core.files import json_text, write_json, write_text
from evocompress.core.progress import Advance
from evocompress.evaluation.profile import write_table
from evocompress.pipeline import loop
from evocompress.pipeline.context import RunContext
from evocompress.pipeline.going_on import CIRCUMSTANCES, facts_changed, mark, workers_admitted
from evocompress.pipeline.journal import Journal
from evocompress.pipeline.last_candidates import LastStage
from evocompress.pipeline.planning import preflight
from evocompress.pipeline.results import front_rows, not_compared, winner_record
from evocompress.pipeline.short_healing import ShortRecipe
from evocompress.pipeline.winner import not_compared_text
from evocompress.search.base import Searcher


def find(
    context: RunContext,
    listener: loop.Listener | None = None,
    *,
    recipe: ShortRecipe | None = None,
    force: bool = False,
) -> None:
    """Searches, and writes journal, winner and front into the run's folder, which is locked.

    With a recipe the last candidates are healed by it before one of them is the winner.
    """
    model = context.loaded.model
    record = environment(model.device, model.dtype, context.config.executor, context.packages)
    now = Facts.model_validate(record)
    forced = facts_changed(context.folder, now, force)
    if context.folder.extend(context.config):
        context.reporter.say("search.tokens is another than before: begun anew, from known values")
    _describe(context, record)
    for line in preflight(context):
        context.reporter.say(line)
    context.library  # noqa: B018  (a stage of its own, before the search is timed)
    header = context.header() | ({"heal_last": recipe.facts} if recipe else {})
    may_differ = CIRCUMSTANCES if forced else ()
    earlier = context.folder.earlier_journals
    with Journal(context.folder.journal, header, may_differ=may_differ, earlier=earlier) as journal:
        _outline(context)
        if forced:
            mark(context.folder, journal, header, now)
        admit = workers_admitted(context.folder, journal, header, now, force)
        last = LastStage(context, journal, recipe, forced) if recipe else None
        _conclude(context, journal, admit, listener, last)


def _describe(context: RunContext, record: dict[str, Any]) -> None:
    """Writes what the run was made with, once."""
    folder = context.folder
    if not folder.environment.exists():
        write_json(folder.environment, record)
    if context.latency_table is not None and not folder.latency.exists():
        write_table(folder.latency, context.latency_table)


def _outline(context: RunContext) -> None:
    """Writes the units of the model, once more where the file is another or damaged."""
    outline = {
        "units": [asdict(unit) for unit in context.units],
        "architecture": asdict(context.loaded.family.architecture(context.loaded.model)),
        "opening": context.calibration.opening,
    }
    path, text = context.folder.units, json_text(outline)
    if not path.exists() or path.read_bytes() != text.encode():
        write_text(path, text)


def _conclude(
    context: RunContext,
    journal: Journal,
    admit: Admit,
    listener: loop.Listener | None,
    last: LastStage | None,
) -> None:
    """Runs the search, has the last candidates healed, and writes the winner and the front."""
    searcher, folder = context.searcher(), context.folder
    outcome = _evolve(context, searcher, journal, admit, listener)
    rows = front_rows(
        context.space, journal, outcome, objectives=searcher.objectives, origins=searcher.origins()
    )
    left_out = not_compared(journal, outcome)
    best, healed = last.choose(outcome.best, rows) if last else (outcome.best, [])
    winner = winner_record(
        context.space,
        best,
        rows,
        objectives=searcher.objectives,
        measured=journal.measured(best.candidate.id, best.treatment),
        not_compared=left_out,
        healed_last=healed,
    )
    write_json(folder.winner, winner)
    write_json(folder.front, rows)
    if left_out:
        context.reporter.say(f"front.json: {len(rows):,} candidates; {not_compared_text(left_out)}")


def _evolve(
    context: RunContext,
    searcher: Searcher,
    journal: Journal,
    admit: Admit,
    listener: loop.Listener | None,
) -> loop.SearchResult:
    tokens = context.config.search.tokens
    with (
        LiveModel(context.loaded, context.library) as live,
        closing(context.executor(live, admit)) as executor,
        context.reporter.stage(f"search: {context.config.search.name}") as advance,
    ):
        said = ""

        def told(progress: loop.Progress) -> None:
            nonlocal said
            if progress.phase != said:
                said = progress.phase
                context.reporter.say(f"  {said}")
            _show(advance, progress, tokens)
            if listener:
                listener(progress)

        return loop.search(
            searcher, executor, journal, context.calibration.pool, tokens=tokens, listener=told
        )


def _show(advance: Advance, progress: loop.Progress, tokens: int | None) -> None:
    step = progress.step
    if step is None:
        return
    most = f" of at most {tokens:,}" if tokens else ""
    best = "" if step.value is None else f", best {step.value:.4g}"
    asked = f"{progress.done} of {progress.total} evaluations of the next step"
    text = f"step {step.step + 1}, {step.requested:,}{most} tokens{best}; {asked}"
    # Only the searcher knows when it will end, so no time left is given.
    advance(step.requested, None, text)
